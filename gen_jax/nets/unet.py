"""The U-Net of DDPM (Ho, Jain and Abbeel 2020, appendix B and the released code), and a classifier
of noisy images that is its first half (Dhariwal and Nichol 2021, arXiv 2105.05233, section 4).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.errors import UserError
from gen_jax.nets import layers

_INIT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')
# The released code initialises the last layer of every branch almost at zero: scale 1e-10.
_ZERO = nn.initializers.variance_scaling(1e-10, 'fan_avg', 'uniform')


def _dense(features, init=_INIT, name=None):
  return nn.Dense(features, kernel_init=init, name=name)


def _conv(features, init=_INIT, name=None):
  return layers.Conv(features, kernel_init=init, name=name)


class ResBlock(nn.Module):
  """GN-swish-conv, + time, GN-swish-dropout-conv, + shortcut (1x1 where the widths differ).

  With `scale_shift` the time embedding instead determines a scale and a shift for each channel of
  the second norm (Nichol and Dhariwal 2021, arXiv 2102.09672, appendix A).
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
  """eps_theta(x_t, t): x [b, h, w, c], t [b], label int32 [b] or None -> [b, h, w, out_channels].

  t is a number of a size up to 1000, such as the time step. With `h`, a second such number (the
  length of the interval in MeanFlow), the sinusoids of both are embedded. The defaults are the
  paper's CIFAR-10 net, 35,746,307 parameters for 3 channels.
  """

  features: int = 128  # channels of the first level
  multipliers: Sequence[int] = (1, 2, 2, 2)  # width of each level; every level halves the size
  blocks: int = 2  # residual blocks per level of the down path, one more in the up path
  attention: Sequence[int] = (16,)  # sizes (heights) with self-attention; the middle always has it
  dropout: float = 0.1  # in the residual blocks
  groups: int = 32  # of the group norms; must divide every width
  num_classes: int | None = None  # adds a class embedding to the time embedding
  drop_labels: bool = False  # label num_classes is the null label of classifier-free guidance
  out_channels: int | None = None  # None: those of the images; twice these to learn the variance
  scale_shift: bool = False  # the time scales and shifts the second norm instead of adding to it
  remat: bool = False  # gradient checkpointing of the blocks: less memory, more time
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, t, label=None, h=None, *, train: bool) -> jax.Array:
    widths, channels = _widths(self, x), self.out_channels or x.shape[-1]
    temb = _time(self, t, x.dtype, h)
    if self.num_classes is not None:
      rows = self.num_classes + self.drop_labels
      temb += nn.Embed(rows, 4 * self.features, name='class')(label)

    x, skips = _down(self, x, temb, train, widths)
    x = _middle(self, x, temb, train)

    for level, width in reversed(list(enumerate(widths))):
      for i in range(self.blocks + 1):
        x = jnp.concatenate([x, skips.pop()], axis=-1)
        x = _block(self, x, temb, train, width, f'up{level}_{i}')
      if level > 0:
        x = layers.UpsampledConv(width, kernel_init=_INIT, name=f'up{level}')(x)

    x = layers.GroupNorm(self.groups, swish=True, name='norm_out')(x)
    return _conv(channels, _ZERO, name='conv_out')(x)


class AttentionPool(nn.Module):
  """Attention pooling (Radford et al. 2021, arXiv 2103.00020, section 2.3): [b, h, w, c] -> [b,
  features].

  Tokens are the mean of the feature map, then all its positions, each plus a learned vector. The
  output of multi-head attention for the first token is projected.
  """

  features: int
  head_channels: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    tokens = x.reshape(b, h * w, c)
    tokens = jnp.concatenate([tokens.mean(1, keepdims=True), tokens], axis=1)
    positions = self.param('positions', nn.initializers.normal(c**-0.5), (1 + h * w, c))
    tokens = tokens + positions[None].astype(x.dtype)

    def heads(y):  # [b, n, c] -> [b, n, heads, head_channels]
      return y.reshape(b, -1, c // self.head_channels, self.head_channels)

    # Only the query of the first token is used.
    q = heads(_dense(c, name='q')(tokens[:, :1]))
    k, v = (heads(_dense(c, name=name)(tokens)) for name in 'kv')
    return _dense(self.features, name='out')(layers.attend(q, k, v).reshape(b, c))


class Classifier(nn.Module):
  """log p(y | x_t), up to a constant: x [b, h, w, c], t int32 [b] -> logits float32 [b, classes].

  The down path and the middle of `UNet`, then attention pooling. (The released net halves the size
  within residual blocks; here a convolution with stride 2 does, as in `UNet`.)
  """

  num_classes: int
  features: int = 128  # channels of the first level
  multipliers: Sequence[int] = (1, 2, 2)  # width of each level; every level halves the size
  blocks: int = 2  # residual blocks per level
  attention: Sequence[int] = (16, 8)  # sizes (heights) with self-attention; the middle has it
  head_channels: int = 64  # width of a head of the pooling; must divide the last width
  dropout: float = 0.0  # in the residual blocks
  groups: int = 32  # of the group norms; must divide every width
  scale_shift: bool = True  # the time scales and shifts the second norm instead of adding to it
  remat: bool = False  # gradient checkpointing of the blocks: less memory, more time
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, t, *, train: bool) -> jax.Array:
    widths = _widths(self, x)
    if (last := widths[-1]) % self.head_channels:
      raise UserError(
        f'config.net.head_channels={self.head_channels} does not divide {last}, the width of the '
        'last level (config.net.features times the last of config.net.multipliers)'
      )
    temb = _time(self, t, x.dtype)
    x, _ = _down(self, x, temb, train, widths)
    x = _middle(self, x, temb, train)
    x = layers.GroupNorm(self.groups, swish=True, name='norm_out')(x)
    return AttentionPool(self.num_classes, self.head_channels, name='pool')(x)


# --- Parts of both; called within the __call__ of `net`, whose submodules they create -----------


def _widths(net, x) -> list[int]:
  """The width of each level.

  Raises:
    UserError: the groups do not divide a width, or as `layers.level_widths`.
  """
  widths = layers.level_widths(net, x)
  if bad := [width for width in widths if width % net.groups]:
    raise UserError(
      f'config.net.groups={net.groups} does not divide the width {bad[0]} of a level '
      f'(config.net.features times config.net.multipliers={tuple(net.multipliers)})'
    )
  return widths


def _time(net, t, dtype, h=None) -> jax.Array:
  """The embedding of t [b], and of h [b] where there is one: [b, 4 features]."""
  temb = layers.time_embeddings(layers.time_embedding, (t, h), net.features).astype(dtype)
  temb = _dense(4 * net.features, name='temb1')(temb)
  return _dense(4 * net.features, name='temb2')(nn.swish(temb))


def _res_block(net, x, temb, train, width, name) -> jax.Array:
  kind = nn.remat(ResBlock, static_argnums=(3,)) if net.remat else ResBlock
  block = kind(width, net.groups, net.dropout, net.scale_shift, net.axis_name, name=name)
  return block(x, temb, train)


def _attention(net, x, name) -> jax.Array:
  return (nn.remat(Attention) if net.remat else Attention)(net.groups, name=name)(x)


def _block(net, x, temb, train, width, name) -> jax.Array:
  """A residual block, and self-attention at the sizes that have it."""
  x = _res_block(net, x, temb, train, width, name)
  return _attention(net, x, f'{name}_attention') if x.shape[1] in net.attention else x


def _down(net, x, temb, train, widths) -> tuple[jax.Array, list[jax.Array]]:
  """The down path: the smallest feature map, and all skip connections to the up path."""
  x = _conv(net.features, name='conv_in')(x)
  skips = [x]
  for level, width in enumerate(widths):
    for i in range(net.blocks):
      x = _block(net, x, temb, train, width, f'down{level}_{i}')
      skips.append(x)
    if level < len(widths) - 1:
      x = layers.Conv(width, stride=2, kernel_init=_INIT, name=f'down{level}')(x)
      skips.append(x)
  return x, skips


def _middle(net, x, temb, train) -> jax.Array:
  """Residual block, attention, residual block."""
  width = x.shape[-1]
  x = _res_block(net, x, temb, train, width, 'mid1')
  x = _attention(net, x, 'mid_attention')
  return _res_block(net, x, temb, train, width, 'mid2')
