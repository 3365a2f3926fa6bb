"""Flow matching: its loss for nets whose error is known, and the times that it draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from denoisers import Constant, Scaled, Told, assert_minimum, drawn_rows, four_points, init
from denoisers import make_config as make

from gen_jax.systems import flow_matching

make_config = functools.partial(make, 'flow_matching')


def loss_of(config, x_0, t, eps, params):
  rows = (jnp.float32(x_0), None, jnp.float32(t), jnp.float32(eps))
  how = dict(model=flow_matching.build(config), config=config)
  return flow_matching.loss_fn(params, rows, jax.random.key(0), **how)[0]


def test_the_loss_is_the_mean_squared_error_of_the_velocity():
  rng = np.random.default_rng(0)
  x_0, eps = rng.standard_normal((2, 6, 2, 2, 3))
  t = np.linspace(0, 1, 6)
  x_t = (1 - t)[:, None, None, None] * x_0 + t[:, None, None, None] * eps
  config = make_config({'data.shape': (2, 2, 3), 'net': {'name': Scaled}})
  found = loss_of(config, x_0, t, eps, {'a': jnp.float32(0.7)})
  np.testing.assert_allclose(found, np.mean((0.7 * x_t - (eps - x_0)) ** 2), rtol=1e-5)


@pytest.mark.parametrize('t', [0.1, 0.5, 0.9])
def test_the_best_linear_net_on_a_gaussian_knows_its_score(t):
  s = 0.7
  total = (1 - t) ** 2 * s**2 + t**2  # the variance of x_t
  best = (t - (1 - t) * s**2) / total  # E[eps - x_0 | x_t] = best x_t
  config = make_config({'data.shape': (1,), 'net': {'name': Scaled}})
  x_0, eps = four_points(s)
  assert_minimum(lambda params: loss_of(config, x_0, np.full(4, t), eps, params), best)
  x = np.float32([[-2.0], [0.5]])
  found = flow_matching.denoiser({'a': jnp.float32(best)}, None, config=config)(
    x, jnp.full(2, t, jnp.float32)
  )
  np.testing.assert_allclose(-found.eps / t, -x / total, rtol=1e-4)
  np.testing.assert_allclose(found.x_0, (1 - t) * s**2 / total * x, rtol=1e-4)


def test_what_the_net_is_told():
  for scale in (1.0, 1000.0):
    config = make_config({'net': {'name': Told}, 'flow.time_scale': scale})
    t = jnp.float32([0.0, 0.25, 1.0])
    model = flow_matching.build(config)
    u = flow_matching.velocity(model, {'a': 0.0}, jnp.zeros((3, 2)), t, None, config, train=False)
    np.testing.assert_allclose(u, np.tile(np.c_[[0.0, 0.25, 1.0]], 2) * scale, rtol=1e-6)


def test_uniform_times(monkeypatch):
  batch = {'image': jnp.ones((40_000, 2))}
  x_0, label, t, eps = drawn_rows(monkeypatch, make_config(), batch)
  # The standard error of a tenth is 0.0015.
  np.testing.assert_allclose(np.histogram(t, 10, (0, 1))[0] / len(t), 0.1, atol=0.01)
  assert t.min() >= 0 and t.max() < 1
  np.testing.assert_array_equal(x_0, batch['image'])
  np.testing.assert_allclose([eps.mean(), eps.std()], [0, 1], atol=0.02)
  assert label is None and abs(np.corrcoef(t, eps[:, 0])[0, 1]) < 0.02


def test_logit_normal_times(monkeypatch):
  flow = dict(times='logit_normal', mean=-0.6, std=1.6)
  batch = {'image': jnp.ones((40_000, 2))}
  _, _, t, _ = drawn_rows(monkeypatch, make_config({'flow': flow}), batch)
  z = (np.log(t / (1 - t)) + 0.6) / 1.6
  np.testing.assert_allclose([z.mean(), z.std(), (z**3).mean()], [0, 1, 0], atol=0.05)


def test_a_step_trains_and_averages():
  config = make_config({'ema_decay': 0.9, 'net': {'name': Constant, 'start': 0.5}})
  batch = {'image': jnp.zeros((4000, 2))}
  step = jax.jit(flow_matching.train_step, static_argnames='config')
  state, metrics = step(init(config, batch), batch, jax.random.key(0), config=config)
  np.testing.assert_allclose(metrics['net/loss'], 1.25, atol=0.08)  # E (0.5 - eps)^2
  np.testing.assert_allclose(state.net.params['a'], 0.45, rtol=1e-4)
  np.testing.assert_allclose(state.net.ema['a'], 0.9 * 0.5 + 0.1 * 0.45, rtol=1e-5)
