"""Layers that more than one architecture uses, each in the form that is fast on every backend."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import draws

# Radford et al. 2016: every weight from N(0, 0.02).
NORMAL_02 = nn.initializers.normal(0.02)


# --- Convolutions with a stride -----------------------------------------------------------------
#
# A convolution, its input gradient and its weight gradient are the three sides of one trilinear
# form, so every derivative of each of them, of any order, is again one of the three. Told so,
# XLA:CPU keeps to its fast kernels; left to JAX's rules, the second-order gradient of a gradient
# penalty and the weight gradient of a transposed convolution come out as dilated convolutions that
# are 10 to 30 times slower (docs/performance.md). Only on CPU: a custom_vjp has no forward mode,
# and accelerators do not need it.


def _convolution(x, w, stride, padding):
  return jax.lax.conv_general_dilated(
    x, w, (stride, stride), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def _input_gradient(g, w, stride, padding, hw):
  x = jax.ShapeDtypeStruct((g.shape[0], *hw, w.shape[2]), g.dtype)
  return jax.linear_transpose(lambda x: _convolution(x, w, stride, padding), x)(g)[0]


def _weight_gradient(x, g, stride, padding, kernel):
  w = jax.ShapeDtypeStruct((*kernel, x.shape[3], g.shape[3]), x.dtype)
  return jax.linear_transpose(lambda w: _convolution(x, w, stride, padding), w)(g)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _down(x, w, stride, padding):
  """y = x * w."""
  return _convolution(x, w, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _up(g, w, stride, padding, hw):
  """x = the input gradient of `_down` for the output gradient g;
  also the transposed convolution.
  """
  return _input_gradient(g, w, stride, padding, hw)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _correlate(x, g, stride, padding, kernel):
  """w = the weight gradient of `_down` for the input x and the output gradient g."""
  return _weight_gradient(x, g, stride, padding, kernel)


_down.defvjp(
  lambda x, w, stride, padding: (_down(x, w, stride, padding), (x, w)),
  lambda stride, padding, saved, g: (
    _up(g, saved[1], stride, padding, saved[0].shape[1:3]),
    _correlate(saved[0], g, stride, padding, saved[1].shape[:2]),
  ),
)
_up.defvjp(
  lambda g, w, stride, padding, hw: (_up(g, w, stride, padding, hw), (g, w)),
  lambda stride, padding, hw, saved, x: (
    _down(x, saved[1], stride, padding),
    _correlate(x, saved[0], stride, padding, saved[1].shape[:2]),
  ),
)
_correlate.defvjp(
  lambda x, g, stride, padding, kernel: (_correlate(x, g, stride, padding, kernel), (x, g)),
  lambda stride, padding, kernel, saved, w: (
    _up(saved[1], w, stride, padding, saved[0].shape[1:3]),
    _down(saved[0], w, stride, padding),
  ),
)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
  """TensorFlow's SAME: zeros (before, after) that give ceil(size / stride) outputs,
  the odd one after.
  """
  total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
  return total // 2, total - total // 2


def strided_conv(x: jax.Array, w: jax.Array, stride: int) -> jax.Array:
  """SAME convolution of x [b, h, w, c] with w [k, k, c, d] -> [b, ceil(h / stride),
  ceil(w / stride), d].
  """
  padding = tuple(same_padding(size, w.shape[0], stride) for size in x.shape[1:3])
  if jax.default_backend() != 'cpu':
    return _convolution(x, w, stride, padding)
  # XLA:CPU's input gradient is 30 times slower for an odd size with even padding on both sides, so
  # one of the zeros before becomes part of the input.
  odd = tuple(
    int(size % 2 == 1 and before > 0)
    for size, (before, _) in zip(x.shape[1:3], padding, strict=True)
  )
  if any(odd):
    x = jnp.pad(x, ((0, 0), (odd[0], 0), (odd[1], 0), (0, 0)))
    padding = tuple((before - o, after) for o, (before, after) in zip(odd, padding, strict=True))
  return _down(x, w, stride, padding)


def transposed_conv(x: jax.Array, w: jax.Array, stride: int) -> jax.Array:
  """The transpose of `strided_conv`: x [b, h, w, d] with w [k, k, c, d] -> [b, h stride, w stride,
  c].
  """
  hw = (x.shape[1] * stride, x.shape[2] * stride)
  padding = tuple(same_padding(size, w.shape[0], stride) for size in hw)
  if jax.default_backend() != 'cpu':
    return _input_gradient(x, w, stride, padding, hw)
  return _up(x, w, stride, padding, hw)


class DownConv(nn.Module):
  """Convolution with a stride and SAME padding:
  [b, h, w, c] -> [b, ceil(h / stride), ..., features].
  """

  features: int
  kernel: int = 4
  stride: int = 2
  bias: bool = True
  kernel_init: Callable = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernel, self.kernel, x.shape[-1], self.features)
    x = strided_conv(x, self.param('kernel', self.kernel_init, shape), self.stride)
    if not self.bias:
      return x
    return x + self.param('bias', nn.initializers.zeros, (self.features,))[None, None, None]


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
    x = transposed_conv(x, self.param('kernel', self.kernel_init, shape), self.stride)
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
    if not train or self.rate == 0:
      return x
    keep = draws.bernoulli(self.make_rng('dropout'), 1 - self.rate, x.shape, self.axis_name)
    return jnp.where(keep, x / (1 - self.rate), 0)


class GroupNorm(nn.Module):
  """Flax's GroupNorm, same parameters and values, as one scale and shift per channel.

  The moments are taken per channel first, over contiguous memory, then joined by group: two to
  three times faster on CPU than reducing the grouped array (docs/performance.md).
  """

  groups: int
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, _, _, c = x.shape
    scale = self.param('scale', nn.initializers.ones, (c,))
    bias = self.param('bias', nn.initializers.zeros, (c,))

    def by_group(moment):  # [b, c] -> means over each group's channels, [b, c]
      means = moment.reshape(b, self.groups, -1).mean(-1)
      return jnp.repeat(means, c // self.groups, axis=1)

    mean = by_group(x.mean((1, 2)))
    variance = jnp.maximum(by_group((x**2).mean((1, 2))) - mean**2, 0)
    factor = jax.lax.rsqrt(variance + self.epsilon) * scale[None]
    shift = bias[None] - mean * factor
    return x * factor[:, None, None] + shift[:, None, None]


def upsample(x: jax.Array) -> jax.Array:
  """Nearest neighbour, twice the size: [b, h, w, c] -> [b, 2 h, 2 w, c]."""
  b, h, w, c = x.shape
  return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def mean_pool(x: jax.Array) -> jax.Array:
  """Mean of each 2x2 block: [b, h, w, c] -> [b, h / 2, w / 2, c]; h and w must be even."""
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def time_embedding(t: jax.Array, dim: int) -> jax.Array:
  """Sinusoids of the time step: [b] -> float32 [b, dim], sines first (Ho et al. 2020, from Vaswani
  et al. 2017).

  Frequencies run from 1 down to 1/10000 in dim/2 geometric steps, both ends included.
  """
  half = dim // 2
  freqs = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - 1))
  angles = t.astype(jnp.float32)[:, None] * freqs[None]
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def flatten(x: jax.Array) -> jax.Array:
  """[b, ...] -> [b, everything]."""
  return x.reshape(x.shape[0], -1)


def size(shape: Sequence[int]) -> int:
  """Number of entries of an array of `shape`."""
  return functools.reduce(lambda a, b: a * b, shape, 1)
