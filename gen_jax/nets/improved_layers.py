"""Layers of Salimans et al. 2016 (arXiv 1606.03498), as in the released code.

Three of them look at the batch that a net is initialised with: weight norm and minibatch
discrimination scale themselves to it, a reference batch is a part of it. So `init` takes real rows,
not zeros.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import draws
from gen_jax.errors import UserError
from gen_jax.ops import convolutions


class Noise(nn.Module):
  """Adds Gaussian noise in training, which does not depend on how the batch is sharded over devices
  (see gen_jax.draws).
  """

  sd: float
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    if not train or self.sd == 0:
      return x
    noise = draws.normal(self.make_rng('dropout'), x.shape, self.axis_name)
    return x + (self.sd * noise).astype(x.dtype)


# --- Weight norm (Salimans and Kingma 2016, arXiv 1602.07868) -----------------------------------


class _WeightNorm(nn.Module):
  """y = g (v / |v|) x + b for each unit, with its own direction v.

  In the first batch, y has mean 0 and standard deviation `sd`, by the choice of g and b. g then
  remains fixed, in `batch_stats`, unless `train_scale`.
  """

  features: int
  sd: float | None = 1.0  # None: g is 1 and b is 0 at first, whatever the batch
  train_scale: bool = False
  kernel_init: Callable = nn.initializers.normal(0.05)

  def weighted(self, kernel: jax.Array, axis: int, product: Callable) -> jax.Array:
    """`product(w)` plus b, where w is the kernel normalised for each index of `axis`."""
    others = [i for i in range(kernel.ndim) if i != axis % kernel.ndim]
    squares = jnp.sum(kernel.astype(jnp.float32) ** 2, others, keepdims=True)
    direction = kernel * jax.lax.rsqrt(squares + 1e-6).astype(kernel.dtype)
    scale, bias = jnp.ones(self.features), jnp.zeros(self.features)
    if self.is_initializing() and self.sd is not None:
      y = product(direction)
      axes = tuple(range(y.ndim - 1))
      mean, sd = y.mean(axes), y.std(axes)
      scale = jnp.where(sd > 0, self.sd / sd, 1.0)  # 0 for a batch of one row
      bias = -mean * scale
    if self.train_scale:
      scale = self.param('scale', lambda _: scale)
    else:
      scale = self.variable('batch_stats', 'scale', lambda: scale).value
    bias = self.param('bias', lambda _: bias)
    weight = direction * scale.reshape(squares.shape).astype(kernel.dtype)
    y = product(weight)
    return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


class Dense(_WeightNorm):
  """Dense layer with weight norm: [b, n] -> [b, features]."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param('kernel', self.kernel_init, (x.shape[-1], self.features))
    return self.weighted(kernel, -1, lambda w: x @ w)


class Conv(_WeightNorm):
  """Convolution with weight norm: [b, h, w, c] -> [b, h', w', features]."""

  kernel: int = 3
  stride: int = 1
  padding: int | None = None  # zeros at every side; None: SAME

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernel, self.kernel, x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    return self.weighted(kernel, -1, lambda w: convolutions.conv(x, w, self.stride, self.padding))


class UpConv(_WeightNorm):
  """Transposed convolution with weight norm: [b, h, w, c] -> [b, h stride, w stride, features]."""

  kernel: int = 5
  stride: int = 2

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernel, self.kernel, self.features, x.shape[-1])
    kernel = self.param('kernel', self.kernel_init, shape)
    return self.weighted(kernel, -2, lambda w: convolutions.transposed_conv(x, w, self.stride))


# --- Minibatch discrimination -------------------------------------------------------------------


class MinibatchDiscrimination(nn.Module):
  """Appends to each row how close the other rows of its batch are (section 3.2): x [b, n] ->
  [b, n + kernels].

      f_i = sum over j != i of exp(-|M_i - M_j|_1) + bias,  M = x T,  for each kernel T [n, dims]

  At initialisation the distances are scaled so that half the mean distance to the nearest row is 1,
  and the bias makes the mean of f 0. Where the nearest rows are almost the same, as in a mixture of
  narrow modes, that makes T blind to all others; without `scaled`, its columns have length 1. With
  `axis_name` the rows of all devices meet.

  Raises:
    UserError: the batch has one row only.
  """

  kernels: int = 100
  dims: int = 5
  scaled: bool = True  # to the first batch
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernels, self.dims)
    theta = self.param('kernel', nn.initializers.normal(0.05), (x.shape[-1], *shape))
    squares = jnp.sum(theta.astype(jnp.float32) ** 2, axis=0, keepdims=True)
    direction = theta * jax.lax.rsqrt(squares).astype(theta.dtype)
    m = jnp.einsum('bn,nkd->dbk', x, direction).astype(jnp.float32)
    rows, first = m, 0
    if self.axis_name is not None:
      rows = jax.lax.all_gather(m, self.axis_name, axis=1, tiled=True)
      first = jax.lax.axis_index(self.axis_name) * len(x)
    count = rows.shape[1]
    if count < 2:
      raise UserError(
        f'minibatch discrimination compares rows of a batch: at least 2 are needed, not {count}'
      )
    itself = first + jnp.arange(len(x))[:, None] == jnp.arange(count)[None]

    def distances(log_scale):  # [b, count, kernels]
      factor = jnp.exp(log_scale.astype(jnp.float32)).T[:, None]  # [dims, 1, kernels]
      distance = sum(
        jnp.abs(a[:, None] - b[None]) for a, b in zip(factor * m, factor * rows, strict=True)
      )
      return distance + jnp.where(itself, 1e6, 0.0)[..., None]

    log_scale, bias = jnp.zeros(shape), -jnp.ones(self.kernels)
    if self.is_initializing() and self.scaled:
      distance = distances(log_scale)
      typical = 0.5 * distance.min(1).mean(0)  # [kernels]
      typical = jnp.maximum(typical, 1e-6)  # 0 where rows are repeated
      log_scale = jnp.broadcast_to(-jnp.log(typical)[:, None], shape)
      bias = -jnp.exp(-distance / typical[None, None]).sum(1).mean(0)
    log_scale = self.param('log_scale', lambda _: log_scale)
    bias = self.param('bias', lambda _: bias)
    f = jnp.exp(-distances(log_scale)).sum(1) + bias[None]
    return jnp.concatenate([x, f.astype(x.dtype)], axis=-1)


# --- Virtual batch norm -------------------------------------------------------------------------


def with_reference(module: nn.Module, x: jax.Array, count: int) -> jax.Array:
  """x [b, ...] after the reference batch: [count + b, ...].

  The reference batch is the first `count` rows that the module is initialised with. It is in the
  module's `batch_stats`, and nothing changes it.

  Raises:
    UserError: these are fewer rows, or `count` is below 1.
  """
  if module.is_initializing() and not 1 <= count <= len(x):
    raise UserError(
      f'reference={count} of {type(module).__name__}: a reference batch of 1 to {len(x)} rows, as '
      'many as the first batch has for it, is needed'
    )
  reference = module.variable('batch_stats', 'reference', lambda: x[:count])
  return jnp.concatenate([reference.value.astype(x.dtype), x])


class VirtualBatchNorm(nn.Module):
  """Normalises each row with the statistics of a fixed reference batch, the first `reference` rows
  of x, and of itself (section 3.5): [reference + b, ..., c], see `with_reference`.

  Mean and mean square are (1 - w) of the reference batch plus w of the row, w = 1 / (reference +
  1); of the reference batch alone for its own rows and, without `virtual`, for all of them, which
  is reference batch norm. So no row depends on another live one, and devices need not communicate.
  """

  reference: int
  virtual: bool = True
  epsilon: float = 1e-5
  use_scale: bool = True  # gamma, from N(1, 0.02)

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    n = self.reference
    y = x.astype(jnp.float32)
    moments = jnp.stack([y, y**2])
    of_reference = moments[:, :n].mean(tuple(range(1, x.ndim)), keepdims=True)
    of_row = moments.mean(tuple(range(2, x.ndim)), keepdims=True)  # over positions
    is_live = jnp.arange(len(x)) >= n
    w = (self.virtual / (n + 1) * is_live).reshape((1, -1) + (1,) * (x.ndim - 1))
    mean, square = (1 - w) * of_reference + w * of_row
    y = (y - mean) * jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + self.epsilon)
    channels = (1,) * (x.ndim - 1) + (-1,)
    if self.use_scale:
      around_one = lambda key, shape: 1 + nn.initializers.normal(0.02)(key, shape)
      y = y * self.param('scale', around_one, x.shape[-1:]).reshape(channels)
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
    return (y + bias.reshape(channels)).astype(x.dtype)
