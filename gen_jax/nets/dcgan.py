"""DCGAN: small nets for 28x28, common in courses, and those of Radford, Metz and Chintala 2016 for
32 and 64 pixels.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from gen_jax.errors import UserError
from gen_jax.nets import layers


class Generator28(nn.Module):
  """z [b, d] -> [b, 28, 28, c] in (-1, 1): dense to 7x7,
  then two 4x4 up-convolutions with stride 2.

  The first batch norm is per unit of the dense layer, as in Radford's code and in InfoGAN's net for
  MNIST (Chen et al. 2016, arXiv 1606.03657), the second one per channel. With the defaults and z of
  100 entries: 778,305 parameters.
  """

  shape: Sequence[int] = (28, 28, 1)
  features: Sequence[int] = (128, 64)  # channels at 7x7 and 14x14
  axis_name: str | None = None

  @nn.compact
  def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
    def norm(x):
      return nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis_name)(x)

    if len(self.features) != 2:
      raise UserError(f'config.generator.features={tuple(self.features)}: 2 widths are needed')
    x = nn.relu(norm(nn.Dense(7 * 7 * self.features[0])(z)))
    x = x.reshape(-1, 7, 7, self.features[0])
    x = nn.relu(norm(layers.UpConv(self.features[1])(x)))  # [b, 14, 14, 64]
    return nn.tanh(layers.UpConv(self.shape[-1])(x))  # [b, 28, 28, c]


class Discriminator28(nn.Module):
  """x [b, 28, 28, c] -> logits [b]: two 4x4 convolutions with stride 2, LeakyReLU and dropout."""

  features: Sequence[int] = (64, 128)  # channels at 14x14 and 7x7
  negative_slope: float = 0.2  # of LeakyReLU
  dropout: float = 0.4  # after every convolution
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    for width in self.features:
      x = nn.leaky_relu(layers.Conv(width, kernel=4, stride=2)(x), self.negative_slope)
      x = layers.Dropout(self.dropout, self.axis_name)(x, train=train)
    return nn.Dense(1)(layers.flatten(x))[:, 0]


class _BatchNorm(nn.Module):
  """`layers.batch_norm_02` as a module of its own."""

  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return layers.batch_norm_02(self.axis_name)(x)


class Generator(nn.Module):
  """z [b, d] -> [b, s, s, c] in (-1, 1), s = 4 * 2 ** len(features), by 5x5 up-convolutions.

  (1024, 512, 256, 128) are the published nets for 64 pixels; for 32 pixels one stage is dropped,
  the common design (the paper has none). No biases, N(0, 0.02) weights; the first batch norm is per
  unit, as in the original code. With the defaults and 3 channels: 18,885,760 parameters.
  """

  shape: Sequence[int] = (64, 64, 3)
  features: Sequence[int] = (1024, 512, 256, 128)  # channels from 4x4 on; each doubles the size
  axis_name: str | None = None

  @nn.compact
  def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
    x = nn.Dense(4 * 4 * self.features[0], use_bias=False, kernel_init=layers.NORMAL_02)(z)
    x = nn.relu(_BatchNorm(axis_name=self.axis_name)(x)).reshape(-1, 4, 4, self.features[0])
    for width in self.features[1:]:
      x = layers.UpConv(width, kernel=5, bias=False, kernel_init=layers.NORMAL_02)(x)
      x = nn.relu(_BatchNorm(axis_name=self.axis_name)(x))
    x = layers.UpConv(self.shape[-1], kernel=5, bias=False, kernel_init=layers.NORMAL_02)(x)
    return nn.tanh(x)


class Discriminator(nn.Module):
  """x [b, s, s, c] -> logits [b]: 5x5 convolutions with stride 2, batch norm in all but the first.

  (128, 256, 512, 1024) are the published nets for 64 pixels (17,232,768 parameters); drop the last
  for 32.
  """

  features: Sequence[int] = (128, 256, 512, 1024)  # channels; each halves the size
  negative_slope: float = 0.2  # of LeakyReLU
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    for i, width in enumerate(self.features):
      x = layers.Conv(width, kernel=5, stride=2, bias=False, kernel_init=layers.NORMAL_02)(x)
      if i > 0:
        x = _BatchNorm(axis_name=self.axis_name)(x)
      x = nn.leaky_relu(x, self.negative_slope)
    return nn.Dense(1, use_bias=False, kernel_init=layers.NORMAL_02)(layers.flatten(x))[:, 0]
