"""The generator of CycleGAN (Zhu et al. 2017, arXiv 1703.10593), as in the authors' PyTorch code,
the net of Johnson et al. 2016 (arXiv 1603.08155). The discriminator is `pix2pix.PatchGAN`.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from gen_jax.errors import UserError
from gen_jax.nets import layers


class ResBlock(nn.Module):
  """x + two 3x3 convolutions of x, each with reflection padding and instance norm."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    h = nn.relu(layers.instance_norm(_conv(width, 3)(layers.reflect(x, 1))))
    return x + layers.instance_norm(_conv(width, 3)(layers.reflect(h, 1)))


class ResNet(nn.Module):
  """Images x [b, h, w, c] -> [b, h, w, d] in (-1, 1), d the channels of `shape`: a 7x7 convolution,
  two 3x3 ones with stride 2, residual blocks, two up-convolutions, a 7x7 convolution.

  Sizes that 4 does not divide are padded by reflection, and the result is cropped. With 3 channels
  on both sides 11,378,179 parameters; 7,837,699 with 6 blocks.

  Raises:
    UserError: `blocks` is out of range.
  """

  shape: Sequence[int] = (256, 256, 3)
  features: int = 64  # channels at full size; doubled at each of the two smaller ones
  blocks: int = 9  # 9 for 256 pixels, 6 for 128

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    del train
    if not 0 <= self.blocks <= layers.MOST_BLOCKS:
      raise UserError(
        f'config.generator.blocks={self.blocks}: an integer from 0 to {layers.MOST_BLOCKS} is '
        'needed'
      )
    size = x.shape[1:3]
    x = layers.reflect(layers.reflect_to_multiple(x, 4), 3)
    x = nn.relu(layers.instance_norm(_conv(self.features, 7)(x)))
    for width in (2 * self.features, 4 * self.features):
      x = nn.relu(layers.instance_norm(_conv(width, 3, stride=2, padding=1)(x)))
    for _ in range(self.blocks):
      x = ResBlock()(x)
    for width in (2 * self.features, self.features):
      up = layers.UpConv(
        width, kernel=3, stride=2, padding=1, extra=1, kernel_init=layers.NORMAL_02
      )
      x = nn.relu(layers.instance_norm(up(x)))
    x = _conv(self.shape[-1], 7)(layers.reflect(x, 3))
    return layers.crop(nn.tanh(x), size)


def _conv(width: int, kernel: int, stride: int = 1, padding: int = 0) -> layers.Conv:
  return layers.Conv(width, kernel, stride, kernel_init=layers.NORMAL_02, padding=padding)
