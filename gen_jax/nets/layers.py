"""Layers that several architectures use, in a form that is fast on every backend."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import draws
from gen_jax.errors import UserError
from gen_jax.ops import convolutions, norms

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
  """Nearest-neighbour upsampling by 2, then a 3x3 `Conv`: [b, h, w, c] -> [b, 2 h, 2 w, d]."""

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


def batch_norm_02(axis_name: str | None) -> nn.BatchNorm:
  """Radford's batch norm: always uses the statistics of the batch, even in sampling; gamma from
  N(1, 0.02).
  """
  return nn.BatchNorm(
    use_running_average=False,
    epsilon=1e-5,  # the original's 1e-8 overflows in float32 for dead units
    scale_init=lambda key, shape, dtype: 1 + NORMAL_02(key, shape, dtype),
    axis_name=axis_name,
  )


# --- Noise, resolution, time --------------------------------------------------------------------


class Dropout(nn.Module):
  """Dropout whose mask does not depend on how the batch is sharded over devices
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
  """Flax's GroupNorm, with the same parameters and values, optionally followed by `swish`."""

  groups: int
  epsilon: float = 1e-6
  swish: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, scale_shift: Sequence[jax.Array] | None = None) -> jax.Array:
    """[b, h, w, c] -> [b, h, w, c]. With a scale and a shift per example, [b, c] each, the output y
    becomes y (1 + scale) + shift, before swish.
    """
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
    scale, bias = (norms.per_example(p, x.shape[0]) for p in (scale, bias))
    if scale_shift is not None:
      more, shift = scale_shift
      scale, bias = scale * (1 + more), bias * (1 + more) + shift
    return norms.group_norm(x, scale, bias, self.groups, self.epsilon, self.swish)


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
    raise ValueError(f'a time embedding of {dim} features: an even number of at least 4 is needed')
  half = dim // 2
  freqs = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - 1))
  angles = t.astype(jnp.float32)[:, None] * freqs[None]
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def flatten(x: jax.Array) -> jax.Array:
  """[b, ...] -> [b, n], with all axes but the first merged."""
  return x.reshape(x.shape[0], -1)
