"""The samplers on a Gaussian, whose noise prediction is known exactly, and against one another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import samplers
from gen_jax.diffusion.process import linear_betas, make_process

BETAS = linear_betas(1000, 1e-4, 0.02)
BARS = np.cumprod(1 - BETAS)
PROCESS = make_process(BETAS)
SHORT = make_process(np.linspace(0.05, 0.5, 8))

MEAN = np.array([0.4, -0.6])
COVARIANCE = np.array([[0.5, 0.3], [0.3, 0.4]])


def gaussian_eps(process):
  """E[eps | x_t] for data N(m, C): -sqrt(1 - bar) the score of N(sqrt(bar) m, bar C + 1 - bar)."""
  values, vectors = (jnp.float32(a) for a in np.linalg.eigh(COVARIANCE))
  bars = jnp.asarray(process.alpha_bars)

  def eps(x, t):
    bar = bars[t][:, None]
    centred = (x - jnp.sqrt(bar) * jnp.float32(MEAN)[None]) @ vectors
    return jnp.sqrt(1 - bar) * (centred / (bar * values[None] + 1 - bar)) @ vectors.T

  return eps


def zero_eps(x, t):
  return jnp.zeros_like(x)


def run(sampler, eps, x, key=0, process=PROCESS, **options):
  draw = jax.jit(
    lambda x, rng: sampler(eps, x, rng, process, **options),
    # Long loops over many points: good code is worth its compilation.
    compiler_options={'xla_backend_optimization_level': 2},
  )
  return jax.tree.map(np.asarray, draw(jnp.asarray(x, jnp.float32), jax.random.key(key)))


SAMPLERS = {
  'ancestral_large': (functools.partial(samplers.ancestral, variance='large', clip=False), 0.03),
  'ancestral_small': (functools.partial(samplers.ancestral, variance='small', clip=False), 0.03),
  # 50 Euler steps of the flow make the variance a tenth too small, in exact arithmetic too.
  'ddim_eta_0_uniform_50': (functools.partial(samplers.ddim, steps=50, eta=0.0), 0.06),
  'ddim_eta_0_uniform_1000': (functools.partial(samplers.ddim, steps=1000, eta=0.0), 0.02),
  'ddim_eta_0_quadratic_100': (
    functools.partial(samplers.ddim, steps=100, eta=0.0, spacing='quadratic'),
    0.04,
  ),
  'ddim_eta_half_uniform_200': (functools.partial(samplers.ddim, steps=200, eta=0.5), 0.03),
  'ddim_eta_half_quadratic_100': (
    functools.partial(samplers.ddim, steps=100, eta=0.5, spacing='quadratic'),
    0.04,
  ),
  'ddim_eta_1_uniform_500': (functools.partial(samplers.ddim, steps=500, eta=1.0), 0.03),
  'ddim_eta_1_quadratic_200': (
    functools.partial(samplers.ddim, steps=200, eta=1.0, spacing='quadratic'),
    0.04,
  ),
}


@pytest.mark.parametrize('name', SAMPLERS)
def test_every_sampler_hits_a_gaussian(name):
  sampler, tolerance = SAMPLERS[name]
  # Starts with mean 0 and covariance I exactly; a noisy sampler leaves standard errors of 0.007.
  start = np.random.default_rng(0).standard_normal((10_000, 2))
  start -= start.mean(0)
  start = start @ np.linalg.inv(np.linalg.cholesky(np.cov(start.T))).T
  x, _ = run(sampler, gaussian_eps(PROCESS), start)
  np.testing.assert_allclose(x.mean(0), MEAN, atol=tolerance)
  np.testing.assert_allclose(np.cov(x.T), COVARIANCE, atol=tolerance)


def test_deterministic_ddim_converges_to_the_gaussian():
  # It is an affine map of the noise here, so three points give its mean and covariance exactly.
  def error(steps):
    x, _ = run(
      functools.partial(samplers.ddim, steps=steps),
      gaussian_eps(PROCESS),
      [[0, 0], [1, 0], [0, 1]],
    )
    matrix = x[1:] - x[0]
    return max(np.abs(x[0] - MEAN).max(), np.abs(matrix.T @ matrix - COVARIANCE).max())

  errors = [error(steps) for steps in (10, 100, 1000)]
  assert errors[0] > 3 * errors[1] > 9 * errors[2]
  assert errors[2] < 0.01


# --- DDIM against the ancestral sampler and closed forms ------------------------------------------


def test_ddim_with_eta_1_and_all_steps_is_the_ancestral_sampler():
  def eps(x, t):
    return jnp.tanh(x) * (1 + 0.1 * t[:, None])

  x = np.random.default_rng(0).standard_normal((5, 3))
  options = dict(process=SHORT, clip=False, keep=8)
  _, ddim = run(functools.partial(samplers.ddim, steps=8, eta=1.0), eps, x, **options)
  _, ancestral = run(functools.partial(samplers.ancestral, variance='small'), eps, x, **options)
  np.testing.assert_allclose(ddim, ancestral, rtol=1e-4, atol=1e-4)
  _, large = run(functools.partial(samplers.ancestral, variance='large'), eps, x, **options)
  assert np.abs(ancestral - large).max() > 0.1


def test_the_noise_of_one_long_ddim_step():
  # From t = 500 to 400, as with 10 steps: a process of these two times does that step and the last.
  bar, bar_prev = BARS[500], BARS[400]
  two = make_process(np.array([1 - bar_prev, 1 - bar / bar_prev]))
  step = functools.partial(samplers.ddim, steps=2, eta=1.0, keep=2)
  n = 200_000
  _, plain = run(step, zero_eps, np.zeros((n, 1)), process=two)
  np.testing.assert_allclose(plain[0].std(), 0.7231963, rtol=6e-3)
  _, half = run(functools.partial(step, eta=0.5), zero_eps, np.zeros((n, 1)), process=two)
  np.testing.assert_allclose(half[0], 0.5 * plain[0], rtol=1e-5)
  # The direction to x_t is shortened by as much: its coefficient gives sigma to all digits.
  _, pushed = run(step, lambda x, t: jnp.ones_like(x), np.zeros((n, 1)), process=two)
  direction = (pushed[0] - plain[0])[0, 0] + np.sqrt(bar_prev * (1 - bar) / bar)
  np.testing.assert_allclose(np.sqrt(1 - bar_prev - direction**2), 0.7231963, rtol=1e-5)


def test_the_ancestral_steps_have_the_fixed_variances():
  for variance, sigma in (('large', 0.5), ('small', 0.5 * (1 - 0.6) / (1 - 0.3))):
    two = make_process(np.array([0.4, 0.5]))
    sampler = functools.partial(samplers.ancestral, variance=variance, clip=False, keep=2)
    _, kept = run(sampler, zero_eps, np.zeros((100_000, 1)), process=two)
    np.testing.assert_allclose(kept[0].var(), sigma, rtol=0.02)


def test_ddim_with_eta_0_walks_back_on_the_line_of_a_constant_eps():
  eps = 0.8
  x_0 = np.array([[-0.5], [0.25]])
  bars = np.asarray(SHORT.alpha_bars, np.float64)

  def line(bar):
    return np.sqrt(bar) * x_0 + np.sqrt(1 - bar) * eps

  sampler = functools.partial(samplers.ddim, steps=8, eta=0.0, keep=4)
  x, kept = run(sampler, lambda x, t: jnp.full_like(x, eps), line(bars[7]), process=SHORT)
  np.testing.assert_allclose(x, x_0, atol=1e-5)
  # After 2, 4 and 6 of the 8 steps, times 5, 3 and 1 are reached.
  for picture, bar in zip(kept, [bars[5], bars[3], bars[1], 1.0], strict=True):
    np.testing.assert_allclose(picture, line(bar), atol=1e-5)


def test_only_a_positive_eta_depends_on_the_key():
  x = np.random.default_rng(0).standard_normal((4, 2))

  def draw(eta, key):
    return run(functools.partial(samplers.ddim, steps=4, eta=eta), zero_eps, x, key, SHORT)[0]

  np.testing.assert_array_equal(draw(0.0, 1), draw(0.0, 2))
  np.testing.assert_array_equal(draw(0.5, 1), draw(0.5, 1))
  assert (draw(0.5, 1) != draw(0.5, 2)).all()


# --- Times ----------------------------------------------------------------------------------------


def test_the_published_sub_sequences():
  times = samplers.ddim_times
  assert times(1000, 10, 'uniform').tolist() == list(range(0, 1000, 100))
  assert times(1000, 1000, 'uniform').tolist() == list(range(1000))
  assert times(1000, 10, 'quadratic').tolist() == [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]
  twenty = times(1000, 20, 'quadratic').tolist()
  assert twenty[:6] == [0, 2, 8, 19, 35, 55] and twenty[-4:] == [567, 640, 718, 800]
  assert times(1000, 50, 'quadratic')[:3].tolist() == [0, 0, 1]
  assert (np.diff(times(1000, 50, 'quadratic')) == 0).sum() == 1
  assert (np.diff(times(1000, 100, 'quadratic')) == 0).sum() == 4


@pytest.mark.parametrize('steps', [3, 7, 300, 501, 999, 1000])
def test_uniform_times_reach_into_the_last_stride_whatever_their_number(steps):
  # A start further down takes pure noise for a picture that is half visible.
  times = samplers.ddim_times(1000, steps, 'uniform')
  assert len(times) == steps and times[0] == 0
  assert (np.diff(times) > 0).all()
  assert 1000 - 1000 / steps - 1 <= times[-1] < 1000


@pytest.mark.parametrize('spacing', ['uniform', 'quadratic'])
def test_a_single_step_takes_what_it_is_given_for_noise(spacing):
  x = np.random.default_rng(0).standard_normal((4, 2))
  x_0, _ = run(functools.partial(samplers.ddim, steps=1, spacing=spacing), lambda x, t: 0 * x, x)
  assert samplers.ddim_times(1000, 1, spacing).tolist() == [999]
  np.testing.assert_allclose(x_0, x / float(PROCESS.signal[-1]), rtol=1e-5)


def test_a_repeated_time_changes_nothing():
  x = np.random.default_rng(0).standard_normal((4, 2))
  sampler = functools.partial(samplers.ddim, steps=50, spacing='quadratic', eta=1.0, keep=50)
  _, kept = run(sampler, gaussian_eps(PROCESS), x)
  # The times end in 1, 0, 0: the picture reached at the first 0 stays as it is.
  np.testing.assert_allclose(kept[-2], kept[-3], atol=1e-6)
  assert (np.abs(kept[-1] - kept[-2]) > 1e-5).any() and (np.abs(kept[-3] - kept[-4]) > 1e-5).any()


# --- Intermediate pictures, clipping --------------------------------------------------------------


@pytest.mark.parametrize('name', ['ancestral', 'ddim'])
def test_intermediate_pictures(name):
  sampler = {
    'ancestral': functools.partial(samplers.ancestral, clip=False),
    'ddim': functools.partial(samplers.ddim, steps=1000),
  }[name]
  start = np.random.default_rng(0).standard_normal((2000, 2))
  eps = gaussian_eps(PROCESS)
  x, kept = run(sampler, eps, start, keep=5)
  np.testing.assert_array_equal(kept[-1], x)
  # 200 steps apart: at t = 799, 599, 399, 199 they have the spread of the forward process there.
  for picture, t in zip(kept, [799, 599, 399, 199], strict=False):
    np.testing.assert_allclose(picture.mean(0), np.sqrt(BARS[t]) * MEAN, atol=0.08)
    spread = BARS[t] * np.diag(COVARIANCE) + 1 - BARS[t]
    np.testing.assert_allclose(picture.var(0), spread, rtol=0.15)
  alone, none = run(sampler, eps, start)
  assert none.shape == (0, 2000, 2)
  # Keeping pictures is another program, so the last bits may differ.
  np.testing.assert_allclose(alone, x, atol=1e-4)


def test_a_number_of_pictures_that_does_not_divide_the_steps():
  x, kept = run(
    functools.partial(samplers.ddim, steps=8, keep=3), zero_eps, np.ones((1, 1)), process=SHORT
  )
  bars = np.append(1, np.asarray(SHORT.alpha_bars))
  # After 3, 5 and 8 steps; with eps = 0 only the scale changes.
  np.testing.assert_allclose(kept[:, 0, 0], np.sqrt(bars[[5, 3, 0]] / bars[8]), rtol=1e-5)


@pytest.mark.parametrize('name', ['ancestral', 'ddim'])
def test_clipping_keeps_x0_in_range(name):
  sampler = {
    'ancestral': samplers.ancestral,
    'ddim': functools.partial(samplers.ddim, steps=8, eta=1.0),
  }[name]
  x = 5 * np.random.default_rng(0).standard_normal((500, 2))
  clipped, kept = run(sampler, zero_eps, x, process=SHORT, clip=True, keep=8)
  # The last step returns the predicted x_0 and adds no noise.
  assert np.abs(clipped).max() == 1
  # The step before, whose mean is pulled to a clipped x_0, cannot be far out either.
  assert np.abs(kept[-2]).max() < 3
  free, _ = run(sampler, zero_eps, x, process=SHORT, clip=False)
  assert np.abs(free).max() > 5


def test_clipped_ddim_takes_the_noise_that_belongs_to_the_clipped_x0():
  found, _ = run(
    functools.partial(samplers.ddim, steps=8),
    zero_eps,
    np.full((1, 1), 5.0),
    process=SHORT,
    clip=True,
  )
  signal, noise = np.sqrt(SHORT.alpha_bars), np.sqrt(1 - np.asarray(SHORT.alpha_bars))
  x = 5.0
  for i in range(7, -1, -1):
    x_0 = np.clip(x / signal[i], -1, 1)
    eps = (x - signal[i] * x_0) / noise[i]
    x = x_0 if i == 0 else signal[i - 1] * x_0 + noise[i - 1] * eps
  np.testing.assert_allclose(found, x, rtol=1e-5)
