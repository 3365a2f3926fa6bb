"""The inception score and the counts of modes, for cases whose answer is known."""

import numpy as np
import pytest

from gen_jax.metrics import class_coverage, inception_score, mode_coverage


def test_the_score_of_perfect_and_of_constant_predictions():
  np.testing.assert_allclose(
    inception_score(np.tile(np.eye(10), (50, 1)), seed=None), (10, 0), atol=1e-9
  )
  constant = np.tile([0.7, 0.2, 0.1, 0], (100, 1))
  np.testing.assert_allclose(inception_score(constant), (1, 0), atol=1e-9)


def test_the_score_of_splits():
  # Two splits: one has both classes and a score of 2, the other one class and 1.
  p = np.eye(2)[[0, 1, 0, 1, 1, 1, 1, 1]]
  np.testing.assert_allclose(inception_score(p, splits=2, seed=None), (1.5, 0.5))
  # In the order of classes, every split has one class only; the shuffle mends that.
  ordered = np.repeat(np.eye(10), 100, axis=0)
  assert inception_score(ordered, seed=None).mean == pytest.approx(1)
  assert inception_score(ordered).mean > 8


@pytest.mark.parametrize('p', [np.ones((20, 4)), np.full((5, 2), 0.5), -np.eye(20)])
def test_wrong_predictions(p):
  with pytest.raises(ValueError, match='predictions'):
    inception_score(p)


def test_modes_of_a_mixture():
  centres = np.array([[0.0, 0], [10, 0], [0, 10], [10, 10]])
  points = np.array([[0.1, 0], [0.29, 0], [9.8, 0.1], [0, 10.31], [5, 5]])
  modes, good, kl = mode_coverage(points, centres, sigma=0.1)
  assert (modes, good) == (2, 3 / 5)  # 10.31 is more than three sigma away
  np.testing.assert_allclose(kl, np.log(4) - (2 / 3 * np.log(1.5) + 1 / 3 * np.log(3)))
  assert mode_coverage(centres, centres, 0.1) == (4, 1, 0)
  assert mode_coverage(centres + 5, centres, 0.1) == (0, 0, np.inf)


def test_classes():
  assert class_coverage([0, 1, 2, 0, 1, 2], [10, 10, 10]) == (3, 0)
  classes, kl = class_coverage([1, 1], [0.5, 0.25, 0.25])
  assert classes == 1
  np.testing.assert_allclose(kl, np.log(4))
