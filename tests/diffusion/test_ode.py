"""The probability-flow ODE on data whose score and density are known."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from gen_jax.diffusion import encoding, ode
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
# One path that starts at alpha = 0 and one that does not; the others with the slow tests.
EACH = pytest.mark.parametrize(
  'name', [name if name in ('vp', 'linear') else pytest.param(name, marks=pytest.mark.slow)
           for name in PATHS]
)

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


def whitened(n):
  """Noise whose mean and covariance are exactly 0 and the identity, float64 [n, 2]."""
  x = np.random.default_rng(1).standard_normal((n, 2))
  x -= x.mean(0)
  return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T, bias=True))).T


@EACH
def test_samples_and_likelihoods_of_a_mixture(name):
  path, data, calls = PATHS[name], MIXTURE, []

  def denoise(x, t):
    jax.debug.callback(lambda: calls.append(1))
    return exact(path, data)(x, t)

  @jax.jit
  def solve(x, noise, rng):
    log_p, z, count = ode.log_likelihood(denoise, x, rng, path, 1e-5, 'exact')
    made, count_2 = ode.sample(denoise, jnp.concatenate([noise, z]), path, 1e-5)
    return log_p, z, made[: len(noise)], made[len(noise) :], count, count_2

  n, std = 3000, path.prior_std(path.t_max)
  x = draw(data, 500)
  noise = np.random.default_rng(1).standard_normal((n, 2))
  # From noise of the last marginal, so that only the solver is tested.
  log_p, z, made, again, *counts = map(np.asarray, solve(x, np.float32(noise), jax.random.key(0)))
  jax.effects_barrier()
  assert counts[0].shape == (500,) and counts[1].shape == (n + 500,)
  assert len(calls) == counts[0][0] + counts[1][0]
  bits = 1 / (2 * math.log(2))
  # Of the density at t_min, which on some of the paths is not yet that of the data.
  alpha, sigma = path.alpha(path.t_min), path.sigma(path.t_min)
  wanted = log_density(x, data, alpha, sigma)
  print(name, counts[0][0], counts[1][0], np.abs(log_p - wanted).max() * bits, np.abs(log_p - log_density(x, data)).max() * bits,
    np.abs(log_p - log_density(x, data)).mean() * bits,np.abs((log_p - log_density(x, data)).mean() )* bits,
    np.abs(again-x).max(), made.mean(0)-moments(data)[0], np.cov(made.T)-moments(data)[1], np.abs(z.mean(0)), z.std(0), std)
