"""The PyTorch side of compare_torch.py: the nets and training steps of gen_jax, as a PyTorch user
would write them.

Same function, parameter count, losses, optimiser and distribution of the noise as gen_jax, in
PyTorch's fast forms: channels-last maps, fused Adam, scaled_dot_product_attention. A SAME
convolution with stride 2 pads the odd zero after the map, PyTorch's `padding` before it; so these
nets work on mirrored maps, which saves PyTorch a copy per layer. Maps are flattened in the order
(h, w, c), which is free in channels-last.
"""

import copy
import functools
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn


def maps(x, size, channels):
  """[b, size * size * channels] -> [b, channels, size, size], a channels-last view."""
  return x.view(-1, size, size, channels).permute(0, 3, 1, 2)


def rows(x):
  """[b, c, h, w] -> [b, h * w * c], a view of a channels-last tensor."""
  return x.permute(0, 2, 3, 1).flatten(1)


# --- Nets ---------------------------------------------------------------------------------------


def mlp_generator(latent, shape, features, negative_slope, squash):
  """gen_jax.nets.mlp.Generator."""
  widths = [latent, *features]
  hidden = [
    layer
    for a, b in zip(widths, widths[1:], strict=False)
    for layer in (nn.Linear(a, b), nn.LeakyReLU(negative_slope, inplace=True))
  ]
  h, w, c = shape
  last = [nn.Linear(widths[-1], h * w * c), *([nn.Tanh()] if squash else [])]
  return nn.Sequential(*hidden, *last, nn.Unflatten(1, (c, h, w)))


def mlp_discriminator(shape, features, negative_slope, dropout):
  """gen_jax.nets.mlp.Discriminator."""
  widths = [math.prod(shape), *features]
  hidden = [
    layer
    for a, b in zip(widths, widths[1:], strict=False)
    for layer in (
      nn.Linear(a, b),
      nn.LeakyReLU(negative_slope, inplace=True),
      nn.Dropout(dropout),
    )
  ]
  return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], 1), nn.Flatten(0))


class DCGANGenerator28(nn.Module):
  """gen_jax.nets.dcgan.Generator28."""

  def __init__(self, latent, shape, features):
    super().__init__()
    a, b = self.features = features
    self.dense = nn.Linear(latent, 7 * 7 * a)
    self.norm1, self.norm2 = nn.BatchNorm1d(7 * 7 * a), nn.BatchNorm2d(b)
    self.up1 = nn.ConvTranspose2d(a, b, 4, 2, padding=1)
    self.up2 = nn.ConvTranspose2d(b, shape[-1], 4, 2, padding=1)

  def forward(self, z):
    x = maps(F.relu(self.norm1(self.dense(z))), 7, self.features[0])
    x = F.relu(self.norm2(self.up1(x)))
    return torch.tanh(self.up2(x))


class DCGANDiscriminator28(nn.Module):
  """gen_jax.nets.dcgan.Discriminator28."""

  def __init__(self, shape, features, negative_slope, dropout):
    super().__init__()
    a, b = features
    self.negative_slope, self.dropout = negative_slope, dropout
    self.down1 = nn.Conv2d(shape[-1], a, 4, 2, padding=1)
    self.down2 = nn.Conv2d(a, b, 4, 2, padding=1)
    self.dense = nn.Linear(7 * 7 * b, 1)

  def forward(self, x):
    for conv in (self.down1, self.down2):
      x = F.dropout(F.leaky_relu(conv(x), self.negative_slope), self.dropout)
    return self.dense(rows(x))[:, 0]


class WGANGenerator28(nn.Module):
  """gen_jax.nets.wgan_gp.Generator28."""

  def __init__(self, latent, shape, features):
    super().__init__()
    self.features = features
    up = functools.partial(nn.ConvTranspose2d, kernel_size=5, stride=2, padding=2, output_padding=1)
    self.dense = nn.Linear(latent, 4 * 4 * 4 * features)
    self.up1, self.up2 = up(4 * features, 2 * features), up(2 * features, features)
    self.up3 = up(features, shape[-1])

  def forward(self, z):
    x = maps(F.relu(self.dense(z)), 4, 4 * self.features)
    x = F.relu(self.up1(x))[:, :, 1:, 1:]  # 8x8 to 7x7, the mirror image of ours
    x = F.relu(self.up2(x))
    return torch.tanh(self.up3(x) / 2)


class WGANCritic28(nn.Module):
  """gen_jax.nets.wgan_gp.Critic28."""

  def __init__(self, shape, features, negative_slope):
    super().__init__()
    self.negative_slope = negative_slope
    widths = [shape[-1], features, 2 * features, 4 * features]
    self.convs = nn.ModuleList(
      nn.Conv2d(a, b, 5, 2, padding=2) for a, b in zip(widths, widths[1:], strict=False)
    )
    self.dense = nn.Linear(4 * 4 * widths[-1], 1)

  def forward(self, x):
    for conv in self.convs:
      x = F.leaky_relu(conv(x), self.negative_slope)
    return self.dense(rows(x))[:, 0]


def conv3(inputs, features):
  return nn.Conv2d(inputs, features, 3, padding=1)


class UpBlock(nn.Module):
  """gen_jax.nets.wgan_gp.UpBlock."""

  def __init__(self, features):
    super().__init__()
    self.norm1, self.norm2 = nn.BatchNorm2d(features), nn.BatchNorm2d(features)
    self.conv1, self.conv2 = conv3(features, features), conv3(features, features)
    self.shortcut = nn.Conv2d(features, features, 1)

  def forward(self, x):
    up = functools.partial(F.interpolate, scale_factor=2)
    h = self.conv1(up(F.relu(self.norm1(x))))
    h = self.conv2(F.relu(self.norm2(h)))
    return h + self.shortcut(up(x))


class ResNetGenerator(nn.Module):
  """gen_jax.nets.wgan_gp.ResNetGenerator."""

  def __init__(self, latent, shape, features, blocks):
    super().__init__()
    self.features = features
    self.dense = nn.Linear(latent, 4 * 4 * features)
    self.blocks = nn.Sequential(*(UpBlock(features) for _ in range(blocks)))
    self.norm, self.conv = nn.BatchNorm2d(features), conv3(features, shape[-1])

  def forward(self, z):
    x = self.blocks(maps(self.dense(z), 4, self.features))
    return torch.tanh(self.conv(F.relu(self.norm(x))))


class CriticBlock(nn.Module):
  """gen_jax.nets.wgan_gp.CriticBlock."""

  def __init__(self, inputs, features, down=False, first=False):
    super().__init__()
    self.down, self.first = down, first
    self.conv1, self.conv2 = conv3(inputs, features), conv3(features, features)
    self.shortcut = nn.Conv2d(inputs, features, 1) if down or first else None

  def forward(self, x):
    h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
    if self.first:
      return F.avg_pool2d(h, 2) + self.shortcut(F.avg_pool2d(x, 2))
    if self.down:
      return F.avg_pool2d(h, 2) + F.avg_pool2d(self.shortcut(x), 2)
    return h + x


class ResNetCritic(nn.Module):
  """gen_jax.nets.wgan_gp.ResNetCritic."""

  def __init__(self, shape, features):
    super().__init__()
    self.blocks = nn.Sequential(
      CriticBlock(shape[-1], features, first=True),
      CriticBlock(features, features, down=True),
      CriticBlock(features, features),
      CriticBlock(features, features),
    )
    self.dense = nn.Linear(features, 1)

  def forward(self, x):
    return self.dense(F.relu(self.blocks(x)).mean((2, 3)))[:, 0]


class ConditionalBatchNorm(nn.Module):
  """gen_jax.nets.layers.ConditionalBatchNorm; make_affine(c) maps the condition to [b, c]."""

  def __init__(self, features, eps, make_affine):
    super().__init__()
    self.norm = nn.BatchNorm2d(features, eps=eps, affine=make_affine is None)
    if make_affine is not None:
      self.scale, self.shift = make_affine(features), make_affine(features)

  def forward(self, x, condition):
    x = self.norm(x)
    if condition is None:
      return x
    scale, shift = (f(condition)[:, :, None, None] for f in (self.scale, self.shift))
    return x * (1 + scale) + shift


class ConditionalUpBlock(nn.Module):
  """gen_jax.nets.sngan.UpBlock and gen_jax.nets.biggan.UpBlock."""

  def __init__(self, inputs, features, eps, make_affine, normed):
    super().__init__()
    self.norm1 = ConditionalBatchNorm(inputs, eps, make_affine)
    self.norm2 = ConditionalBatchNorm(features, eps, make_affine)
    self.conv1, self.conv2 = normed(conv3(inputs, features)), normed(conv3(features, features))
    self.shortcut = normed(nn.Conv2d(inputs, features, 1))

  def forward(self, x, condition):
    h = self.conv1(F.interpolate(F.relu(self.norm1(x, condition)), scale_factor=2))
    h = self.conv2(F.relu(self.norm2(h, condition)))
    # As ours, the 1x1 convolution before the upsampling.
    return h + F.interpolate(self.shortcut(x), scale_factor=2)


class SelfAttention(nn.Module):
  """gen_jax.nets.biggan.SelfAttention."""

  def __init__(self, c):
    super().__init__()
    conv = lambda a, b: spectral_norm(nn.Conv2d(a, b, 1, bias=False))
    self.theta, self.phi, self.g = conv(c, c // 8), conv(c, c // 8), conv(c, c // 2)
    self.o, self.gate = conv(c // 2, c), nn.Parameter(torch.zeros(()))

  def forward(self, x):
    b, _, h, w = x.shape
    flat = lambda x: x.permute(0, 2, 3, 1).flatten(1, 2)
    q, k = flat(self.theta(x)), flat(F.max_pool2d(self.phi(x), 2))
    v = flat(F.max_pool2d(self.g(x), 2))
    o = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    return x + self.gate * self.o(o.view(b, h, w, -1).permute(0, 3, 1, 2))


class SNGANGenerator(nn.Module):
  """gen_jax.nets.sngan.Generator and, with `biggan`, gen_jax.nets.biggan.Generator."""

  def __init__(
    self,
    latent,
    shape,
    num_classes,
    features,
    attention=(),
    shared=None,
    hierarchical=False,
    init_name=None,
    biggan=False,
  ):
    super().__init__()
    normed = spectral_norm if biggan else lambda layer: layer
    first, *widths = features
    parts = len(widths) + 1 if hierarchical else 1
    self.part, self.size, self.first = latent // parts, shape[0] // 2 ** len(widths), first
    make_affine = None if num_classes is None else functools.partial(nn.Embedding, num_classes)
    self.shared = None
    if shared is not None:
      self.shared, width = nn.Embedding(num_classes, shared), shared + self.part * hierarchical
      make_affine = lambda c: spectral_norm(nn.Linear(width, c, bias=False))
    eps = 1e-5 if biggan else 2e-5
    self.dense = normed(nn.Linear(self.part, self.size**2 * first))
    self.blocks, self.attention = nn.ModuleList(), nn.ModuleDict()
    size = self.size
    for i, (a, b) in enumerate(zip(features, widths, strict=False)):
      self.blocks.append(ConditionalUpBlock(a, b, eps, make_affine, normed))
      size *= 2
      if size in attention:
        self.attention[str(i)] = SelfAttention(b)
    self.norm = nn.BatchNorm2d(features[-1], eps=eps)
    self.out = normed(conv3(features[-1], shape[-1]))

  def forward(self, z, label):
    y = label if self.shared is None else self.shared(label)
    z, *rest = z.split(self.part, 1)
    x = maps(self.dense(z), self.size, self.first)
    for i, block in enumerate(self.blocks):
      x = block(x, torch.cat([y, rest[i]], 1) if rest else y)
      x = self.attention[str(i)](x) if str(i) in self.attention else x
    return torch.tanh(self.out(F.relu(self.norm(x))))


class ProjectionDiscriminator(nn.Module):
  """gen_jax.nets.sngan.Discriminator and, with `biggan`, gen_jax.nets.biggan.Discriminator."""

  def __init__(
    self, shape, num_classes, features, downs, attention=(), init_name=None, biggan=False
  ):
    super().__init__()
    self.downs, self.blocks, self.attention = downs, nn.ModuleList(), nn.ModuleDict()
    size, a = shape[0], shape[-1]
    for i, b in enumerate(features):
      hidden = b if biggan or i == 0 else a
      layers = dict(conv1=conv3(a, hidden), conv2=conv3(hidden, b))
      if i < downs or a != b:
        layers['shortcut'] = nn.Conv2d(a, b, 1)
      self.blocks.append(nn.ModuleDict({k: spectral_norm(v) for k, v in layers.items()}))
      size //= 2 if i < downs else 1
      if size in attention:
        self.attention[str(i)] = SelfAttention(b)
      a = b
    self.psi = spectral_norm(nn.Linear(a, 1, bias=biggan))
    self.embed = None if num_classes is None else spectral_norm(nn.Embedding(num_classes, a))

  def forward(self, x, label):
    for i, block in enumerate(self.blocks):
      h = block['conv1'](x if i == 0 else F.relu(x))
      h = block['conv2'](F.relu(h))
      if i < self.downs:
        h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
      x = h + (block['shortcut'](x) if 'shortcut' in block else x)
      x = self.attention[str(i)](x) if str(i) in self.attention else x
    phi = F.relu(x).sum((2, 3))
    y = self.psi(phi)[:, 0]
    return y if self.embed is None else y + (self.embed(label) * phi).sum(1)


class ResBlock(nn.Module):
  """gen_jax.nets.unet.ResBlock."""

  def __init__(self, inputs, features, temb, groups, dropout, scale_shift):
    super().__init__()
    self.scale_shift = scale_shift
    self.norm1, self.norm2 = (nn.GroupNorm(groups, n, eps=1e-6) for n in (inputs, features))
    self.conv1 = nn.Conv2d(inputs, features, 3, padding=1)
    self.temb = nn.Linear(temb, 2 * features if scale_shift else features)
    self.dropout = nn.Dropout(dropout)
    self.conv2 = nn.Conv2d(features, features, 3, padding=1)
    nn.init.xavier_uniform_(self.conv2.weight, gain=1e-5)
    self.shortcut = nn.Identity() if inputs == features else nn.Conv2d(inputs, features, 1)

  def forward(self, x, temb):
    h = self.conv1(F.silu(self.norm1(x)))
    temb = self.temb(F.silu(temb))[:, :, None, None]
    if self.scale_shift:
      scale, shift = temb.chunk(2, 1)
      h = self.norm2(h) * (1 + scale) + shift
    else:
      h = self.norm2(h + temb)
    h = self.conv2(self.dropout(F.silu(h)))
    return self.shortcut(x) + h


class Attention(nn.Module):
  """gen_jax.nets.unet.Attention."""

  def __init__(self, features, groups):
    super().__init__()
    self.norm = nn.GroupNorm(groups, features, eps=1e-6)
    self.q, self.k, self.v, self.out = (nn.Linear(features, features) for _ in range(4))
    nn.init.xavier_uniform_(self.out.weight, gain=1e-5)

  def forward(self, x):
    b, c, h, w = x.shape
    y = self.norm(x).permute(0, 2, 3, 1).reshape(b, 1, h * w, c)
    y = self.out(F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y)))
    return x + y.view(b, h, w, c).permute(0, 3, 1, 2)


class UNet(nn.Module):
  """gen_jax.nets.unet.UNet; blocks have the same names."""

  def __init__(
    self,
    shape,
    features,
    multipliers,
    blocks,
    attention,
    dropout,
    groups,
    num_classes=None,
    scale_shift=False,
  ):
    super().__init__()
    self.features, self.blocks, self.levels = features, blocks, len(multipliers)
    widths = [features * m for m in multipliers]
    size, channels = shape[0], shape[-1]
    block = functools.partial(
      ResBlock, temb=4 * features, groups=groups, dropout=dropout, scale_shift=scale_shift
    )
    self.classes = None if num_classes is None else nn.Embedding(num_classes, 4 * features)
    self.temb1 = nn.Linear(features, 4 * features)
    self.temb2 = nn.Linear(4 * features, 4 * features)
    self.net = nn.ModuleDict({'conv_in': nn.Conv2d(channels, features, 3, padding=1)})
    skips = [width := features]
    for level, new in enumerate(widths):
      for i in range(blocks):
        self.net[f'down{level}_{i}'] = block(width, new)
        if size in attention:
          self.net[f'down{level}_{i}_attention'] = Attention(new, groups)
        skips.append(width := new)
      if level < self.levels - 1:
        self.net[f'down{level}'] = nn.Conv2d(new, new, 3, 2, padding=1)
        skips.append(new)
        size //= 2
    self.net['mid1'], self.net['mid2'] = block(width, width), block(width, width)
    self.net['mid_attention'] = Attention(width, groups)
    for level, new in reversed(list(enumerate(widths))):
      for i in range(blocks + 1):
        self.net[f'up{level}_{i}'] = block(width + skips.pop(), new)
        if size in attention:
          self.net[f'up{level}_{i}_attention'] = Attention(new, groups)
        width = new
      if level > 0:
        self.net[f'up{level}'] = nn.Conv2d(new, new, 3, padding=1)
        size *= 2
    self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
    self.conv_out = nn.Conv2d(width, channels, 3, padding=1)
    nn.init.xavier_uniform_(self.conv_out.weight, gain=1e-5)

  def block(self, name, x, temb):
    x = self.net[name](x, temb)
    name = f'{name}_attention'
    return self.net[name](x) if name in self.net else x

  def forward(self, x, t, label=None):
    half = self.features // 2
    freqs = torch.exp(-math.log(10000.0) * torch.arange(half) / (half - 1))
    angles = t.float()[:, None] * freqs
    temb = torch.cat([angles.sin(), angles.cos()], 1)
    temb = self.temb2(F.silu(self.temb1(temb)))
    if self.classes is not None:
      temb = temb + self.classes(label)

    x = self.net['conv_in'](x)
    skips = [x]
    for level in range(self.levels):
      for i in range(self.blocks):
        x = self.block(f'down{level}_{i}', x, temb)
        skips.append(x)
      if level < self.levels - 1:
        x = self.net[f'down{level}'](x)
        skips.append(x)
    x = self.block('mid1', x, temb)
    x = self.net['mid_attention'](x)
    x = self.block('mid2', x, temb)
    for level in reversed(range(self.levels)):
      for i in range(self.blocks + 1):
        x = self.block(f'up{level}_{i}', torch.cat([x, skips.pop()], 1), temb)
      if level > 0:
        x = self.net[f'up{level}'](F.interpolate(x, scale_factor=2))
    return self.conv_out(F.silu(self.norm_out(x)))


def diffusers_unet(shape, features, multipliers, blocks, attention, dropout, groups, **more):
  """diffusers' UNet2DModel with the same parameters, called like the net above."""
  from diffusers import UNet2DModel

  sizes = [shape[0] // 2**level for level in range(len(multipliers))]
  kinds = ['Attn' * (size in attention) for size in sizes]
  net = UNet2DModel(
    sample_size=shape[0],
    in_channels=shape[-1],
    out_channels=shape[-1],
    freq_shift=1,
    flip_sin_to_cos=False,
    down_block_types=[f'{kind}DownBlock2D' for kind in kinds],
    up_block_types=[f'{kind}UpBlock2D' for kind in reversed(kinds)],
    block_out_channels=[features * m for m in multipliers],
    layers_per_block=blocks,
    dropout=dropout,
    attention_head_dim=None,
    norm_num_groups=groups,
    norm_eps=1e-6,
    resnet_time_scale_shift='scale_shift' if more.get('scale_shift') else 'default',
    num_class_embeds=more.get('num_classes'),
  )

  class Net(nn.Module):
    def __init__(self):
      super().__init__()
      self.net = net

    def forward(self, x, t, label=None):
      return self.net(x, t, class_labels=label).sample

  return Net()


def translator_norm(kind, channels):
  """Batch norm with statistics of the batch, or instance norm without factors."""
  return nn.BatchNorm2d(channels) if kind == 'batch' else nn.InstanceNorm2d(channels)


class SkipUNet(nn.Module):
  """gen_jax.nets.pix2pix.UNet."""

  def __init__(self, x_shape, shape, features, depth, norm, dropout, noisy):
    super().__init__()
    widths = [features * min(2**i, 8) for i in range(depth)]
    how = dict(kernel_size=4, stride=2, padding=1)
    bias = norm == 'instance'
    self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
    for i, (a, b) in enumerate(zip([x_shape[2], *widths], widths, strict=False)):
      layers = [nn.LeakyReLU(0.2)] if i else []
      layers.append(nn.Conv2d(a, b, bias=bias, **how))
      layers += [translator_norm(norm, b)] if 0 < i < depth - 1 else []
      self.downs.append(nn.Sequential(*layers))
    for i, (a, b) in enumerate(zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True)):
      up = nn.ConvTranspose2d(a if i == 0 else 2 * a, b, bias=bias, **how)
      drop = [nn.Dropout(dropout)] if 1 <= i <= noisy else []
      self.ups.append(nn.Sequential(nn.ReLU(), up, translator_norm(norm, b), *drop))
    last = nn.ConvTranspose2d((2 if depth > 1 else 1) * widths[0], shape[2], **how)
    self.last = nn.Sequential(nn.ReLU(), last, nn.Tanh())

  def forward(self, x):
    multiple, size = 2 ** len(self.downs), x.shape[-1]
    more = -size % multiple  # by reflection, cropped at the end
    first = more // 2
    x = F.pad(x, (first, more - first) * 2, mode='reflect') if more else x
    skips = []
    for down in self.downs:
      x = down(x)
      skips.append(x)
    x = skips.pop()
    for up in self.ups:
      x = torch.cat([skips.pop(), up(x)], 1)
    return self.last(x)[..., first : first + size, first : first + size]


class PatchGAN(nn.Sequential):
  """gen_jax.nets.pix2pix.PatchGAN of 16 pixels or more."""

  def __init__(self, channels, patch, features, norm):
    halvings = {16: 1, 34: 2, 70: 3, 142: 4, 286: 5}[patch]
    layers, bias = [], norm == 'instance'
    for i in range(halvings + 1):
      width = features * min(2**i, 8)
      how = dict(stride=2 if i < halvings else 1, padding=1, bias=bias or i == 0)
      layers.append(nn.Conv2d(channels, width, 4, **how))
      layers += [translator_norm(norm, width)] if i else []
      layers.append(nn.LeakyReLU(0.2))
      channels = width
    super().__init__(*layers, nn.Conv2d(channels, 1, 4, padding=1))


class CycleBlock(nn.Module):
  """gen_jax.nets.cyclegan.ResBlock."""

  def __init__(self, width):
    super().__init__()
    half = (nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width))
    again = (nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width))
    self.layers = nn.Sequential(*half, nn.ReLU(), *again)

  def forward(self, x):
    return x + self.layers(x)


def cycle_resnet(x_shape, shape, features, blocks):
  """gen_jax.nets.cyclegan.ResNet, for maps that 4 divides."""

  def normed(layer, width):
    return (layer, nn.InstanceNorm2d(width), nn.ReLU())

  f, how = features, dict(stride=2, padding=1)
  return nn.Sequential(
    nn.ReflectionPad2d(3),
    *normed(nn.Conv2d(x_shape[2], f, 7), f),
    *normed(nn.Conv2d(f, 2 * f, 3, **how), 2 * f),
    *normed(nn.Conv2d(2 * f, 4 * f, 3, **how), 4 * f),
    *(CycleBlock(4 * f) for _ in range(blocks)),
    *normed(nn.ConvTranspose2d(4 * f, 2 * f, 3, output_padding=1, **how), 2 * f),
    *normed(nn.ConvTranspose2d(2 * f, f, 3, output_padding=1, **how), f),
    nn.ReflectionPad2d(3),
    nn.Conv2d(f, shape[2], 7),
    nn.Tanh(),
  )


NETS = {
  'mlp.Generator': mlp_generator,
  'mlp.Discriminator': mlp_discriminator,
  'dcgan.Generator28': DCGANGenerator28,
  'dcgan.Discriminator28': DCGANDiscriminator28,
  'wgan_gp.Generator28': WGANGenerator28,
  'wgan_gp.Critic28': WGANCritic28,
  'wgan_gp.ResNetGenerator': ResNetGenerator,
  'wgan_gp.ResNetCritic': ResNetCritic,
  'sngan.Generator': SNGANGenerator,
  'sngan.Discriminator': ProjectionDiscriminator,
  'biggan.Generator': functools.partial(SNGANGenerator, biggan=True),
  'biggan.Discriminator': functools.partial(ProjectionDiscriminator, biggan=True),
  'pix2pix.UNet': SkipUNet,
  'pix2pix.PatchGAN': PatchGAN,
  'cyclegan.ResNet': cycle_resnet,
  'unet.UNet': UNet,
}


def make_net(spec, diffusers=False, **given):
  """The module of a config's net group; `given` are arguments from other groups of the config."""
  arguments = {k: v for k, v in spec.items() if k not in ('name', 'remat')}
  net = (diffusers_unet if diffusers else NETS[spec['name']])(**arguments, **given)
  return net.to(memory_format=torch.channels_last)


def make_denoiser(config, diffusers=False):
  """The net of a diffusion model; where labels are dropped, it has one class more."""
  spec = dict(config.net)
  if config.label_drop:
    spec['num_classes'] += 1
  return make_net(spec, diffusers, shape=config.data.shape)


# --- Training steps -----------------------------------------------------------------------------


def make_adam(net, c):
  """Fused Adam of a config's optimiser group (no decay of rate or weights), and its warm-up."""
  adam = torch.optim.Adam(net.parameters(), c.lr, (c.b1, c.b2), c.eps, fused=True)
  return adam, torch.optim.lr_scheduler.LambdaLR(
    adam, lambda step: min((step + 1) / max(c.warmup_steps, 1), 1)
  )


def grad_norm(net):
  """Global norm of the gradient, which gen_jax logs for every net."""
  return torch.nn.utils.get_total_norm([p.grad for p in net.parameters()])


def descend(loss, net, adam):
  """One step of Adam on the loss; the global norm of the net's gradient."""
  adam.zero_grad()
  loss.backward()
  norm = grad_norm(net)
  adam.step()
  return norm


def gan_step(config, compiled):
  """(step, nets) of gen_jax.systems.gan with the non-saturating loss; step(x) -> metrics."""
  G = make_net(config.generator, latent=config.latent.dim, shape=config.data.shape)
  D = make_net(config.discriminator, shape=config.data.shape)
  (g_adam, _), (d_adam, _) = make_adam(G, config.optim.G), make_adam(D, config.optim.D)
  g, d = (torch.compile(G), torch.compile(D)) if compiled else (G, D)

  def step(x):  # [k, b, c, h, w]
    b = x.shape[1]
    for x_real in x:
      with torch.no_grad():
        x_fake = g(torch.randn(b, config.latent.dim))
      d_loss = 0.5 * (F.softplus(-d(x_real)).mean() + F.softplus(d(x_fake)).mean())
      d_norm = descend(d_loss, D, d_adam)

    D.requires_grad_(False)
    g_loss = F.softplus(-d(g(torch.randn(b, config.latent.dim)))).mean()
    g_norm = descend(g_loss, G, g_adam)
    D.requires_grad_(True)
    return d_loss, g_loss, d_norm, g_norm

  return step, (G, D)


def wgan_gp_step(config, compiled):
  """(step, nets) of gen_jax.systems.wgan_gp; step(x) -> metrics.

  torch.compile has no second-order gradients, so the penalty runs the critic eagerly even when
  compiled.
  """
  G = make_net(config.generator, latent=config.latent.dim, shape=config.data.shape)
  D = make_net(config.critic, shape=config.data.shape)
  (g_adam, _), (d_adam, _) = make_adam(G, config.optim.G), make_adam(D, config.optim.D)
  g, d = (torch.compile(G), torch.compile(D)) if compiled else (G, D)

  def step(x):  # [n_critic, b, c, h, w]
    b = x.shape[1]
    for x_real in x:
      with torch.no_grad():
        x_fake = g(torch.randn(b, config.latent.dim))
      real, fake = d(torch.cat([x_real, x_fake])).view(2, b).mean(1)
      x_hat = torch.lerp(x_real, x_fake, torch.rand(b, 1, 1, 1)).requires_grad_()
      (grads,) = torch.autograd.grad(D(x_hat).sum(), x_hat, create_graph=True)
      penalty = ((grads.flatten(1).norm(dim=1) - 1) ** 2).mean()
      d_loss = fake - real + config.loss.penalty * penalty
      d_norm = descend(d_loss, D, d_adam)

    D.requires_grad_(False)
    g_loss = -d(g(torch.randn(b * config.loss.g_batch, config.latent.dim))).mean()
    g_norm = descend(g_loss, G, g_adam)
    D.requires_grad_(True)
    return d_loss, g_loss, d_norm, g_norm

  return step, (G, D)


def hinge_step(config, compiled, g_rows, one_pass):
  """(step, nets) of a conditional game with the hinge loss; step(x) -> metrics.

  Args:
    config: of sngan or biggan.
    compiled: compile the nets.
    g_rows: rows of G's batch.
    one_pass: real and generated examples are in one batch of D.
  """
  shape, classes = config.data.shape, config.data.num_classes
  G = make_net(config.generator, latent=config.latent.dim, shape=shape, num_classes=classes)
  D = make_net(config.discriminator, shape=shape, num_classes=classes)
  (g_adam, _), (d_adam, _) = make_adam(G, config.optim.G), make_adam(D, config.optim.D)
  g, d = (torch.compile(G), torch.compile(D)) if compiled else (G, D)
  averages = config.get('ema') is not None
  ema = copy.deepcopy(G).requires_grad_(False) if averages else None
  average = get_ema_multi_avg_fn(config.ema.decay) if averages else None

  def fakes(n):
    label = None if classes is None else torch.randint(classes, (n,))
    return g(torch.randn(n, config.latent.dim), label), label

  def step(x):  # [n_dis, b, c, h, w]
    b = x.shape[1]
    y = None if classes is None else torch.arange(b) % classes
    for x_real in x:
      with torch.no_grad():
        x_fake, y_fake = fakes(b)
      if one_pass:
        real, fake = d(torch.cat([x_real, x_fake]), torch.cat([y, y_fake])).view(2, b)
      else:
        real, fake = d(x_real, y), d(x_fake, y_fake)
      d_loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
      d_norm = descend(d_loss, D, d_adam)

    D.requires_grad_(False)
    g_loss = -d(*fakes(g_rows)).mean()
    if config.loss.get('orthogonal'):
      g_loss = g_loss + config.loss.orthogonal * orthogonal_penalty(G)
    g_norm = descend(g_loss, G, g_adam)
    D.requires_grad_(True)
    if averages:
      with torch.no_grad():
        average(list(ema.parameters()), list(G.parameters()), None)
    return d_loss, g_loss, d_norm, g_norm

  return step, (G, D)


def orthogonal_penalty(G):
  """gen_jax.systems.biggan.orthogonal_penalty."""
  total = 0
  for name, w in G.named_parameters():
    if w.ndim > 1 and not name.startswith('shared'):
      gram = w.flatten(1) @ w.flatten(1).T
      total = total + (gram * (1 - torch.eye(len(gram)))).square().sum()
  return total


def sngan_step(config, compiled):
  """(step, nets) of gen_jax.systems.sngan; step(x) -> metrics."""
  rows = config.train.batch_size * config.loss.g_batch
  return hinge_step(config, compiled, rows, one_pass=False)


def biggan_step(config, compiled):
  """(step, nets) of gen_jax.systems.biggan; step(x) -> metrics."""
  return hinge_step(config, compiled, config.train.batch_size, one_pass=True)


def pix2pix_step(config, compiled):
  """(step, nets) of gen_jax.systems.pix2pix; step(x, y) -> metrics."""
  x_shape, shape = config.data.x.shape or config.data.shape, config.data.shape
  G = make_net(config.generator, x_shape=x_shape, shape=shape)
  D = make_net(config.discriminator, channels=x_shape[2] + shape[2])
  (g_adam, _), (d_adam, _) = make_adam(G, config.optim.G), make_adam(D, config.optim.D)
  g, d = (torch.compile(G), torch.compile(D)) if compiled else (G, D)

  def step(x, y):
    y_fake = g(x)
    real, fake = d(torch.cat([x, y], 1)), d(torch.cat([x, y_fake.detach()], 1))
    d_loss = 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
    d_norm = descend(d_loss, D, d_adam)

    D.requires_grad_(False)
    gan = F.softplus(-d(torch.cat([x, y_fake], 1))).mean()
    g_loss = gan + config.loss.l1 * (y - y_fake).abs().mean()
    g_norm = descend(g_loss, G, g_adam)
    D.requires_grad_(True)
    return d_loss, g_loss, d_norm, g_norm

  return step, (G, D)


def cyclegan_step(config, compiled):
  """(step, nets) of gen_jax.systems.cyclegan with least squares; step(x, y) -> metrics."""
  x_shape, shape = config.data.x.shape or config.data.shape, config.data.shape
  pair = {'x_shape': x_shape, 'shape': shape}, {'x_shape': shape, 'shape': x_shape}
  G, back = (make_net(config.generator, **shapes) for shapes in pair)
  D_X, D_Y = (make_net(config.discriminator, channels=s[2]) for s in (x_shape, shape))
  both_g, both_d = nn.ModuleList([G, back]), nn.ModuleList([D_X, D_Y])
  (g_adam, _), (d_adam, _) = make_adam(both_g, config.optim.G), make_adam(both_d, config.optim.D)
  if compiled:
    G, back, D_X, D_Y = map(torch.compile, (G, back, D_X, D_Y))
  buffers, size, loss = ([], []), config.buffer.size, config.loss

  def exchanged(buffer, images):
    """What D sees for these translations, from a buffer of past ones."""
    seen = []
    for image in images:
      if len(buffer) < size:
        buffer.append(image)
        seen.append(image)
      elif torch.rand(()) < 0.5:
        i = torch.randint(size, ()).item()
        seen.append(buffer[i])
        buffer[i] = image
      else:
        seen.append(image)
    return torch.stack(seen).contiguous(memory_format=torch.channels_last)

  def d_term(d, real, fake):
    return 0.5 * ((d(real) - 1).square().mean() + d(fake).square().mean())

  def step(x, y):
    both_d.requires_grad_(False)
    y_fake, x_fake = G(x), back(y)
    gan = (D_Y(y_fake) - 1).square().mean() + (D_X(x_fake) - 1).square().mean()
    cycle = F.l1_loss(back(y_fake), x) + F.l1_loss(G(x_fake), y)
    identity = F.l1_loss(G(y), y) + F.l1_loss(back(x), x) if loss.identity else 0.0
    g_loss = gan + loss.cycle * (cycle + loss.identity * identity)
    g_norm = descend(g_loss, both_g, g_adam)

    both_d.requires_grad_(True)
    x_seen, y_seen = (
      exchanged(buffer, fake.detach())
      for buffer, fake in zip(buffers, (x_fake, y_fake), strict=True)
    )
    d_loss = d_term(D_X, x, x_seen) + d_term(D_Y, y, y_seen)
    d_norm = descend(d_loss, both_d, d_adam)
    return d_loss, g_loss, d_norm, g_norm

  return step, (both_g, both_d)


def alpha_bars(config):
  """alpha_bar of the linear schedule, float64 [T]."""
  d = config.diffusion
  return torch.cumprod(1 - torch.linspace(d.beta_min, d.beta_max, d.steps, dtype=torch.float64), 0)


def labels(config, n):
  """Labels that cycle through the classes; None for an unconditional net."""
  classes = config.net.get('num_classes')
  return None if classes is None else torch.arange(n) % classes


def denoising_step(config, compiled, diffusers, loss_of):
  """(step, nets) of a diffusion model whose loss is loss_of(predict, x [b, c, h, w], label);
  step(x) -> metrics.
  """
  net = make_denoiser(config, diffusers)
  ema = copy.deepcopy(net).requires_grad_(False)
  adam, warm_up = make_adam(net, config.optim)
  average = get_ema_multi_avg_fn(config.ema_decay)
  predict = torch.compile(net) if compiled else net
  label = labels(config, config.train.batch_size)

  def step(x):
    given = label
    if config.label_drop:
      dropped = torch.rand(len(x)) < config.label_drop
      given = label.masked_fill(dropped, config.net.num_classes)
    loss = loss_of(predict, x, given)
    adam.zero_grad()
    loss.backward()
    if config.optim.clip_norm is None:
      norm = grad_norm(net)
    else:
      norm = torch.nn.utils.clip_grad_norm_(net.parameters(), config.optim.clip_norm)
    adam.step()
    warm_up.step()
    with torch.no_grad():
      average(list(ema.parameters()), list(net.parameters()), None)
    return loss, norm

  return step, (net,)


def ddpm_step(config, compiled, diffusers=False):
  """(step, nets) of gen_jax.systems.ddpm; step(x) -> metrics."""
  bars = alpha_bars(config).float()

  def loss_of(predict, x_0, label):
    t = torch.randint(len(bars), (len(x_0),))
    eps = torch.randn_like(x_0)
    bar = bars[t].view(-1, 1, 1, 1)
    x_t = bar.sqrt() * x_0 + (1 - bar).sqrt() * eps
    return F.mse_loss(predict(x_t, t, label), eps)

  return denoising_step(config, compiled, diffusers, loss_of)


def edm_denoise(predict, x, sigma, label, config):
  """D(x; sigma) of gen_jax.systems.edm, for sigma [b, 1, 1, 1]."""
  s_d = config.edm.sigma_data
  norm = (sigma**2 + s_d**2).sqrt()
  out = predict(x / norm, sigma.flatten().log() / 4, label)
  return (s_d / norm) ** 2 * x + sigma * s_d / norm * out


def edm_step(config, compiled, diffusers=False):
  """(step, nets) of gen_jax.systems.edm, without augmentation; step(x) -> metrics."""
  c = config.edm

  def loss_of(predict, y, label):
    sigma = (c.P_mean + c.P_std * torch.randn(len(y), 1, 1, 1)).exp()
    D = edm_denoise(predict, y + sigma * torch.randn_like(y), sigma, label, config)
    weight = (sigma**2 + c.sigma_data**2) / (sigma * c.sigma_data) ** 2
    return (weight * (D - y) ** 2).sum((1, 2, 3)).mean()

  return denoising_step(config, compiled, diffusers, loss_of)


# --- Samplers -----------------------------------------------------------------------------------


def ddpm_sampler(config, compiled):
  """(draw, nets) of gen_jax.systems.ddpm's sampler; draw() -> images [b, c, h, w]."""
  net = make_denoiser(config).eval()
  predict = torch.compile(net) if compiled else net
  c, n, (h, w, channels) = config.sample, config.sample.batch_size, config.data.shape
  bars = alpha_bars(config)
  times = torch.arange(len(bars))
  if c.sampler == 'ddim':
    times = torch.arange(c.steps) * len(bars) // c.steps
  bar = bars[times]
  before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
  if c.sampler == 'ddim':
    sigma = c.eta * ((1 - before) / (1 - bar) * (1 - bar / before)).sqrt()
  else:  # ancestral, sigma^2 = beta
    sigma = (1 - bar / before).sqrt()
  label = labels(config, n)

  @torch.inference_mode()
  def draw():
    x = torch.randn(n, channels, h, w).to(memory_format=torch.channels_last)
    for i in reversed(range(len(times))):
      eps = predict(x, times[i].expand(n), label)
      a, b = bar[i].item(), before[i].item()
      x_0 = ((x - (1 - a) ** 0.5 * eps) / a**0.5).clamp_(-1, 1)
      if c.sampler == 'ddim':
        eps = (x - a**0.5 * x_0) / (1 - a) ** 0.5
        x = b**0.5 * x_0 + (1 - b - sigma[i].item() ** 2) ** 0.5 * eps
      else:
        x = (b**0.5 * (1 - a / b) * x_0 + (a / b) ** 0.5 * (1 - b) * x) / (1 - a)
      if i and sigma[i]:
        x = x + sigma[i].item() * torch.randn_like(x)
    return x

  return draw, (net,)


def ddpm_diffusers_sampler(config):
  """The same (draw, nets) with diffusers' net and schedulers."""
  from diffusers import DDIMScheduler, DDPMScheduler

  net = make_denoiser(config, diffusers=True).eval()
  c, n, (h, w, channels) = config.sample, config.sample.batch_size, config.data.shape
  d = config.diffusion
  schedule = dict(num_train_timesteps=d.steps, beta_start=d.beta_min, beta_end=d.beta_max)
  if c.sampler == 'ddim':
    scheduler, more = DDIMScheduler(**schedule), {'eta': c.eta}
    scheduler.set_timesteps(c.steps)
  else:
    scheduler, more = DDPMScheduler(variance_type='fixed_large', **schedule), {}
  label = labels(config, n)

  @torch.inference_mode()
  def draw():
    x = torch.randn(n, channels, h, w).to(memory_format=torch.channels_last)
    for t in scheduler.timesteps:
      x = scheduler.step(net(x, t, label), t, x, **more).prev_sample
    return x

  return draw, (net,)


def edm_times(config):
  """sigma of each step in descending order and 0, a list: as far apart as those of gen_jax, whose
  exact values do not matter for speed.
  """
  c = config.edm
  root = torch.linspace(c.sigma_max ** (1 / 7), c.sigma_min ** (1 / 7), config.sample.steps)
  return [*root**7, 0]


def edm_sampler(config, compiled, diffusers=False):
  """(draw, nets) of gen_jax.systems.edm with heun or dpm_solver_pp; draw() -> images."""
  net = make_denoiser(config, diffusers).eval()
  predict = torch.compile(net) if compiled else net
  n, (h, w, channels) = config.sample.batch_size, config.data.shape
  times, label = edm_times(config), labels(config, n)

  def denoise(x, sigma):
    return edm_denoise(predict, x, torch.full((n, 1, 1, 1), float(sigma)), label, config)

  def heun(x, sigma, after, _):
    d = (x - denoise(x, sigma)) / sigma
    moved = x + (after - sigma) * d
    if after:
      moved = x + (after - sigma) * (d + (moved - denoise(moved, after)) / after) / 2
    return moved, None

  def dpm_solver_pp(x, sigma, after, memory):
    D = x_0 = denoise(x, sigma)
    if after and memory is not None:
      last, before = memory
      r = (before / sigma).log() / (sigma / after).log()
      D = x_0 + (x_0 - last) / (2 * r)
    return (after / sigma) * x + (1 - after / sigma) * D, (x_0, sigma)

  take = {'heun': heun, 'dpm_solver_pp': dpm_solver_pp}[config.sample.sampler]

  @torch.inference_mode()
  def draw():
    x = times[0] * torch.randn(n, channels, h, w).to(memory_format=torch.channels_last)
    memory = None
    for sigma, after in zip(times[:-1], times[1:], strict=True):
      x, memory = take(x, sigma, after, memory)
    return x

  return draw, (net,)


def edm_diffusers_sampler(config):
  """(draw, nets) with diffusers' net, and its scheduler, which exists for DPM-Solver++."""
  from diffusers import EDMDPMSolverMultistepScheduler

  if config.sample.sampler == 'heun':
    return edm_sampler(config, compiled=False, diffusers=True)
  net = make_denoiser(config, diffusers=True).eval()
  c, n, (h, w, channels) = config.edm, config.sample.batch_size, config.data.shape
  scheduler = EDMDPMSolverMultistepScheduler(c.sigma_min, c.sigma_max, c.sigma_data)
  label = labels(config, n)

  @torch.inference_mode()
  def draw():
    scheduler.set_timesteps(config.sample.steps)
    x = torch.randn(n, channels, h, w).to(memory_format=torch.channels_last)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
      out = net(scheduler.scale_model_input(x, t), t.expand(n), label)
      x = scheduler.step(out, t, x).prev_sample
    return x

  return draw, (net,)


STEPS = {
  'gan': gan_step,
  'wgan_gp': wgan_gp_step,
  'sngan': sngan_step,
  'biggan': biggan_step,
  'pix2pix': pix2pix_step,
  'cyclegan': cyclegan_step,
  'ddpm': ddpm_step,
  'edm': edm_step,
}
# Of each system: with the nets of this file, and with those and the schedulers of diffusers.
SAMPLERS = {
  'ddpm': (ddpm_sampler, ddpm_diffusers_sampler),
  'edm': (edm_sampler, edm_diffusers_sampler),
}
