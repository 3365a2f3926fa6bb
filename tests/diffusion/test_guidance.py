"""Guidance: exact scores and classifiers on any path, and the gradient of a net."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import MEANS, SPREADS, exact, log_joint

from gen_jax.diffusion import grids, guidance, samplers
from gen_jax.diffusion.paths import EDM, VP, Linear, Prediction, denoise_on
from gen_jax.diffusion.predictions import to_prediction
from gen_jax.diffusion.process import linear_betas, make_path
from gen_jax.nets import unet

DDPM = make_path(linear_betas(1000, 1e-4, 0.02))


def run(method, denoise, start, key=0):
  draw = jax.jit(
    lambda x, rng: samplers.run(method, denoise, x, rng)[0],
    # Long loops over many points: good code is worth its compilation.
    compiler_options={'xla_backend_optimization_level': 2},
  )
  return np.asarray(draw(jnp.asarray(start, jnp.float32), jax.random.key(key)))


def noise(path, grid, n):
  std = path.prior_std(grid.t[0])
  return std * np.random.default_rng(0).standard_normal((n, 1))


def classified(path, label, scale=1.0, trained_on=DDPM):
  """The guide by the exact classifier of another path."""
  return guidance.make_guide(log_joint(trained_on), label, scale, path, trained_on)


# --- By a classifier ------------------------------------------------------------------------------

FORMS = {
  'ancestral_large': (None, functools.partial(samplers.ancestral, variance='large')),
  'ancestral_small': (None, functools.partial(samplers.ancestral, variance='small')),
  'ddim_eta_0': (250, functools.partial(samplers.ddim, eta=0.0)),
  'ddim_eta_1': (500, functools.partial(samplers.ddim, eta=1.0)),
}


@pytest.mark.parametrize('label', [0, 1])
@pytest.mark.parametrize('form', FORMS)
def test_an_exact_classifier_turns_a_mixture_into_the_component_asked_for(form, label):
  steps, make = FORMS[form]
  grid = grids.make_grid(DDPM, steps, 'uniform')
  guide, denoise = classified(DDPM, jnp.full(4000, label)), exact(DDPM)
  if 'ancestral' in form:
    method = make(grid, guide=guide)
  else:
    method, denoise = make(grid), guidance.by_classifier(denoise, guide, DDPM)
  x = run(method, denoise, noise(DDPM, grid, 4000))
  assert x.mean() == pytest.approx(MEANS[label], abs=0.02)
  assert x.std() == pytest.approx(SPREADS[label], rel=0.1)


@pytest.mark.parametrize('path', [EDM(), Linear(), VP()], ids=['edm', 'linear', 'vp'])
def test_a_classifier_of_ddpm_guides_a_model_on_another_path(path):
  label = jnp.arange(4000) % 2
  grid = grids.make_grid(path, 60, 'karras')
  guided = guidance.by_classifier(exact(path), classified(path, label), path)
  x = run(samplers.heun(grid), guided, noise(path, grid, 4000))[:, 0]
  for y in (0, 1):
    assert x[label == y].mean() == pytest.approx(MEANS[y], abs=0.02)
    assert x[label == y].std() == pytest.approx(SPREADS[y], rel=0.1)


def test_on_the_straight_path_the_first_time_is_pure_noise_which_has_no_class():
  path, t = Linear(), jnp.ones(3)
  label = jnp.array([0, 1, 1])
  np.testing.assert_array_equal(classified(path, label)(jnp.ones((3, 1)), t), 0)
  guided = guidance.by_classifier(exact(path), classified(path, label), path)
  found, plain = guided(jnp.ones((3, 1)), t), exact(path)(jnp.ones((3, 1)), t)
  np.testing.assert_array_equal(found.x_0, plain.x_0)
  np.testing.assert_array_equal(found.eps, plain.eps)


def test_the_guide_of_another_path_is_the_gradient_there():
  """grad log p(y | x_t) of the mixture on the path itself, which is known."""
  path, label = EDM(), jnp.array([0, 1, 1, 0])
  x, t = jnp.float32([[0.1], [-2.0], [0.3], [4.0]]), jnp.float32([0.05, 3.0, 0.2, 20.0])

  def log_p(x):
    return jnp.take_along_axis(jax.nn.log_softmax(log_joint(path)(x, t)), label[:, None], 1).sum()

  found = classified(path, label, scale=2.5)(x, t)
  np.testing.assert_allclose(found, 2.5 * jax.grad(log_p)(x), rtol=2e-3, atol=1e-6)


# --- One Gaussian and a log-quadratic classifier: both forms at any scale -------------------------

SHORT_BETAS = np.linspace(0.02, 0.5, 8)
SHORT = make_path(SHORT_BETAS)
MEAN, SPREAD = 0.4, 0.6
AT, WIDTH = 1.5, 0.5  # log p(y | x_t) = -(x_t - AT)^2 / (2 WIDTH^2) at all t


def gaussian(x, t):
  alpha, sigma = SHORT.alpha(t), SHORT.sigma(t)
  a, s = alpha[:, None], sigma[:, None]
  return to_prediction('eps', s * (x - a * MEAN) / (a**2 * SPREAD**2 + s**2), x, alpha, sigma)


def pull(scale):
  return lambda x, t: -scale * (x - AT) / WIDTH**2


def expected_moments(form, scale):
  """Mean and standard deviation of the samples in float64: each step is affine in x, x -> a x + b
  and noise, and the samples start as N(0, 1).
  """
  bars = np.cumprod(1 - SHORT_BETAS)
  mean, variance = 0.0, 1.0
  for t in reversed(range(8)):
    beta, bar, prev = SHORT_BETAS[t], bars[t], bars[t - 1] if t else 1.0
    # eps_hat = e1 x + e0 and g = g1 x + g0.
    e1 = np.sqrt(1 - bar) / (bar * SPREAD**2 + 1 - bar)
    e0 = -e1 * np.sqrt(bar) * MEAN
    g1, g0 = -1 / WIDTH**2, AT / WIDTH**2
    tilde = beta * (1 - prev) / (1 - bar)
    if form == 'ancestral':  # Ho et al., Algorithm 2, plus s Sigma g
      a = (1 - beta / np.sqrt(1 - bar) * e1) / np.sqrt(1 - beta) + scale * beta * g1
      b = -beta / np.sqrt(1 - bar) * e0 / np.sqrt(1 - beta) + scale * beta * g0
      noise = beta if t else 0.0
    else:  # Song et al., Eq. 12, with eta = 1
      e1, e0 = e1 - scale * np.sqrt(1 - bar) * g1, e0 - scale * np.sqrt(1 - bar) * g0
      direction = np.sqrt(1 - prev - tilde)
      a = np.sqrt(prev / bar) * (1 - np.sqrt(1 - bar) * e1) + direction * e1
      b = np.sqrt(prev / bar) * -np.sqrt(1 - bar) * e0 + direction * e0
      noise = tilde
    mean, variance = a * mean + b, a**2 * variance + noise
  return mean, np.sqrt(variance)


@pytest.mark.parametrize('scale', [0.5, 1.0, 2.0])
@pytest.mark.parametrize('form', ['ancestral', 'ddim'])
def test_both_forms_on_a_gaussian_at_any_scale(form, scale):
  grid = grids.make_grid(SHORT, None, 'uniform')
  start = np.random.default_rng(1).standard_normal((100_000, 1))
  if form == 'ancestral':
    x = run(samplers.ancestral(grid, guide=pull(scale)), gaussian, start)
  else:
    guided = guidance.by_classifier(gaussian, pull(scale), SHORT)
    x = run(samplers.ddim(grid, eta=1.0), guided, start)
  mean, spread = expected_moments(form, scale)
  assert x.mean() == pytest.approx(mean, abs=4 * spread / np.sqrt(1e5) + 1e-4)
  assert x.std() == pytest.approx(spread, rel=0.015)


def test_guidance_acts_on_what_is_clipped_and_is_not_clipped_itself():
  # The net's x_0 is far outside of [-1, 1]; the last step of DDIM returns x_0.
  def denoise(x, t):
    eps = jnp.full_like(x, -100.0)
    return to_prediction('eps', eps, x, SHORT.alpha(t), SHORT.sigma(t))

  gradient = 3.0
  clipped = samplers.clipped(denoise, SHORT)
  guided = guidance.by_classifier(clipped, lambda x, t: jnp.full_like(x, gradient), SHORT)
  x = run(samplers.ddim(grids.make_grid(SHORT, 1, 'uniform')), guided, [[0.0]])
  bar = np.cumprod(1 - SHORT_BETAS)[-1]
  assert x[0, 0] == pytest.approx(1 + (1 - bar) / np.sqrt(bar) * gradient, rel=1e-5)


# --- By another prediction ------------------------------------------------------------------------


def test_extrapolation_is_what_both_papers_say():
  """Ho and Salimans: (1 + w) eps(x, y) - w eps(x); Karras et al.: D_weak + w (D - D_weak)."""
  good = lambda x, t: Prediction(x + 1, 2 * x, variance=x - 7)
  base = lambda x, t: Prediction(x - 1, 3 * x, variance=x + 7)
  x, t = jnp.float32([[0.5], [-2.0]]), jnp.zeros(2)
  found = guidance.extrapolated(good, base, 1 + 0.25)(x, t)
  np.testing.assert_allclose(found.eps, 1.25 * 2 * x - 0.25 * 3 * x, rtol=1e-6)
  np.testing.assert_allclose(found.x_0, (x - 1) + 1.25 * 2, rtol=1e-6)
  np.testing.assert_array_equal(found.variance, x - 7)
  np.testing.assert_allclose(guidance.extrapolated(good, base, 0.0)(x, t).eps, 3 * x)
  assert guidance.extrapolated(good, base, 1.0) is good


def test_the_interval_is_open_below_and_closed_above():
  path = EDM()
  t = np.array([0.5, 1.0, 1.1, 2.0, 2.1])
  assert guidance.is_inside(path, t, (1.0, 2.0)).tolist() == [False, False, True, True, False]
  # By sigma / alpha on any path; pure noise, where alpha is 0, is outside of all.
  t = np.array([0.4, 0.5, 2 / 3, 0.7, 1.0])
  inside = guidance.is_inside(Linear(), t, (0.9, 2.0 + 1e-9)).tolist()
  assert inside == [False, True, True, False, False]


def test_outside_of_the_interval_only_the_plain_net_is_evaluated():
  path, calls = EDM(), []

  def plain(x, t):
    return Prediction(x, 0 * x)

  def guided(x, t):
    jax.debug.callback(lambda: calls.append(1))
    return Prediction(2 * x, 0 * x)

  found = jax.jit(guidance.within(guided, plain, path, (1.0, 2.0)))
  x = jnp.ones((2, 1))
  values = [float(found(x, jnp.full(2, t)).x_0[0, 0]) for t in (0.5, 1.5, 3.0)]
  jax.effects_barrier()
  assert values == [1, 2, 1] and len(calls) == 1
  assert guidance.within(guided, plain, path, None) is guided
  assert guidance.within(plain, plain, path, (1.0, 2.0)) is plain


@pytest.mark.parametrize(
  ('path', 'trained_on'),
  [(EDM(), DDPM), (Linear(), EDM()), (Linear(), DDPM), (DDPM, Linear())],
  ids=['edm-ddpm', 'linear-edm', 'linear-ddpm', 'ddpm-linear'],
)
def test_autoguidance_by_a_net_on_any_path(path, trained_on):
  """A weak net knows wider components. The ODE of two Gaussians with spreads s and S has the closed
  form x ~ (s^2 + sigma^2)^{w/2} (S^2 + sigma^2)^{(1-w)/2}, so that s^w S^{1-w} is left of S.
  """
  label = jnp.arange(1000) % 2
  grid = grids.make_grid(path, 40, 'karras')
  wide, w = 1.3 * SPREADS, 1.5

  def draw(weak):
    guided = guidance.extrapolated(exact(path, label), weak, w)
    return run(samplers.heun(grid), guided, noise(path, grid, 1000))[:, 0]

  x = draw(denoise_on(path, exact(trained_on, label, wide), trained_on))
  np.testing.assert_allclose(x, draw(exact(path, label, wide)), atol=0.01)
  for y in (0, 1):
    start = noise(path, grid, 1000)[label == y] / path.prior_std(grid.t[0])
    assert x[label == y].mean() == pytest.approx(MEANS[y], abs=0.02)
    expected = SPREADS[y] * 1.3 ** (1 - w)
    assert x[label == y].std() == pytest.approx(expected * start.std(), rel=0.05)


# --- The gradient of a net ------------------------------------------------------------------------


def test_the_guide_is_the_gradient_of_the_log_probability_of_the_label():
  net = unet.Classifier(
    num_classes=3, features=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4,
    head_channels=8,
  )  # fmt: skip
  x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
  t, label = jnp.array([3.0, 500.0, 900.0]), jnp.array([0, 2, 1])
  variables = net.init(jax.random.key(1), x, t, train=False)
  logits = jax.jit(lambda x: net.apply(variables, x, t, train=False))
  guide = guidance.make_guide(lambda x, t: logits(x), label, 2.5, DDPM, DDPM)
  gradient = np.asarray(guide(x, t))
  direction = np.asarray(jax.random.normal(jax.random.key(2), x.shape))
  step = 1e-2

  def log_p(x):
    values = np.asarray(logits(jnp.float32(x)), np.float64)
    return (values - np.log(np.exp(values).sum(1, keepdims=True)))[np.arange(3), label]

  slope = (log_p(x + step * direction) - log_p(x - step * direction)) / (2 * step)
  found = (gradient * direction).sum((1, 2, 3))
  assert np.abs(slope).min() > 1e-3  # the test would see nothing in a flat net
  np.testing.assert_allclose(found, 2.5 * slope, rtol=2e-2, atol=1e-4)
