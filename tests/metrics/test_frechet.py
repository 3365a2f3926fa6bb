"""The Frechet distance against its closed form, an independent root, and blocks."""

import numpy as np
import pytest
import scipy.linalg

from gen_jax.metrics import Moments, frechet_distance


def gaussian(mean, covariance, n=1001):
  """Moments of a set whose Gaussian has exactly these."""
  covariance = np.asarray(covariance, float)
  return Moments(n, np.asarray(mean, float), (n - 1) * covariance)


def test_known_gaussians():
  # Commuting covariances: |mu_1 - mu_2|^2 + sum (sqrt a - sqrt b)^2.
  a, b = gaussian([0, 0, 0], np.diag([1, 4, 9])), gaussian([1, 2, 2], np.diag([4, 4, 1]))
  np.testing.assert_allclose(frechet_distance(a, b), 9 + 1 + 0 + 4, rtol=1e-12)
  # One dimension, from samples: the divisor of the variance is n - 1.
  x, y = np.array([[0.0], [2.0]]), np.array([[0.0], [6.0]])
  np.testing.assert_allclose(
    frechet_distance(x, y), 4 + (np.sqrt(2) - np.sqrt(18)) ** 2, rtol=1e-12
  )


def test_covariances_that_do_not_commute():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(40, 6)), rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6))
  s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
  root = scipy.linalg.sqrtm(s1 @ s2)
  expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root.real)
  np.testing.assert_allclose(frechet_distance(x, y), expected, rtol=1e-9)
  np.testing.assert_allclose(frechet_distance(y, x), expected, rtol=1e-9)


def test_equal_sets_and_singular_covariances():
  rng = np.random.default_rng(1)
  few = 30 * rng.normal(size=(20, 64))  # rank 19
  assert abs(frechet_distance(few, few)) < 1e-9
  moved = few + np.eye(64)[0]
  np.testing.assert_allclose(frechet_distance(few, moved), 1, atol=1e-6)
  # Orthogonal supports: nothing of the traces is shared.
  a, b = gaussian([0, 0], np.diag([2, 0])), gaussian([0, 0], np.diag([0, 3]))
  np.testing.assert_allclose(frechet_distance(a, b), 5, atol=1e-9)


def test_blocks_add_up_to_the_whole_far_from_the_origin():
  x = np.random.default_rng(2).normal(size=(1000, 5)).astype(np.float32) + 1e4
  whole, moments = Moments.of(x), Moments.empty(5)
  for block in np.split(x, [1, 300, 301, 999]):
    moments = moments.add(block)
  assert moments.n == 1000
  np.testing.assert_allclose(moments.mean, whole.mean, rtol=1e-12)
  np.testing.assert_allclose(moments.covariance, np.cov(x.T.astype(np.float64)), rtol=1e-7)


@pytest.mark.parametrize(
  'real, fake, says',
  [
    (np.ones((3, 2)), np.ones((3, 4)), '2 entries against 4'),
    (np.ones((1, 2)), np.ones((3, 2)), 'at least 2'),
    (np.ones(3), np.ones((3, 2)), r'\[n, d\]'),
    (np.full((3, 2), np.nan), np.ones((3, 2)), 'not finite'),
  ],
)
def test_wrong_features(real, fake, says):
  with pytest.raises(ValueError, match=says):
    frechet_distance(real, fake)
