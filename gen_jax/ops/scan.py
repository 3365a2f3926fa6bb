"""`lax.scan` for loop bodies that take gradients."""

import jax
import jax.numpy as jnp


def scan(body, init, xs):
  """`jax.lax.scan(body, init, xs)` for bodies that take gradients; same values on every backend.

  XLA's CPU backend runs the gradient of a convolution 14 to 80 times slower inside a loop than
  outside of one, so there the loop over a step's minibatches is unrolled.
  """
  if jax.default_backend() != 'cpu':
    return jax.lax.scan(body, init, xs)
  carry, ys = init, []
  for i in range(len(jax.tree.leaves(xs)[0])):
    carry, y = body(carry, jax.tree.map(lambda leaf, i=i: leaf[i], xs))
    ys.append(y)
  return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)


def after(first, x):
  """The arrays `x`, for a body of `scan` that must not start before the arrays `first` are
  computed, so that both can use the same memory.

  A loop orders its iterations. XLA may reorder those of an unrolled one, and its CPU backend has
  dropped `lax.optimization_barrier` by then, so x is made to depend on `first`: 0 times one entry
  of each leaf is added to floating-point arrays (exact, unless they are not finite).
  """
  if jax.default_backend() != 'cpu':
    return x
  zero = 0 * sum(leaf.ravel()[0].astype(jnp.float32) for leaf in jax.tree.leaves(first))
  floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
  return jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype) if floating(leaf) else leaf, x)
