"""The fully connected nets of adversarial autoencoders (Makhzani et al. 2015, arXiv 1511.05644,
appendix A): two hidden layers of 1000 units, weights from a truncated N(0, 0.01^2).
"""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.nets import layers

TRUNCATED_01 = nn.initializers.truncated_normal(0.01)


class Encoder(nn.Module):
  """x [b, ...] -> [b, outputs], linear at the end: the code, or what q(z|x) is made of.

  For 28x28x1 and 2 outputs with the defaults: 1,788,002 parameters.
  """

  outputs: int  # numbers for each example
  features: Sequence[int] = (1000, 1000)  # widths of the hidden layers, with ReLU

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return _mlp(layers.flatten(x), (*self.features, self.outputs), nn.relu)


class Decoder(nn.Module):
  """z [b, d] -> [b, *shape] in (-1, 1): tanh at the end, the paper's sigmoid on another scale.

  For 28x28x1 and 2 inputs with the defaults: 1,788,784 parameters.
  """

  shape: Sequence[int]  # shape of one example
  features: Sequence[int] = (1000, 1000)  # widths of the hidden layers, with ReLU

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    x = _mlp(z, (*self.features, math.prod(self.shape)), nn.relu)
    return nn.tanh(x).reshape(-1, *self.shape)


class Discriminator(nn.Module):
  """z [b, d] and, where codes are told apart by class, label int32 [b] -> logits [b]: dense layers
  with LeakyReLU, the label as a one-hot vector beside z.

  For 2 inputs and 10 classes with the defaults: 1,015,001 parameters.
  """

  num_classes: int | None  # length of the one-hot vector
  features: Sequence[int] = (1000, 1000)  # widths of the hidden layers
  negative_slope: float = 0.2  # of LeakyReLU

  @nn.compact
  def __call__(self, z: jax.Array, label=None, *, train: bool) -> jax.Array:
    if label is not None:
      z = jnp.concatenate([z, jax.nn.one_hot(label, self.num_classes, dtype=z.dtype)], -1)
    return _mlp(z, (*self.features, 1), lambda x: nn.leaky_relu(x, self.negative_slope))[:, 0]


def _mlp(x: jax.Array, widths: Sequence[int], activation: Callable) -> jax.Array:
  """Dense layers of these widths with `activation` between them, inside of a compact module."""
  for i, width in enumerate(widths):
    x = nn.Dense(width, kernel_init=TRUNCATED_01)(activation(x) if i else x)
  return x
