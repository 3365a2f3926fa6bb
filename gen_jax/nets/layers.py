"""Layers that several architectures use, in a form that is fast on every backend."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import draws
from gen_jax.errors import UserError
from gen_jax.ops import convolutions, norms

MOMENTUM = 0.9  # of the running averages of ConditionalBatchNorm

# Radford et al. 2016: every weight from N(0, 0.02).
NORMAL_02 = nn.initializers.normal(0.02)


# --- Convolutions -------------------------------------------------------------------------------


class Conv(nn.Module):
  """Convolution: [b, h, w, c] -> [b, ceil(h / stride), ceil(w / stride), features] with SAME
  padding.
  """

  features: int
  kernel: int = 3
  stride: int = 1
  bias: bool = True
  kernel_init: Callable = nn.initializers.lecun_normal()
  bias_init: Callable = nn.initializers.zeros
  padding: int | None = None  # zeros at every side; None: SAME

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernel, self.kernel, x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    x = convolutions.conv(x, kernel, self.stride, self.padding)
    if not self.bias:
      return x
    return x + self.param('bias', self.bias_init, (self.features,))[None, None, None]


class UpsampledConv(nn.Module):
  """Nearest-neighbour upsampling by 2, then a 3x3 `Conv`: [b, h, w, c] -> [b, 2 h, 2 w, d]."""

  features: int
  kernel_init: Callable = nn.initializers.lecun_normal()
  bias_init: Callable = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param('kernel', self.kernel_init, (3, 3, x.shape[-1], self.features))
    bias = self.param('bias', self.bias_init, (self.features,))
    return convolutions.upsampled_conv(x, kernel) + bias[None, None, None]


class PooledConv(nn.Module):
  """A 3x3 `Conv`, then `mean_pool`: [b, h, w, c] -> [b, h / 2, w / 2, d]; h and w must be even."""

  features: int
  kernel_init: Callable = nn.initializers.lecun_normal()
  bias_init: Callable = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param('kernel', self.kernel_init, (3, 3, x.shape[-1], self.features))
    bias = self.param('bias', self.bias_init, (self.features,))
    # One 4x4 convolution with stride 2, less than half as many products.
    shifted = [
      jnp.pad(kernel, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i in (0, 1) for j in (0, 1)
    ]
    return convolutions.conv(x, sum(shifted) / 4, stride=2) + bias[None, None, None]


class UpConv(nn.Module):
  """Transposed convolution with SAME padding: [b, h, w, c] -> [b, h stride, w stride, features].

  For a 4x4 kernel and stride 2 this is PyTorch's ConvTranspose2d(4, 2, padding=1). With `padding`
  it is that of any kernel and stride, see `ops.convolutions.transposed_conv`. The kernel's layout
  is [k, k, features, c], that of the convolution whose transpose this is.
  """

  features: int
  kernel: int = 4
  stride: int = 2
  bias: bool = True
  kernel_init: Callable = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
  bias_init: Callable = nn.initializers.zeros
  padding: int | None = None  # PyTorch's; None: SAME
  extra: int = 0  # rows and columns added after the last, PyTorch's output_padding

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernel, self.kernel, self.features, x.shape[-1])
    kernel = self.param('kernel', self.kernel_init, shape)
    x = convolutions.transposed_conv(x, kernel, self.stride, self.padding, self.extra)
    if not self.bias:
      return x
    return x + self.param('bias', self.bias_init, (self.features,))[None, None, None]


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


class ConditionalBatchNorm(nn.Module):
  """Batch norm, over batches and, where not in training, by the running averages. Without a scale
  and a shift per example it is Flax's, with learned ones.
  """

  epsilon: float = 1e-5
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self, x: jax.Array, scale_shift: Sequence[jax.Array] | None = None, *, train: bool
  ) -> jax.Array:
    """[b, h, w, c] -> [b, h, w, c]. With a scale and a shift per example, [b, c] each, the
    normalised y becomes y (1 + scale) + shift.
    """
    y = nn.BatchNorm(
      use_running_average=not train,
      momentum=MOMENTUM,
      epsilon=self.epsilon,
      use_scale=scale_shift is None,
      use_bias=scale_shift is None,
      axis_name=self.axis_name,
    )(x)
    if scale_shift is None:
      return y
    scale, shift = (p[:, None, None] for p in scale_shift)
    return y * (1 + scale) + shift


def instance_norm(x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
  """Each channel of each image, [b, h, w, c], with mean 0 and variance 1 over its positions
  (Ulyanov et al. 2016, arXiv 1607.08022), without learned factors.
  """
  b, *_, c = x.shape
  return norms.group_norm(x, jnp.ones((b, c)), jnp.zeros((b, c)), c, epsilon, swish=False)


def batch_or_instance_norm(kind: str, axis_name: str | None) -> Callable:
  """`batch_norm_02` for 'batch', `instance_norm` for 'instance'."""
  return batch_norm_02(axis_name) if kind == 'batch' else instance_norm


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


class Maxout(nn.Module):
  """The largest of `pieces` dense layers, per unit (Goodfellow et al. 2013, arXiv 1302.4389):
  [b, d] -> [b, features].
  """

  features: int
  pieces: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.Dense(self.features * self.pieces)(x)
    return x.reshape(-1, self.features, self.pieces).max(axis=-1)


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


def reflect(x: jax.Array, n: int) -> jax.Array:
  """[b, h, w, c] -> [b, h + 2 n, w + 2 n, c]: n more pixels at every side, reflected at the border
  pixels, which are not repeated.
  """
  return jnp.pad(x, ((0, 0), (n, n), (n, n), (0, 0)), mode='reflect')


def reflect_to_multiple(x: jax.Array, n: int) -> jax.Array:
  """[b, h, w, c] as `reflect`, at both sides, up to the next multiples of n; see `crop`."""
  more = [(-size % n) for size in x.shape[1:3]]
  pads = [(total // 2, total - total // 2) for total in more]
  return jnp.pad(x, ((0, 0), *pads, (0, 0)), mode='reflect') if any(more) else x


def crop(x: jax.Array, size: Sequence[int]) -> jax.Array:
  """The middle of `size` (h, w) of x [b, ...]: undoes `reflect_to_multiple`."""
  top, left = ((have - want) // 2 for have, want in zip(x.shape[1:3], size, strict=True))
  return x[:, top : top + size[0], left : left + size[1]]


def max_pool_2(x: jax.Array) -> jax.Array:
  """The largest of each 2x2 block: [b, h, w, c] -> [b, h // 2, w // 2, c], without an odd last row
  or column.
  """
  h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
  corners = [x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)]
  # On CPU, the derivative of a pooling operation of XLA is many times slower.
  return jnp.maximum(jnp.maximum(*corners[:2]), jnp.maximum(*corners[2:]))


def upsample_linear(x: jax.Array) -> jax.Array:
  """Doubles the size by linear interpolation between corners that stay where they are: [b, h, w, c]
  -> [b, 2 h, 2 w, c] (`align_corners=True` of other libraries).
  """

  def weights(n):  # [2 n, n], the share of each pixel
    place = np.linspace(0, n - 1, 2 * n)[:, None]
    return jnp.asarray(np.maximum(0, 1 - np.abs(place - np.arange(n))), x.dtype)

  # Images, not features: on accelerators the default precision would round them to bfloat16.
  exact = jax.lax.Precision.HIGHEST
  parts = weights(x.shape[1]), weights(x.shape[2])
  return jnp.einsum('bhwc,ih,jw->bijc', x, *parts, precision=exact)


def fir_downsample(x: jax.Array, taps: Sequence[int], padding: int | None = None) -> jax.Array:
  """Halves the size with the separable filter `taps`, normalised to sum 1: [b, h, w, c] ->
  [b, h / 2, w / 2, c]. (1, 1) is `mean_pool`, (1, 3, 3, 1) StyleGAN2's (Karras et al. 2020).

  Args:
    padding: zeros at every side, by default those that halve the size: len(taps) / 2 - 1.
  """
  k = len(taps)
  padding = (k - 1) // 2 if padding is None else padding
  x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  for axis in (1, 2):
    end = x.shape[axis] - k + 1
    x = sum(
      tap / sum(taps) * jax.lax.slice_in_dim(x, i, i + end, stride=2, axis=axis)
      for i, tap in enumerate(taps)
    )
  return x


def fir_upsample(x: jax.Array, taps: Sequence[int]) -> jax.Array:
  """Doubles the size, 4 times the transpose of `fir_downsample`: [b, h, w, c] -> [b, 2 h, 2 w, c].
  (1, 1) repeats every pixel.
  """
  b, h, w, c = x.shape
  larger = jax.ShapeDtypeStruct((b, 2 * h, 2 * w, c), x.dtype)
  return 4 * jax.linear_transpose(lambda y: fir_downsample(y, taps), larger)(x)[0]


def time_embedding(t: jax.Array, dim: int) -> jax.Array:
  """Sinusoids of the time step: [b] -> float32 [b, dim], sines first (Ho et al. 2020, from Vaswani
  et al. 2017).

  Frequencies run from 1 down to 1/10000 in dim/2 geometric steps, both ends included.

  Raises:
    ValueError: `dim` is odd or less than 4.
  """
  angles = _angles(t, dim, dim // 2 - 1)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def time_embeddings(embed: Callable, times: Sequence[jax.Array | None], dim: int) -> jax.Array:
  """`embed(t, dim)` of each t [b] of `times` that is not None, side by side: float32 [b, n dim]."""
  return jnp.concatenate([embed(t, dim) for t in times if t is not None], axis=-1)


def adm_time_embedding(t: jax.Array, dim: int) -> jax.Array:
  """Sinusoids of the time step: [b] -> float32 [b, dim], cosines first (the released code of Nichol
  and Dhariwal 2021).

  Frequencies run from 1 towards 1/10000, which is excluded, in dim/2 geometric steps.

  Raises:
    ValueError: `dim` is odd or less than 4.
  """
  angles = _angles(t, dim, dim // 2)
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _angles(t, dim, steps):
  if dim < 4 or dim % 2:
    raise ValueError(f'a time embedding of {dim} features: an even number of at least 4 is needed')
  freqs = jnp.exp(-jnp.log(10000.0) * jnp.arange(dim // 2, dtype=jnp.float32) / steps)
  return t.astype(jnp.float32)[:, None] * freqs[None]


def fourier_embedding(t: jax.Array, dim: int, scale: float = 16.0) -> jax.Array:
  """Sines, then cosines, of 2 pi f t for random frequencies f from N(0, scale^2): [b] -> float32
  [b, dim] (Tancik et al. 2020, arXiv 2006.10739).

  The frequencies are constants, the same in every run. (The stream of RandomState is frozen, unlike
  those of newer generators.)
  """
  freqs = scale * np.random.RandomState(0).standard_normal(dim // 2)
  angles = t.astype(jnp.float32)[:, None] * np.float32(2 * np.pi * freqs)[None]
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


# --- Parts of U-Nets ----------------------------------------------------------------------------

MOST_BLOCKS = 100  # per level; each takes time to trace


def level_widths(net, x: jax.Array) -> list[int]:
  """The width of each level of a U-Net over images x [b, h, w, c]: its `features` times each of its
  `multipliers`. Every level but the first halves the size.

  Raises:
    UserError: too many `blocks`, the images cannot be halved that often, or no level has a size
      that `attention` names.
  """
  if not 0 <= net.blocks <= MOST_BLOCKS:
    raise UserError(f'config.net.blocks={net.blocks}: an integer from 0 to {MOST_BLOCKS} is needed')
  widths = [net.features * m for m in net.multipliers]
  smallest = 2 ** (len(widths) - 1)
  if x.shape[1] % smallest or x.shape[2] % smallest:
    raise UserError(
      f'config.data.shape={tuple(x.shape[1:])}: height and width must be multiples of '
      f'{smallest}, as config.net.multipliers={tuple(net.multipliers)} halves them '
      f'{len(widths) - 1} times'
    )
  sizes = [x.shape[1] // 2**level for level in range(len(widths))]
  # The default may name a size that small images lack.
  if tuple(net.attention) != type(net).attention and not set(net.attention) <= set(sizes):
    raise UserError(
      f'config.net.attention={tuple(net.attention)}: sizes of levels, of '
      f'{", ".join(map(str, sizes))}, are needed'
    )
  return widths


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Attention of queries q [b, n, heads, d] to k and v [b, m, heads, d]: [b, n, heads, d]. The
  weights are computed in float32.
  """
  scores = jnp.einsum('bqhd,bkhd->bhqk', q, k) * q.shape[-1] ** -0.5
  weights = nn.softmax(scores.astype(jnp.float32)).astype(v.dtype)
  return jnp.einsum('bhqk,bkhd->bqhd', weights, v)


def interleave(parts: Sequence[jax.Array]) -> jax.Array:
  """n arrays [b, ...] as one [b n, ...], with the rows of an example next to each other: then
  shards of the batch stay what they are, and noise the same on any number of devices.
  """
  return jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])


def deinterleave(x: jax.Array, n: int) -> list[jax.Array]:
  """The inverse of `interleave`: [b n, ...] -> n arrays [b, ...]."""
  return [x[i::n] for i in range(n)]


def flatten(x: jax.Array) -> jax.Array:
  """[b, ...] -> [b, n], with all axes but the first merged."""
  return x.reshape(x.shape[0], -1)
