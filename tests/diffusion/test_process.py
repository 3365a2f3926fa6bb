"""The process against published digits, its own single steps, and Bayes' rule."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from gen_jax.diffusion import process as diffusion
from gen_jax.diffusion.paths import add_noise
from gen_jax.diffusion.predictions import to_prediction
from gen_jax.diffusion.process import (
  make_betas,
  make_path,
  make_process,
  posterior_mean,
  q_sample,
)

LINEAR = diffusion.linear_betas(1000, 1e-4, 0.02)
COSINE = diffusion.cosine_betas(1000)
SCHEDULES = pytest.mark.parametrize('betas', [LINEAR, COSINE], ids=['linear', 'cosine'])


def test_the_linear_schedule_has_the_published_tables():
  p = make_process(LINEAR)
  np.testing.assert_allclose(
    p.alpha_bars[[0, 1, 499, 999]], [0.9999, 0.99978009, 0.07858724, 4.03582977e-5], rtol=2e-7
  )
  assert p.posterior_variance[0] == 0
  np.testing.assert_allclose(
    p.posterior_variance[[1, 999]], [5.45318766e-5, 0.0199999835], rtol=1e-7
  )
  assert all(table.dtype == np.float32 and table.shape == (1000,) for table in p)


def test_the_fixed_variances_start_with_the_second_posterior_variance():
  p = make_process(LINEAR)
  np.testing.assert_allclose(p.log_variance_large[0], -9.8167251, rtol=1e-7)
  np.testing.assert_allclose(p.log_variance_small[:2], -9.8167251, rtol=1e-7)
  np.testing.assert_allclose(
    np.exp(p.log_variance_large[[1, 500, 999]]), LINEAR[[1, 500, 999]], 1e-6
  )
  # beta_tilde < beta, and the same at the noisy end.
  assert (p.log_variance_small[1:] < p.log_variance_large[1:]).all()
  np.testing.assert_allclose(np.exp(p.log_variance_small[999]), 0.0199999835, rtol=1e-6)


def test_the_cosine_schedule_has_the_published_tables():
  np.testing.assert_allclose(COSINE[0], 4.12842e-5, rtol=2e-6)
  np.testing.assert_allclose(COSINE[-3:], [0.555554, 0.749999, 0.999], rtol=2e-6)
  np.testing.assert_allclose(make_process(COSINE).alpha_bars[499], 0.49384, rtol=1e-5)
  fine = diffusion.cosine_betas(4000)
  np.testing.assert_allclose(fine[[0, -1]], [9.86582e-6, 0.999], rtol=1e-6)
  np.testing.assert_allclose(make_process(fine).alpha_bars[1999], 0.49384, rtol=1e-5)


def test_make_betas_reads_the_config():
  config = ConfigDict(
    dict(diffusion=dict(steps=4000, schedule='linear', beta_min=2.5e-5, beta_max=5e-3))
  )
  # 4000 steps of a quarter of the noise end where improved DDPM's linear schedule does.
  np.testing.assert_allclose(make_process(make_betas(config)).alpha_bars[-1], 4.2467e-5, rtol=1e-4)
  config.diffusion.schedule = 'cosine'
  np.testing.assert_allclose(make_betas(config)[0], 9.86582e-6, rtol=1e-6)


@SCHEDULES
def test_single_steps_compose_to_the_closed_form(betas):
  p = make_process(betas)
  mean, variance = 1.0, 0.0
  means, variances = [], []
  for beta in betas:  # q(x_t | x_{t-1}), Eq. 2
    mean *= np.sqrt(1 - beta)
    variance = (1 - beta) * variance + beta
    means.append(mean)
    variances.append(variance)
  t = np.arange(len(betas))
  ones, zeros = jnp.ones((len(betas), 1)), jnp.zeros((len(betas), 1))
  np.testing.assert_allclose(q_sample(p, ones, t, zeros)[:, 0], means, rtol=1e-5, atol=1e-9)
  # 1 - alpha_bar in float32 has an absolute error of 6e-8.
  spread = np.asarray(q_sample(p, zeros, t, ones))[:, 0] ** 2
  np.testing.assert_allclose(spread, variances, rtol=2e-6, atol=2e-7)


def test_walking_step_by_step_is_drawing_at_once():
  betas = np.linspace(0.01, 0.3, 12)
  noise = np.random.default_rng(0)
  n = 100_000
  x_0 = np.full(n, 1.5)
  x = x_0
  for beta in betas:
    x = np.sqrt(1 - beta) * x + np.sqrt(beta) * noise.standard_normal(n)
  eps = noise.standard_normal(n)
  t = np.full(n, len(betas) - 1)
  at_once = q_sample(make_process(betas), jnp.float32(x_0[:, None]), t, jnp.float32(eps[:, None]))
  # Standard errors are 0.003.
  np.testing.assert_allclose(np.mean(at_once), np.mean(x), atol=0.015)
  np.testing.assert_allclose(np.var(at_once), np.var(x), atol=0.02)


@SCHEDULES
@pytest.mark.parametrize('t', [1, 17, 500, 999])
def test_the_posterior_is_the_one_of_bayes_rule(betas, t):
  x_0, x_t = 0.7, -0.4
  alpha, beta = 1 - betas[t], betas[t]
  bar_prev = np.prod(1 - betas[:t])
  # Prior q(x_{t-1} | x_0) = N(sqrt(bar_prev) x_0, 1 - bar_prev); likelihood q(x_t | x_{t-1}).
  precision = 1 / (1 - bar_prev) + alpha / beta
  mean = (np.sqrt(bar_prev) * x_0 / (1 - bar_prev) + np.sqrt(alpha) * x_t / beta) / precision
  p = make_process(betas)
  np.testing.assert_allclose(p.posterior_variance[t], 1 / precision, rtol=1e-6)
  found = posterior_mean(p, jnp.full((1, 1), x_0), jnp.full((1, 1), x_t), jnp.array([t]))
  np.testing.assert_allclose(found, [[mean]], rtol=1e-5)


@SCHEDULES
def test_without_noise_the_posterior_mean_lies_on_the_noiseless_path(betas):
  p = make_process(betas)
  t = np.arange(len(betas))
  x_0 = jnp.linspace(-1, 1, len(betas))[:, None]
  x_t = q_sample(p, x_0, t, jnp.zeros_like(x_0))
  expected = np.sqrt(np.append(1, np.cumprod(1 - betas)[:-1]))[:, None] * x_0
  np.testing.assert_allclose(posterior_mean(p, x_0, x_t, t), expected, atol=1e-6)


def test_the_last_step_back_is_x0_itself():
  p = make_process(LINEAR)
  found = posterior_mean(p, jnp.full((1, 3), 0.3), jnp.full((1, 3), -5.0), jnp.array([0]))
  np.testing.assert_allclose(found, 0.3, rtol=1e-6)


@SCHEDULES
def test_the_prediction_of_eps_inverts_q_sample_row_by_row(betas):
  p = make_process(betas)
  draw = np.random.default_rng(1).standard_normal
  x_0, eps = jnp.float32(draw((5, 4, 4, 2))), jnp.float32(draw((5, 4, 4, 2)))
  t = jnp.array([0, 3, 250, 600, 900])
  x_t = q_sample(p, x_0, t, eps)
  bars = np.cumprod(1 - betas)
  np.testing.assert_allclose(
    x_t[3], np.sqrt(bars[600]) * x_0[3] + np.sqrt(1 - bars[600]) * eps[3], rtol=1e-4, atol=1e-6
  )
  path, times = make_path(betas), jnp.float32(t)
  found = to_prediction('eps', eps, x_t, path.alpha(times), path.sigma(times))
  np.testing.assert_allclose(found.x_0, x_0, atol=5e-5)
  np.testing.assert_allclose(add_noise(path, x_0, times, eps), x_t, atol=2e-6)
