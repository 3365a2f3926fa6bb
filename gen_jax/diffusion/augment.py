"""Augmentation that does not leak into samples (Karras et al. 2022, arXiv 2206.00364, appendix F.2,
after Karras et al. 2020, arXiv 2006.06676, appendix B).

Training images are flipped, scaled, rotated, stretched and shifted at random, each with a small
probability, and the net is told how, as labels. In sampling the labels are zeros: images that were
not augmented.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from gen_jax import draws, fields
from gen_jax.errors import UserError

# The kinds of augmentation, in the order of their labels, and the number of labels of each.
KINDS = {'x_flip': 1, 'y_flip': 1, 'scale': 1, 'rotation': 2, 'anisotropy': 2, 'translation': 2}
SCALE = ANISOTROPY = 0.2  # standard deviation of the binary logarithm of a scale
TRANSLATION = 0.125  # standard deviation, in multiples of the image's size

FIELDS = {
  'augment.probability': fields.number(
    0,
    1,
    default=0.0,
    meaning='probability of each kind of augmentation in training, of which the net is told; '
    'horizontal flips are fair coins whenever it is positive; 0: none',
  ),
  'augment.kinds': fields.some_of(
    *KINDS, default=tuple(KINDS), meaning='the kinds of augmentation used'
  ),
}


class Transforms(NamedTuple):
  """What happens to each of b images; zeros change nothing."""

  x_flip: jax.Array  # [b], 1 where left and right are exchanged
  y_flip: jax.Array  # [b], 1 where top and bottom are
  scale: jax.Array  # [b], n: larger by 2^(0.2 n)
  rotation: jax.Array  # [b], an angle, counterclockwise
  anisotropy: jax.Array  # [b], n: longer along an axis by 2^(0.2 n) and shorter across it
  axis: jax.Array  # [b], the angle of that axis
  translation: jax.Array  # [b, 2], to the right and down, in multiples of 1/8 of the size


def check(config) -> None:
  """Checks that images can be augmented and that the net is told.

  Raises:
    UserError: the data are not images, or the net's augment_dim is not the number of labels.
  """
  p, kinds = config.augment.probability, config.augment.kinds
  if not p:
    return
  if len(config.data.shape) != 3:
    raise UserError(
      f'config.augment.probability={p}: only images can be augmented, not config.data.shape='
      f'{tuple(config.data.shape)}'
    )
  found, needed = dict(config.net).get('augment_dim'), label_dim(kinds)
  if found != needed:
    raise UserError(
      f'config.net.augment_dim={found}: {needed} is needed, the number of labels of '
      f'config.augment.kinds, as config.augment.probability={p}'
      + ('' if found is not None else f' ({config.net.name} has no augment_dim)')
    )


def apply(images, key, config, axis_name=None) -> tuple[jax.Array, jax.Array | None]:
  """`augment` by config.augment; labels are None where it is off."""
  p, kinds = config.augment.probability, config.augment.kinds
  return augment(key, images, p, kinds, axis_name) if p else (images, None)


def augment(
  key: jax.Array,
  images: jax.Array,
  p: float = 0.12,
  kinds: Sequence[str] = tuple(KINDS),
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Augments images [b, h, w, c] at random: images, and labels float32 [b, n] with the n of
  `label_dim(kinds)`.

  Args:
    p: the probability of each kind. Horizontal flips are fair coins whenever it is positive.
    kinds: those of `KINDS` to use. The draws of a kind do not depend on the others.
  """
  transforms = draw_transforms(key, images.shape[0], p, kinds, axis_name)
  return transformed(images, transforms), labels_of(transforms, kinds)


def label_dim(kinds: Sequence[str] = tuple(KINDS)) -> int:
  """The number of labels."""
  return sum(KINDS[kind] for kind in kinds)


def draw_transforms(key, b: int, p: float, kinds, axis_name=None) -> Transforms:
  """Transforms of `kinds` for b images, each with probability p; arguments as in `augment`."""
  normal, uniform = jax.random.split(key)
  n = draws.normal(normal, (b, 4), axis_name)
  gates, coins, angles = jnp.split(draws.uniform(uniform, (b, 11), axis_name), (6, 9), axis=1)
  # Horizontal flips pass whenever p is positive.
  passed = jnp.concatenate([jnp.full((b, 1), p > 0), gates[:, 1:] < p], axis=1)
  used = jnp.array([kind in kinds for kind in KINDS])
  x, y, scale, rotation, anisotropy, translation = jnp.float32(passed & used[None]).T
  heads, angles = jnp.float32(coins < 0.5), math.pi * (2 * angles - 1)
  return Transforms(
    x_flip=x * heads[:, 0],
    y_flip=y * heads[:, 1],
    scale=scale * n[:, 0],
    rotation=rotation * angles[:, 0],
    anisotropy=anisotropy * n[:, 1],
    axis=heads[:, 2] * angles[:, 1],
    translation=translation[:, None] * n[:, 2:],
  )


def labels_of(transforms: Transforms, kinds: Sequence[str] = tuple(KINDS)) -> jax.Array:
  """What the net is told of transforms: float32 [b, label_dim(kinds)]."""
  t = transforms
  labels = {
    'x_flip': [t.x_flip],
    'y_flip': [t.y_flip],
    'scale': [t.scale],
    'rotation': [jnp.cos(t.rotation) - 1, jnp.sin(t.rotation)],
    'anisotropy': [t.anisotropy * jnp.cos(t.axis), t.anisotropy * jnp.sin(t.axis)],
    'translation': [t.translation[:, 0], t.translation[:, 1]],
  }
  return jnp.stack([label for kind in KINDS if kind in kinds for label in labels[kind]], axis=-1)


def transformed(images: jax.Array, transforms: Transforms) -> jax.Array:
  """Images [b, h, w, c], transformed; those with zeros come back within rounding.

  They continue beyond their borders as reflections. Like the authors, this works at twice the
  resolution, with the filter of an orthogonal wavelet against aliasing.
  """
  t = transforms
  pixels = (-1, 1, 1, 1)
  images = jnp.where(t.x_flip.reshape(pixels) > 0, images[:, :, ::-1], images)
  images = jnp.where(t.y_flip.reshape(pixels) > 0, images[:, ::-1], images)
  _, h, w, c = images.shape

  # The position of an output x, from the centre, in the image: A (x - shift).
  stretch = 2 ** (ANISOTROPY * t.anisotropy)
  a = _product(_rotation(-t.axis), _diagonal(1 / stretch, stretch), _rotation(t.axis))
  a = _product(_rotation(t.rotation), a) * 2 ** (-SCALE * t.scale)[:, None, None]
  shift = t.translation * TRANSLATION * jnp.float32([[w, h]])

  def sampled(image, a, shift):
    x, y = (jnp.arange(2 * (n + 2 * _BORDER)) / 2 - (n + 2 * _BORDER - 1) / 2 for n in (w, h))
    x, y = jnp.meshgrid(x - shift[0], y - shift[1])
    # In the upsampled image, 3 n - 2 pixels of the padded one have twice as many.
    columns = 2 * (a[0, 0] * x + a[0, 1] * y) + 3 * w - 3
    rows = 2 * (a[1, 0] * x + a[1, 1] * y) + 3 * h - 3
    sample = lambda channel: map_coordinates(channel, (rows, columns), order=1)
    return jax.vmap(sample, -1, -1)(image)

  both = lambda matrix, images: _linear(matrix(h), matrix(w), images)
  return both(_downsampling, jax.vmap(sampled)(both(_upsampling, images), a, shift))


# --- Parts --------------------------------------------------------------------------------------


def _rotation(angle):
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)


def _diagonal(x, y):
  return jnp.stack([x, y], -1)[:, :, None] * jnp.eye(2)[None]


def _product(first, *others):
  """Products of matrices [b, 2, 2]."""
  for other in others:
    first = jnp.einsum('bij,bjk->bik', first, other, precision='highest')
  return first


def _linear(rows, columns, images):
  """A matrix for each axis, applied to images [b, h, w, c]."""
  images = jnp.einsum('ih,bhwc->biwc', rows, images, precision='highest')
  return jnp.einsum('jw,biwc->bijc', columns, images, precision='highest')


# Scaling filter of the symlet with six vanishing moments (Daubechies 1992, section 8.1.1).
_SYM6 = np.array(
  [
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
  ]
)
_BORDER = len(_SYM6) // 4  # pixels around the output that the filter sees


def _upsampling(n):
  """Pads n pixels by n - 1 reflected ones at both ends, the most that reflection gives, and
  doubles their number: a matrix [6 n - 4, n].
  """
  padded = np.pad(np.eye(n), ((n - 1, n - 1), (0, 0)), mode='reflect')
  k, m = len(_SYM6), 2 * len(padded)
  apart = np.zeros((k + m, n))
  apart[k // 2 : k // 2 + m : 2] = padded
  return jnp.float32(sum(tap * apart[i : i + m] for i, tap in enumerate(_SYM6[::-1])))


def _downsampling(n):
  """Halves 2 n + 4 borders to n pixels: a matrix [n, 2 n + 4 _BORDER]."""
  matrix = np.zeros((n, 2 * n + 4 * _BORDER))
  for i in range(n):
    matrix[i, 2 * i + 1 : 2 * i + 1 + len(_SYM6)] = _SYM6
  return jnp.float32(matrix)
