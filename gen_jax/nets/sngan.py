"""The ResNets of Miyato et al. 2018 (SNGAN, arXiv 1802.05957) and Miyato and Koyama 2018 (the
projection discriminator, arXiv 1802.05637), as in the released code.

With `num_classes` None they take no notice of labels.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.errors import UserError
from gen_jax.nets import layers
from gen_jax.nets.spectral import SpectralNorm
from gen_jax.ops import convolutions

# Chainer's GlorotUniform, with and without a factor of sqrt 2.
_HE = nn.initializers.variance_scaling(2.0, 'fan_avg', 'uniform')
_GLOROT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')
_EPSILON = 2e-5  # of Chainer's batch norm


def first_size(shape: Sequence[int], blocks: int) -> tuple[int, int]:
  """Height and width of the maps that `blocks` doublings make images of `shape` of.

  Raises:
    UserError: the shape is not a multiple of 2 ** blocks.
  """
  if len(shape) != 3 or shape[0] % 2**blocks or shape[1] % 2**blocks:
    raise UserError(
      f'config.data.shape={tuple(shape)}: height and width must be multiples of {2**blocks}, as '
      f"each of the generator's {blocks} blocks doubles the size"
    )
  return shape[0] // 2**blocks, shape[1] // 2**blocks


class UpBlock(nn.Module):
  """BN-ReLU-upsample-conv3-BN-ReLU-conv3, shortcut upsample-conv1."""

  num_classes: int | None
  features: int
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, label: jax.Array | None, *, train: bool) -> jax.Array:
    def norm(x, name):
      scale_shift = None
      if self.num_classes is not None:
        embed = lambda kind: nn.Embed(
          self.num_classes, x.shape[-1], embedding_init=nn.initializers.zeros, name=f'{name}_{kind}'
        )(label)
        scale_shift = embed('scale'), embed('shift')
      batch_norm = layers.ConditionalBatchNorm(_EPSILON, self.axis_name, name=name)
      return nn.relu(batch_norm(x, scale_shift, train=train))

    h = layers.UpsampledConv(self.features, kernel_init=_HE, name='conv1')(norm(x, 'norm1'))
    h = layers.Conv(self.features, kernel_init=_HE, name='conv2')(norm(h, 'norm2'))
    # A 1x1 convolution commutes with the upsampling; before it costs a quarter.
    shortcut = layers.Conv(self.features, kernel=1, kernel_init=_GLOROT, name='shortcut')
    return h + convolutions.upsample(shortcut(x))


class Generator(nn.Module):
  """z [b, d], label int32 [b] -> [b, h, w, c] in (-1, 1); the last batch norm has no labels.

  With the defaults: 4,276,739 parameters, with 10 classes 4,304,387. For 28x28, 2 blocks.
  """

  num_classes: int | None
  shape: Sequence[int] = (32, 32, 3)
  features: Sequence[int] = (256, 256, 256, 256)  # channels of the dense layer and of each block
  axis_name: str | None = None

  @nn.compact
  def __call__(self, z: jax.Array, label: jax.Array | None = None, *, train: bool) -> jax.Array:
    first, *widths = self.features
    h, w = first_size(self.shape, len(widths))
    x = nn.Dense(h * w * first, kernel_init=_GLOROT)(z).reshape(-1, h, w, first)
    for width in widths:
      x = UpBlock(self.num_classes, width, self.axis_name)(x, label, train=train)
    x = layers.ConditionalBatchNorm(_EPSILON, self.axis_name)(x, train=train)
    return nn.tanh(layers.Conv(self.shape[-1], kernel_init=_GLOROT)(nn.relu(x)))


class DownBlock(nn.Module):
  """ReLU-conv3-ReLU-conv3(-meanpool) with a shortcut, all convolutions with spectral norm; `first`
  leaves out the first ReLU.
  """

  features: int
  down: bool = False
  first: bool = False
  hidden: int | None = None  # channels between them; None: as before, or `features` if `first`
  inits: Sequence[nn.initializers.Initializer] = (_HE, _GLOROT)  # of these and of the shortcut

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    def normed(layer, x):
      return SpectralNorm(layer, name=f'{layer.name}_sn')(x, train=train)

    init, shortcut_init = self.inits
    hidden = self.hidden or (self.features if self.first else x.shape[-1])
    conv1 = layers.Conv(hidden, kernel_init=init, name='conv1')
    h = normed(conv1, x if self.first else nn.relu(x))
    kind = layers.PooledConv if self.down else layers.Conv
    h = normed(kind(self.features, kernel_init=init, name='conv2'), nn.relu(h))
    if self.down:
      # The released code takes the mean after the 1x1 convolution in all blocks but the first: both
      # are linear, so the numbers are the same.
      x = layers.mean_pool(x)
    if self.down or x.shape[-1] != self.features:
      x = normed(layers.Conv(self.features, 1, kernel_init=shortcut_init, name='shortcut'), x)
    return h + x


class Discriminator(nn.Module):
  """x [b, h, w, c], label int32 [b] -> [b]: psi(phi(x)) + <v_label, phi(x)>, phi a sum over pixels.

  With the defaults: 1,053,824 parameters, with 10 classes 1,055,104.
  """

  num_classes: int | None
  features: Sequence[int] = (128, 128, 128, 128)  # channels of each block
  downs: int = 2  # so many of the blocks, from the first on, halve the size

  @nn.compact
  def __call__(self, x: jax.Array, label: jax.Array | None = None, *, train: bool) -> jax.Array:
    for i, width in enumerate(self.features):
      x = DownBlock(width, down=i < self.downs, first=i == 0)(x, train=train)
    phi = jnp.sum(nn.relu(x), axis=(1, 2))
    psi = nn.Dense(1, use_bias=False, kernel_init=_GLOROT, name='psi')
    y = SpectralNorm(psi, name='psi_sn')(phi, train=train)[:, 0]
    if self.num_classes is None:
      return y
    embed = nn.Embed(self.num_classes, phi.shape[-1], embedding_init=_GLOROT, name='embed')
    v = SpectralNorm(embed, name='embed_sn')(label, train=train)
    return y + jnp.sum(v * phi, axis=-1)
