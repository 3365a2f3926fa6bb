"""Coupled GANs for 28x28 digits (Liu and Tuzel 2016, arXiv 1606.07536): the nets of the authors'
PyTorch code for domain adaptation. Weights are Glorot's with gain sqrt(2), biases 0.1.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.errors import UserError
from gen_jax.nets import layers
from gen_jax.nets.unit_digits import DOMAINS, TENTH, XAVIER, Judged, parted

_HOW = dict(kernel_init=XAVIER, bias_init=TENTH)


class PReLU(nn.Module):
  """max(0, x) + a min(0, x) with one learned a, 1/4 at first."""

  @nn.compact
  def __call__(self, x):
    a = self.param('a', nn.initializers.constant(0.25), ())
    return jnp.where(x >= 0, x, a * x)


class Generator(nn.Module):
  """z [b, d] -> images of x and of y, both [b, 28, 28, c] in (-1, 1), that differ in the last layer
  only. With the defaults and z of 100 entries: 7,842,694 parameters.
  """

  shape: Sequence[int] = (28, 28, 1)
  features: Sequence[int] = (1024, 512, 256, 128)  # channels at 4x4, 7x7, 13x13 and 25x25
  axis_name: str | None = None

  @nn.compact
  def __call__(self, z: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    if tuple(self.shape[:2]) != (28, 28):
      raise UserError(
        f'config.data.shape={tuple(self.shape)}: config.generator makes images of 28x28'
      )
    h = z[:, None, None]
    for i, width in enumerate(self.features):
      form = dict(kernel=4, stride=1, padding=0) if i == 0 else dict(kernel=3, padding=1)
      h = layers.UpConv(width, **form, **_HOW)(h)
      h = nn.BatchNorm(
        use_running_average=not train,
        momentum=layers.MOMENTUM,
        epsilon=1e-5,
        use_fast_variance=False,  # few latents make the first maps: their variance can be tiny
        use_scale=False,
        use_bias=False,
        axis_name=self.axis_name,
      )(h)
      h = PReLU()(h)
    last = dict(kernel=6, stride=1, padding=1, **_HOW)
    return {
      d: 2 * nn.sigmoid(layers.UpConv(self.shape[-1], **last, name=f'last_{d}')(h)) - 1
      for d in DOMAINS
    }


class Discriminator(nn.Module):
  """Real or generated, and which class, of images of two domains: a LeNet without ReLUs whose first
  convolution is private. With the defaults, 28 pixels and 10 classes: 432,603 parameters.
  """

  num_classes: int
  features: Sequence[int] = (20, 50, 500)  # of the convolutions, from the private one on

  @nn.compact
  def __call__(
    self, x: jax.Array, y: jax.Array, *, train: bool = False, features: bool = True
  ) -> tuple[Judged, Judged]:
    """Images of x and of y, [b, h, w, c] each, in [-1, 1] -> `Judged` of each."""
    conv = functools.partial(layers.Conv, padding=0, **_HOW)
    first, second, third = self.features
    images = zip(DOMAINS, (x, y), strict=True)
    h = layers.interleave([conv(first, 5, name=f'end_{d}')((a + 1) / 2) for d, a in images])
    h = layers.max_pool_2(h)
    h = layers.max_pool_2(conv(second, 5, name='second')(h))
    h = PReLU(name='act')(conv(third, h.shape[1], name='third')(h))  # over all that is left, 4x4
    source = layers.flatten(conv(2, 1, name='source')(h))
    classes = layers.flatten(conv(self.num_classes, 1, name='classes')(h))
    return parted(source, layers.flatten(h), classes)
