"""Group normalisation (Wu and He 2018, arXiv 1803.08494)."""

import functools

import jax
import jax.numpy as jnp

from gen_jax import ops
from gen_jax.ops.not_inlined import not_inlined


def group_norm(
  x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float, swish: bool
) -> jax.Array:
  """x [b, h, w, c], normalised over the positions and channels of each of `groups` groups, times
  scale [b, c] plus bias [b, c], optionally followed by `swish`. Moments are float32.
  """
  if ops.plain():
    return _normalise(x, scale, bias, groups, epsilon, swish)
  return _normalise_on_cpu(x, scale, bias, groups, epsilon, swish)


def per_example(parameter: jax.Array, b: int) -> jax.Array:
  """A parameter [c] repeated for each example, float32 [b, c].

  Its derivative sums over examples. The product separates that sum of [b, c] from the one over
  positions, and the barrier keeps GPU compilers from merging both into one pass over all of x.
  """
  ones = jnp.ones((b, 1))
  return jax.lax.optimization_barrier(jnp.dot(ones, parameter[None], precision='highest'))


def _normalise(x, scale, bias, groups, epsilon, swish):
  factor, shift = _factor_and_shift(_moments(x), scale, bias, groups, epsilon)
  y = _scaled(x, factor, shift)
  return (y * jax.lax.logistic(y) if swish else y).astype(x.dtype)


# --- On CPU: passes over x that are not inlined, and a derivative that reads x twice -------------


def _normalise_fwd(x, scale, bias, groups, epsilon, swish):
  moments = _moments(x)
  factor, shift = _factor_and_shift(moments, scale, bias, groups, epsilon)
  return _affine(x, factor, shift, swish), (x, moments, scale, bias)


def _normalise_bwd(groups, epsilon, swish, saved, g):
  x, *arguments = saved
  (factor, shift), pull_back = jax.vjp(
    lambda *arguments: _factor_and_shift(*arguments, groups, epsilon), *arguments
  )
  g = _swish_gradient(x, factor, shift, g) if swish else g.astype(jnp.float32)
  moments, scale, bias = pull_back(((g * x.astype(jnp.float32)).sum((1, 2)), g.sum((1, 2))))
  return _input_gradient(g, x, factor, moments / (x.shape[1] * x.shape[2])), scale, bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _normalise_by_rule(x, scale, bias, groups, epsilon, swish):
  return _normalise_fwd(x, scale, bias, groups, epsilon, swish)[0]


_normalise_by_rule.defvjp(_normalise_fwd, _normalise_bwd)
# Traced once per shape rather than in every layer.
_normalise_on_cpu = jax.jit(_normalise_by_rule, static_argnums=(3, 4, 5))


def _moments(x):
  """Means of x and x^2 over positions, float32 [2, b, c]."""
  x = x.astype(jnp.float32)  # in bfloat16, subtracting mean**2 would lose the variance
  return jnp.stack([x.mean((1, 2)), (x**2).mean((1, 2))])


def _factor_and_shift(moments, scale, bias, groups, epsilon):
  """Factor and shift, both [b, c]: the normalised, scaled and shifted x is x factor + shift."""
  c = moments.shape[-1]
  group = jnp.arange(c) // (c // groups)
  mean_of_group = (group[:, None] == group[None]) * jnp.float32(groups / c)
  # A matrix product: indexing by group, XLA would look up a channel's group at every entry of x and
  # could not vectorise norm and swish.
  mean, square = jnp.dot(moments, mean_of_group, precision='highest')
  variance = jnp.maximum(square - mean**2, 0)
  factor = jax.lax.rsqrt(variance + epsilon) * scale
  return factor, bias - mean * factor


# One pass over x each: inlined, XLA would recompute them in every consumer, or keep copies.


@functools.partial(not_inlined, static_argnums=3)
def _affine(x, factor, shift, swish):
  y = _scaled(x, factor, shift)
  return (y * jax.lax.logistic(y) if swish else y).astype(x.dtype)


@not_inlined
def _swish_gradient(x, factor, shift, g):
  y = _scaled(x, factor, shift)
  sigmoid = jax.lax.logistic(y)
  return g * sigmoid * (1 + y * (1 - sigmoid))


@not_inlined
def _input_gradient(g, x, factor, moments):
  mean, square = moments
  return (_scaled(g, factor, mean) + 2 * square[:, None, None] * x).astype(x.dtype)


def _scaled(x, factor, shift):
  return factor[:, None, None] * x + shift[:, None, None]
