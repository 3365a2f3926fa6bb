"""The nets of Gulrajani et al. 2017 (WGAN-GP): MNIST and the CIFAR-10 ResNet, as in the released
code.

Critics have no batch normalisation: the gradient penalty is defined for each example separately.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.nets import layers
from gen_jax.ops import convolutions

# "He" and "Glorot" of the released code, both with fan_out of the strided convolution.
_HE = nn.initializers.variance_scaling(2.0, 'fan_avg', 'uniform')
_GLOROT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')


def _strided_he(stride: int):
  """Uniform with variance 4 / (fan_in + fan_out), the fan on the small side divided by stride**2.

  The kernel's layout is [k, k, big side, small side] for both directions (see layers.UpConv).
  """

  def init(key, shape, dtype=jnp.float32):
    k, _, big, small = shape
    fan_big, fan_small = k * k * big, k * k * small / stride**2
    bound = (3 * 4 / (fan_big + fan_small)) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class Generator28(nn.Module):
  """z [b, 128] -> [b, 28, 28, 1] in (-1, 1); 1,554,177 parameters.

  The original ends in a sigmoid for data in [0, 1]; tanh for data in [-1, 1] is the same map. (The
  penalty differs: gradients in x are half as large on the doubled range, so that the same lambda
  weighs half as much relative to the critic's loss.)
  """

  shape: Sequence[int] = (28, 28, 1)
  features: int = 64  # channels at 14x14

  @nn.compact
  def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
    def up(x, width):
      return layers.UpConv(width, kernel=5, kernel_init=_strided_he(2))(x)

    x = nn.relu(nn.Dense(4 * 4 * 4 * self.features, kernel_init=_GLOROT)(z))
    x = x.reshape(-1, 4, 4, 4 * self.features)
    x = nn.relu(up(x, 2 * self.features))[:, :7, :7]  # 8x8, cropped
    x = nn.relu(up(x, self.features))  # 14x14
    return nn.tanh(up(x, self.shape[-1]) / 2)  # 2 sigmoid(x) - 1


class Critic28(nn.Module):
  """x [b, 28, 28, 1] -> [b]: three 5x5 convolutions with stride 2; 1,030,145 parameters."""

  features: int = 64  # channels at 14x14
  negative_slope: float = 0.2  # of LeakyReLU

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    for multiple in (1, 2, 4):
      x = layers.Conv(multiple * self.features, kernel=5, stride=2, kernel_init=_strided_he(2))(x)
      x = nn.leaky_relu(x, self.negative_slope)
    return nn.Dense(1, kernel_init=_GLOROT)(layers.flatten(x))[:, 0]


def _conv3(features, name):
  return layers.Conv(features, kernel_init=_HE, name=name)


def _conv1(features, name):
  return layers.Conv(features, kernel=1, kernel_init=_GLOROT, name=name)


class UpBlock(nn.Module):
  """BN-ReLU-upsample-conv3-BN-ReLU-conv3, shortcut conv1-upsample."""

  features: int
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    def norm(x):
      return nn.BatchNorm(use_running_average=False, axis_name=self.axis_name)(x)

    h = layers.UpsampledConv(self.features, kernel_init=_HE, name='conv1')(nn.relu(norm(x)))
    h = _conv3(self.features, 'conv2')(nn.relu(norm(h)))
    # A 1x1 convolution commutes with the upsampling; before it costs a quarter.
    return h + convolutions.upsample(_conv1(self.features, 'shortcut')(x))


class ResNetGenerator(nn.Module):
  """z [b, 128] -> [b, 32, 32, 3] in (-1, 1); 1,204,483 parameters.

  Upsampling comes before the first convolution of a block, as in the released code (the paper's
  text says the second). Batch norm always uses the statistics of the batch, even in sampling.
  """

  shape: Sequence[int] = (32, 32, 3)
  features: int = 128  # channels everywhere
  blocks: int = 3  # each doubles the size, from 4x4
  axis_name: str | None = None

  @nn.compact
  def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
    x = nn.Dense(4 * 4 * self.features, kernel_init=_GLOROT)(z).reshape(-1, 4, 4, self.features)
    for _ in range(self.blocks):
      x = UpBlock(self.features, self.axis_name)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=False, axis_name=self.axis_name)(x))
    return nn.tanh(layers.Conv(self.shape[-1], kernel_init=_GLOROT)(x))


class CriticBlock(nn.Module):
  """ReLU-conv3-ReLU-conv3(-meanpool) with a shortcut; `first` leaves out the first ReLU."""

  features: int
  down: bool = False
  first: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    h = _conv3(self.features, 'conv1')(x if self.first else nn.relu(x))
    h = _conv3(self.features, 'conv2')(nn.relu(h))
    if self.down:
      # The released code takes the mean after the 1x1 convolution in all blocks but the first: both
      # are linear, so the numbers are the same.
      return layers.mean_pool(h) + _conv1(self.features, 'shortcut')(layers.mean_pool(x))
    return h + x


class ResNetCritic(nn.Module):
  """x [b, 32, 32, 3] -> [b]; 1,053,825 parameters."""

  features: int = 128  # channels everywhere

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = CriticBlock(self.features, down=True, first=True)(x)
    x = CriticBlock(self.features, down=True)(x)
    x = CriticBlock(self.features)(x)
    x = CriticBlock(self.features)(x)
    return nn.Dense(1, kernel_init=_GLOROT)(nn.relu(x).mean((1, 2)))[:, 0]
