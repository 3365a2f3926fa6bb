"""Encoder and decoder of a convolutional variational autoencoder."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax

from gen_jax.errors import UserError
from gen_jax.nets import layers


class Encoder(nn.Module):
  """x [b, h, w, c] -> the mean and log sigma^2 of q(z|x), each [b, latent_dim]: 4x4 convolutions
  with stride 2, then dense layers.
  """

  latent_dim: int
  features: Sequence[int] = (32, 64)  # at 1/2, 1/4, ... of the resolution
  hidden: Sequence[int] = (256,)  # widths of the hidden dense layers

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    for width in self.features:
      x = nn.relu(layers.Conv(width, kernel=4, stride=2)(x))
    x = layers.flatten(x)
    for width in self.hidden:
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(self.latent_dim)(x), nn.Dense(self.latent_dim)(x)


class Decoder(nn.Module):
  """z [b, d] -> [b, h, w, outputs c], the parameters of p(x|z): the encoder in reverse, by 4x4
  up-convolutions. Of each pixel, the first c outputs are those of its channels, then the next c.
  """

  shape: Sequence[int]  # (h, w, c) of an image
  outputs: int  # parameters of the likelihood of one value
  features: Sequence[int] = (64, 32)  # at ..., 1/4, 1/2 of the resolution
  hidden: Sequence[int] = (256,)  # widths of the hidden dense layers

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    h, w, c = self.shape
    scale = 2 ** len(self.features)
    if h % scale or w % scale:
      raise UserError(
        f'config.decoder.features={tuple(self.features)}: {len(self.features)} up-convolutions '
        f'make sizes that are multiples of {scale}, but config.data.shape={tuple(self.shape)}'
      )
    x = z
    for width in (*self.hidden, math.prod((h // scale, w // scale, self.features[0]))):
      x = nn.relu(nn.Dense(width)(x))
    x = x.reshape(-1, h // scale, w // scale, self.features[0])
    for width in self.features[1:]:
      x = nn.relu(layers.UpConv(width)(x))
    return layers.UpConv(self.outputs * c)(x)
