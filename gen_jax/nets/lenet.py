"""LeNet (LeCun et al. 1998) as papers on the adaptation of digits have it: a small classifier."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from gen_jax.nets import layers


class Classifier(nn.Module):
  """x [b, h, w, c] -> logits [b, num_classes]: two 5x5 convolutions with max pooling, two dense
  layers, ReLU. With the defaults, 28x28 and 10 classes: 431,080 parameters.
  """

  num_classes: int
  features: Sequence[int] = (20, 50)  # of the convolutions
  hidden: int = 500  # width of the hidden dense layer
  dropout: float = 0.0  # before the last layer
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    for width in self.features:
      x = nn.relu(layers.max_pool_2(layers.Conv(width, 5, padding=0)(x)))
    x = nn.relu(nn.Dense(self.hidden)(layers.flatten(x)))
    x = layers.Dropout(self.dropout, self.axis_name)(x, train=train)
    return nn.Dense(self.num_classes)(x)
