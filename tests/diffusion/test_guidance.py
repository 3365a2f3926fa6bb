"""Classifier guidance: exact scores and classifiers, and the gradient of a net."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import guidance, samplers
from gen_jax.diffusion.process import linear_betas, make_process
from gen_jax.nets import unet

BETAS = linear_betas(1000, 1e-4, 0.02)
BARS = np.cumprod(1 - BETAS)
PROCESS = make_process(BETAS)

# p(x) is a mixture of two Gaussians, and y the one that x comes from.
MEANS, SPREADS = np.array([-1.0, 0.8]), np.array([0.3, 0.2])
PRIORS = np.array([0.7, 0.3])


def log_joint(x, t):
  """log p(x_t, y) of the mixture, up to a constant: x [b, 1] -> [b, 2]."""
  bar = jnp.asarray(PROCESS.alpha_bars)[t][:, None]
  means, priors, squares = (jnp.float32(a)[None] for a in (MEANS, PRIORS, SPREADS**2))
  variance = bar * squares + 1 - bar
  return jnp.log(priors / jnp.sqrt(variance)) - (x - jnp.sqrt(bar) * means) ** 2 / (2 * variance)


def mixture_eps(x, t):
  """E[eps | x_t] = -sqrt(1 - alpha_bar_t) grad log p(x_t)."""
  score = jax.grad(lambda x: jax.nn.logsumexp(log_joint(x, t), axis=1).sum())(x)
  return -jnp.asarray(PROCESS.noise)[t][:, None] * score


def run(sampler, eps, x, key=0, process=PROCESS, **options):
  draw = jax.jit(
    lambda x, rng: sampler(eps, x, rng, process, **options)[0],
    # Long loops over many points: good code is worth its compilation.
    compiler_options={'xla_backend_optimization_level': 2},
  )
  return np.asarray(draw(jnp.asarray(x, jnp.float32), jax.random.key(key)))


FORMS = {
  'ancestral_large': functools.partial(samplers.ancestral, variance='large', clip=False),
  'ancestral_small': functools.partial(samplers.ancestral, variance='small', clip=False),
  'ddim_eta_0': functools.partial(samplers.ddim, steps=500, eta=0.0),
  'ddim_eta_1': functools.partial(samplers.ddim, steps=500, eta=1.0),
}


@pytest.mark.parametrize('label', [0, 1])
@pytest.mark.parametrize('form', FORMS)
def test_an_exact_classifier_turns_a_mixture_into_the_component_asked_for(form, label):
  start = np.random.default_rng(0).standard_normal((4000, 1))
  guide = guidance.make_guide(log_joint, jnp.full(len(start), label), 1.0)
  x = run(FORMS[form], mixture_eps, start, guide=guide)
  assert x.mean() == pytest.approx(MEANS[label], abs=0.03)
  assert x.std() == pytest.approx(SPREADS[label], rel=0.1)


def test_each_row_has_a_label_of_its_own():
  start = np.random.default_rng(0).standard_normal((2000, 1))
  label = jnp.arange(2000) % 2
  guide = guidance.make_guide(log_joint, label, 1.0)
  x = run(functools.partial(samplers.ddim, steps=50, eta=1.0), mixture_eps, start, guide=guide)
  assert np.mean((x[:, 0] > 0) == label) > 0.99


# --- One Gaussian and a log-quadratic classifier: both forms at any scale -------------------------

SHORT_BETAS = np.linspace(0.02, 0.5, 8)
SHORT = make_process(SHORT_BETAS)
MEAN, SPREAD = 0.4, 0.6
AT, WIDTH = 1.5, 0.5  # log p(y | x_t) = -(x_t - AT)^2 / (2 WIDTH^2) at all t


def gaussian_eps(x, t):
  bar = jnp.asarray(SHORT.alpha_bars)[t][:, None]
  return jnp.sqrt(1 - bar) * (x - jnp.sqrt(bar) * MEAN) / (bar * SPREAD**2 + 1 - bar)


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
      sigma2 = beta if t else SHORT_BETAS[1] * (1 - bars[0]) / (1 - bars[1])
      a = (1 - beta / np.sqrt(1 - bar) * e1) / np.sqrt(1 - beta) + scale * sigma2 * g1
      b = -beta / np.sqrt(1 - bar) * e0 / np.sqrt(1 - beta) + scale * sigma2 * g0
      noise = sigma2 if t else 0.0
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
  sampler = {
    'ancestral': functools.partial(samplers.ancestral, clip=False),
    'ddim': functools.partial(samplers.ddim, steps=8, eta=1.0),
  }[form]
  start = np.random.default_rng(1).standard_normal((100_000, 1))
  x = run(sampler, gaussian_eps, start, process=SHORT, guide=pull(scale))
  mean, spread = expected_moments(form, scale)
  assert x.mean() == pytest.approx(mean, abs=4 * spread / np.sqrt(1e5) + 1e-4)
  assert x.std() == pytest.approx(spread, rel=0.015)


def test_guidance_acts_on_what_is_clipped_and_is_not_clipped_itself():
  # The net's x_0 is far outside of [-1, 1]; the last step of DDIM returns x_0.
  def eps(x, t):
    return jnp.full_like(x, -100.0)

  gradient = 3.0
  one = dict(steps=1, clip=True, guide=lambda x, t: jnp.full_like(x, gradient))
  x = run(functools.partial(samplers.ddim, **one), eps, [[0.0]], process=SHORT)
  bar = np.cumprod(1 - SHORT_BETAS)[-1]
  assert x[0, 0] == pytest.approx(1 + (1 - bar) / np.sqrt(bar) * gradient, rel=1e-5)


# --- The gradient of a net ------------------------------------------------------------------------


def test_the_guide_is_the_gradient_of_the_log_probability_of_the_label():
  net = unet.Classifier(
    num_classes=3, features=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4,
    head_channels=8,
  )  # fmt: skip
  x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
  t, label = jnp.array([3, 500, 900]), jnp.array([0, 2, 1])
  variables = net.init(jax.random.key(1), x, t, train=False)
  logits = jax.jit(lambda x: net.apply(variables, x, t, train=False))
  gradient = np.asarray(guidance.make_guide(lambda x, t: logits(x), label, 2.5)(x, t))
  direction = np.asarray(jax.random.normal(jax.random.key(2), x.shape))
  step = 1e-2

  def log_p(x):
    values = np.asarray(logits(jnp.float32(x)), np.float64)
    return (values - np.log(np.exp(values).sum(1, keepdims=True)))[np.arange(3), label]

  slope = (log_p(x + step * direction) - log_p(x - step * direction)) / (2 * step)
  found = (gradient * direction).sum((1, 2, 3))
  assert np.abs(slope).min() > 1e-3  # the test would see nothing in a flat net
  np.testing.assert_allclose(found, 2.5 * slope, rtol=2e-2, atol=1e-4)
