"""The nets of pix2pix (Isola et al. 2017, arXiv 1611.07004), as in the authors' PyTorch code: a
U-Net from images to images, and PatchGANs, discriminators of patches, which CycleGAN uses, too.

`norm` is 'batch', with the statistics of the batch even in sampling, or 'instance', with those of
each image alone and no learned factors. As in that code, convolutions have biases where no batch
norm follows.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.errors import UserError
from gen_jax.nets import layers

NORMS = ('batch', 'instance')
# Receptive field of a PatchGAN: its convolutions with stride 2. That of 1 has 1x1 convolutions.
PATCHES = {1: 0, 16: 1, 34: 2, 70: 3, 142: 4, 286: 5}
MOST_HALVINGS = 16


class _Norm(nn.Module):
  kind: str
  axis_name: str | None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return layers.batch_or_instance_norm(self.kind, self.axis_name)(x)


class UNet(nn.Module):
  """Images x [b, h, w, c] -> [b, h, w, d] in (-1, 1), d the channels of `shape`: 4x4 convolutions
  with stride 2 down to the bottleneck and as many back, each of which also gets the result of the
  convolution on the other side.

  Dropout behind the innermost up-convolutions is the noise: it is on in sampling, too, and needs
  rngs={'dropout': key}. Sizes that 2 ** depth does not divide are padded by reflection, and the
  result is cropped. With the defaults and 3 channels on both sides 54,413,955 parameters.

  Raises:
    UserError: an attribute is out of range.
  """

  shape: Sequence[int] = (256, 256, 3)
  features: int = 64  # channels after the first convolution; they double up to 8 times as many
  depth: int = 8  # convolutions that halve the size; 8 for 256 pixels, 5 for 32
  norm: str = 'batch'  # or 'instance', which does not depend on other images of the batch
  dropout: float = 0.5  # the noise, in sampling too
  noisy: int = 3  # up-convolutions with dropout, from the second one on
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    del train  # neither the norms nor the noise change in sampling
    _check_norm(self.norm, 'generator')
    if not 1 <= self.depth <= MOST_HALVINGS:
      raise UserError(
        f'config.generator.depth={self.depth}: an integer from 1 to {MOST_HALVINGS} is needed'
      )
    widths = [self.features * min(2**i, 8) for i in range(self.depth)]
    how = dict(kernel=4, stride=2, kernel_init=layers.NORMAL_02)
    bias, size = self.norm == 'instance', x.shape[1:3]
    x = layers.reflect_to_multiple(x, 2**self.depth)

    skips = []
    for i, width in enumerate(widths):
      first, innermost = i == 0, i == self.depth - 1
      x = x if first else nn.leaky_relu(x, 0.2)
      x = layers.Conv(width, padding=1, bias=bias, **how)(x)
      if not first and not innermost:  # one pixel has no statistics
        x = _Norm(self.norm, self.axis_name)(x)
      skips.append(x)

    x = skips.pop()
    for i, width in enumerate(reversed(widths[:-1])):
      x = layers.UpConv(width, bias=bias, **how)(nn.relu(x))
      x = _Norm(self.norm, self.axis_name)(x)
      if 1 <= i <= self.noisy:
        x = layers.Dropout(self.dropout, self.axis_name)(x, train=True)
      x = jnp.concatenate([skips.pop(), x], axis=-1)
    x = layers.UpConv(self.shape[-1], **how)(nn.relu(x))
    return layers.crop(nn.tanh(x), size)


class PatchGAN(nn.Module):
  """Images x [b, h, w, c] -> logits [b, h', w', 1] of overlapping patches of `patch` x `patch`
  pixels: 30 x 30 of 70 pixels for images of 256. That of 70 has 2,768,705 parameters for 6 channels
  with batch norm, 2,764,737 for 3 channels with instance norm.

  Raises:
    UserError: an attribute is out of range, or the images are too small for the convolutions.
  """

  patch: int = 70  # pixels that a logit depends on: 1, 16, 34, 70, 142 or 286
  features: int = 64  # channels after the first convolution; they double up to 8 times as many
  norm: str = 'batch'  # or 'instance'
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    del train
    _check_norm(self.norm, 'discriminator')
    if self.patch not in PATCHES:
      raise UserError(
        f'config.discriminator.patch={self.patch}: one of {", ".join(map(str, PATCHES))} is needed'
      )
    halvings, bias = PATCHES[self.patch], self.norm == 'instance'
    smallest = 3 * 2**halvings if halvings else 1
    if min(x.shape[1:3]) < smallest:
      raise UserError(
        f'config.discriminator.patch={self.patch} needs images of at least {smallest} pixels, not '
        f'{x.shape[1]}x{x.shape[2]}'
      )
    kernel = 4 if halvings else 1
    how = dict(kernel=kernel, padding=kernel // 4, kernel_init=layers.NORMAL_02)
    strides = [2] * halvings + [1] if halvings else [1, 1]
    for i, stride in enumerate(strides):
      width = self.features * min(2**i, 8)
      x = layers.Conv(width, stride=stride, bias=bias or i == 0, **how)(x)
      if i > 0:
        x = _Norm(self.norm, self.axis_name)(x)
      x = nn.leaky_relu(x, 0.2)
    return layers.Conv(1, bias=bias or halvings > 0, **how)(x)


def _check_norm(norm: str, group: str) -> None:
  if norm not in NORMS:
    raise UserError(f'config.{group}.norm={norm!r}: {" or ".join(map(repr, NORMS))} is needed')
