"""Fully connected pairs: StandardGAN for 28x28, and plain nets for two-dimensional toys."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax

from gen_jax.nets import layers


class Generator(nn.Module):
  """z [b, d] -> [b, *shape] in (-1, 1): dense layers with LeakyReLU, tanh at the end.

  The defaults are the StandardGAN generator, 256-512-1024-784.
  """

  shape: Sequence[int]  # shape of one example
  features: Sequence[int] = (256, 512, 1024)  # widths of the hidden layers
  negative_slope: float = 0.2  # of LeakyReLU
  squash: bool = True  # tanh at the end; off for data that do not fill [-1, 1]

  @nn.compact
  def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
    x = z
    for width in self.features:
      x = nn.leaky_relu(nn.Dense(width)(x), self.negative_slope)
    x = nn.Dense(math.prod(self.shape))(x)
    return (nn.tanh(x) if self.squash else x).reshape(-1, *self.shape)


class Discriminator(nn.Module):
  """x [b, ...] -> logits [b]: dense layers with LeakyReLU and dropout.

  The defaults are the StandardGAN discriminator, 1024-512-256-128-1 with dropout 0.3. With dropout
  0 it is the critic of the WGAN-GP toys.
  """

  features: Sequence[int] = (1024, 512, 256, 128)  # widths of the hidden layers
  negative_slope: float = 0.2  # of LeakyReLU
  dropout: float = 0.3  # after every hidden layer
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = layers.flatten(x)
    for width in self.features:
      x = nn.leaky_relu(nn.Dense(width)(x), self.negative_slope)
      x = layers.Dropout(self.dropout, self.axis_name)(x, train=train)
    return nn.Dense(1)(x)[:, 0]
