r"""The kernel distance: the squared maximum mean discrepancy between two sets of features with the
cubic kernel k(x, y) = (x^T y / d + 1)^3 (Binkowski et al. 2018, arXiv 1801.01401, section 4).

Its estimate (Gretton et al. 2012, Eq. 3) is unbiased: unlike the Frechet distance it does not
depend on the number of samples, and is below 0 as often as above for equal distributions. It is
called KID only for the features of the 2015 Inception network.
"""

import math
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
  """A mean and its spread: the standard error, or, for the inception score, the deviation."""

  mean: float
  error: float


def kernel_distance(
  real, fake, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> Estimate:
  """MMD^2 between features real [n, d] and fake [m, d]: mean over random subsets.

  Args:
    real: features of the reference set.
    fake: features of the generated examples.
    subsets: number of pairs of subsets, each sampled without replacement.
    subset_size: examples in a subset, at most the size of the smaller set.
    seed: seed of the subsets.

  Returns:
    The mean, and the standard deviation over subsets / sqrt(subsets). The subsets overlap where the
    sets are smaller than subsets * subset_size; the error is then too small.

  Raises:
    ValueError: the features have different numbers of entries, or a set has fewer than 2.
  """
  x, y = np.asarray(real), np.asarray(fake)
  if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
    raise ValueError(f'features of shapes {x.shape} and {y.shape}: [n, d] and [m, d] are needed')
  size = min(subset_size, len(x), len(y))
  if size < 2:
    raise ValueError(f'subsets of {size} feature(s): at least 2 are needed')
  if not np.isfinite(x).all() or not np.isfinite(y).all():
    raise ValueError('features are not finite')
  rng = np.random.default_rng(seed)

  def subset(features):
    return features[rng.choice(len(features), size, replace=False)].astype(np.float64)

  values = [mmd2(subset(x), subset(y)) for _ in range(subsets)]
  return Estimate(float(np.mean(values)), float(np.std(values) / math.sqrt(subsets)))


def mmd2(x, y) -> float:
  """The unbiased estimate of MMD^2 between features x [n, d] and y [m, d], float64."""

  def kernel(a, b):
    k = a @ b.T / a.shape[1] + 1
    return k * k * k  # six times faster than `k**3`

  def within(a):  # mean over pairs of different examples
    k = kernel(a, a)
    return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

  return within(x) + within(y) - 2 * kernel(x, y).mean()
