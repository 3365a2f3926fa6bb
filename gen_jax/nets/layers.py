"""Layers that more than one architecture uses, each in the form that is fast on every backend."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import draws
from gen_jax.errors import UserError
from gen_jax.ops import convolutions
from gen_jax.ops.not_inlined import not_inlined

# Radford et al. 2016: every weight from N(0, 0.02).
NORMAL_02 = nn.initializers.normal(0.02)


# --- Convolutions -------------------------------------------------------------------------------


class Conv(nn.Module):
  """Convolution with SAME padding: [b, h, w, c] -> [b, ceil(h / stride), ceil(w / stride),
  features].
  """

  features: int
  kernel: int = 3
  stride: int = 1
  bias: bool = True
  kernel_init: Callable = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernel, self.kernel, x.shape[-1], self.features)
    x = convolutions.conv(x, self.param('kernel', self.kernel_init, shape), self.stride)
    if not self.bias:
      return x
    return x + self.param('bias', nn.initializers.zeros, (self.features,))[None, None, None]


class UpsampledConv(nn.Module):
  """A 3x3 `Conv` of x made twice as large (nearest neighbour): [b, h, w, c] -> [b, 2 h, 2 w,
  features].
  """

  features: int
  kernel_init: Callable = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param('kernel', self.kernel_init, (3, 3, x.shape[-1], self.features))
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    return convolutions.upsampled_conv(x, kernel) + bias[None, None, None]


class UpConv(nn.Module):
  """Transposed convolution with SAME padding: [b, h, w, c] -> [b, h stride, w stride, features].

  For a 4x4 kernel and stride 2 this is PyTorch's ConvTranspose2d(4, 2, padding=1). The kernel's
  layout is [k, k, features, c], that of the convolution whose transpose this is.
  """

  features: int
  kernel: int = 4
  stride: int = 2
  bias: bool = True
  kernel_init: Callable = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernel, self.kernel, self.features, x.shape[-1])
    x = convolutions.transposed_conv(x, self.param('kernel', self.kernel_init, shape), self.stride)
    if not self.bias:
      return x
    return x + self.param('bias', nn.initializers.zeros, (self.features,))[None, None, None]


# --- Noise, resolution, time --------------------------------------------------------------------


class Dropout(nn.Module):
  """Dropout whose mask does not depend on how the batch is spread over devices
  (see gen_jax.draws).
  """

  rate: float
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    if not 0 <= self.rate < 1:
      raise UserError(f'dropout={self.rate!r} of a net: a number from 0 to below 1 is needed')
    if not train or self.rate == 0:
      return x
    keep = draws.bernoulli(self.make_rng('dropout'), 1 - self.rate, x.shape, self.axis_name)
    return jnp.where(keep, x / (1 - self.rate), 0)


class GroupNorm(nn.Module):
  """Flax's GroupNorm, same parameters and values, as one factor and shift per channel, and `swish`
  of it if asked for.

  The moments are taken per channel first, over contiguous memory, then joined by group: two to
  three times faster on CPU than reducing the grouped array (docs/performance.md).
  """

  groups: int
  epsilon: float = 1e-6
  swish: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, scale_shift: Sequence[jax.Array] | None = None) -> jax.Array:
    """[b, h, w, c] -> [b, h, w, c]. With a scale and a shift for every example, [b, c] each, y
    becomes y (1 + scale) + shift, before swish.
    """
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
    scale, bias = (_for_every_example(p, x.shape[0]) for p in (scale, bias))
    if scale_shift is not None:
      more, shift = scale_shift
      scale, bias = scale * (1 + more), bias * (1 + more) + shift
    # Accelerators need no help, and keep JAX's own derivatives, with a forward mode.
    form = _normalise_on_cpu if jax.default_backend() == 'cpu' else _normalise
    return form(x, scale, bias, self.groups, self.epsilon, self.swish)


def _for_every_example(parameter, b):
  """[c] -> [b, c], float32, by a product: its derivative adds up examples, where XLA would add up
  all of x's gradient once more. On GPUs it takes that for a sum and joins both: hence a barrier.
  """
  ones = jnp.ones((b, 1))
  return jax.lax.optimization_barrier(jnp.dot(ones, parameter[None], precision='highest'))


def _normalise(x, scale, bias, groups, epsilon, swish):
  return _normalise_fwd(x, scale, bias, groups, epsilon, swish)[0]


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


_normalise_by_rule = jax.custom_vjp(_normalise, nondiff_argnums=(3, 4, 5))
_normalise_by_rule.defvjp(_normalise_fwd, _normalise_bwd)
# Traced once for a shape, not in every layer.
_normalise_on_cpu = jax.jit(_normalise_by_rule, static_argnums=(3, 4, 5))


def _moments(x):
  """Means of x and x^2 over positions, float32 [2, b, c]."""
  x = x.astype(jnp.float32)  # of bfloat16, mean**2 would swallow the variance
  return jnp.stack([x.mean((1, 2)), (x**2).mean((1, 2))])


def _factor_and_shift(moments, scale, bias, groups, epsilon):
  """Both [b, c]: what is normalised, scaled and shifted is x factor + shift."""
  c = moments.shape[-1]
  group = jnp.arange(c) // (c // groups)
  mean_of_group = (group[:, None] == group[None]) * jnp.float32(groups / c)
  # By a product, as otherwise XLA looks a channel's group up at every entry of x, which keeps it
  # from doing norm and swish in vectors.
  mean, square = jnp.dot(moments, mean_of_group, precision='highest')
  variance = jnp.maximum(square - mean**2, 0)
  factor = jax.lax.rsqrt(variance + epsilon) * scale
  return factor, bias - mean * factor


# What goes through x once: XLA would compute parts of it anew in what reads it, or keep them.


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


def mean_pool(x: jax.Array) -> jax.Array:
  """Mean of each 2x2 block: [b, h, w, c] -> [b, h / 2, w / 2, c]; h and w must be even."""
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def time_embedding(t: jax.Array, dim: int) -> jax.Array:
  """Sinusoids of the time step: [b] -> float32 [b, dim], sines first (Ho et al. 2020, from Vaswani
  et al. 2017).

  Frequencies run from 1 down to 1/10000 in dim/2 geometric steps, both ends included.

  Raises:
    ValueError: `dim` is odd or less than 4.
  """
  if dim < 4 or dim % 2:
    raise ValueError(f'a time embedding of {dim} features: an even number from 4 up is needed')
  half = dim // 2
  freqs = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - 1))
  angles = t.astype(jnp.float32)[:, None] * freqs[None]
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def flatten(x: jax.Array) -> jax.Array:
  """[b, ...] -> [b, everything]."""
  return x.reshape(x.shape[0], -1)
