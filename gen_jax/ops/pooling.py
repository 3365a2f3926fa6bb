"""Pooling over 3x3 windows."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def max_pool(x: jax.Array, stride: int = 1, padding: int = 0) -> jax.Array:
  """Maxima of 3x3 windows: [b, h, w, c] -> [b, (h + 2 padding - 3) // stride + 1, ..., c]."""
  if jax.default_backend() != 'cpu':
    return nn.max_pool(x, (3, 3), (stride, stride), ((padding, padding),) * 2)
  return functools.reduce(jnp.maximum, shifts(_bordered(x, padding, -np.inf), (3, 3), stride)[0])


def average_pool(x: jax.Array) -> jax.Array:
  """Means of 3x3 windows, excluding the padding: [b, h, w, c] -> [b, h, w, c]."""
  if jax.default_backend() != 'cpu':
    return nn.avg_pool(x, (3, 3), padding='SAME', count_include_pad=False)
  counts = _bordered(np.ones((1, *x.shape[1:3], 1), np.float32), 1, 0)
  sums = sum(shifts(_bordered(x, 1, 0), (3, 3), 1)[0])
  return sums / sum(shifts(counts, (3, 3), 1)[0])


def _bordered(x, width, value):
  return jnp.pad(x, ((0, 0), (width, width), (width, width), (0, 0)), constant_values=value)


def shifts(x: jax.Array, kernel, stride: int, padding=((0, 0), (0, 0))):
  """x [b, h, w, c] shifted to each kernel position, arrays [b, h', w', c], and (h', w')."""
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  h, w = ((n - k) // stride + 1 for n, k in zip(x.shape[1:3], kernel, strict=True))
  rows, columns = stride * (h - 1) + 1, stride * (w - 1) + 1
  seen = [
    x[:, i : i + rows : stride, j : j + columns : stride]
    for i in range(kernel[0])
    for j in range(kernel[1])
  ]
  return seen, (h, w)
