"""The U-Net of DDPM (Ho, Jain and Abbeel 2020, appendix B and the released code)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.errors import UserError
from gen_jax.nets import layers

_INIT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')
# The released code starts the last layer of every branch at "zero": scale 1e-10.
_ZERO = nn.initializers.variance_scaling(1e-10, 'fan_avg', 'uniform')


def _dense(features, init=_INIT, name=None):
  return nn.Dense(features, kernel_init=init, name=name)


def _conv(features, init=_INIT, name=None):
  return layers.Conv(features, kernel_init=init, name=name)


class ResBlock(nn.Module):
  """GN-swish-conv, + time, GN-swish-dropout-conv, + shortcut (1x1 where the widths differ).

  With `scale_shift` the time gives the second norm a scale and a shift for each channel instead
  (Nichol and Dhariwal 2021, arXiv 2102.09672, appendix A).
  """

  features: int
  groups: int
  dropout: float
  scale_shift: bool
  axis_name: str | None

  @nn.compact
  def __call__(self, x: jax.Array, temb: jax.Array, train: bool) -> jax.Array:
    h = layers.GroupNorm(self.groups, swish=True, name='norm1')(x)
    h = _conv(self.features, name='conv1')(h)
    widths = 2 * self.features if self.scale_shift else self.features
    time = _dense(widths, name='temb')(nn.swish(temb))
    norm = layers.GroupNorm(self.groups, swish=True, name='norm2')
    h = norm(h, jnp.split(time, 2, axis=-1)) if self.scale_shift else norm(h + time[:, None, None])
    h = layers.Dropout(self.dropout, self.axis_name)(h, train=train)
    h = _conv(self.features, _ZERO, name='conv2')(h)
    if x.shape[-1] != self.features:
      x = _dense(self.features, name='shortcut')(x)
    return x + h


class Attention(nn.Module):
  """Self-attention with one head over all positions of a feature map, residual."""

  groups: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    y = layers.GroupNorm(self.groups, name='norm')(x).reshape(b, h * w, c)
    q, k, v = (_dense(c, name=name)(y) for name in 'qkv')
    scores = jnp.einsum('bqc,bkc->bqk', q, k) * c**-0.5
    weights = nn.softmax(scores.astype(jnp.float32)).astype(x.dtype)
    y = jnp.einsum('bqk,bkc->bqc', weights, v)
    return x + _dense(c, _ZERO, name='out')(y).reshape(b, h, w, c)


class UNet(nn.Module):
  """eps_theta(x_t, t): x [b, h, w, c], t int32 [b], label int32 [b] or None -> [b, h, w, c].

  The defaults are the paper's CIFAR-10 net, 35,746,307 parameters for 3 channels.
  """

  features: int = 128  # channels of the first level
  multipliers: Sequence[int] = (1, 2, 2, 2)  # width of each level; every level halves the size
  blocks: int = 2  # residual blocks per level on the way down, one more on the way up
  attention: Sequence[int] = (16,)  # sizes (heights) with self-attention; the middle always has it
  dropout: float = 0.1  # in the residual blocks
  groups: int = 32  # of the group norms; must divide every width
  num_classes: int | None = None  # adds a class embedding to the time embedding
  scale_shift: bool = False  # the time scales and shifts the second norm instead of adding to it
  remat: bool = False  # computes the blocks anew for the gradient: less memory, more time
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, t, label=None, *, train: bool) -> jax.Array:
    residual, attention = ResBlock, Attention
    if self.remat:
      residual, attention = nn.remat(ResBlock, static_argnums=(3,)), nn.remat(Attention)

    def res_block(x, width, name):
      block = residual(
        width, self.groups, self.dropout, self.scale_shift, self.axis_name, name=name
      )
      return block(x, temb, train)

    def block(x, width, name):
      x = res_block(x, width, name)
      if x.shape[1] in self.attention:
        x = attention(self.groups, name=f'{name}_attention')(x)
      return x

    widths = [self.features * m for m in self.multipliers]
    channels = x.shape[-1]
    if bad := [width for width in widths if width % self.groups]:
      raise UserError(
        f'config.net.groups={self.groups} does not divide the width {bad[0]} of a level '
        f'(config.net.features times config.net.multipliers={tuple(self.multipliers)})'
      )
    smallest = 2 ** (len(widths) - 1)
    if x.shape[1] % smallest or x.shape[2] % smallest:
      raise UserError(
        f'config.data.shape={tuple(x.shape[1:])}: height and width must be multiples of '
        f'{smallest}, as config.net.multipliers={tuple(self.multipliers)} halves them '
        f'{len(widths) - 1} times'
      )
    temb = layers.time_embedding(t, self.features).astype(x.dtype)
    temb = _dense(4 * self.features, name='temb1')(temb)
    temb = _dense(4 * self.features, name='temb2')(nn.swish(temb))
    if self.num_classes is not None:
      temb += nn.Embed(self.num_classes, 4 * self.features, name='class')(label)

    x = _conv(self.features, name='conv_in')(x)
    skips = [x]
    for level, width in enumerate(widths):
      for i in range(self.blocks):
        x = block(x, width, f'down{level}_{i}')
        skips.append(x)
      if level < len(widths) - 1:
        x = layers.Conv(width, stride=2, kernel_init=_INIT, name=f'down{level}')(x)
        skips.append(x)

    x = res_block(x, widths[-1], 'mid1')
    x = attention(self.groups, name='mid_attention')(x)
    x = res_block(x, widths[-1], 'mid2')

    for level, width in reversed(list(enumerate(widths))):
      for i in range(self.blocks + 1):
        x = block(jnp.concatenate([x, skips.pop()], axis=-1), width, f'up{level}_{i}')
      if level > 0:
        x = layers.UpsampledConv(width, kernel_init=_INIT, name=f'up{level}')(x)

    x = layers.GroupNorm(self.groups, swish=True, name='norm_out')(x)
    return _conv(channels, _ZERO, name='conv_out')(x)
