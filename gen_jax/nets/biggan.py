"""The nets of BigGAN (Brock, Donahue and Simonyan 2019, arXiv 1809.11096), as in BigGAN-PyTorch:
with spectral norm in both; for 128 pixels with a shared embedding, hierarchical latents
and attention.

Biases start at 0. Of G, the embeddings and the last batch norm have no spectral norm.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.errors import UserError
from gen_jax.nets import layers
from gen_jax.nets.sngan import DownBlock, first_size
from gen_jax.nets.spectral import SpectralNorm
from gen_jax.ops import convolutions

INITS = {'N02': layers.NORMAL_02, 'orthogonal': nn.initializers.orthogonal()}


def _init(net, field: str):
  if net.init_name not in INITS:
    raise UserError(
      f'config.{field}.init_name={net.init_name!r}: one of {", ".join(INITS)} is needed'
    )
  return INITS[net.init_name]


def _normed(layer, x, train):
  return SpectralNorm(layer, name=f'{layer.name}_sn')(x, train=train)


class SelfAttention(nn.Module):
  """x + gate o(x), o the attention of every pixel to 2x2 pooled ones (Zhang et al. 2019, arXiv
  1805.08318, as released): [b, h, w, c] -> [b, h, w, c]. The gate starts at 0.
  """

  kernel_init: nn.initializers.Initializer = layers.NORMAL_02

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    b, h, w, c = x.shape

    def conv(x, features, name):
      layer = layers.Conv(features, 1, bias=False, kernel_init=self.kernel_init, name=name)
      return _normed(layer, x, train)

    def pooled(x):
      return x.reshape(b, h // 2, 2, w // 2, 2, -1).max((2, 4)).reshape(b, h * w // 4, -1)

    theta = conv(x, c // 8, 'theta').reshape(b, h * w, -1)
    phi, g = pooled(conv(x, c // 8, 'phi')), pooled(conv(x, c // 2, 'g'))
    scores = jnp.einsum('bqd,bkd->bqk', theta, phi)  # unlike in transformers, not divided by sqrt d
    weights = nn.softmax(scores.astype(jnp.float32)).astype(g.dtype)
    o = jnp.einsum('bqk,bkd->bqd', weights, g).reshape(b, h, w, -1)
    gate = self.param('gate', nn.initializers.zeros, ())
    return x + gate * conv(o, c, 'o')


class UpBlock(nn.Module):
  """BN-ReLU-upsample-conv3-BN-ReLU-conv3, shortcut upsample-conv1. The scales and shifts of batch
  norm are linear in the condition [b, d] or, where there are `num_classes`, embeddings of a label
  [b].
  """

  num_classes: int | None
  features: int
  kernel_init: nn.initializers.Initializer
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, condition: jax.Array, *, train: bool) -> jax.Array:
    init = self.kernel_init

    def norm(x, name):
      def of_condition(kind):
        name_, c = f'{name}_{kind}', x.shape[-1]
        if self.num_classes is not None:
          return nn.Embed(self.num_classes, c, embedding_init=init, name=name_)(condition)
        layer = nn.Dense(c, use_bias=False, kernel_init=init, name=name_)
        return _normed(layer, condition, train)

      batch_norm = layers.ConditionalBatchNorm(axis_name=self.axis_name, name=name)
      scale_shift = of_condition('scale'), of_condition('shift')
      return nn.relu(batch_norm(x, scale_shift, train=train))

    conv1 = layers.UpsampledConv(self.features, kernel_init=init, name='conv1')
    conv2 = layers.Conv(self.features, kernel_init=init, name='conv2')
    h = _normed(conv1, norm(x, 'norm1'), train)
    h = _normed(conv2, norm(h, 'norm2'), train)
    # A 1x1 convolution commutes with the upsampling; before it costs a quarter.
    shortcut = layers.Conv(self.features, 1, kernel_init=init, name='shortcut')
    return h + convolutions.upsample(_normed(shortcut, x, train))


class Generator(nn.Module):
  """z [b, d], label int32 [b] -> [b, h, w, c] in (-1, 1).

  With the defaults and 10 classes: 4,304,387 parameters. The net for 128x128 has features (1536,
  1536, 768, 384, 192, 96), attention (64,), shared 128 and hierarchical: 70.43 M with 1,000 classes
  and z of 120 entries.
  """

  num_classes: int
  shape: Sequence[int] = (32, 32, 3)
  features: Sequence[int] = (256, 256, 256, 256)  # channels of the dense layer and of each block
  attention: Sequence[int] = ()  # sizes of the maps that self-attention follows
  shared: int | None = None  # entries of the embedding of all blocks; None: each has its own
  hierarchical: bool = False  # z is split: a part for the dense layer, and one for each block
  init_name: str = 'N02'  # of the weights, N02 or orthogonal
  axis_name: str | None = None

  @nn.compact
  def __call__(self, z: jax.Array, label: jax.Array, *, train: bool) -> jax.Array:
    first, *widths = self.features
    h, w = first_size(self.shape, len(widths))
    init = _init(self, 'generator')
    y = label
    if self.shared is not None:
      y = nn.Embed(self.num_classes, self.shared, embedding_init=init, name='shared')(label)
    conditions = [y] * len(widths)
    if self.hierarchical:
      parts = len(widths) + 1
      if self.shared is None or z.shape[1] % parts:
        raise UserError(
          f'config.latent.dim={z.shape[1]}, config.generator.shared={self.shared}: hierarchical '
          f'latents need a multiple of {parts}, a part for each block and one more, and a shared '
          'embedding'
        )
      z, *rest = jnp.split(z, parts, axis=1)
      conditions = [jnp.concatenate([y, part], axis=1) for part in rest]

    x = _normed(nn.Dense(h * w * first, kernel_init=init, name='dense'), z, train)
    x = x.reshape(-1, h, w, first)
    classes = self.num_classes if self.shared is None else None
    for width, condition in zip(widths, conditions, strict=True):
      x = UpBlock(classes, width, init, self.axis_name)(x, condition, train=train)
      if x.shape[1] in self.attention:
        x = SelfAttention(init)(x, train=train)
    x = nn.relu(layers.ConditionalBatchNorm(axis_name=self.axis_name)(x, train=train))
    out = layers.Conv(self.shape[-1], kernel_init=init, name='out')
    return nn.tanh(_normed(out, x, train))


class Discriminator(nn.Module):
  """x [b, h, w, c], label int32 [b] -> [b]: psi(phi(x)) + <v_label, phi(x)>, phi a sum over pixels.

  With the defaults and 10 classes: 4,207,361 parameters. The net for 128x128 has features (96, 192,
  384, 768, 1536, 1536), downs 5 and attention (64,): 87,982,370 with 1,000 classes.
  """

  num_classes: int
  features: Sequence[int] = (256, 256, 256, 256)  # channels of each block
  downs: int = 2  # so many of the blocks, from the first on, halve the size
  attention: Sequence[int] = ()  # sizes of the maps that self-attention follows
  init_name: str = 'N02'  # of the weights, N02 or orthogonal

  @nn.compact
  def __call__(self, x: jax.Array, label: jax.Array, *, train: bool) -> jax.Array:
    init = _init(self, 'discriminator')
    for i, width in enumerate(self.features):
      block = DownBlock(width, i < self.downs, first=i == 0, hidden=width, inits=(init, init))
      x = block(x, train=train)
      if x.shape[1] in self.attention:
        x = SelfAttention(init)(x, train=train)
    phi = jnp.sum(nn.relu(x), axis=(1, 2))
    y = _normed(nn.Dense(1, kernel_init=init, name='psi'), phi, train)[:, 0]
    embed = nn.Embed(self.num_classes, phi.shape[-1], embedding_init=init, name='embed')
    return y + jnp.sum(_normed(embed, label, train) * phi, axis=-1)
