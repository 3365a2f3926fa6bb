r"""The Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, arXiv
1706.08500; the distance itself: Dowson and Landau 1982).

    d^2 = |mu_1 - mu_2|^2 + Tr(Sigma_1 + Sigma_2 - 2 (Sigma_1 Sigma_2)^(1/2))

It is called FID only for the features of the 2015 Inception network.
"""

from __future__ import annotations

import dataclasses

import numpy as np

BLOCK = 4096  # features that are converted to float64 at once


@dataclasses.dataclass(frozen=True)
class Moments:
  """Number, mean and scatter of a set of features, in float64; a set that is too large for memory
  is accumulated block by block.

  >>> moments = Moments.empty(2048)
  >>> for block in blocks:  # each [n, 2048]
  ...   moments = moments.add(block)
  """

  n: int
  mean: np.ndarray  # [d]
  scatter: np.ndarray  # [d, d], the sum of (x - mean) (x - mean)^T

  @classmethod
  def empty(cls, d: int) -> Moments:
    """The moments of an empty set of features of d entries."""
    return cls(0, np.zeros(d), np.zeros((d, d)))

  @classmethod
  def of(cls, features) -> Moments:
    """The moments of features [n, d].

    Raises:
      ValueError: the features are not a matrix, or not finite.
    """
    features = np.asarray(features)
    if features.ndim != 2 or not len(features):
      raise ValueError(f'features of shape {features.shape}: [n, d] with n > 0 is needed')
    total = cls.empty(features.shape[1])
    for start in range(0, len(features), BLOCK):  # avoids a float64 copy of the whole set
      x = features[start : start + BLOCK].astype(np.float64)
      if not np.isfinite(x).all():
        raise ValueError('features are not finite')
      mean = x.mean(0)
      x -= mean[None]
      total = total.merge(cls(len(x), mean, x.T @ x))
    return total

  def add(self, features) -> Moments:
    """The moments with features [n, d] added."""
    return self.merge(Moments.of(features))

  def merge(self, other: Moments) -> Moments:
    """The moments of the union (Chan, Golub and LeVeque 1979, which avoids cancellation)."""
    n = self.n + other.n
    delta = other.mean - self.mean
    return Moments(
      n,
      self.mean + delta * (other.n / n),
      self.scatter + other.scatter + np.outer(delta, delta) * (self.n * other.n / n),
    )

  @property
  def covariance(self) -> np.ndarray:
    """[d, d], with the divisor n - 1."""
    return self.scatter / (self.n - 1)


def frechet_distance(real, fake) -> float:
  """d^2 between the Gaussians of two sets.

  Args:
    real: features [n, d], or their `Moments`.
    fake: likewise.

  Returns:
    At least 0 up to rounding; 0 for equal sets. It is biased upwards, more for fewer samples:
    compare equal numbers of samples.

  Raises:
    ValueError: a set has fewer than two features, or values that are not finite, or the numbers of
      entries differ.
  """
  a, b = (x if isinstance(x, Moments) else Moments.of(x) for x in (real, fake))
  if a.mean.shape != b.mean.shape:
    raise ValueError(f'features with {len(a.mean)} entries against {len(b.mean)}')
  if min(a.n, b.n) < 2:
    raise ValueError(f'a covariance of {min(a.n, b.n)} feature(s): at least 2 are needed')
  # Sigma_1 Sigma_2 has the eigenvalues of S_1 Sigma_2 S_1 = (S_1 S_2) (S_1 S_2)^T, S = Sigma^(1/2):
  # their roots are the singular values of S_1 S_2. The root of a computed eigenvalue would turn a
  # rounding error of 1e-16 into 1e-8, once for each missing rank.
  trace = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False).sum()
  difference = a.mean - b.mean
  return float(
    difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace
  )


def _root(covariance):
  """The symmetric square root of a covariance, from its eigendecomposition."""
  values, vectors = np.linalg.eigh(covariance)
  return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
