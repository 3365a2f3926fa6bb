"""LAPGAN: the nets of one level of the pyramid (Denton, Chintala, Szlam and Fergus 2015).

Labels are None where `num_classes` is. Weights start as in Torch, uniform with standard deviation
1 / sqrt(3 fan_in); biases start at 0.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.errors import UserError
from gen_jax.nets import layers

_TORCH = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def _one_hot(x, label, num_classes):
  """What labels add to inputs: [] or [the one-hot label [b, num_classes]]."""
  return [] if num_classes is None else [jax.nn.one_hot(label, num_classes, dtype=x.dtype)]


def _with_class_map(x, label, num_classes):
  """x [b, h, w, c] with one more channel where there are labels: a dense layer of the one-hot label
  to h w pixels, and ReLU.
  """
  maps = [
    nn.relu(nn.Dense(x.shape[1] * x.shape[2], kernel_init=_TORCH)(y)).reshape(*x.shape[:3], 1)
    for y in _one_hot(x, label, num_classes)
  ]
  return jnp.concatenate([x, *maps], axis=-1)


class CoarseGenerator(nn.Module):
  """z [b, d], label int32 [b] or None -> [b, *shape]: dense layers with ReLU on z and the one-hot
  label; the output is not bounded.
  """

  num_classes: int | None
  shape: Sequence[int] = (8, 8, 3)
  features: Sequence[int] = (1200, 1200)  # widths of the hidden layers

  @nn.compact
  def __call__(self, z: jax.Array, label=None, *, train: bool) -> jax.Array:
    x = jnp.concatenate([z, *_one_hot(z, label, self.num_classes)], axis=-1)
    for width in self.features:
      x = nn.relu(nn.Dense(width, kernel_init=_TORCH)(x))
    return nn.Dense(math.prod(self.shape), kernel_init=_TORCH)(x).reshape(-1, *self.shape)


class CoarseDiscriminator(nn.Module):
  """x [b, ...], label int32 [b] or None -> logits [b]: dense layers with ReLU and dropout on x and
  the one-hot label.
  """

  num_classes: int | None
  features: Sequence[int] = (600, 600)  # widths of the hidden layers
  dropout: float = 0.5  # after every hidden layer
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, label=None, *, train: bool) -> jax.Array:
    x = jnp.concatenate([layers.flatten(x), *_one_hot(x, label, self.num_classes)], axis=-1)
    for width in self.features:
      x = nn.relu(nn.Dense(width, kernel_init=_TORCH)(x))
      x = layers.Dropout(self.dropout, self.axis_name)(x, train=train)
    return nn.Dense(1, kernel_init=_TORCH)(x)[:, 0]


class Generator(nn.Module):
  """z [b, h, w, 1], low-pass image l [b, h, w, c], label int32 [b] or None -> residual
  [b, h, w, c]: convolutions with ReLU on z, l and a map of the label; the output is not bounded.

  With the defaults, 32x32 pixels, 3 channels and 10 classes: 232,579 parameters.
  """

  num_classes: int | None
  features: Sequence[int] = (64, 64)  # channels of the hidden layers
  kernels: Sequence[int] = (7, 7, 5)  # sizes of the kernels, one more than `features`

  @nn.compact
  def __call__(self, z: jax.Array, l: jax.Array, label=None, *, train: bool) -> jax.Array:
    if len(self.kernels) != len(self.features) + 1:
      raise UserError(
        f'config.generator.kernels={tuple(self.kernels)}: {len(self.features) + 1} sizes are '
        f'needed, one more than config.generator.features={tuple(self.features)}'
      )
    x = _with_class_map(jnp.concatenate([z, l], axis=-1), label, self.num_classes)
    for width, kernel in zip(self.features, self.kernels[:-1], strict=True):
      x = nn.relu(layers.Conv(width, kernel, kernel_init=_TORCH)(x))
    return layers.Conv(l.shape[-1], self.kernels[-1], kernel_init=_TORCH)(x)


class Discriminator(nn.Module):
  """x [b, h, w, c], label int32 [b] or None -> logits [b]: 5x5 convolutions without padding, the
  second with stride 2, on x and a map of the label; ReLU, and dropout before the dense layer.

  With the defaults, 32x32 pixels, 3 channels and 10 classes: 129,409 parameters.
  """

  num_classes: int | None
  features: Sequence[int] = (64, 64)  # channels of the two layers
  dropout: float = 0.5  # before the dense layer
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, label=None, *, train: bool) -> jax.Array:
    if len(self.features) != 2:
      raise UserError(f'config.discriminator.features={tuple(self.features)}: 2 widths are needed')
    x = _with_class_map(x, label, self.num_classes)
    for width, stride in zip(self.features, (1, 2), strict=True):
      x = nn.relu(layers.Conv(width, 5, stride, padding=0, kernel_init=_TORCH)(x))
    x = layers.Dropout(self.dropout, self.axis_name)(layers.flatten(x), train=train)
    return nn.Dense(1, kernel_init=_TORCH)(x)[:, 0]
