"""The nets of Salimans et al. 2016 (arXiv 1606.03498) for MNIST and CIFAR-10, as in the released
code. Discriminators return their logits and the features before them.

They are initialised with real rows, see improved_layers.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax

from gen_jax.errors import UserError
from gen_jax.nets import improved_layers, layers

_NORMAL_05, _NORMAL_1 = nn.initializers.normal(0.05), nn.initializers.normal(0.1)


class _Normed(nn.Module):
  """A generator whose hidden layers have the norm `norm`, see `Generator`."""

  norm: str = 'batch'  # of hidden layers: batch, virtual or reference batch norm, or none
  reference: int = 100  # rows of the reference batch of virtual and reference batch norm
  axis_name: str | None = None

  def _with_reference(self, z):
    if self.norm not in ('batch', 'virtual', 'reference', 'none'):
      raise UserError(
        f"config.generator.norm={self.norm!r}: 'batch', 'virtual', 'reference' or 'none' is needed"
      )
    return improved_layers.with_reference(self, z, self.reference) if self._rows else z

  @property
  def _rows(self) -> int:
    return self.reference if self.norm in ('virtual', 'reference') else 0

  def _normed(self, x):
    """x + a bias for each channel, normalised first; no gamma."""
    if self._rows:
      virtual = self.norm == 'virtual'
      return improved_layers.VirtualBatchNorm(self.reference, virtual, use_scale=False)(x)
    # The statistics of the batch, even in sampling.
    how = dict(epsilon=1e-6, use_scale=False, axis_name=self.axis_name)
    return nn.BatchNorm(use_running_average=False, **how)(x)


class Generator(_Normed):
  """z [b, d] -> [b, *shape]: dense layers with softplus; the last one has weight norm.

  With norm='batch', z [100] and shape (28, 28, 1): 694,568 parameters. Pixels are 2 sigmoid(a) - 1
  = tanh(a / 2), which is the sigmoid of the released code for data in [0, 1].
  """

  shape: Sequence[int] = (28, 28, 1)
  features: Sequence[int] = (500, 500)  # widths of the hidden layers
  squash: bool = True  # into (-1, 1); off for data that do not fill it

  @nn.compact
  def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
    x, glorot = self._with_reference(z), nn.initializers.glorot_uniform()
    for width in self.features:
      x = nn.Dense(width, use_bias=self.norm == 'none', kernel_init=glorot)(x)
      x = nn.softplus(x if self.norm == 'none' else self._normed(x))
    out = dict(sd=None, train_scale=True, kernel_init=glorot)
    x = improved_layers.Dense(math.prod(self.shape), **out)(x)[self._rows :]
    return (nn.tanh(x / 2) if self.squash else x).reshape(-1, *self.shape)


class Discriminator(nn.Module):
  """x [b, ...] -> logits [b, num_classes or 1] and features [b, n], those of the last hidden layer:
  dense layers with weight norm, ReLU and noise.

  With x [28, 28, 1] and 10 classes: 1,538,770 parameters, and 2,250 scales that remain fixed.
  """

  num_classes: int | None
  features: Sequence[int] = (1000, 500, 250, 250, 250)  # widths of the hidden layers
  unit_range: bool = False  # (x + 1) / 2, in [0, 1], is what noise is added to
  noise: float = 0.3  # sd, added to the input
  hidden_noise: float = 0.5  # sd, added after each hidden layer
  kernels: int = 0  # of minibatch discrimination; 0: none
  kernel_dims: int = 5  # of each
  scale_kernels: bool = True  # to the first batch, see MinibatchDiscrimination
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
    x = layers.flatten((x + 1) / 2 if self.unit_range else x)
    x = improved_layers.Noise(self.noise, self.axis_name)(x, train=train)
    for width in self.features:
      features = nn.relu(improved_layers.Dense(width, kernel_init=_NORMAL_1)(x))
      x = improved_layers.Noise(self.hidden_noise, self.axis_name)(features, train=train)
    if self.kernels:
      how = self.kernels, self.kernel_dims, self.scale_kernels, self.axis_name
      x = improved_layers.MinibatchDiscrimination(*how)(x)
    out = improved_layers.Dense(self.num_classes or 1, train_scale=True, kernel_init=_NORMAL_1)
    return out(x), features


class ConvGenerator(_Normed):
  """z [b, d] -> [b, s, s, c] in (-1, 1), s = 4 * 2 ** len(features), by 5x5 up-convolutions with
  ReLU; the last one has weight norm.

  The first norm is per unit. With norm='batch', z [100] and the defaults: 4,933,382 parameters.
  """

  shape: Sequence[int] = (32, 32, 3)
  features: Sequence[int] = (512, 256, 128)  # channels from 4x4 on; each doubles the size

  @nn.compact
  def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
    bias = self.norm == 'none'
    norm = lambda x: nn.relu(x if self.norm == 'none' else self._normed(x))
    x = self._with_reference(z)
    x = norm(nn.Dense(4 * 4 * self.features[0], use_bias=bias, kernel_init=_NORMAL_05)(x))
    x = x.reshape(-1, 4, 4, self.features[0])
    for width in self.features[1:]:
      x = norm(layers.UpConv(width, kernel=5, bias=bias, kernel_init=_NORMAL_05)(x))
    x = improved_layers.UpConv(self.shape[-1], sd=0.1, train_scale=True)(x)
    return nn.tanh(x[self._rows :])


class ConvDiscriminator(nn.Module):
  """x [b, s, s, c] -> logits [b, num_classes or 1] and features [b, n]: convolutions with weight
  norm and LeakyReLU, and their mean over positions.

  With x [32, 32, 3], 10 classes and no kernels: 1,406,804 parameters.
  """

  num_classes: int | None
  features: Sequence[int] = (96, 192)  # channels at full size, and at half and quarter size
  negative_slope: float = 0.2  # of LeakyReLU
  noise: float = 0.0  # sd, added to the input; 0.2 with minibatch discrimination
  input_dropout: float = 0.2  # 0 with minibatch discrimination
  dropout: float = 0.5  # after the first three layers, and the next three
  kernels: int = 0  # of minibatch discrimination; 0: none
  kernel_dims: int = 5  # of each
  scale_kernels: bool = True  # to the first batch, see MinibatchDiscrimination
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
    def conv(x, width, **how):
      return nn.leaky_relu(improved_layers.Conv(width, **how)(x), self.negative_slope)

    x = improved_layers.Noise(self.noise, self.axis_name)(x, train=train)
    x = layers.Dropout(self.input_dropout, self.axis_name)(x, train=train)
    first, second = self.features
    for width in (first, second):
      for stride in (1, 1, 2):
        x = conv(x, width, stride=stride, padding=1)
      x = layers.Dropout(self.dropout, self.axis_name)(x, train=train)
    x = conv(x, second, padding=0)
    for _ in range(2):
      x = conv(x, second, kernel=1)
    features = x = x.mean((1, 2))
    if self.kernels:
      how = self.kernels, self.kernel_dims, self.scale_kernels, self.axis_name
      x = improved_layers.MinibatchDiscrimination(*how)(x)
    out = improved_layers.Dense(self.num_classes or 1, sd=0.1, train_scale=True)
    return out(x), features
