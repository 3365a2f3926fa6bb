"""The samplers on a Gaussian and a mixture, whose predictions are known exactly, with digits of the
papers, and against one another.
"""

import functools
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import grids, predictions, samplers
from gen_jax.diffusion.paths import (
  EDM,
  VE,
  VP,
  Discrete,
  Linear,
  Prediction,
  SubVP,
  denoise_on,
  per_row,
)
from gen_jax.diffusion.process import cosine_betas, linear_betas, make_process

BETAS = linear_betas(1000, 1e-4, 0.02)
BARS = np.cumprod(1 - BETAS)
DDPM = Discrete(BARS)
SHORT = Discrete(np.cumprod(1 - np.linspace(0.05, 0.5, 8)))
PATHS = {
  'ddpm': DDPM,
  'cosine': Discrete(np.cumprod(1 - cosine_betas(1000))),
  'vp': VP(),
  'sub_vp': SubVP(),
  've': VE(),
  'edm': EDM(),
  'linear': Linear(),
}
# Name: method on a grid, and the sampler's name in a config.
METHODS = {
  'ancestral_large': (samplers.ancestral, 'ancestral'),
  'ancestral_small': (functools.partial(samplers.ancestral, variance='small'), 'ancestral'),
  'ddim': (samplers.ddim, 'ddim'),
  'ddim_eta_1': (functools.partial(samplers.ddim, eta=1.0), 'ddim'),
  'dpm': (samplers.dpm_solver_pp, 'dpm_solver_pp'),
  'dpm_order_1': (functools.partial(samplers.dpm_solver_pp, order=1), 'dpm_solver_pp'),
  'dpm_sde': (functools.partial(samplers.dpm_solver_pp, stochastic=True), 'dpm_solver_pp'),
  'heun': (samplers.heun, 'heun'),
  'heun_churn': (functools.partial(samplers.heun, churn=30.0), 'heun'),
  'euler_maruyama': (samplers.euler_maruyama, 'euler_maruyama'),
  'predictor_corrector': (samplers.predictor_corrector, 'predictor_corrector'),
}
DETERMINISTIC = ('ddim', 'dpm', 'dpm_order_1', 'heun')


def method_of(name, path, steps, spacing='auto'):
  make, sampler = METHODS[name]
  return make(grids.make_grid(path, steps, grids.spacing_of(sampler, spacing, path)))


def compiled(method, denoise, keep=0, long=False):
  draw = jax.jit(
    lambda x, rng: samplers.run(method, denoise, x, rng, keep),
    # For long loops over many points good code is worth its compilation.
    compiler_options={'xla_backend_optimization_level': 2} if long else None,
  )
  return lambda x, key=0: jax.tree.map(np.asarray, draw(np.float32(x), jax.random.key(key)))


def run(method, denoise, x, keep=0):
  long = len(x) * len(method.rows['t']) > 100_000
  return compiled(method, denoise, keep, long)(x)


def of_eps(path, eps):
  """A net that predicts the noise."""

  def denoise(x, t):
    return predictions.to_prediction('eps', eps(x, t), x, path.alpha(t), path.sigma(t))

  return denoise


def zero_eps(x, t):
  return jnp.zeros_like(x)


# --- Every path, prediction and sampler on a Gaussian ---------------------------------------------

MEAN = np.array([0.4, -0.6])
COVARIANCE = np.array([[0.5, 0.3], [0.3, 0.4]])
VALUES, VECTORS = np.linalg.eigh(COVARIANCE)


def gaussian(x, alpha, sigma) -> Prediction:
  """E[x_0 | x] and E[eps | x] for data N(MEAN, COVARIANCE); alpha and sigma [b]."""
  alpha, sigma = per_row(alpha, 2), per_row(sigma, 2)
  values, vectors, mean = (jnp.float32(a) for a in (VALUES[None], VECTORS, MEAN[None]))
  white = (x - alpha * mean) @ vectors / (alpha**2 * values + sigma**2)
  return Prediction(mean + alpha * (values * white) @ vectors.T, sigma * white @ vectors.T)


@functools.cache
def program(name):
  """One compiled loop for all paths and predictions: coefficients are inputs, and a table of
  alpha and sigma at the times in them stands for the path.
  """
  step = method_of(name, VP(), 2)  # with the same functions for any path

  def draw(rows, alphas, sigmas, kind, x, key):
    def denoise(x, t):
      i = jnp.argmin(jnp.abs(rows['t'] - t[0]))
      alpha, sigma = jnp.full(len(x), alphas[i]), jnp.full(len(x), sigmas[i])
      x_0, eps, _ = gaussian(x, alpha, sigma)

      def net(kind):
        def predict():
          said = predictions.target(kind, x_0, eps, alpha, sigma)
          return predictions.to_prediction(kind, said, x, alpha, sigma)[:2]

        return predict

      return Prediction(*jax.lax.switch(kind, [net(kind) for kind in predictions.KINDS]))

    return samplers.run(step._replace(rows=rows), denoise, x, key)[0]

  return jax.jit(draw, compiler_options={'xla_backend_optimization_level': 2})


def on_gaussian(name, method, path, kind, x, key):
  """The result of a method whose net makes exact predictions of this kind."""
  t = method.rows['t']
  rows = {k: np.asarray(v, bool if v.dtype == bool else np.float32) for k, v in method.rows.items()}
  alphas, sigmas = np.float32(path.alpha(t)), np.float32(path.sigma(t))
  kind = predictions.KINDS.index(kind)
  return program(name)(rows, alphas, sigmas, kind, np.float32(x), jax.random.key(key))


def moments(name, path, kind, n, steps):
  """Mean and covariance of n samples, from starts whose moments are exact."""
  steps = 60 if name in ('dpm', 'heun') else steps
  spacing = 'auto'
  if isinstance(path, Linear) and kind in ('eps', 'score'):  # not from alpha = 0
    spacing = 'karras'
  elif isinstance(path, Discrete) and name == 'euler_maruyama':
    steps = 500  # the last betas of cosine are large
  method = method_of(name, path, steps, spacing)
  start = np.random.default_rng(0).standard_normal((n, 2))
  start -= start.mean(0)
  start = start @ np.linalg.inv(np.linalg.cholesky(np.cov(start.T))).T
  x = on_gaussian(name, method, path, kind, path.prior_std(method.rows['t'][0]) * start, key=1)
  x = np.asarray(x, np.float64)
  return x.mean(0), np.cov(x.T)


def hits(name, path, kind, n=4000, steps=150, tolerance=0.06):
  if name in DETERMINISTIC:  # no sampling error
    tolerance = 0.035 if name.startswith(('ddim', 'dpm_order_1')) else 0.01
  mean, covariance = moments(name, PATHS[path], kind, n, steps)
  np.testing.assert_allclose(mean, MEAN, atol=tolerance)
  np.testing.assert_allclose(covariance, COVARIANCE, atol=tolerance)


# Each path and sampler once, with the predictions in turn.
QUICK = [
  (path, name, predictions.KINDS[(i + j) % 5])
  for i, path in enumerate(PATHS)
  for j, name in enumerate(METHODS)
]


@pytest.mark.parametrize('name', METHODS)
def test_a_sampler_hits_a_gaussian_on_every_path(name):
  for path, _, kind in (triple for triple in QUICK if triple[1] == name):
    # Standard errors are 0.011; ancestral steps with the small variance are off by 0.04.
    hits(name, path, kind)


@pytest.mark.slow
@pytest.mark.parametrize('kind', predictions.KINDS)
@pytest.mark.parametrize('name', METHODS)
def test_every_triple_hits_a_gaussian(name, kind):
  for path in PATHS:
    hits(name, path, kind, n=10_000, steps=400, tolerance=0.035)


# --- A mixture of three Gaussians in the plane ----------------------------------------------------

MODES = np.array([[-0.8, 0.0], [0.7, 0.5], [0.3, -0.8]])
WEIGHTS = np.array([0.5, 0.3, 0.2])
SPREADS = np.array([[0.15, 0.1], [0.1, 0.2], [0.12, 0.12]])


def mixture(path):
  def denoise(x, t):
    alpha, sigma = path.alpha(t)[:, None, None], path.sigma(t)[:, None, None]
    modes, spreads, weights = (jnp.float32(a)[None] for a in (MODES, SPREADS, WEIGHTS))
    variance = (alpha * spreads) ** 2 + sigma**2
    white = (x[:, None] - alpha * modes) / variance
    log_p = jnp.log(weights) - 0.5 * jnp.sum(
      white * (x[:, None] - alpha * modes) + jnp.log(variance), axis=2
    )
    share = jax.nn.softmax(log_p, axis=1)[..., None]
    x_0 = jnp.sum(share * (modes + alpha * spreads**2 * white), axis=1)
    return Prediction(x_0, jnp.sum(share * sigma * white, axis=1))

  return denoise


@pytest.mark.parametrize(
  'path, name',
  [
    ('ddpm', 'ancestral_small'),
    ('vp', 'euler_maruyama'),
    ('ve', 'predictor_corrector'),
    ('edm', 'heun'),
    ('linear', 'ddim'),
    ('cosine', 'dpm'),
    ('sub_vp', 'dpm_sde'),
  ],
)
def test_the_modes_of_a_mixture(path, name):
  path, n = PATHS[path], 3000
  method = method_of(name, path, 50 if name in ('dpm', 'heun') else 250)
  start = path.prior_std(method.rows['t'][0]) * np.random.default_rng(0).standard_normal((n, 2))
  x, _ = run(method, mixture(path), start)
  nearest = np.argmin(((x[:, None] - MODES) ** 2 / SPREADS**2).sum(2), axis=1)
  for mode in range(3):
    inside = x[nearest == mode]
    # Standard errors: of the shares below 0.01, of means 0.006, of deviations at most 0.03 of them.
    assert len(inside) / n == pytest.approx(WEIGHTS[mode], abs=0.035)
    np.testing.assert_allclose(inside.mean(0), MODES[mode], atol=0.03)
    np.testing.assert_allclose(inside.std(0), SPREADS[mode], rtol=0.12)
    assert abs(np.corrcoef(inside.T)[0, 1]) < 0.15


# --- Exact moments in float64, and orders of convergence ------------------------------------------


def affine(method, path, mean=0.0, variance=0.25, start=None):
  """All moments (mean, variance) of x after each evaluation, for data N(mean, variance) in one
  dimension, in float64: as the prediction is affine in x, so is each step in x, memory and noise.

  From x = `start` or, without one, the noise that samplers start from.
  """

  def denoise(x, t):
    alpha, sigma = path.alpha(t), path.sigma(t)
    shift = (x - alpha * mean) / (alpha**2 * variance + sigma**2)
    return Prediction(mean + alpha * variance * shift, sigma * shift)

  m = np.array([0.0 if start is None else start, 0.0])  # of x and memory
  c = np.diag([path.prior_std(method.rows['t'][0]) ** 2 if start is None else 0.0, 0.0])
  points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float64)
  found = []
  with jax.enable_x64(True):
    for i in range(len(method.rows['t'])):
      row = {name: value[i] for name, value in method.rows.items()}
      x, memory, noise = points.T
      if method.before:
        x = method.before(x, row, noise)
      after = np.stack(method.step(x, memory, row, denoise(x, row['t']), noise)).T
      assert after.dtype == np.float64
      a, b = after[1:] - after[0], after[0]  # a: from (x, memory, noise) to (x, memory)
      m = m @ a[:2] + b
      c = a[:2].T @ c @ a[:2] + np.outer(a[2], a[2])
      found.append((m[0], c[0, 0]))
  return np.array(found)


def flow(path, t, x, variance=0.25):
  """The probability-flow ODE from x at t[0] to t[-1] for data N(0, variance), and the prediction of
  x_0 there.
  """
  alpha, sigma = path.alpha(t[[0, -1]]), path.sigma(t[[0, -1]])
  spread = np.sqrt(alpha**2 * variance + sigma**2)
  x = x * spread[1] / spread[0]
  return x, alpha[1] * variance * x / spread[1] ** 2


def slope(errors):
  """Of log error over log steps, for steps that double."""
  return -np.polyfit(np.arange(len(errors)), np.log2(errors), 1)[0]


@pytest.mark.parametrize(
  'name, path, spacing, order',
  [
    ('ddim', 'vp', 'uniform', 1),
    ('ddim', 'edm', 'karras', 1),
    ('ddim', 'linear', 'uniform', 1),
    ('ddim', 'sub_vp', 'logsnr', 1),
    ('dpm_order_1', 've', 'logsnr', 1),
    ('dpm', 'vp', 'logsnr', 2),
    ('dpm', 'sub_vp', 'logsnr', 2),
    ('dpm', 've', 'uniform', 2),
    ('dpm', 'edm', 'karras', 2),
    ('heun', 'edm', 'karras', 2),
    ('heun', 've', 'logsnr', 2),
    ('heun', 'vp', 'karras', 2),
    ('heun', 'linear', 'karras', 2),
  ],
)
def test_the_error_falls_with_the_order(name, path, spacing, order):
  path = PATHS[path]

  def error(steps):
    method = method_of(name, path, steps, spacing)
    t = method.rows['t']
    first = t[0]
    if not path.alpha(first):  # the first step from alpha = 0 is exact in the limit only
      first = t[0] - 1e-9
    x = path.prior_std(t[0]) * 1.3
    expected = flow(path, np.array([first, t[-1]]), x)[1]
    return abs(affine(method, path, start=x)[-1, 0] - expected)

  errors = [error(steps) for steps in (64, 128, 256, 512)]
  assert slope(errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(
  'name, path, spacing, order',
  [
    ('ancestral_small', 'vp', 'uniform', 1),
    ('ancestral_large', 'vp', 'uniform', 1),
    ('ddim_eta_1', 'edm', 'karras', 1),
    ('dpm_sde', 'vp', 'logsnr', 2),
    ('euler_maruyama', 'vp', 'uniform', 1),
    ('euler_maruyama', 'sub_vp', 'uniform', 1),
    ('heun_churn', 'edm', 'karras', 2),  # the noise keeps marginals exact, so it is Heun's
  ],
)
def test_samplers_with_noise_converge_in_distribution(name, path, spacing, order):
  path = PATHS[path]

  def error(steps):
    found = affine(method_of(name, path, steps, spacing), path)[-2, 1]
    t = method_of(name, path, steps, spacing).rows['t'][-1]
    # All forget their start; before the last evaluation, x has the spread of the path.
    return abs(found / (path.alpha(t) ** 2 * 0.25 + path.sigma(t) ** 2) - 1)

  errors = [error(steps) for steps in (100, 200, 400)]
  assert errors[2] < 0.05
  assert slope(errors) == pytest.approx(order, abs=0.25)


# --- Published digits -----------------------------------------------------------------------------


def test_the_sigma_grid_of_edm():
  grid = grids.make_grid(EDM(), 18, 'karras')
  published = [
    80, 57.586, 40.7856, 28.3746, 19.3525, 12.9101, 8.4009, 5.3152, 3.2568, 1.9233, 1.0882, 0.5853,
    0.2964, 0.1395, 0.0599, 0.0229, 0.0075, 0.002,
  ]  # fmt: skip
  np.testing.assert_allclose(grid.t, published, atol=6e-5)
  np.testing.assert_array_equal(grid.sigma, np.append(grid.t, 0))
  # On another path the same ratios, up to those that it has.
  found = grids.make_grid(VP(), 18, 'karras', sigma_max=60.0)
  np.testing.assert_allclose(VP().ratio(found.t)[[0, -1]], [60, VP().ratio(1e-3)])


@pytest.mark.parametrize('spread, published', [(0.5, 0.527625), (1.0, 1.044729), (0.25, 0.267054)])
def test_heun_of_edm_on_a_gaussian(spread, published):
  method = method_of('heun', EDM(), 18)
  assert len(method.rows['t']) == 35
  found = affine(method, EDM(), variance=spread**2, start=80.0)[-1, 0]
  np.testing.assert_allclose(found, published, atol=6e-7)

  def denoise(x, t):
    x_0 = x * spread**2 / (spread**2 + t[:, None] ** 2)
    return Prediction(x_0, (x - x_0) / t[:, None])

  x, _ = run(method, denoise, [[80.0]])  # in float32
  np.testing.assert_allclose(x, published, rtol=1e-5)


def test_2m_on_a_gaussian_in_steps_of_the_log_ratio():
  # On VP from t = 1 to 1e-3, data N(0, 1/4), x = 1: errors of x before the prediction of x_0.
  errors = []
  for steps in (20, 40, 80, 160):
    method = method_of('dpm', VP(), steps + 1, 'logsnr')
    expected, _ = flow(VP(), method.rows['t'], 1.0)
    errors.append(abs(affine(method, VP(), start=1.0)[-2, 0] - expected))
  np.testing.assert_allclose(errors, [0.00651, 0.00175, 0.000445, 0.000112], rtol=3e-3)


def test_ancestral_steps_of_ddpm_have_its_tables():
  process = make_process(BETAS)
  for variance in ('large', 'small'):
    rows = samplers.ancestral(grids.make_grid(DDPM, None, 'uniform'), variance=variance).rows
    assert rows['t'].tolist() == list(range(999, -1, -1))
    rows = {name: value[::-1] for name, value in rows.items()}
    np.testing.assert_allclose(rows['x_0'], process.posterior_coef_x0, rtol=1e-6)
    np.testing.assert_allclose(rows['x'], process.posterior_coef_xt, rtol=1e-6, atol=1e-12)
    log_variance = getattr(process, f'log_variance_{variance}')
    np.testing.assert_allclose(2 * np.log(rows['std'][1:]), log_variance[1:], rtol=1e-6)
  np.testing.assert_allclose(rows['log_large'][1:], process.log_variance_large[1:], rtol=1e-6)
  np.testing.assert_allclose(rows['log_small'][1:], process.log_variance_small[1:], rtol=1e-6)


def test_a_learned_variance_is_between_the_two():
  two = Discrete(np.cumprod([1 - 0.4, 1 - 0.5]))
  grid = grids.make_grid(two, None, 'uniform')
  large, small = 0.5, 0.5 * (1 - 0.6) / (1 - 0.3)
  for v, expected in ((1.0, large), (-1.0, small), (0.0, np.sqrt(large * small))):

    def denoise(x, t, v=v):
      return Prediction(0 * x, 0 * x, jnp.full_like(x, v))

    method = samplers.ancestral(grid, variance='learned')
    _, kept = run(method, denoise, np.zeros((100_000, 1)), keep=2)
    np.testing.assert_allclose(kept[0].var(), expected, rtol=0.02)
    np.testing.assert_array_equal(kept[1], 0)


def test_the_steps_of_the_papers_of_score_sdes():
  # Between t = 0.5 and 0.4 on VE: Song et al. 2021, Algorithms 2 and 4, and their ancestral step.
  path, x, noise = VE(), 0.7, -0.3
  t = np.array([0.5, 0.4])
  sigma, s = path.sigma(t)
  grid = grids.Grid(path, t, np.array([1.0, 1, 1]), np.array([sigma, s, 0]))
  score = -0.2
  said = Prediction(x + sigma**2 * score, -sigma * score)

  def first(method, kind=0):
    with jax.enable_x64(True):
      row = {name: value[kind] for name, value in method.rows.items()}
      one = Prediction(*(np.full((1, 1), value) for value in said[:2]))
      new, _ = method.step(np.full((1, 1), x), None, row, one, np.full((1, 1), noise))
    return float(new[0, 0])

  change = sigma**2 - s**2
  reverse = x + change * score + np.sqrt(change) * noise
  assert first(samplers.predictor_corrector(grid), 1) == pytest.approx(reverse)
  step = 2 * (0.16 * abs(noise) / abs(score)) ** 2
  langevin = x + step * score + np.sqrt(2 * step) * noise
  assert first(samplers.predictor_corrector(grid), 0) == pytest.approx(langevin)
  std = np.sqrt(s**2 * change / sigma**2)
  ancestral = x + change * score + std * noise
  assert first(samplers.ancestral(grid, variance='small')) == pytest.approx(ancestral)
  g = sigma * np.sqrt(2 * np.log(100 / 0.02))
  euler = x + g**2 * score * 0.1 + g * np.sqrt(0.1) * noise
  assert first(samplers.euler_maruyama(grid)) == pytest.approx(euler)


def test_the_steps_of_the_papers_on_the_variance_preserving_path():
  alphas = 1 - BETAS
  rows = samplers.predictor_corrector(grids.make_grid(DDPM, None, 'uniform')).rows
  rows = {name: value[::-2] for name, value in rows.items()}  # the predictor's, from t = 0
  x, beta = rows['x'][1:], BETAS[1:]
  np.testing.assert_allclose(x, 2 - np.sqrt(alphas[1:]), rtol=1e-10)
  np.testing.assert_allclose(rows['eps'][1:], -beta / np.sqrt(1 - BARS[1:]), rtol=1e-7)
  np.testing.assert_allclose(rows['noise'][1:], np.sqrt(beta), rtol=1e-7)
  # The corrector's alpha is 1 - beta.
  np.testing.assert_allclose(rows['step'][1:], 2 * 0.16**2 * alphas[1:], rtol=1e-10)


# --- Samplers that are one another ----------------------------------------------------------------


def in_predictions(rows, grid):
  """Coefficients of x_0, eps and noise where x stands for alpha x_0 + sigma eps."""
  alpha, sigma = grid.alpha[:-1], grid.sigma[:-1]
  noise = rows.get('noise', rows.get('std', 0) * rows.get('go', 1))
  return np.stack([rows['x'] * alpha + rows['x_0'], rows['x'] * sigma + rows.get('eps', 0), noise])


@pytest.mark.parametrize('path', PATHS)
def test_two_forms_of_one_step(path):
  path = PATHS[path]
  for steps in (1, 7, 100):
    grid = grids.make_grid(path, steps, grids.spacing_of('ddim', 'auto', path))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-8)
    ddim, eta_1 = (in_predictions(samplers.ddim(grid, eta=eta).rows, grid) for eta in (0.0, 1.0))
    first_order = samplers.dpm_solver_pp(grid, order=1)
    assert not first_order.rows['w'].any()
    close(in_predictions(first_order.rows, grid), ddim)
    stochastic = samplers.dpm_solver_pp(grid, order=1, stochastic=True)
    close(in_predictions(stochastic.rows, grid), eta_1)
    close(in_predictions(samplers.ancestral(grid, variance='small').rows, grid), eta_1)
    # The last is the prediction of x_0, without noise.
    for rows in (ddim, eta_1):
      np.testing.assert_array_equal(rows[:, -1], [1, 0, 0])


def test_from_alpha_0_solvers_of_the_sde_do_a_step_of_ddim():
  grid = grids.make_grid(Linear(), 4, 'trailing')
  expected = in_predictions(samplers.ddim(grid).rows, grid)[:, 0]
  np.testing.assert_allclose(expected, [0.25, 0.75, 0])
  euler = in_predictions(samplers.euler_maruyama(grid).rows, grid)
  np.testing.assert_allclose(euler[:, 0], expected)
  assert (euler[2, 1:-1] > 0).all()
  rows = samplers.predictor_corrector(grid).rows
  assert rows['step'][0] == 0 and rows['step'][2] > 0
  predictor = {name: rows[name][1::2] for name in ('x', 'x_0', 'eps', 'noise')}
  np.testing.assert_allclose(in_predictions(predictor, grid)[:, 0], expected)


def test_heun_without_its_corrections_is_ddim():
  grid = grids.make_grid(VP(), 9, 'uniform')
  rows, ddim = samplers.heun(grid).rows, samplers.ddim(grid).rows
  np.testing.assert_allclose(rows['a'][::2], ddim['x_0'])
  np.testing.assert_allclose(rows['s'][::2], ddim['eps'])
  assert not rows['half'][::2].any() and rows['half'][1::2].all()


def test_ddim_with_eta_1_and_all_steps_is_the_ancestral_sampler():
  denoise = of_eps(SHORT, lambda x, t: jnp.tanh(x) * (1 + 0.1 * t[:, None]))
  grid = grids.make_grid(SHORT, 8, 'uniform')
  x = np.random.default_rng(0).standard_normal((5, 3))
  _, ddim = run(samplers.ddim(grid, eta=1.0), denoise, x, keep=8)
  _, ancestral = run(samplers.ancestral(grid, variance='small'), denoise, x, keep=8)
  np.testing.assert_allclose(ddim, ancestral, rtol=1e-4, atol=1e-4)
  _, large = run(samplers.ancestral(grid, variance='large'), denoise, x, keep=8)
  assert np.abs(ancestral - large).max() > 0.1


def test_multistep_weights():
  grid = grids.make_grid(VP(), 6, 'uniform')
  log_ratio = np.log(grid.alpha[:-1] / grid.sigma[:-1])
  h = np.diff(log_ratio)
  w = samplers.dpm_solver_pp(grid).rows['w']
  # The first step and the last have order 1; between, 1 / (2 r) with r the last step over this one.
  np.testing.assert_allclose(w, [0, *(0.5 * h[1:] / h[:-1]), 0], rtol=1e-9)
  assert samplers.dpm_solver_pp(grids.make_grid(Linear(), 6, 'trailing')).rows['w'][1] == 0


# --- Conventions of all samplers ------------------------------------------------------------------


@pytest.mark.parametrize('name', METHODS)
def test_the_result_is_the_last_prediction_of_x_0(name):
  # From alpha = 0, and with large eps that must not enter.
  method = method_of(name, Linear(), 4, 'trailing')

  def denoise(x, t):
    return Prediction(jnp.broadcast_to(t[:, None], x.shape), jnp.full_like(x, 100.0))

  x, _ = run(method, denoise, np.ones((3, 2)))
  last = 0.25 if name != 'heun_churn' else method.rows['t'][-1]  # which is raised
  np.testing.assert_allclose(x, last, rtol=1e-6)


@pytest.mark.parametrize('name', METHODS)
def test_one_step_is_possible_on_every_path(name):
  kinds = ('v', 'x_0', 'v', 'x_0', 'v', 'v', 'velocity')
  for kind, path in zip(kinds, PATHS.values(), strict=True):
    method = method_of(name, path, 1)
    t = method.rows['t']
    assert len(t) == (2 if name == 'predictor_corrector' else 1)
    x = path.prior_std(t[0]) * np.array([[0.3, -0.7], [1.0, 0.2]], np.float32)
    found = on_gaussian(name, method, path, kind, x, key=0)
    if name in ('heun_churn', 'predictor_corrector'):
      assert np.isfinite(found).all()
    else:
      alpha, sigma = (np.full(2, f(t[0]), np.float32) for f in (path.alpha, path.sigma))
      np.testing.assert_allclose(found, gaussian(x, alpha, sigma).x_0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('name', METHODS)
def test_what_samples_depend_on(name):
  method = method_of(name, SHORT, 4, 'uniform')
  draw = compiled(method, of_eps(SHORT, lambda x, t: jnp.tanh(x)))
  x = np.random.default_rng(0).standard_normal((4, 3))
  # On the others of their batch, if the step of a corrector does.
  other = x.copy()
  other[1:] *= 3
  (a, _), (b, _) = draw(x), draw(other)
  assert (a[0] != b[0]).any() == (name == 'predictor_corrector')
  assert (a[1:] != b[1:]).any()
  # On the key, where there is noise.
  (a, _), (b, _), (again, _) = (draw(x, key) for key in (1, 2, 1))
  np.testing.assert_array_equal(a, again)
  if name in DETERMINISTIC:
    assert not method.noisy
    np.testing.assert_array_equal(a, b)
  else:
    assert method.noisy and (a != b).all()


def test_the_noise_of_a_step_is_one_draw_of_its_own():
  # eta = 1 on two steps: x_s - a x_0 is std noise + direction; with eps = 0 and x = 0 noise alone.
  method = method_of('ddim_eta_1', SHORT, 8, 'uniform')
  _, kept = run(method, of_eps(SHORT, zero_eps), np.zeros((20_000, 1)), keep=8)
  scale = method.rows['x_0'] / SHORT.alpha(method.rows['t'])
  before = np.concatenate([np.zeros_like(kept[:1]), kept[:-1]])
  noise = ((kept - scale[:, None, None] * before)[:-1] / method.rows['noise'][:-1, None, None])[
    ..., 0
  ]
  np.testing.assert_allclose(np.cov(noise), np.eye(7), atol=0.04)


# --- DDIM and ancestral sampling against closed forms ---------------------------------------------


def test_the_noise_of_one_long_ddim_step():
  # From t = 500 to 400, as with 10 steps.
  grid = grids.make_grid(DDPM, 10, 'uniform')
  assert grid.t[4:6].tolist() == [500, 400]
  for eta in (1.0, 0.5):
    rows = samplers.ddim(grid, eta=eta).rows
    np.testing.assert_allclose(rows['noise'][4], eta * 0.7231963, rtol=1e-6)
    # The direction to x_t is shortened by as much.
    left = np.sqrt(1 - BARS[400] - (eta * 0.7231963) ** 2)
    np.testing.assert_allclose(rows['eps'][4], left, rtol=1e-6)


def test_the_ancestral_steps_have_the_fixed_variances():
  two = Discrete(np.cumprod([1 - 0.4, 1 - 0.5]))
  grid = grids.make_grid(two, None, 'uniform')
  for variance, expected in (('large', 0.5), ('small', 0.5 * (1 - 0.6) / (1 - 0.3))):
    method = samplers.ancestral(grid, variance=variance)
    _, kept = run(method, of_eps(two, zero_eps), np.zeros((100_000, 1)), keep=2)
    np.testing.assert_allclose(kept[0].var(), expected, rtol=0.02)


def test_ddim_with_eta_0_walks_back_on_the_line_of_a_constant_eps():
  eps = 0.8
  x_0 = np.array([[-0.5], [0.25]])
  bars = SHORT.alpha_bars

  def line(bar):
    return np.sqrt(bar) * x_0 + np.sqrt(1 - bar) * eps

  denoise = of_eps(SHORT, lambda x, t: jnp.full_like(x, eps))
  x, kept = run(method_of('ddim', SHORT, 8), denoise, line(bars[7]), keep=4)
  np.testing.assert_allclose(x, x_0, atol=1e-5)
  # After 2, 4 and 6 of the 8 steps, times 5, 3 and 1 are reached.
  for image, bar in zip(kept, [bars[5], bars[3], bars[1], 1.0], strict=True):
    np.testing.assert_allclose(image, line(bar), atol=1e-5)


def test_a_guided_step_moves_the_mean_by_the_variance_times_the_gradient():
  two = Discrete(np.cumprod([1 - 0.4, 1 - 0.5]))
  grid = grids.make_grid(two, None, 'uniform')
  seen = []

  def guide(x, t):
    seen.append((x.shape, t.shape))
    return 2.0 + 0 * x

  x = np.zeros((3, 1))
  _, plain = run(samplers.ancestral(grid), of_eps(two, zero_eps), x, keep=2)
  _, guided = run(samplers.ancestral(grid, guide=guide), of_eps(two, zero_eps), x, keep=2)
  np.testing.assert_allclose(guided[0] - plain[0], 2 * 0.5, rtol=1e-5)
  assert seen[0] == ((3, 1), (3,))


# --- Churn ----------------------------------------------------------------------------------------


def test_churn_raises_sigma_within_its_range():
  grid = grids.make_grid(EDM(), 18, 'karras')
  method = samplers.heun(grid, churn=3.6, churn_range=(0.05, 50.0), churn_noise=1.003)
  rows = {name: value[::2] for name, value in method.rows.items()}
  inside = (grid.t >= 0.05) & (grid.t <= 50)
  raised = np.where(inside, 1.2, 1.0) * grid.t  # gamma = 3.6 / 18
  np.testing.assert_allclose(rows['t'], raised)
  np.testing.assert_allclose(rows['added'], 1.003 * np.sqrt(raised**2 - grid.t**2), atol=1e-12)
  np.testing.assert_array_equal(rows['scale'], 1)
  # Heun's second evaluation is at the next time of the grid.
  np.testing.assert_array_equal(method.rows['t'][1::2], grid.t[1:])
  np.testing.assert_allclose(method.rows['half'][1::2], (grid.t[1:] - raised[:-1]) / 2)
  # gamma is at most sqrt(2) - 1.
  most = samplers.heun(grid, churn=40.0).rows['t'][::2]
  np.testing.assert_allclose(most, np.sqrt(2) * grid.t)


def test_churn_on_another_path_is_that_of_edm_at_its_scale():
  def net(x, t):  # of EDM
    x_0 = jnp.tanh(x / (1 + t[:, None]))
    return Prediction(x_0, (x - x_0) / t[:, None])

  x = np.random.default_rng(0).standard_normal((5, 2))

  def result(path):
    t = path.time_of(np.geomspace(40, 0.03, 8))
    grid = grids.Grid(path, t, np.append(path.alpha(t), 1.0), np.append(path.sigma(t), 0.0))
    method = samplers.heun(grid, churn=1.6)
    return run(method, denoise_on(path, net, EDM()), grid.sigma[0] * x)[0]

  expected = result(EDM())
  for path in (VP(), DDPM):
    np.testing.assert_allclose(result(path), expected, rtol=5e-3, atol=5e-3)


def test_churn_stays_within_the_times_of_a_process():
  grid = grids.make_grid(SHORT, 8, 'uniform')
  rows = samplers.heun(grid, churn=4.0).rows
  assert (rows['t'] <= 7).all()
  # Nothing can be added at the last time; elsewhere the noise fits the time that the net is told.
  assert rows['added'][0] == 0
  before, t, added = grid.sigma[2:-1], rows['t'][4::2], rows['added'][4::2]
  spread = np.sqrt((rows['scale'][4::2] * before) ** 2 + added**2)
  np.testing.assert_allclose(spread, SHORT.sigma(t), rtol=1e-9)


# --- Times ----------------------------------------------------------------------------------------


def test_the_published_sub_sequences():
  times = grids.discrete_times
  assert times(1000, 10, 'uniform').tolist() == list(range(0, 1000, 100))
  assert times(1000, 1000, 'uniform').tolist() == list(range(1000))
  assert times(1000, 10, 'quadratic').tolist() == [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]
  twenty = times(1000, 20, 'quadratic').tolist()
  assert twenty[:6] == [0, 2, 8, 19, 35, 55] and twenty[-4:] == [567, 640, 718, 800]
  assert times(1000, 50, 'quadratic')[:3].tolist() == [0, 0, 1]
  assert (np.diff(times(1000, 50, 'quadratic')) == 0).sum() == 1
  assert (np.diff(times(1000, 100, 'quadratic')) == 0).sum() == 4
  # The released code of Improved DDPM.
  even = times(1000, 250, 'even').tolist()
  assert even[:4] == [0, 4, 8, 12] and even[-3:] == [991, 995, 999]
  even = times(1000, 50, 'even').tolist()
  assert even[:4] == [0, 20, 41, 61] and even[-3:] == [958, 979, 999]
  even = times(4000, 100, 'even').tolist()
  assert even[:3] == [0, 40, 81] and even[-3:] == [3918, 3959, 3999]
  for steps in range(2, 1001):  # which adds up a stride in float64 and rounds, halves to even
    index, indices = 0.0, []
    for _ in range(steps):
      indices.append(round(index))
      index += 999 / (steps - 1)
    assert times(1000, steps, 'even').tolist() == indices
  # Lin et al. 2023, table 2.
  assert times(1000, 10, 'trailing').tolist() == list(range(99, 1000, 100))
  assert times(1000, 7, 'trailing').tolist() == [142, 285, 428, 570, 713, 856, 999]


def test_trailing_times_are_those_of_diffusers_for_any_number():
  for steps in range(2, 1001):
    theirs = np.round(np.arange(1000, 0, -1000 / steps)).astype(np.int64) - 1
    if len(theirs) > steps:  # where the float step falls short of 0 by rounding, it has one more
      assert theirs[-1] == -1
      theirs = theirs[:-1]
    found = grids.discrete_times(1000, steps, 'trailing')
    assert found[::-1].tolist() == theirs.tolist()
    assert (np.diff(found) > 0).all() and found[0] >= 0


@pytest.mark.parametrize('steps', [3, 7, 300, 501, 999, 1000])
def test_uniform_times_reach_into_the_last_stride_whatever_their_number(steps):
  # A start further down takes pure noise for an image that is half visible.
  times = grids.discrete_times(1000, steps, 'uniform')
  assert len(times) == steps and times[0] == 0
  assert (np.diff(times) > 0).all()
  assert 1000 - 1000 / steps - 1 <= times[-1] < 1000


@pytest.mark.parametrize('spacing', grids.SPACINGS)
def test_a_single_step_takes_what_it_is_given_for_noise(spacing):
  x = np.random.default_rng(0).standard_normal((4, 2))
  method = method_of('ddim', DDPM, 1, spacing)
  # sigma / alpha up to 80 by karras.
  last = DDPM.time_of(80.0) if spacing == 'karras' else 999
  np.testing.assert_allclose(method.rows['t'], [last])
  x_0, _ = run(method, of_eps(DDPM, zero_eps), x)
  np.testing.assert_allclose(x_0, x / DDPM.alpha(float(last)), rtol=1e-5)


@pytest.mark.parametrize('name', ['ancestral_large', 'ddim_eta_1', 'dpm', 'dpm_sde', 'heun'])
def test_a_repeated_time_changes_nothing(name):
  method = method_of(name, DDPM, 50, 'quadratic')
  assert method.rows['t'][-1] == 0
  x = np.random.default_rng(0).standard_normal((4, 2))
  total = len(method.rows['t'])

  def denoise(x, t):
    return gaussian(x, DDPM.alpha(t), DDPM.sigma(t))

  x, kept = run(method, denoise, x, keep=total)
  assert np.abs(x).max() < 5
  # The times end in 1, 0, 0: the image reached at the first 0 stays as it is.
  end = 3 if name == 'heun' else 2
  np.testing.assert_allclose(kept[-2], kept[-end - 1], atol=2e-6)
  assert (np.abs(kept[-1] - kept[-2]) > 1e-5).any()
  assert (np.abs(kept[-2] - kept[-end - 3]) > 1e-5).any()


@pytest.mark.parametrize('path', PATHS)
def test_grids_and_coefficients_are_finite_and_silent(path):
  path = PATHS[path]
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    for spacing in grids.SPACINGS:
      for steps in (1, 2, 5, 18, 1000):
        grid = grids.make_grid(path, steps, spacing)
        repeats = isinstance(path, Discrete) and spacing == 'quadratic' and steps > 18
        steps_down = np.diff(grid.t)
        assert (steps_down <= 0).all() if repeats else (steps_down < 0).all()
        assert len(grid.t) == steps and len(grid.alpha) == len(grid.sigma) == steps + 1
        assert (grid.alpha[-1], grid.sigma[-1]) == (1, 0) and (grid.sigma[:-1] > 0).all()
        assert path.t_last * (1 - 1e-9) <= grid.t[-1] and grid.t[0] <= path.t_max * (1 + 1e-9)
        for name, (make, _) in METHODS.items():
          for what, value in make(grid).rows.items():
            label = f'{name} {spacing} {steps} {what}'
            assert value.shape == ((len(value),)) and np.isfinite(np.float32(value)).all(), label
            if what == 'w':
              assert (np.abs(value) < 10).all(), label


def test_ratios_beyond_those_of_a_path():
  most = DDPM.ratio(999)
  grid = grids.make_grid(DDPM, 5, 'karras', sigma_max=10 * most)
  assert grid.t[0] == pytest.approx(999) and grid.t[-1] == pytest.approx(0, abs=1e-6)
  np.testing.assert_allclose(grid.sigma[0] / grid.alpha[0], most)
  # The straight path has them all: there sigma_max cuts both spacings.
  for spacing in ('karras', 'logsnr'):
    assert grids.make_grid(Linear(), 5, spacing).t[0] == pytest.approx(80 / 81)
    assert grids.make_grid(Linear(), 5, spacing, 9.0).t[0] == pytest.approx(0.9)
  # A discrete process has times between its indices by these.
  t = grids.make_grid(DDPM, 30, 'logsnr').t
  assert (t != np.round(t)).sum() > 20


def test_spacings_of_samplers_and_paths():
  spacing = grids.spacing_of
  assert spacing('heun', 'auto', DDPM) == spacing('ddim', 'auto', EDM()) == 'karras'
  assert spacing('dpm_solver_pp', 'auto', EDM()) == 'logsnr'
  assert spacing('ddim', 'auto', Linear()) == 'trailing'
  for path in (DDPM, VP(), SubVP(), VE()):
    assert spacing('ancestral', 'auto', path) == 'uniform'
  assert spacing('heun', 'quadratic', EDM()) == 'quadratic'


# --- Settings -------------------------------------------------------------------------------------


def settings(**changes):
  defaults = dict(
    sampler='ddim', steps=5, spacing='auto', sigma_max=80.0, variance='large', eta=0.0,
    stochastic=False, order=2, churn=0.0, churn_range=(0.0, 1e30), churn_noise=1.0, snr=0.16,
    corrector_steps=1, clip=None,
  )  # fmt: skip
  return types.SimpleNamespace(**(defaults | changes))


@pytest.mark.parametrize(
  'settings, expected',
  [
    (settings(), samplers.ddim),
    (settings(eta=0.5), functools.partial(samplers.ddim, eta=0.5)),
    (
      settings(sampler='ancestral', variance='small'),
      functools.partial(samplers.ancestral, variance='small'),
    ),
    (
      settings(sampler='dpm_solver_pp', stochastic=True, order=1),
      functools.partial(samplers.dpm_solver_pp, stochastic=True, order=1),
    ),
    (
      settings(sampler='heun', churn=2.0, churn_range=(0.1, 10.0), churn_noise=1.1),
      functools.partial(samplers.heun, churn=2.0, churn_range=(0.1, 10.0), churn_noise=1.1),
    ),
    (settings(sampler='euler_maruyama'), samplers.euler_maruyama),
    (
      settings(sampler='predictor_corrector', snr=0.2, corrector_steps=2),
      functools.partial(samplers.predictor_corrector, snr=0.2, corrector_steps=2),
    ),
  ],
  ids=['ddim', 'eta', 'ancestral', 'dpm_solver_pp', 'heun', 'euler_maruyama', 'corrector'],
)
def test_the_settings_of_a_config_name_a_method(settings, expected):
  spacing = grids.spacing_of(settings.sampler, 'auto', VP())
  expected = expected(grids.make_grid(VP(), 5, spacing))
  found = samplers.make_method(settings, VP())
  assert found.rows.keys() == expected.rows.keys() and found.noisy == expected.noisy
  for name, value in found.rows.items():
    np.testing.assert_array_equal(value, expected.rows[name])


# --- Intermediate images, clipping ----------------------------------------------------------------


@pytest.mark.parametrize('name', ['ancestral_large', 'ddim'])
def test_intermediate_images(name):
  method = method_of(name, DDPM, None)
  start = np.random.default_rng(0).standard_normal((2000, 2))

  def denoise(x, t):
    return gaussian(x, DDPM.alpha(t), DDPM.sigma(t))

  x, kept = run(method, denoise, start, keep=5)
  np.testing.assert_array_equal(kept[-1], x)
  # 200 steps apart: at t = 799, 599, 399, 199 they have the spread of the forward process there.
  for image, t in zip(kept, [799, 599, 399, 199], strict=False):
    np.testing.assert_allclose(image.mean(0), np.sqrt(BARS[t]) * MEAN, atol=0.08)
    spread = BARS[t] * np.diag(COVARIANCE) + 1 - BARS[t]
    np.testing.assert_allclose(image.var(0), spread, rtol=0.15)


def test_a_number_of_images_that_does_not_divide_the_steps():
  x, kept = run(method_of('ddim', SHORT, 8), of_eps(SHORT, zero_eps), np.ones((1, 1)), keep=3)
  bars = np.append(1, SHORT.alpha_bars)
  alone, none = run(method_of('ddim', SHORT, 8), of_eps(SHORT, zero_eps), np.ones((1, 1)))
  assert none.shape == (0, 1, 1)
  np.testing.assert_allclose(alone, x, rtol=1e-6)
  # After 3, 5 and 8 steps; with eps = 0 only the scale changes.
  np.testing.assert_allclose(kept[:, 0, 0], np.sqrt(bars[[5, 3, 0]] / bars[8]), rtol=1e-5)


@pytest.mark.parametrize('name', ['ancestral_large', 'ddim_eta_1'])
def test_clipping_keeps_x0_in_range(name):
  method, denoise = method_of(name, SHORT, 8, 'uniform'), of_eps(SHORT, zero_eps)
  x = 5 * np.random.default_rng(0).standard_normal((500, 2))
  clipped, kept = run(method, samplers.clipped(denoise, SHORT), x, keep=8)
  # The last step returns the predicted x_0 and adds no noise.
  assert np.abs(clipped).max() == 1
  # The step before, whose mean is pulled to a clipped x_0, cannot be far out either.
  assert np.abs(kept[-2]).max() < 3
  free, _ = run(method, denoise, x)
  assert np.abs(free).max() > 5


def test_clipped_ddim_takes_the_noise_that_belongs_to_the_clipped_x0():
  denoise = samplers.clipped(of_eps(SHORT, zero_eps), SHORT)
  _, kept = run(method_of('ddim', SHORT, 8), denoise, np.full((1, 1), 5.0), keep=8)
  signal, noise = np.sqrt(SHORT.alpha_bars), np.sqrt(1 - SHORT.alpha_bars)
  x, expected = 5.0, []
  for i in range(7, -1, -1):
    x_0 = np.clip(x / signal[i], -1, 1)
    eps = (x - signal[i] * x_0) / noise[i]
    x = x_0 if i == 0 else signal[i - 1] * x_0 + noise[i - 1] * eps
    expected.append(x)
  np.testing.assert_allclose(kept[:, 0, 0], expected, rtol=1e-5)


def test_only_ancestral_sampling_clips_unless_it_is_said():
  assert samplers.clips(settings(sampler='ancestral'))
  assert not samplers.clips(settings(sampler='heun'))
  assert samplers.clips(settings(sampler='heun', clip=True))
  assert not samplers.clips(settings(sampler='ancestral', clip=False))
