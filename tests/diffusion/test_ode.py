"""The probability-flow ODE on data whose score and density are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import special, stats

from gen_jax.diffusion import ode
from gen_jax.diffusion.paths import EDM, VE, VP, Discrete, Linear, Prediction, SubVP, per_row
from gen_jax.diffusion.process import linear_betas

PATHS = {
  'ddpm': Discrete(np.cumprod(1 - linear_betas(1000, 1e-4, 0.02))),
  'vp': VP(),
  'sub_vp': SubVP(),
  've': VE(0.01, 50.0),
  'edm': EDM(),
  'linear': Linear(),
}


def each_path(*quick):
  """All paths; those that are not named run with the slow tests."""
  slow = {name: [pytest.mark.slow] * (name not in quick) for name in PATHS}
  return pytest.mark.parametrize('name', [pytest.param(n, marks=m) for n, m in slow.items()])


# Mixtures of Gaussians in the plane: weights [k], means [k, 2], covariances [k, 2, 2].
GAUSSIAN = np.ones(1), np.array([[0.4, -0.6]]), np.array([[[0.5, 0.3], [0.3, 0.4]]])
MIXTURE = (
  np.array([0.5, 0.3, 0.2]),
  np.array([[-0.8, 0.0], [0.7, 0.5], [0.3, -0.8]]),
  np.array([[[0.09, 0.03], [0.03, 0.04]], [[0.04, 0.0], [0.0, 0.09]], [[0.05, 0.0], [0.0, 0.05]]]),
)


def exact(path, data):
  """E[x_0 | x] and E[eps | x] for a mixture."""
  values, vectors = np.linalg.eigh(data[2])
  weights, means, values, vectors = map(jnp.float32, (data[0], data[1], values, vectors))

  def denoise(x, t):
    alpha, sigma = per_row(path.alpha(t), 3), per_row(path.sigma(t), 3)
    centred = jnp.einsum('bkd,kde->bke', x[:, None] - alpha * means[None], vectors)
    variance = alpha**2 * values[None] + sigma**2
    log_p = jnp.log(weights)[None] - 0.5 * jnp.sum(centred**2 / variance + jnp.log(variance), 2)
    share, white = jax.nn.softmax(log_p)[..., None], centred / variance
    x_0 = means[None] + alpha * jnp.einsum('bke,kde->bkd', values[None] * white, vectors)
    eps = sigma * jnp.einsum('bke,kde->bkd', white, vectors)
    return Prediction(jnp.sum(share * x_0, 1), jnp.sum(share * eps, 1))

  return denoise


def log_density(x, data, alpha=1.0, sigma=0.0):
  """log p of a mixture, or of alpha x_0 + sigma eps, float64 [b]."""
  weights, means, covariances = data
  covariances = alpha**2 * covariances + sigma**2 * np.eye(2)
  centred = np.float64(x)[:, None] - alpha * means
  square = np.einsum('bkd,kde,bke->bk', centred, np.linalg.inv(covariances), centred)
  log_p = -0.5 * (square + np.linalg.slogdet(2 * np.pi * covariances)[1]) + np.log(weights)
  return np.logaddexp.reduce(log_p, 1)


def moments(data):
  weights, means, covariances = data
  mean = weights @ means
  centred = means - mean
  return mean, np.einsum('k,kde->de', weights, covariances + centred[:, :, None] * centred[:, None])


def draw(data, n, seed=0):
  rng = np.random.default_rng(seed)
  which = rng.choice(len(data[0]), n, p=data[0])
  roots = np.linalg.cholesky(data[2])[which]
  noise = np.einsum('nij,nj->ni', roots, rng.standard_normal((n, 2)))
  return np.float32(data[1][which] + noise)


def noise(n, path):
  """Evenly spread noise at t_max, float32 [n, 2]; its moments are right to 1 / n."""
  even = stats.qmc.Sobol(2, seed=0).random(n)
  return np.float32(path.prior_std(path.t_max) * special.ndtri(even))


def counted(denoise, calls):
  def counting(x, t):
    jax.debug.callback(lambda: calls.append(1))
    return denoise(x, t)

  return counting


def prior(z, std):
  """log p of std z for z ~ N(0, 1), float64 [b]."""
  return stats.norm.logpdf(np.float64(z)).sum(1) - 2 * np.log(std)


BITS_PER_DIM = 1 / (2 * math.log(2))


@each_path('linear')
def test_samples_and_likelihoods_of_a_mixture(name):
  path, data, calls = PATHS[name], MIXTURE, []
  denoise = counted(exact(path, data), calls)
  std, last = path.prior_std(path.t_max), (path.alpha(path.t_max), path.sigma(path.t_max))

  @jax.jit
  def both(x, start, rng):
    return ode.log_likelihood(denoise, x, rng, path, 1e-6, 'exact'), ode.sample(
      denoise, start, path, 1e-5
    )

  x = draw(data, 500)
  (log_p, z, count), (made, count_2) = both(x, noise(4096, path), jax.random.key(0))
  jax.effects_barrier()
  assert count.shape == (500,) and count_2.shape == (4096,)
  assert len(calls) == count[0] + count_2[0]
  assert count_2[0] < 90  # in the times of VP and EDM 115 and 289 for such a mixture

  mean, covariance = moments(data)
  np.testing.assert_allclose(np.mean(made, 0), mean, atol=0.01)
  np.testing.assert_allclose(np.cov(made.T), covariance, atol=0.01)

  # The error of the solver for each point: with the density that x has at t_max for the prior, and
  # that at t_min, which is not quite that of the data.
  exactly = np.float64(log_p) - prior(z, std) + log_density(std * np.float64(z), data, *last)
  first = path.alpha(path.t_min), path.sigma(path.t_min)
  assert np.abs(exactly - log_density(x, data, *first)).max() * BITS_PER_DIM < 1e-3
  # What is reported: the mean for data.
  assert abs(np.mean(log_p - log_density(x, data))) * BITS_PER_DIM < 1e-3


@each_path('edm')
def test_each_point_of_a_gaussian_goes_where_it_must(name):
  """dX/dr = eps is linear: (x - alpha m) goes with the root of alpha^2 C + sigma^2."""
  path, (_, (m,), (c,)) = PATHS[name], GAUSSIAN

  def root(t, power):
    values, vectors = np.linalg.eigh(path.alpha(t) ** 2 * c + path.sigma(t) ** 2 * np.eye(2))
    return vectors @ np.diag(values**power) @ vectors.T

  start, last = noise(64, path), path.t_last
  x = (start - path.alpha(path.t_max) * m) @ root(path.t_max, -0.5) @ root(last, 0.5)
  wanted = m + path.alpha(last) * x @ root(last, -1) @ c
  found, _ = jax.jit(lambda x: ode.sample(exact(path, GAUSSIAN), x, path, 1e-6))(start)
  np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_hutchinsons_estimator():
  path, (x,) = PATHS['linear'], draw(GAUSSIAN, 1)
  estimate = jax.jit(
    lambda x, rng: ode.log_likelihood(exact(path, GAUSSIAN), x, rng, path, 1e-5)[0]
  )
  found = np.asarray(estimate(jnp.tile(x, (400, 1)), jax.random.key(0)))
  # e^T J e = J_11 + J_22 + 2 e_1 e_2 J_12 has two values, if e is the same in the whole solve.
  low, high = found.min(), found.max()
  assert high - low > 0.1
  assert np.minimum(found - low, high - found).max() < 1e-3
  assert 150 < np.sum(found > (low + high) / 2) < 250  # another e for each example
  assert (low + high) / 2 == pytest.approx(log_density(x[None], GAUSSIAN)[0], abs=2e-3)


def test_a_net_that_fails_gives_nan_soon():
  path = PATHS['vp']

  def denoise(x, t):
    x_0, eps = exact(path, GAUSSIAN)(x, t)[:2]
    return Prediction(x_0, jnp.where(t[:, None] < 0.5, jnp.nan, eps))

  x, count = jax.jit(lambda x: ode.sample(denoise, x, path, 1e-3))(noise(4, path))
  assert np.isnan(x).all() and count[0] < 500


# --- The `evaluate` of a system -------------------------------------------------------------------


def settings_of(shape, dequantize, divergence='rademacher'):
  return ConfigDict(
    {
      'data': dict(shape=shape, dequantize=dequantize),
      'eval': dict(ode_tolerance=1e-4, ode_divergence=divergence),
      'net': {},
    }
  )


@pytest.mark.parametrize(
  'dequantize, width, offset', [('none', 2 / 255, 6.994353), ('uniform', 2 / 256, 7.0)]
)
def test_bits_per_dimension_of_8_bit_images(dequantize, width, offset, monkeypatch):
  path, config = PATHS['linear'], settings_of((2, 2, 1), dequantize)
  seen = []

  def density(denoise, x, rng, path, tolerance, divergence):
    seen.append(x)
    log_p = jnp.sum(jax.scipy.stats.norm.logpdf(x, 0.1, 0.3), (1, 2, 3))
    return log_p, x, jnp.full(len(x), 44)

  monkeypatch.setattr(ode, 'log_likelihood', density)
  x = np.full((2000, 2, 2, 1), 255 - 40, np.float32) / 127.5 - 1
  found = ode.evaluate(None, x, jax.random.key(0), path, config)
  added = np.asarray(seen[0] - x)
  assert abs(added).max() <= width / 2 * 1.0001
  assert added.std() == pytest.approx(width / math.sqrt(12), rel=0.05)
  edges = x[0, 0, 0, 0] + np.array([-0.5, 0.5]) * width
  mass = np.diff(stats.norm.cdf(edges, 0.1, 0.3))[0]
  assert np.mean(found['bits_per_dim']) == pytest.approx(-np.log2(mass), abs=1e-3)
  np.testing.assert_allclose(found['nats'], found['bits_per_dim'] * 4 * math.log(2), rtol=1e-5)
  assert found['evaluations'].shape == (2000,) and found['evaluations'][0] == 44
  assert f'uniform dequantisation, 1 draw, offset {offset:.4g} bits/dim' in ode.settings(
    config, path
  )


def test_nats_of_points():
  path, config = PATHS['linear'], settings_of((2,), 'none', 'exact')
  x = draw(GAUSSIAN, 50)
  found = ode.evaluate(exact(path, GAUSSIAN), x, jax.random.key(0), path, config)
  np.testing.assert_allclose(found['nats'], -log_density(x, GAUSSIAN), atol=5e-3)
  assert ode.settings(config, path) == (
    'probability-flow ODE, RK45, tolerance 0.0001, t_min 1e-05 (sigma 1e-05), exact divergence'
  )
  assert set(ode.measures(None)) == set(found)
