"""Adam and the norm of a gradient, equal to optax's."""

import jax
import jax.numpy as jnp
import optax

from gen_jax.ops.not_inlined import not_inlined


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
  """`optax.scale_by_adam`, with the same state and values."""
  adam = optax.scale_by_adam(b1, b2, eps)
  if jax.default_backend() != 'cpu':
    return adam
  # Materialises the new moments: XLA would recompute them for the parameters, and copy the old
  # ones, which that computation would still read.
  moments = not_inlined(lambda updates, state: adam.update(updates, state)[1])

  def update(updates, state, params=None):
    state = moments(updates, state)
    mu_rest, nu_rest = 1 - b1**state.count, 1 - b2**state.count

    def direction(mu, nu):
      return (mu / mu_rest) / (jnp.sqrt(nu / nu_rest) + eps)

    return jax.tree.map(direction, state.mu, state.nu), state

  return optax.GradientTransformation(adam.init, update)


def global_norm(tree) -> jax.Array:
  """`optax.tree.norm`: the root of the sum of all squares, a scalar."""
  if jax.default_backend() != 'cpu':
    return optax.tree.norm(tree)
  # Inlined, XLA would keep the squares of every leaf in memory, as Adam uses them, too.
  return jnp.sqrt(sum(_sum_of_squares(leaf) for leaf in jax.tree.leaves(tree)))


@not_inlined
def _sum_of_squares(x):
  return jnp.sum(x * x)
