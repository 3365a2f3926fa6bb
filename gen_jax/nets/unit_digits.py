"""UNIT for digits (Liu, Breuel and Kautz 2017, arXiv 1703.00848): the nets of the authors' code for
domain adaptation, CoVAE32x32 and CoDis32x32.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.errors import UserError
from gen_jax.nets import layers
from gen_jax.nets.unit import DOMAINS, torch_bias

_NORMAL_002 = nn.initializers.normal(0.002)
XAVIER = nn.initializers.variance_scaling(2.0, 'fan_avg', 'uniform')  # Glorot with gain sqrt(2)
TENTH = nn.initializers.constant(0.1)


class Judged(NamedTuple):
  """What a discriminator says of images."""

  logit: jax.Array  # [b], of being real
  features: jax.Array | None  # [b, d], of the last shared layer
  classes: jax.Array  # [b, num_classes], logits


def parted(source, features, classes) -> tuple[Judged, Judged]:
  """Two logits of the source [2 b, 2], features [2 b, d] or None, and classes [2 b, k], of
  interleaved images of x and y, as `Judged` of each.
  """
  # Softmax over two logits is a sigmoid of their difference.
  parts = source[:, 1] - source[:, 0], features, classes
  halves = [[None] * 2 if a is None else layers.deinterleave(a, 2) for a in parts]
  return tuple(Judged(*own) for own in zip(*halves, strict=True))


def _multiple(shape, n: int, net: str) -> int:
  """The size of a square image of `shape`.

  Raises:
    UserError: it is not a multiple of n.
  """
  height, width = shape[-3:-1]
  if height != width or height % n:
    raise UserError(
      f'config.data.shape={tuple(shape[-3:])}: config.{net} needs squares of a multiple of {n} '
      'pixels'
    )
  return height


class _Normed(nn.Module):
  """A (transposed) convolution, batch norm without parameters, a bias, LeakyReLU."""

  features: int
  kernel: int
  stride: int
  padding: int
  axis_name: str | None
  up: bool = False  # transposed

  @nn.compact
  def __call__(self, x, train):
    kind = layers.UpConv if self.up else layers.Conv
    fan_in = self.kernel**2 * (self.features if self.up else x.shape[-1])
    x = kind(
      self.features,
      self.kernel,
      self.stride,
      kernel_init=layers.NORMAL_02,
      bias_init=torch_bias(fan_in),
      padding=self.padding,
    )(x)
    x = nn.BatchNorm(
      use_running_average=not train,
      momentum=layers.MOMENTUM,
      epsilon=1e-5,
      use_scale=False,
      use_bias=False,
      axis_name=self.axis_name,
    )(x)
    bias = self.param('bias', _NORMAL_002, (self.features,))
    return nn.leaky_relu(x + bias[None, None, None], 0.01)


def coordinates(size: int) -> np.ndarray:
  """The row and the column of each pixel, from -1 to 1 - 2 / size: float32 [size, size, 2]."""
  places = np.indices((size, size)).transpose(1, 2, 0)
  return np.float32(2 * places / size - 1)


class Generator(nn.Module):
  """Two variational autoencoders with one code, for squares of s pixels: the first convolution and
  the last two are private. The encoders see the coordinates of each pixel, too.

  With the defaults, 32 pixels, grey in both domains: 22,601,474 parameters.
  """

  channels: Sequence[int]  # of images of x and of y
  size: int  # s, a multiple of 8
  features: int = 96  # of the outermost layers; the code has 8 times as many
  axis_name: str | None = None

  def setup(self):
    def layer(times, kernel, stride, padding, up=False):
      return _Normed(times * self.features, kernel, stride, padding, self.axis_name, up)

    _multiple((self.size, self.size, 1), 8, 'generator')
    self.encoders = {d: layer(1, 5, 2, 2) for d in DOMAINS}
    self.shared_encoder = [layer(2, 5, 2, 2), layer(4, self.size // 4, 1, 0), layer(8, 1, 1, 0)]
    width = 8 * self.features
    head = dict(kernel_init=layers.NORMAL_02, bias_init=_NORMAL_002)
    self.mean = layers.Conv(width, 1, **head)
    self.deviation = layers.Conv(width, 1, **head)
    self.shared_decoder = [
      layer(8, self.size // 8, 1, 0, up=True),
      layer(4, 4, 2, 1, up=True),
      layer(2, 4, 2, 1, up=True),
    ]
    self.decoders = {d: layer(1, 4, 2, 1, up=True) for d in DOMAINS}
    self.heads = {
      d: layers.Conv(c, 1, kernel_init=layers.NORMAL_02, bias_init=torch_bias(c))
      for d, c in zip(DOMAINS, self.channels, strict=True)
    }

  def encode(self, images: dict[str, jax.Array], *, train: bool) -> dict:
    """{domain: images [b, s, s, c]} -> {domain: mean and standard deviation of the code}, both
    [b, 1, 1, d]. The shared layers normalise over the images of all domains together.

    Raises:
      UserError: images of another size.
    """
    ends = []
    for domain, x in images.items():
      if x.shape[1:3] != (self.size, self.size):
        raise UserError(
          f'images of {x.shape[1]}x{x.shape[2]}: config.generator takes those of '
          f'config.data.shape, {self.size}x{self.size}'
        )
      planes = jnp.asarray(coordinates(self.size), x.dtype)
      planes = jnp.broadcast_to(planes, (len(x), *planes.shape))
      ends.append(self.encoders[domain](jnp.concatenate([x, planes], axis=-1), train))
    x = layers.interleave(ends)
    for layer in self.shared_encoder:
      x = layer(x, train)
    mean, deviation = self.mean(x), nn.softplus(self.deviation(x))
    parts = (layers.deinterleave(a, len(images)) for a in (mean, deviation))
    return dict(zip(images, zip(*parts, strict=True), strict=True))

  def decode(self, z: jax.Array, *, domains: Sequence[str] = DOMAINS, train: bool) -> dict:
    """Codes z [b, 1, 1, d] -> {domain: images [b, s, s, c] in (-1, 1)}."""
    for layer in self.shared_decoder:
      z = layer(z, train)
    return {d: nn.tanh(self.heads[d](self.decoders[d](z, train))) for d in domains}

  def __call__(self, x: jax.Array, y: jax.Array) -> None:
    """Uses every parameter once, to initialise them."""
    codes = self.encode({'x': x, 'y': y}, train=False)
    self.decode(codes['x'][0], train=False)


class Discriminator(nn.Module):
  """Real or generated, and which class, of the images of two domains, squares of a multiple of 16
  pixels: 5x5 convolutions with max pooling, of which the first is private.

  With the defaults, 32 pixels, 10 classes, grey in both domains: 4,329,612 parameters.
  """

  num_classes: int
  features: int = 64  # of the first layer; doubled at every layer
  dropout: Sequence[float] = (0.1, 0.3, 0.5, 0.5)  # after each layer, not for the features
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self, x: jax.Array, y: jax.Array, *, train: bool = False, features: bool = True
  ) -> tuple[Judged, Judged]:
    """Images of x and of y, [b, s, s, c] each -> `Judged` of each, the features without dropout, or
    without features.

    Raises:
      UserError: s is not a multiple of 16.
    """
    _multiple(x.shape, 16, 'discriminator')
    how = dict(kernel_init=XAVIER, bias_init=TENTH)
    pooled = lambda x: layers.max_pool_2(nn.relu(x))
    conv = lambda i, name: layers.Conv(2**i * self.features, 5, padding=2, name=name, **how)
    drop = lambda h, i: layers.Dropout(self.dropout[i], self.axis_name)(h, train=train)
    images = zip(DOMAINS, (x, y), strict=True)
    h = layers.interleave([pooled(conv(0, f'end_{d}')(a)) for d, a in images])
    # The rows without dropout are those of the features.
    twice = train and features and any(self.dropout)
    paths = [drop(h, 0), h] if twice else [drop(h, 0)]
    for i in (1, 2, 3):
      h = pooled(conv(i, f'core_{i}')(layers.interleave(paths)))
      dropped, *plain = layers.deinterleave(h, len(paths))
      paths = [drop(dropped, i), *plain]
    # Over all that is left, 2x2 of 32 pixels.
    over_all = dict(kernel=h.shape[1], padding=0, **how)
    source = layers.flatten(layers.Conv(2, name='source', **over_all)(paths[0]))
    classes = layers.flatten(layers.Conv(self.num_classes, name='classes', **over_all)(paths[0]))
    return parted(source, layers.flatten(paths[-1]) if features else None, classes)
