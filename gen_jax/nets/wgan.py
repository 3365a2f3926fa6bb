"""The nets of Arjovsky, Chintala and Bottou 2017 (WGAN): DCGAN with 4x4 kernels and without biases,
as in the released code.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from gen_jax.nets import layers


class Generator(nn.Module):
  """z [b, d] -> [b, s, s, c] in (-1, 1), s = 4 * 2 ** len(features), by 4x4 up-convolutions.

  With 100 latents and the defaults, the paper's net for 64 pixels: 3,576,704 parameters.
  """

  shape: Sequence[int] = (64, 64, 3)
  features: Sequence[int] = (512, 256, 128, 64)  # channels from 4x4 on; each doubles the size
  axis_name: str | None = None

  @nn.compact
  def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
    # Equals a 4x4 up-convolution of a single pixel.
    x = nn.Dense(4 * 4 * self.features[0], use_bias=False, kernel_init=layers.NORMAL_02)(z)
    x = nn.relu(layers.batch_norm_02(self.axis_name)(x.reshape(-1, 4, 4, self.features[0])))
    for width in self.features[1:]:
      x = layers.UpConv(width, bias=False, kernel_init=layers.NORMAL_02)(x)
      x = nn.relu(layers.batch_norm_02(self.axis_name)(x))
    return nn.tanh(layers.UpConv(self.shape[-1], bias=False, kernel_init=layers.NORMAL_02)(x))


class Critic(nn.Module):
  """x [b, s, s, c] -> [b]: 4x4 convolutions with stride 2, batch norm in all but the first.

  With the defaults and 3 channels, the paper's net for 64 pixels: 2,765,568 parameters.
  """

  features: Sequence[int] = (64, 128, 256, 512)  # channels; each halves the size
  negative_slope: float = 0.2  # of LeakyReLU
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    for i, width in enumerate(self.features):
      x = layers.Conv(width, kernel=4, stride=2, bias=False, kernel_init=layers.NORMAL_02)(x)
      if i > 0:
        x = layers.batch_norm_02(self.axis_name)(x)
      x = nn.leaky_relu(x, self.negative_slope)
    # Equals a convolution with a kernel of the size of the map.
    return nn.Dense(1, use_bias=False, kernel_init=layers.NORMAL_02)(layers.flatten(x))[:, 0]
