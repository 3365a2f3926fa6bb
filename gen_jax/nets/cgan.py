"""Conditional GAN: the fully connected nets of Mirza and Osindero 2014 for MNIST."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.nets import layers


class Generator(nn.Module):
  """z [b, d], label int32 [b] -> [b, *shape] in (-1, 1): z and the one-hot label each pass through
  a layer of their own, then both through a joint one.

  ReLU and, in training, dropout after each. The sigmoid of the paper, for data in [0, 1], is
  tanh(x / 2) on [-1, 1]. With the defaults, z of 100 entries and 10 classes: 2,413,984 parameters.
  """

  num_classes: int
  shape: Sequence[int] = (28, 28, 1)
  z_features: int = 200  # width of the layer of z
  label_features: int = 1000  # width of the layer of the label
  features: int = 1200  # width of the joint layer
  dropout: float = 0.5  # after every hidden layer
  axis_name: str | None = None

  @nn.compact
  def __call__(self, z: jax.Array, label: jax.Array, *, train: bool) -> jax.Array:
    def hidden(x, width):
      x = nn.relu(nn.Dense(width)(x))
      return layers.Dropout(self.dropout, self.axis_name)(x, train=train)

    y = jax.nn.one_hot(label, self.num_classes, dtype=z.dtype)
    x = jnp.concatenate([hidden(z, self.z_features), hidden(y, self.label_features)], axis=-1)
    x = nn.Dense(math.prod(self.shape))(hidden(x, self.features))
    return nn.tanh(x / 2).reshape(-1, *self.shape)  # 2 sigmoid(x) - 1


class Discriminator(nn.Module):
  """x [b, ...], label int32 [b] -> logits [b]: x and the one-hot label each pass through a maxout
  layer of their own, then both through a joint one, with dropout after each.

  With the defaults, 28x28 pixels and 10 classes: 1,224,351 parameters.
  """

  num_classes: int
  x_features: int = 240  # width of the layer of x
  x_pieces: int = 5  # pieces of its maxout
  label_features: int = 50  # width of the layer of the label
  label_pieces: int = 5  # pieces of its maxout
  features: int = 240  # width of the joint layer
  pieces: int = 4  # pieces of its maxout
  dropout: float = 0.5  # after every hidden layer
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, label: jax.Array, *, train: bool) -> jax.Array:
    def hidden(x, width, pieces):
      x = layers.Maxout(width, pieces)(x)
      return layers.Dropout(self.dropout, self.axis_name)(x, train=train)

    y = jax.nn.one_hot(label, self.num_classes, dtype=x.dtype)
    x = hidden(layers.flatten(x), self.x_features, self.x_pieces)
    y = hidden(y, self.label_features, self.label_pieces)
    x = hidden(jnp.concatenate([x, y], axis=-1), self.features, self.pieces)
    return nn.Dense(1)(x)[:, 0]
