"""The U-Net of Improved DDPM (Nichol and Dhariwal 2021, arXiv 2102.09672, and the released code),
from which ADM's and that of flow matching on CIFAR-10 were made.

It differs from DDPM's (`unet.UNet`) in its embedding of the time, which scales and shifts the
second norm of every block, its heads of attention, its symmetric padding, and its initial values.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.errors import UserError
from gen_jax.nets import layers
from gen_jax.ops import convolutions

_INIT = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')  # PyTorch's default
_ZERO = nn.initializers.zeros


def _norm(groups, name, swish=True):
  return layers.GroupNorm(groups, epsilon=1e-5, swish=swish, name=name)


def _biased(kind, x, features, kernel_size=1, **kwargs):
  """A layer whose weights and biases start in +-1/sqrt(fan_in), PyTorch's default."""
  bound = (kernel_size**2 * x.shape[-1]) ** -0.5
  uniform = lambda key, shape, dtype=jnp.float32: jax.random.uniform(
    key, shape, dtype, -bound, bound
  )
  return kind(features, kernel_init=_INIT, bias_init=uniform, **kwargs)(x)


def _dense(x, features, name):
  return _biased(nn.Dense, x, features, name=name)


def _conv(x, features, name, **kwargs):
  return _biased(layers.Conv, x, features, 3, name=name, **kwargs)


class ResBlock(nn.Module):
  """GN-swish-conv, GN scaled and shifted by the embedding, swish-dropout-conv, + shortcut (1x1
  where the widths differ).
  """

  features: int
  groups: int
  dropout: float
  axis_name: str | None

  @nn.compact
  def __call__(self, x: jax.Array, emb: jax.Array, train: bool) -> jax.Array:
    h = _conv(_norm(self.groups, 'norm1')(x), self.features, 'conv1')
    scale_shift = jnp.split(_dense(nn.swish(emb), 2 * self.features, 'emb'), 2, axis=-1)
    h = _norm(self.groups, 'norm2')(h, scale_shift)
    h = layers.Dropout(self.dropout, self.axis_name)(h, train=train)
    h = layers.Conv(self.features, kernel_init=_ZERO, name='conv2')(h)
    if x.shape[-1] != self.features:
      x = _dense(x, self.features, 'shortcut')
    return x + h


class Attention(nn.Module):
  """Self-attention over all positions of a feature map, residual."""

  heads: int
  groups: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    y = _norm(self.groups, 'norm', swish=False)(x).reshape(b, h * w, c)
    # Queries, keys and values stand outermost, heads within them.
    qkv = _dense(y, 3 * c, 'qkv').reshape(b, h * w, 3, self.heads, c // self.heads)
    y = layers.attend(*(qkv[:, :, i] for i in range(3))).reshape(x.shape)
    return x + nn.Dense(c, kernel_init=_ZERO, name='out')(y)


class ADM(nn.Module):
  """eps_theta(x_t, t): x [b, h, w, c], t [b], label int32 [b] or None -> [b, h, w, out_channels].

  The authors tell the net t in [0, 1000) whatever the number of steps. With `h`, a second time (the
  length of the interval in MeanFlow), the sinusoids of both are embedded.

  The defaults are the net of Improved DDPM on CIFAR-10: 52,542,979 parameters for 3 channels,
  52,546,438 with out_channels 6. The net of flow matching (Lipman et al. 2024, arXiv 2412.06264,
  the released code) is multipliers (2, 2, 2), blocks 4, attention (16,), heads 1 and conv_resample
  False: 55,676,419 parameters.
  """

  features: int = 128  # channels that the multipliers multiply
  multipliers: Sequence[int] = (1, 2, 2, 2)  # width of each level; every level halves the size
  blocks: int = 3  # residual blocks per level of the down path, one more in the up path
  attention: Sequence[int] = (16, 8)  # sizes (heights) with self-attention; the middle has it
  heads: int = 4  # of self-attention; must divide the widths that have it
  dropout: float = 0.3  # in the residual blocks
  groups: int = 32  # of the group norms; must divide every width
  conv_resample: bool = True  # convolutions change the size; else means and copies of pixels
  num_classes: int | None = None  # adds a class embedding to the time embedding
  drop_labels: bool = False  # label num_classes is the null label of classifier-free guidance
  out_channels: int | None = None  # None: those of the images; twice these to learn the variance
  remat: bool = False  # gradient checkpointing of the blocks: less memory, more time
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, t, label=None, h=None, *, train: bool) -> jax.Array:
    widths, channels = self._widths(x), self.out_channels or x.shape[-1]
    emb = layers.time_embeddings(layers.adm_time_embedding, (t, h), self.features).astype(x.dtype)
    emb = _dense(nn.swish(_dense(emb, 4 * self.features, 'emb1')), 4 * self.features, 'emb2')
    if self.num_classes is not None:
      rows = self.num_classes + self.drop_labels
      init = nn.initializers.normal(1.0)
      emb += nn.Embed(rows, 4 * self.features, embedding_init=init, name='class')(label)
    res_block = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock
    attention = nn.remat(Attention) if self.remat else Attention

    def block(x, width, name, attend=None):
      x = res_block(width, self.groups, self.dropout, self.axis_name, name=name)(x, emb, train)
      if x.shape[1] in self.attention if attend is None else attend:
        x = attention(self.heads, self.groups, name=f'{name}_attention')(x)
      return x

    x = _conv(x, widths[0], 'conv_in')
    skips = [x]
    for level, width in enumerate(widths):
      if level > 0:
        if self.conv_resample:
          x = _conv(x, x.shape[-1], f'down{level}', stride=2, padding=1)
        else:
          x = layers.mean_pool(x)
        skips.append(x)
      for i in range(self.blocks):
        x = block(x, width, f'down{level}_{i}')
        skips.append(x)

    x = block(x, x.shape[-1], 'mid1', attend=True)
    x = block(x, x.shape[-1], 'mid2', attend=False)

    for level, width in reversed(list(enumerate(widths))):
      for i in range(self.blocks + 1):
        x = block(jnp.concatenate([x, skips.pop()], axis=-1), width, f'up{level}_{i}')
      if level > 0:
        if self.conv_resample:
          x = _biased(layers.UpsampledConv, x, width, 3, name=f'up{level}')
        else:
          x = convolutions.upsample(x)

    x = _norm(self.groups, 'norm_out')(x)
    return layers.Conv(channels, kernel_init=_ZERO, name='conv_out')(x)

  def _widths(self, x):
    widths = layers.level_widths(self, x)
    for name in ('groups', 'heads'):
      number = getattr(self, name)
      if bad := [width for width in widths if width % number]:
        raise UserError(
          f'config.net.{name}={number} does not divide the width {bad[0]} of a level '
          f'(config.net.features times config.net.multipliers={tuple(self.multipliers)})'
        )
    return widths
