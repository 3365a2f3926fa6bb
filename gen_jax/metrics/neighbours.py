r"""Nearest-neighbour metrics: how good the generated examples are, and how much of the data they
cover.

A set's manifold is the union of balls around its features, each as large as the distance to the
k-th nearest other feature of the set. Precision and recall (Kynkaanniemi et al. 2019, arXiv
1904.06991) and density and coverage (Naeem et al. 2020, arXiv 2002.09797) count the features in it.

Distances are computed in blocks: 50,000 against 50,000 features need 200 MB in addition to the
features and a float32 copy of them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 512  # rows of a block of distances
NARROW = 16  # features with at most so many entries are points, which may be very close together


class PrecisionRecall(NamedTuple):
  precision: float  # share of fake features in the manifold of the real ones
  recall: float  # share of real features in the manifold of the fake ones


class DensityCoverage(NamedTuple):
  density: float  # balls of real features around a fake one, over k; 1 for equal distributions
  coverage: float  # share of real features with a fake one inside their ball


def precision_recall(real, fake, *, k: int = 3) -> PrecisionRecall:
  """Precision and recall of features real [n, d] and fake [m, d] (Kynkaanniemi et al. 2019,
  Eq. 1 to 3). Balls are closed.

  Raises:
    ValueError: the features have different numbers of entries, or a set has k features or fewer.
  """
  real, fake = _centred(real, fake, k, k)
  return PrecisionRecall(
    precision=float(np.mean(_by_block(_is_in_a_ball, (fake,), real, _radii(real, k)))),
    recall=float(np.mean(_by_block(_is_in_a_ball, (real,), fake, _radii(fake, k)))),
  )


def density_coverage(real, fake, *, k: int = 5) -> DensityCoverage:
  """Density and coverage of features real [n, d] and fake [m, d] (Naeem et al. 2020, section 3.1).
  Balls are open, as in the released code: a set has density 1 against itself.

  Raises:
    ValueError: the features have different numbers of entries, or there are k real ones or fewer.
  """
  real, fake = _centred(real, fake, k, 0)
  inside = _by_block(_count_inside, (real, _radii(real, k)), fake)
  return DensityCoverage(
    density=float(inside.sum() / (k * len(fake))),
    coverage=float(np.mean(inside > 0)),
  )


def nearest(x, reference, *, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
  """The k nearest rows of `reference` [m, d] to each row of x [n, d], nearest first.

  Returns:
    Their row numbers int [n, k], and distances float32 [n, k].

  Raises:
    ValueError: the features have different numbers of entries, or there are fewer than k rows.
  """
  reference, x = _centred(reference, x, k - 1, 0)
  squared = _by_block(_squared, (x,), reference)
  index = np.argsort(squared, axis=1, kind='stable')[:, :k]
  return index, np.sqrt(np.take_along_axis(squared, index, 1))


def _centred(real, fake, least_real, least_fake):
  """Both sets as float32, minus the real mean: the distances are the same, with smaller rounding
  errors.
  """
  real, fake = np.asarray(real), np.asarray(fake)
  if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
    raise ValueError(
      f'features of shapes {real.shape} and {fake.shape}: [n, d] and [m, d] are needed'
    )
  for name, x, least in (('real', real, least_real), ('fake', fake, least_fake)):
    if len(x) <= least:
      raise ValueError(f'{len(x)} {name} features: more than {least} are needed')
    if not np.isfinite(x).all():
      raise ValueError(f'{name} features are not finite')
  mean = real.mean(0, dtype=np.float64)

  def centred(x):
    out = np.empty(x.shape, np.float32)
    for start in range(0, len(x), BLOCK):  # avoids a float64 copy of the whole set
      out[start : start + BLOCK] = x[start : start + BLOCK] - mean[None]
    return out

  return centred(real), centred(fake)


def _by_block(f, rows, *others) -> np.ndarray:
  """f(*block, *others) [n] for arrays `rows` of n rows each; all blocks have the same size, so that
  f is compiled once.
  """
  others = [jnp.asarray(other) for other in others]
  parts, n = [], len(rows[0])
  for start in range(0, n, BLOCK):
    size = min(BLOCK, n - start)
    block = [np.resize(x[start : start + size], (BLOCK, *x.shape[1:])) for x in rows]
    parts.append(np.asarray(f(*block, *others))[:size])
  return np.concatenate(parts)


@jax.jit
def _squared(x, y):
  """Squared distances between rows [n, d] and [m, d] -> [n, m].

  Compiled separately, so that the distance of a pair has the same bits in radii and comparisons.
  """
  if x.shape[1] <= NARROW:  # below, small distances between large values would cancel
    return ((x[:, None] - y[None]) ** 2).sum(2)
  products = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
  return jnp.maximum((x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * products, 0)


def _radii(x, k):
  """Squared distance of every row of x to its k-th nearest other row, [n]."""
  return _by_block(functools.partial(_kth, k=k), (x,), x)


def _kth(block, x, *, k):
  # The block's rows are rows of x: the nearest neighbour of each is itself, at distance 0.
  distances = _squared(block, x)
  if jax.default_backend() == 'cpu':  # ten times faster than XLA's top_k there
    return np.partition(distances, k, axis=1)[:, k]
  return -_largest(-distances, k=k + 1)[:, k]


_largest = jax.jit(lambda x, *, k: jax.lax.top_k(x, k)[0], static_argnames='k')


@jax.jit
def _is_in_a_ball(block, centres, radii):
  """Whether each row is in a closed ball, [b]."""
  return (_squared(block, centres) <= radii[None]).any(1)


def _count_inside(centres, radii, x):
  """The number of rows of x in the open ball of each centre, [b]."""
  return _count_below(_squared(centres, x), radii)


_count_below = jax.jit(lambda distances, limits: (distances < limits[:, None]).sum(1))
