"""The kernel distance against its definition, a closed form, and its expectation."""

import numpy as np
import pytest

from gen_jax.metrics import kernel_distance


def by_definition(x, y):
  """Gretton et al. 2012, Eq. 3, pair by pair."""

  def k(a, b):
    return (np.dot(a, b) / len(a) + 1) ** 3

  def within(z):
    return np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])

  return within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])


def test_the_definition():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(7, 3)), rng.normal(size=(7, 3)) + 0.5
  found = kernel_distance(x, y, subsets=1, subset_size=100)
  np.testing.assert_allclose(found.mean, by_definition(x, y), rtol=1e-12)
  assert found.error == 0


def test_two_gaussians():
  # d = 1: (x y + 1)^3 has the features x^3, sqrt(3) x^2, sqrt(3) x, 1, whose means differ by
  # 4, sqrt(3) and sqrt(3) between N(0, 1) and N(1, 1).
  rng = np.random.default_rng(1)
  x, y = rng.normal(size=(200_000, 1)), 1 + rng.normal(size=(200_000, 1))
  found = kernel_distance(x, y, subsets=200)
  np.testing.assert_allclose(found.mean, 16 + 3 + 3, atol=4 * found.error)
  assert found.error < 0.5


def test_the_halves_of_one_set_are_at_0():
  rng = np.random.default_rng(2)
  found = kernel_distance(
    rng.normal(size=(20_000, 8)), rng.normal(size=(20_000, 8)), subset_size=200
  )
  assert abs(found.mean) < 4 * found.error
  values = [
    kernel_distance(*rng.normal(size=(2, 50, 4)), subsets=1, subset_size=50).mean for _ in range(40)
  ]
  assert min(values) < 0 < max(values)  # unbiased: the biased estimate is never below 0


@pytest.mark.parametrize(
  'x, y', [(np.ones((3, 2)), np.ones((3, 4))), (np.ones((1, 2)), np.ones((9, 2)))]
)
def test_wrong_features(x, y):
  with pytest.raises(ValueError, match=r'\[m, d\]|at least 2'):
    kernel_distance(x, y)
