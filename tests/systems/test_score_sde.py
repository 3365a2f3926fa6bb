"""Score SDEs: the losses for nets whose error is known, and what the net is told of the time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from denoisers import Constant, Scaled, Told, assert_minimum, drawn_rows, four_points, init
from denoisers import make_config as make

from gen_jax.systems import score_sde

make_config = functools.partial(make, 'score_sde')
NAMES = ('vp', 'sub_vp', 've')
SDES = pytest.mark.parametrize('name', NAMES)


def marginal(name, t):
  """alpha and sigma of Song et al. 2021, Eq. 29, and g^2, for the default settings."""
  integral = 0.1 * t + 0.5 * 19.9 * t**2  # of beta
  beta = 0.1 + 19.9 * t
  alpha = np.exp(-0.5 * integral)
  if name == 'vp':
    return alpha, np.sqrt(1 - np.exp(-integral)), beta
  if name == 'sub_vp':
    return alpha, 1 - np.exp(-integral), beta * (1 - np.exp(-2 * integral))
  sigma = 0.02 * 5000.0**t
  return np.ones_like(t), sigma, 2 * np.log(5000.0) * sigma**2


def loss_of(config, x_0, t, eps, params):
  rows = (jnp.float32(x_0), None, jnp.float32(t), jnp.float32(eps))
  how = dict(model=score_sde.build(config), config=config)
  return score_sde.loss_fn(params, rows, jax.random.key(0), **how)[0]


@SDES
@pytest.mark.parametrize('weighting', ['sigma', 'likelihood'])
def test_the_loss_is_the_weighted_error_of_the_score(name, weighting):
  rng = np.random.default_rng(0)
  x_0, eps = rng.standard_normal((2, 6, 2, 2, 3))
  t = np.linspace(0.05, 1, 6)
  alpha, sigma, g_squared = (a[:, None, None, None] for a in marginal(name, t))
  config = make_config(
    {
      'data.shape': (2, 2, 3),
      'net': {'name': Scaled},
      'sde': dict(name=name, weighting=weighting),
    }
  )
  score = -0.7 * (alpha * x_0 + sigma * eps) / sigma
  weight = sigma**2 if weighting == 'sigma' else g_squared
  expected = np.mean(weight * (score + eps / sigma) ** 2)  # grad log p(x_t | x_0) = -eps / sigma
  found = loss_of(config, x_0, t, eps, {'a': jnp.float32(0.7)})
  np.testing.assert_allclose(found, expected, rtol=1e-4)


@SDES
@pytest.mark.parametrize('weighting', ['sigma', 'likelihood'])
def test_the_best_linear_net_on_a_gaussian_knows_its_score(name, weighting):
  s, t = 0.7, 0.4
  alpha, sigma, _ = marginal(name, t)
  total = alpha**2 * s**2 + sigma**2
  config = make_config(
    {'data.shape': (1,), 'net': {'name': Scaled}, 'sde': dict(name=name, weighting=weighting)}
  )
  x_0, eps = four_points(s)
  assert_minimum(lambda params: loss_of(config, x_0, np.full(4, t), eps, params), sigma / total)
  x = np.float32([[-2.0], [0.5]])
  found = score_sde.denoiser({'a': jnp.float32(sigma / total)}, None, config=config)(
    x, jnp.full(2, t, jnp.float32)
  )
  np.testing.assert_allclose(-found.eps / sigma, -x / total, rtol=1e-4)
  np.testing.assert_allclose(found.x_0, alpha * s**2 / total * x, rtol=1e-3)


@SDES
def test_what_the_net_is_told(name):
  config = make_config({'net': {'name': Told}, 'sde.name': name})
  t = jnp.float32([1e-5, 0.5, 1.0])
  model = score_sde.build(config)
  found = score_sde.predict(model, {'a': 0.0}, jnp.zeros((3, 2)), t, None, config, train=False)
  # On a VE path log sigma for data in [0, 1], where it goes from 0.01 to 50.
  expected = {'ve': np.log(0.01 * 5000.0 ** np.array([1e-5, 0.5, 1.0]))}
  expected = expected.get(name, np.array([0.00999, 499.5, 999.0]))
  np.testing.assert_allclose(found, np.tile(expected[:, None], 2), rtol=1e-5, atol=1e-6)


def test_times_are_uniform_from_the_least_one(monkeypatch):
  batch = {'image': jnp.ones((40_000, 2))}
  x_0, label, t, eps = drawn_rows(monkeypatch, make_config(), batch)
  np.testing.assert_allclose(np.histogram(t, 10, (0, 1))[0] / len(t), 0.1, atol=0.01)
  assert t.min() >= 1e-5 and t.max() <= 1
  np.testing.assert_array_equal(x_0, batch['image'])
  np.testing.assert_allclose([eps.mean(), eps.std()], [0, 1], atol=0.02)
  assert label is None and abs(np.corrcoef(t, eps[:, 0])[0, 1]) < 0.02


def test_a_step_trains_and_averages():
  config = make_config({'ema_decay': 0.9, 'net': {'name': Constant, 'start': 0.5}})
  batch = {'image': jnp.zeros((4000, 2))}
  step = jax.jit(score_sde.train_step, static_argnames='config')
  state, metrics = step(init(config, batch), batch, jax.random.key(0), config=config)
  np.testing.assert_allclose(metrics['net/loss'], 1.25, atol=0.08)  # E (0.5 - eps)^2
  np.testing.assert_allclose(state.net.params['a'], 0.45, rtol=1e-4)
  np.testing.assert_allclose(state.net.ema['a'], 0.9 * 0.5 + 0.1 * 0.45, rtol=1e-5)
