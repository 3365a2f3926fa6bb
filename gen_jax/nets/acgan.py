"""AC-GAN: those of Odena, Olah and Shlens 2017 for 32 and 128 pixels, and small ones for 28.

Generators take the one-hot label beside z, as in the paper: the rows of the first dense layer that
belong to it are the embeddings of the classes. Discriminators have two heads, source and class.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.errors import UserError
from gen_jax.nets import dcgan, layers


def _with_label(z, label, num_classes):
  """z [b, d] and the one-hot label side by side: [b, d + num_classes]."""
  return jnp.concatenate([z, jax.nn.one_hot(label, num_classes, dtype=z.dtype)], axis=-1)


def _heads(x, num_classes, **how):
  """x [b, ...] -> logits of the source [b] and of the classes [b, num_classes]."""
  logits = nn.Dense(1 + num_classes, **how)(layers.flatten(x))
  return logits[:, 0], logits[:, 1:]


class Generator28(nn.Module):
  """z [b, d], label int32 [b] -> [b, 28, 28, c] in (-1, 1): `dcgan.Generator28` of both.

  With the defaults, z of 100 entries and 10 classes: 841,025 parameters.
  """

  num_classes: int
  shape: Sequence[int] = (28, 28, 1)
  features: Sequence[int] = (128, 64)  # channels at 7x7 and 14x14
  axis_name: str | None = None

  @nn.compact
  def __call__(self, z: jax.Array, label: jax.Array, *, train: bool) -> jax.Array:
    net = dcgan.Generator28(self.shape, self.features, self.axis_name)
    return net(_with_label(z, label, self.num_classes), train=train)


class Discriminator28(nn.Module):
  """x [b, 28, 28, c] -> logits of the source [b] and of the classes [b, num_classes]: two 4x4
  convolutions with stride 2, LeakyReLU and dropout, as `dcgan.Discriminator28`.
  """

  num_classes: int
  features: Sequence[int] = (64, 128)  # channels at 14x14 and 7x7
  negative_slope: float = 0.2  # of LeakyReLU
  dropout: float = 0.4  # after every convolution
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
    for width in self.features:
      x = nn.leaky_relu(layers.Conv(width, kernel=4, stride=2)(x), self.negative_slope)
      x = layers.Dropout(self.dropout, self.axis_name)(x, train=train)
    return _heads(x, self.num_classes)


def _norm(train, axis_name):
  return nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=axis_name)


class Generator(nn.Module):
  """z [b, d], label int32 [b] -> [b, s, s, c] in (-1, 1): a dense layer, then 5x5 up-convolutions
  with stride 2. Weights from N(0, 0.02); no batch norm after the dense layer.

  (768, 384, 256, 192) is the published net for 128 pixels, whose dense layer is 8x8; that for 32
  pixels is (384, 192, 96), from 4x4 on.
  """

  num_classes: int
  shape: Sequence[int] = (128, 128, 3)
  features: Sequence[int] = (768, 384, 256, 192)  # channels; each doubles the size
  axis_name: str | None = None

  @nn.compact
  def __call__(self, z: jax.Array, label: jax.Array, *, train: bool) -> jax.Array:
    times = 2 ** len(self.features)
    height, width, channels = self.shape
    if height % times or width % times:
      raise UserError(
        f'config.data.shape={tuple(self.shape)}: height and width must be multiples of {times}, as '
        f'config.generator.features={tuple(self.features)} doubles them {len(self.features)} times'
      )
    base = (height // times, width // times, self.features[0])
    x = _with_label(z, label, self.num_classes)
    x = nn.relu(nn.Dense(base[0] * base[1] * base[2], kernel_init=layers.NORMAL_02)(x))
    x = x.reshape(-1, *base)
    for width in self.features[1:]:
      x = layers.UpConv(width, kernel=5, kernel_init=layers.NORMAL_02)(x)
      x = nn.relu(_norm(train, self.axis_name)(x))
    return nn.tanh(layers.UpConv(channels, kernel=5, kernel_init=layers.NORMAL_02)(x))


class Discriminator(nn.Module):
  """x [b, h, w, c] -> logits of the source [b] and of the classes [b, num_classes]: 3x3
  convolutions with strides 2 and 1 in turns, batch norm in all but the first, LeakyReLU and
  dropout. Weights from N(0, 0.02). The defaults are the published net for 32 and 128 pixels.
  """

  num_classes: int
  features: Sequence[int] = (16, 32, 64, 128, 256, 512)  # channels; every second halves the size
  negative_slope: float = 0.2  # of LeakyReLU
  dropout: float = 0.5  # after every convolution
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
    for i, width in enumerate(self.features):
      x = layers.Conv(width, stride=1 if i % 2 else 2, kernel_init=layers.NORMAL_02)(x)
      if i > 0:
        x = _norm(train, self.axis_name)(x)
      x = nn.leaky_relu(x, self.negative_slope)
      x = layers.Dropout(self.dropout, self.axis_name)(x, train=train)
    return _heads(x, self.num_classes, kernel_init=layers.NORMAL_02)
