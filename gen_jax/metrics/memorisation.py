"""The training examples nearest to samples: the first thing to look at where a model may have
memorised its data. Distances alone do not tell; images beside images do.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gen_jax import data
from gen_jax.errors import UserError
from gen_jax.metrics import neighbours, networks, scorer

BLOCK = 4096  # examples read at once


class Nearest(NamedTuple):
  """The k training examples nearest to each of n images, nearest first."""

  image: np.ndarray  # [n, k, ...], uint8 [0, 255], or float32 for points
  index: np.ndarray  # int [n, k], in the training set
  distance: np.ndarray  # float32 [n, k]: root of the mean square over values of 0 to 1, or features


def nearest(config, images, k: int = 1, by: str = 'pixels') -> Nearest:
  """The training examples of a run nearest to images.

  Args:
    config: the run's.
    images: uint8 [n, h, w, c], or float32 [n, 2] for points.
    k: how many for each.
    by: 'pixels', the Euclidean distance of pixels, or 'features', that of the features of the
      network that config.eval names.

  Raises:
    UserError: the images differ from the data in shape or dtype, `by` is neither, or there are
      fewer than k training examples.
  """
  source = data.open_source(config)
  images = np.asarray(images)
  if images.shape[1:] != source.shape or images.dtype != source.dtype or not len(images):
    raise UserError(
      f'images are {images.dtype} {images.shape}: {source.dtype} {("n", *source.shape)} is needed'
    )
  if not 1 <= k <= len(source):
    raise UserError(f'k={k}: 1 to {len(source)}, the number of training examples, is needed')
  if by == 'pixels':
    mine, theirs = _pixels(images), np.concatenate([*map(_pixels, _blocks(source))])
  elif by == 'features':
    network = networks.open_network(config.eval.network, path=config.eval.weights, source=source)
    mine = np.concatenate([seen for seen, _ in networks.features(network, iter([images]))])
    theirs = scorer.reference_features(source, network, len(source)).features
  else:
    raise UserError(f"by={by!r}: 'pixels' or 'features' is needed")
  index, distance = neighbours.nearest(mine, theirs, k=k)
  found = source.read(index.ravel())['image']
  return Nearest(found.reshape(*index.shape, *source.shape), index, distance)


def _blocks(source) -> Iterator[np.ndarray]:
  for start in range(0, len(source), BLOCK):
    yield source.read(range(start, min(start + BLOCK, len(source))))['image']


def _pixels(images) -> np.ndarray:
  """[n, d], scaled so that the distance of two rows is the root mean square of their difference."""
  x = np.float32(images.reshape(len(images), -1))
  return x / np.sqrt(x.shape[1]) / (255 if images.dtype == np.uint8 else 1)
