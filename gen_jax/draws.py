"""Random draws that do not depend on how the batch is sharded over devices.

Under `jit` every array is global, and a draw of shape `[batch, ...]` is the same on any number of
devices. Under `pmap` a step sees only the rows of its device. These functions then draw for the
global batch and keep the rows of this device, so that `jit` and `pmap` train on the same noise
(JAX's threefry computes the bits of an entry from the key and the entry's position, and XLA
computes only the entries that are kept).
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


def rows(draw: Callable, shape: Sequence[int], axis_name: str | None, axis: int = 0) -> jax.Array:
  """Returns `draw(global_shape)`, or this device's part of it along `axis`.

  Args:
    draw: maps a shape to an array of that shape; must use the same key on every device.
    shape: the local shape; `shape[axis]` is the number of rows that this device sees.
    axis_name: name of the `pmap` axis, `None` outside of one.
    axis: the batch dimension.
  """
  shape = tuple(shape)
  if axis_name is None:
    return draw(shape)
  local = shape[axis]
  devices = jax.lax.axis_size(axis_name)
  whole = draw((*shape[:axis], local * devices, *shape[axis + 1 :]))
  return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(axis_name) * local, local, axis)


def normal(key, shape, axis_name=None, axis=0) -> jax.Array:
  """Standard normal float32 `shape`; arguments as in `rows`."""
  return rows(lambda s: jax.random.normal(key, s), shape, axis_name, axis)


def uniform(key, shape, axis_name=None, axis=0, low=0.0, high=1.0) -> jax.Array:
  """Uniform float32 in [low, high) of `shape`; arguments as in `rows`."""
  return rows(lambda s: jax.random.uniform(key, s, jnp.float32, low, high), shape, axis_name, axis)


def integers(key, shape, low, high, axis_name=None, axis=0) -> jax.Array:
  """Uniform int32 in [low, high) of `shape`; arguments as in `rows`."""
  return rows(lambda s: jax.random.randint(key, s, low, high), shape, axis_name, axis)


def bernoulli(key, p, shape, axis_name=None, axis=0) -> jax.Array:
  """Boolean `shape`, true with probability `p` to within 2**-17; arguments as in `rows`.

  An entry uses sixteen bits, so one call of threefry yields four entries: on CPU these calls are
  the cost of dropout.
  """

  def draw(shape):
    words = threefry(key, (*shape[:-1], -(-shape[-1] // 4)))
    halves = jax.lax.bitcast_convert_type(jnp.stack(words, -1), jnp.uint16).astype(jnp.int32)
    return halves.reshape(*shape[:-1], -1)[..., : shape[-1]] < round(p * 2**16)

  return rows(draw, shape, axis_name, axis)


@functools.partial(jax.jit, static_argnums=1)  # traced once for a shape, not at every dropout
def threefry(key, shape) -> tuple[jax.Array, jax.Array]:
  """Threefry-2x32 with 20 rounds (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3,
  section 4.2) of the counters 0, 1, ...: two uint32 arrays of `shape`.

  Their exclusive or is `jax.random.bits(key, shape)`, which uses half of the bits and, on CPU, runs
  the rounds as a loop over arrays with one pass through memory each. Here the rounds are a single
  expression, which every backend fuses with the code that uses the bits.
  """
  jax.random.bits(key, (0,))  # empty, but marks the key as used for jax.debug_key_reuse
  k0, k1 = jax.random.key_data(key).ravel()[:2]  # an rbg key is two threefry keys
  keys = (k0, k1, k0 ^ k1 ^ jnp.uint32(0x1BD11BDA))
  x0 = jnp.broadcast_to(k0, shape)
  x1 = k1 + jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
  for i in range(5):
    for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
      x0 = x0 + x1
      x1 = x0 ^ (x1 << rotation | x1 >> 32 - rotation)
    x0, x1 = x0 + keys[(i + 1) % 3], x1 + keys[(i + 2) % 3] + jnp.uint32(i + 1)
  return x0, x1
