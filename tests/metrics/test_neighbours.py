"""Precision, recall, density and coverage, counted by hand and pair by pair."""

import numpy as np
import pytest

from gen_jax.metrics import density_coverage, kernel_distance, neighbours, precision_recall

REAL = np.array([0.0, 1, 3, 6, 10])[:, None]  # k = 1: radii 1, 1, 2, 3, 4


def line(*points):
  return np.array(points, float)[:, None]


def test_five_points():
  # Fake radii 2.5, 2.5, 3, 1, 1. Of the fakes -0.5, 2 and 5 lie in real balls; of the real ones all
  # but 10 in fake balls. 2 and 5 lie on the surfaces of the balls of 1 and 3, which do not count
  # for density and coverage: one ball for each of the three, and 0, 3 and 6 have a fake inside.
  fake = line(-0.5, 2, 5, 30, 31)
  assert precision_recall(REAL, fake, k=1) == pytest.approx((3 / 5, 4 / 5))
  assert density_coverage(REAL, fake, k=1) == pytest.approx((3 / 5, 3 / 5))


def test_crowded_fakes():
  # Everything at 5, inside the ball of 6 and on the surface of that of 3: good, but one mode of
  # five. k = 2: the real radii are 3, 2, 3, 4, 7, so that 5 lies in the balls of 3, 6 and 10.
  fake = line(5, 5, 5, 5)
  assert precision_recall(REAL, fake, k=1) == pytest.approx((1, 0))
  assert density_coverage(REAL, fake, k=1) == pytest.approx((1, 1 / 5))
  assert density_coverage(REAL, fake, k=2) == pytest.approx((3 / 2, 3 / 5))


@pytest.mark.parametrize('k', [1, 5])
@pytest.mark.parametrize('d', [2, 300])  # points, and features
def test_a_set_against_itself(d, k, monkeypatch):
  # In every ball are its centre and the k - 1 nearest; the k-th one is on the surface.
  monkeypatch.setattr(neighbours, 'BLOCK', 64)
  real = np.random.default_rng(0).normal(size=(200, d)) ** 3
  assert density_coverage(real, real, k=k) == (1, 1)
  assert precision_recall(real, real, k=k) == (1, 1)


@pytest.mark.parametrize('d', [2, 300])
def test_constant_features(d):
  # All balls are empty, and consist of their surface.
  real, fake = np.full((40, d), 0.7), np.full((30, d), 0.7)
  assert density_coverage(real, fake) == (0, 0)
  assert precision_recall(real, fake) == (1, 1)


@pytest.mark.parametrize('d', [4, 40])  # points, and features
def test_blocks_agree_with_all_pairs(d, monkeypatch):
  monkeypatch.setattr(neighbours, 'BLOCK', 16)
  rng = np.random.default_rng(0)
  real, fake = 100 + rng.normal(size=(53, d)), 100.5 + rng.normal(size=(37, d))
  real[:, 4:] = 100 + 0.1 * (real[:, 4:] - 100)
  fake[:, 4:] = 100 + 0.1 * (fake[:, 4:] - 100.5)

  def distances(a, b):
    return np.linalg.norm(a[:, None] - b[None], axis=-1)

  def radii(a, k):
    return np.sort(distances(a, a), axis=1)[:, k]

  inside = distances(fake, real) <= radii(real, 3)[None]
  reached = distances(real, fake) <= radii(fake, 3)[None]
  assert 0.1 < inside.any(1).mean() < 0.95
  expected = inside.any(1).mean(), reached.any(1).mean()
  np.testing.assert_allclose(precision_recall(real, fake), expected, rtol=1e-6)
  inside = distances(fake, real) < radii(real, 5)[None]
  covered = distances(real, fake).min(1) < radii(real, 5)
  expected = inside.sum(1).mean() / 5, covered.mean()
  np.testing.assert_allclose(density_coverage(real, fake), expected, rtol=1e-6)


def test_points_that_lie_very_close_together():
  # Narrow modes on a circle: the squared radii, 1e-6, are near float32's steps at its size.
  rng = np.random.default_rng(0)
  angle = 2 * np.pi * rng.integers(0, 8, (2, 1200)) / 8
  centres = 0.8 * np.stack([np.cos(angle), np.sin(angle)], -1)
  real, fake = np.float32(centres + rng.normal(size=(2, 1200, 2)) * [[[0.003]], [[0.0005]]])
  distances = np.linalg.norm(np.float64(fake)[:, None] - np.float64(real)[None], axis=-1)
  within = np.linalg.norm(np.float64(real)[:, None] - np.float64(real)[None], axis=-1)
  inside = distances < np.sort(within, axis=1)[:, 5][None]
  density = density_coverage(real, fake).density
  assert density == pytest.approx(inside.sum(1).mean() / 5, rel=1e-3)


def test_equal_distributions():
  real, fake = np.random.default_rng(1).normal(size=(2, 2000, 2))
  density, coverage = density_coverage(real, fake)
  assert abs(density - 1) < 0.05
  # Naeem et al. 2020, Eq. 9, for n = m: 1 - (n - 1) ... (n - k) / ((2n - 1) ... (2n - k)).
  i = np.arange(1, 6)
  assert abs(coverage - (1 - np.prod((2000 - i) / (4000 - i)))) < 0.02


def test_wrong_features():
  for bad in (np.nan, np.inf):
    features = np.ones((9, 2))
    features[3, 1] = bad
    for metric in (precision_recall, density_coverage, kernel_distance):
      with pytest.raises(ValueError, match='not finite'):
        metric(np.ones((9, 2)), features)
      with pytest.raises(ValueError, match='not finite'):
        metric(features, np.ones((9, 2)))
  with pytest.raises(ValueError, match='3 fake features: more than 3'):
    precision_recall(np.ones((9, 2)), np.ones((3, 2)))
  with pytest.raises(ValueError, match=r'\[m, d\]'):
    density_coverage(np.ones((9, 2)), np.ones((9, 3)))
