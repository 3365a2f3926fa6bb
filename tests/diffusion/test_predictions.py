"""The five predictions: each is the papers' formula, and determines the other four."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion.paths import VE, VP, Linear, SubVP
from gen_jax.diffusion.predictions import KINDS, target, to_prediction

ROWS = 64
EACH = pytest.mark.parametrize('kind', KINDS)


def rows(seed=0):
  """x_0 and eps [64, 2, 3], alpha and sigma [64] in (0.1, 1) and (0.1, 2), x: all float64."""
  rng = np.random.default_rng(seed)
  x_0, eps = rng.uniform(-1, 1, (ROWS, 2, 3)), rng.standard_normal((ROWS, 2, 3))
  alpha, sigma = rng.uniform(0.1, 1, ROWS), rng.uniform(0.1, 2, ROWS)
  return x_0, eps, alpha, sigma, alpha[:, None, None] * x_0 + sigma[:, None, None] * eps


def single(*arrays):
  return [jnp.float32(a) for a in arrays]


@EACH
def test_the_target_is_the_papers(kind):
  x_0, eps, alpha, sigma, x = rows()
  found = target(kind, *single(x_0, eps, alpha, sigma))
  a, s = alpha[:, None, None], sigma[:, None, None]
  expected = {
    'eps': (x - a * x_0) / s,
    'x_0': (x - s * eps) / a,
    # Salimans and Ho: dx/dphi where alpha = cos(phi), sigma = sin(phi), at any radius.
    'v': a * eps - s * x_0,
    # The gradient of log N(x; alpha x_0, sigma^2).
    'score': -(x - a * x_0) / s**2,
    # The velocity of the straight path from x_0 at t = 0 to eps at t = 1.
    'velocity': ((1 - 0.7) * x_0 + 0.7 * eps - (1 - 0.2) * x_0 - 0.2 * eps) / (0.7 - 0.2),
  }[kind]
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@EACH
def test_each_determines_x_0_and_eps(kind):
  for seed in range(3):
    x_0, eps, alpha, sigma, x = single(*rows(seed))
    found = to_prediction(kind, target(kind, x_0, eps, alpha, sigma), x, alpha, sigma)
    np.testing.assert_allclose(found.x_0, x_0, atol=1e-5)
    np.testing.assert_allclose(found.eps, eps, atol=1e-5)
    assert found.variance is None


@pytest.mark.parametrize('pair', list(itertools.permutations(KINDS, 2)), ids='_'.join)
def test_from_one_to_another_and_back(pair):
  # What a net says, which belongs to no x_0 and eps that it was made from.
  first, second = pair
  _, _, alpha, sigma, x = single(*rows())
  said = jax.random.normal(jax.random.key(0), x.shape)
  there = to_prediction(first, said, x, alpha, sigma)
  other = target(second, there.x_0, there.eps, alpha, sigma)
  back = to_prediction(second, other, x, alpha, sigma)
  again = target(first, back.x_0, back.eps, alpha, sigma)
  # Divisions by alpha and by sigma, at least 0.1, lose a digit each.
  scale = jnp.maximum(1, jnp.abs(there.x_0) + jnp.abs(there.eps)).max()
  np.testing.assert_allclose(again, said, atol=1e-5 * float(scale))
  np.testing.assert_allclose(back.x_0, there.x_0, rtol=1e-5, atol=1e-5 * float(scale))


def test_the_papers_formulas_in_float64():
  with jax.enable_x64(True):
    _, _, _, _, x = (jnp.asarray(a) for a in rows())
    said = jax.random.normal(jax.random.key(1), x.shape, jnp.float64)
    t = np.linspace(0.05, 0.95, ROWS)

    def predict(path, kind):
      alpha, sigma = path.alpha(t), path.sigma(t)
      return to_prediction(kind, said, x, jnp.asarray(alpha), jnp.asarray(sigma)), (
        alpha[:, None, None],
        sigma[:, None, None],
      )

    # Ho et al. 2020, Eq. 15.
    (x_0, eps, _), (a, s) = predict(VP(), 'eps')
    np.testing.assert_allclose(x_0, x / a - np.sqrt(1 / a**2 - 1) * said, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(eps, said)
    # Salimans and Ho 2022, appendix D.
    (x_0, eps, _), (a, s) = predict(VP(), 'v')
    np.testing.assert_allclose(x_0, a * x - s * said, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(eps, s * x + a * said, rtol=1e-12, atol=1e-12)
    # Tweedie's formula: E[x_0 | x] = (x + sigma^2 score) / alpha.
    for path in (VE(), SubVP()):
      (x_0, eps, _), (a, s) = predict(path, 'score')
      np.testing.assert_allclose(x_0, (x + s**2 * said) / a, rtol=1e-12, atol=1e-12)
    # The straight path: x_0 = x - t u, eps = x + (1 - t) u.
    (x_0, eps, _), (a, s) = predict(Linear(), 'velocity')
    np.testing.assert_allclose(x_0, x - s * said, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(eps, x + (1 - s) * said, rtol=1e-12, atol=1e-12)


@EACH
def test_at_the_ends_of_a_path(kind):
  x_0, eps, _, _, _ = single(*rows())
  zeros, ones = jnp.zeros(ROWS), jnp.ones(ROWS)
  if kind not in ('eps', 'score'):  # pure noise says nothing of x_0 by its eps
    found = to_prediction(kind, target(kind, x_0, eps, zeros, ones), eps, zeros, ones)
    np.testing.assert_allclose(found.x_0, x_0, atol=1e-6)
    np.testing.assert_allclose(found.eps, eps, atol=1e-6)
  if kind not in ('x_0', 'score'):  # data without noise say nothing of eps by themselves
    found = to_prediction(kind, target(kind, x_0, eps, ones, zeros), x_0, ones, zeros)
    np.testing.assert_allclose(found.x_0, x_0, atol=1e-6)
    np.testing.assert_allclose(found.eps, eps, atol=1e-6)


def test_one_alpha_and_sigma_serve_all_rows():
  x_0, eps, _, _, _ = single(*rows())
  each = to_prediction('v', x_0, eps, jnp.full(ROWS, 0.6), jnp.full(ROWS, 0.8))
  one = to_prediction('v', x_0, eps, 0.6, 0.8)
  np.testing.assert_allclose(each.x_0, one.x_0, rtol=1e-6)


def test_an_unknown_kind_is_a_bug():
  x_0, eps, alpha, sigma, _ = single(*rows())
  with pytest.raises(KeyError):
    target('noise', x_0, eps, alpha, sigma)
