"""UNIT for images (Liu, Breuel and Kautz 2017, arXiv 1703.00848): the nets of the authors' code.

The generator holds two variational autoencoders with one code: an encoder and a decoder of each
domain, 'x' and 'y', whose inner ends are shared. Weights from N(0, 0.02), biases as PyTorch's.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.nets import layers

DOMAINS = ('x', 'y')
_SLOPE = 0.01  # of LeakyReLU


def torch_bias(fan_in: int):
  """PyTorch's initial biases: uniform, at most 1 / sqrt(fan_in)."""
  most = fan_in**-0.5
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -most, most)


def _conv(features: int, kernel: int, stride: int, c: int, name: str | None = None) -> layers.Conv:
  """A convolution of c channels with the padding that keeps or halves the size."""
  return layers.Conv(
    features,
    kernel,
    stride,
    kernel_init=layers.NORMAL_02,
    bias_init=torch_bias(kernel**2 * c),
    padding=kernel // 2,
    name=name,
  )


class ResBlock(nn.Module):
  """x + f(x), f two 3x3 convolutions with instance norm: [b, h, w, c] -> [b, h, w, c]."""

  dropout: float
  axis_name: str | None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    c = x.shape[-1]
    y = nn.relu(layers.instance_norm(_conv(c, 3, 1, c)(x)))
    y = layers.instance_norm(_conv(c, 3, 1, c)(y))
    return x + layers.Dropout(self.dropout, self.axis_name)(y, train=train)


class Encoder(nn.Module):
  """The private end: a 7x7 convolution, 3x3 ones with stride 2, residual blocks."""

  features: int
  downs: int
  blocks: int
  dropout: float
  axis_name: str | None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = nn.leaky_relu(_conv(self.features, 7, 1, x.shape[-1])(x), _SLOPE)
    for _ in range(self.downs):
      x = nn.leaky_relu(_conv(2 * x.shape[-1], 3, 2, x.shape[-1])(x), _SLOPE)
    for _ in range(self.blocks):
      x = ResBlock(self.dropout, self.axis_name)(x, train)
    return x


class Decoder(nn.Module):
  """The private end: residual blocks, 3x3 transposed convolutions with stride 2, a 1x1 one."""

  channels: int
  downs: int
  blocks: int
  dropout: float
  axis_name: str | None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    for _ in range(self.blocks):
      x = ResBlock(self.dropout, self.axis_name)(x, train)
    for _ in range(self.downs):
      half = x.shape[-1] // 2
      x = layers.UpConv(
        half,
        kernel=3,
        kernel_init=layers.NORMAL_02,
        bias_init=torch_bias(9 * half),  # of a transposed convolution, PyTorch counts the outputs
        padding=1,
        extra=1,
      )(x)
      x = nn.leaky_relu(x, _SLOPE)
    how = dict(kernel_init=layers.NORMAL_02, bias_init=torch_bias(self.channels))
    return nn.tanh(layers.Conv(self.channels, 1, **how)(x))


class Generator(nn.Module):
  """Encoders and decoders of two domains with shared inner ends, the authors' COCOResGen2.

  With the defaults and three channels in both domains: 18,017,286 parameters.
  """

  channels: Sequence[int]  # of images of x and of y
  features: int = 64  # at full size; doubled at every halving
  downs: int = 2  # halvings
  blocks: int = 3  # residual blocks of each private end
  shared: int = 1  # shared residual blocks of the encoders, and of the decoders
  dropout: float = 0.0  # of residual blocks; .5 for street scenes
  axis_name: str | None = None

  def setup(self):
    how = dict(dropout=self.dropout, axis_name=self.axis_name)
    size = dict(downs=self.downs, blocks=self.blocks)
    self.encoders = {d: Encoder(self.features, **size, **how) for d in DOMAINS}
    self.decoders = {
      d: Decoder(c, **size, **how) for d, c in zip(DOMAINS, self.channels, strict=True)
    }
    self.shared_encoder = [ResBlock(**how) for _ in range(self.shared)]
    self.shared_decoder = [ResBlock(**how) for _ in range(self.shared)]

  def encode(self, images: dict[str, jax.Array], *, train: bool) -> dict[str, jax.Array]:
    """{domain: images [b, h, w, c]} -> {domain: means of their codes [b, h', w', d]}. Sizes that
    2 ** downs does not divide are padded by reflection: then `decode` makes larger images.
    """
    images = {d: layers.reflect_to_multiple(x, 2**self.downs) for d, x in images.items()}
    z = layers.interleave([self.encoders[d](x, train) for d, x in images.items()])
    for block in self.shared_encoder:
      z = block(z, train)
    return dict(zip(images, layers.deinterleave(z, len(images)), strict=True))

  def decode(
    self, z: jax.Array, *, domains: Sequence[str] = DOMAINS, train: bool
  ) -> dict[str, jax.Array]:
    """Codes [b, h', w', d] -> {domain: images [b, h, w, c] in (-1, 1)}."""
    for block in self.shared_decoder:
      z = block(z, train)
    return {d: self.decoders[d](z, train) for d in domains}

  def __call__(self, x: jax.Array, y: jax.Array) -> None:
    """Uses every parameter once, to initialise them."""
    z = self.encode({'x': x, 'y': y}, train=False)
    self.decode(z['x'], train=False)


class _Patches(nn.Module):
  """Convolutions with stride 2, of `first` and then 3x3 pixels, each with twice the features, and
  with `head` a 1x1 one to one logit per place.
  """

  features: int
  layers: int
  first: int = 3
  head: bool = True

  @nn.compact
  def __call__(self, x):
    for i in range(self.layers):
      kernel = self.first if i == 0 else 3
      x = nn.leaky_relu(_conv(self.features * 2**i, kernel, 2, x.shape[-1])(x), _SLOPE)
    return _conv(1, 1, 1, x.shape[-1])(x)[..., 0] if self.head else x


def smooth_and_halve(x: jax.Array) -> jax.Array:
  """Every second pixel of x [b, h, w, c] smoothed by (1/4, 1/2, 1/4) along both axes, with the edge
  repeated outside: [b, ceil(h / 2), ceil(w / 2), c].
  """
  for axis in (1, 2):
    n = x.shape[axis]
    wide = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(4)], mode='edge')
    before, at, after = (
      jax.lax.slice_in_dim(wide, i, i + n, stride=2, axis=axis) for i in range(3)
    )
    x = before / 4 + at / 2 + after / 4
  return x


class MultiScaleDiscriminator(nn.Module):
  """A discriminator for each of three scales of each domain, the authors' COCOMsDis for street
  scenes. With the defaults and three channels: 9,308,934 parameters.
  """

  features: int = 64  # of the first convolution; doubled at every layer
  layers: int = 4  # convolutions of a scale, each halving the size
  scales: int = 3  # each half the size of the one before

  def setup(self):
    self.nets = {
      d: [_Patches(self.features, self.layers) for _ in range(self.scales)] for d in DOMAINS
    }

  def __call__(self, x: jax.Array, y: jax.Array) -> list[jax.Array]:
    """Images of x and of y, [b, h, w, c] each -> the logits of every scale of each,
    [b, h', w']; images of the two domains may have different sizes.
    """
    logits = []
    for domain, images in zip(DOMAINS, (x, y), strict=True):
      for i, net in enumerate(self.nets[domain]):
        images = smooth_and_halve(images) if i else images
        logits.append(net(images))
    return logits


class SharedDiscriminator(nn.Module):
  """Discriminators of two domains with shared last layers, the authors' COCOSharedDis for faces.
  With the defaults and three channels: 25,240,065 parameters.
  """

  features: int = 64  # of the first convolution; doubled at every layer
  private: int = 2  # layers
  shared: int = 4  # layers

  def setup(self):
    self.ends = {d: _Patches(self.features, self.private, first=7, head=False) for d in DOMAINS}
    self.core = _Patches(self.features * 2**self.private, self.shared)

  def __call__(self, x: jax.Array, y: jax.Array) -> list[jax.Array]:
    """Images of x and of y, [b, h, w, c] each -> the logits of each, [b, h', w']."""
    return [self.core(self.ends[d](images)) for d, images in zip(DOMAINS, (x, y), strict=True)]
