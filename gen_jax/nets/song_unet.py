"""The U-Nets of score SDEs, DDPM++ and NCSN++ (Song et al. 2021, arXiv 2011.13456, appendix H), in
the form of EDM (Karras et al. 2022, arXiv 2206.00364, appendix F.1 and the released code).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.errors import UserError
from gen_jax.nets import layers


def _init(scale=1.0):
  return nn.initializers.variance_scaling(scale, 'fan_avg', 'uniform')


_ZERO = _init(1e-10)  # almost zero, for the last layer of every branch


def _norm(x, name, swish=True) -> jax.Array:
  """Group norm with at least 4 channels in each of at most 32 groups.

  Raises:
    UserError: the groups do not divide the channels.
  """
  channels = x.shape[-1]
  groups = min(32, channels // 4)
  if not groups or channels % groups:
    raise UserError(
      f'config.net.features times config.net.multipliers: group norms of {channels} channels have '
      f'{groups or "no"} groups, at most 32 of at least 4 channels; equal groups are needed'
    )
  return layers.GroupNorm(groups, swish=swish, name=name)(x)


class Block(nn.Module):
  """GN-swish-resample-conv, + embedding, GN-swish-dropout-conv, + shortcut; then perhaps
  self-attention with one head, residual. Both sums are divided by sqrt(2).
  """

  features: int
  dropout: float
  resample: str | None  # 'down', 'up' or None
  taps: Sequence[int]  # filter of resampling
  attention: bool
  axis_name: str | None

  @nn.compact
  def __call__(self, x: jax.Array, emb: jax.Array, train: bool) -> jax.Array:
    h = _norm(x, 'norm1')
    h = layers.Conv(self.features, kernel_init=_init(), name='conv1')(self._resampled(h))
    h = h + nn.Dense(self.features, kernel_init=_init(), name='emb')(emb)[:, None, None]
    h = layers.Dropout(self.dropout, self.axis_name)(_norm(h, 'norm2'), train=train)
    h = layers.Conv(self.features, kernel_init=_ZERO, name='conv2')(h)
    if self.resample or x.shape[-1] != self.features:
      x = nn.Dense(self.features, kernel_init=_init(), name='shortcut')(self._resampled(x))
    x = (x + h) * 0.5**0.5
    return (x + self._attention(x)) * 0.5**0.5 if self.attention else x

  def _resampled(self, x):
    if self.resample == 'down':
      return layers.fir_downsample(x, self.taps)
    return layers.fir_upsample(x, self.taps) if self.resample == 'up' else x

  def _attention(self, x):
    b, h, w, c = x.shape
    y = _norm(x, 'attention_norm', swish=False).reshape(b, h * w, 1, c)
    qkv = nn.Dense(3 * c, kernel_init=_init(0.2), name='attention_qkv')(y)
    y = layers.attend(*jnp.split(qkv, 3, axis=-1)).reshape(x.shape)
    return nn.Dense(c, kernel_init=_ZERO, name='attention_out')(y)


class SongUNet(nn.Module):
  """F_theta(x, noise): x [b, h, w, c], noise float32 [b] -> [b, h, w, out_channels].

  `noise` says how noisy x is, as the system writes it (1000 t, log sigma, ...). With `h`, a second
  such number (the length of the interval in MeanFlow), the embeddings of both stand side by side.
  `augment` [b, augment_dim], by default zeros, describes how the images were augmented.

  The defaults are DDPM++ as EDM trains it on CIFAR-10: 55,733,891 parameters for 3 channels with
  augment_dim 9. NCSN++ is embedding 'fourier', noise_width 2, residual_input and taps (1, 3, 3, 1):
  56,397,827 parameters.
  """

  features: int = 128  # channels that the multipliers multiply
  multipliers: Sequence[int] = (2, 2, 2)  # width of each level; every level halves the size
  blocks: int = 4  # residual blocks per level of the down path, one more in the up path
  attention: Sequence[int] = (16,)  # sizes (heights) with self-attention; the middle always has it
  dropout: float = 0.13  # in the residual blocks
  embedding: str = 'sinusoidal'  # of the noise: sinusoidal or fourier (random frequencies)
  noise_width: int = 1  # of that embedding, in multiples of features
  taps: Sequence[int] = (1, 1)  # filter of up- and downsampling
  residual_input: bool = False  # every level of the down path sees the images, downsampled
  num_classes: int | None = None  # adds a class embedding to that of the noise
  drop_labels: bool = False  # label num_classes is the null label of classifier-free guidance
  augment_dim: int = 0  # numbers that describe an augmentation (9 by diffusion.augment)
  out_channels: int | None = None  # None: those of the images; twice these to learn the variance
  remat: bool = False  # gradient checkpointing of the blocks: less memory, more time
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, noise, label=None, augment=None, h=None, *, train: bool) -> jax.Array:
    widths, channels = layers.level_widths(self, x), self.out_channels or x.shape[-1]
    self._check_taps()
    emb = self._embedding(x, noise, label, augment, h)
    kind = nn.remat(Block, static_argnums=(3,)) if self.remat else Block

    def block(x, width, name, attention=False, resample=None):
      more = (self.dropout, resample, self.taps, attention, self.axis_name)
      return kind(width, *more, name=name)(x, emb, train)

    def attends(x):
      return x.shape[1] in self.attention

    image = x
    x = layers.Conv(self.features, kernel_init=_init(), name='conv_in')(x)
    skips = [x]
    for level, width in enumerate(widths):
      if level > 0:
        x = block(x, x.shape[-1], f'down{level}', resample='down')
        if self.residual_input:
          x = image = (x + self._downsampled(image, x.shape[-1], f'input{level}')) * 0.5**0.5
        skips.append(x)
      for i in range(self.blocks):
        x = block(x, width, f'down{level}_{i}', attends(x))
        skips.append(x)

    x = block(x, x.shape[-1], 'mid1', attention=True)
    x = block(x, x.shape[-1], 'mid2')

    for level, width in reversed(list(enumerate(widths))):
      if level < len(widths) - 1:
        x = block(x, x.shape[-1], f'up{level}', resample='up')
      for i in range(self.blocks + 1):
        x = jnp.concatenate([x, skips.pop()], axis=-1)
        # Once per level in the up path, after its last block.
        x = block(x, width, f'up{level}_{i}', attends(x) and i == self.blocks)

    return layers.Conv(channels, kernel_init=_ZERO, name='conv_out')(_norm(x, 'norm_out'))

  def _embedding(self, x, noise, label, augment, h):
    embeddings = {'sinusoidal': layers.time_embedding, 'fourier': layers.fourier_embedding}
    if self.embedding not in embeddings:
      raise UserError(f'config.net.embedding={self.embedding!r}: sinusoidal or fourier is needed')
    width, embed = self.noise_width * self.features, embeddings[self.embedding]
    emb = layers.time_embeddings(embed, (noise, h), width).astype(x.dtype)
    width = emb.shape[-1]
    if self.num_classes is not None:
      rows = self.num_classes + self.drop_labels
      # One-hot vectors of mean square 1.
      hot = rows**0.5 * nn.one_hot(label, rows, dtype=x.dtype)
      emb += nn.Dense(width, kernel_init=_init(), name='class')(hot)
    if self.augment_dim:
      if augment is None:
        augment = jnp.zeros((x.shape[0], self.augment_dim))
      dense = nn.Dense(width, use_bias=False, kernel_init=_init(), name='augment')
      emb += dense(augment.astype(x.dtype))
    for name in ('emb1', 'emb2'):
      emb = nn.swish(nn.Dense(4 * self.features, kernel_init=_init(), name=name)(emb))
    return emb

  def _downsampled(self, image, width, name):
    """A 3x3 convolution, then the filter, over `image` with enough zeros around it for both."""
    conv = layers.Conv(width, kernel_init=_init(), padding=len(self.taps) // 2, name=name)
    return layers.fir_downsample(conv(image), self.taps, padding=0)

  def _check_taps(self):
    if len(self.taps) < 2 or len(self.taps) % 2 or sum(self.taps) <= 0:
      raise UserError(
        f'config.net.taps={tuple(self.taps)}: an even number of at least 2 taps with a positive '
        'sum is needed'
      )
