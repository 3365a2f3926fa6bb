"""MeanFlow: the target by derivatives against finite differences, exact average velocities, and the
times that it draws.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from denoisers import Scaled, Told, drawn_rows, four_points, init, slope
from denoisers import make_config as make

from gen_jax.errors import UserError
from gen_jax.systems import mean_flow

POINT = 0.6
SPREAD = 0.7

draw_sample = jax.jit(mean_flow.sample, static_argnames='config')


def make_config(changes=None):
  """Without the adaptive weight, so that the loss is the squared error."""
  return make('mean_flow', {'flow.p': 0.0} | (changes or {}))


def loss_of(config, x, t, r, eps, params):
  x, t, r, eps = map(jnp.float32, (x, t, r, eps))
  how = dict(model=mean_flow.build(config), config=config)
  return mean_flow.loss_fn(params, (x, None, t, r, eps), jax.random.key(0), **how)


class Wavy(nn.Module):
  """A smooth function of all that it is told."""

  @nn.compact
  def __call__(self, x, t, label=None, h=None, *, train):
    a = self.param('a', nn.initializers.ones, ())
    return a * wavy(jnp, x, t[:, None], h[:, None])


def wavy(lib, x, t, h):
  return lib.sin(2 * x) * lib.cos(t) + h**2 * x + 0.3 * x[..., ::-1]


class Point(nn.Module):
  """The data are one point, so the velocity (z - POINT) / t is constant along a path."""

  @nn.compact
  def __call__(self, x, t, label=None, h=None, *, train):
    a = self.param('a', nn.initializers.ones, ())
    return a * (x - POINT) / t[:, None]


class Gaussian(nn.Module):
  """The data are N(0, SPREAD^2): the flow keeps z_t over its standard deviation S(t), and the
  average velocity is (z_t - z_t S(r) / S(t)) / (t - r), the velocity S'(t) / S(t) z_t at r = t.
  """

  @nn.compact
  def __call__(self, x, t, label=None, h=None, *, train):
    a = self.param('a', nn.initializers.ones, ())
    variance = lambda t: (1 - t) ** 2 * SPREAD**2 + t**2
    safe = jnp.where(h > 0, h, 1.0)
    average = (1 - jnp.sqrt(variance(t - safe) / variance(t))) / safe
    velocity = (t - (1 - t) * SPREAD**2) / variance(t)
    return a * jnp.where(h > 0, average, velocity)[:, None] * x


# --- The loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize('scale', [1.0, 3.0])
def test_the_target_has_the_derivative_along_the_path(scale):
  config = make_config({'net': {'name': Wavy}, 'flow.time_scale': scale})
  rng = np.random.default_rng(0)
  x, eps = rng.standard_normal((2, 5, 2))
  t, r = np.array([0.9, 0.5, 1.0, 0.3, 0.7]), np.array([0.2, 0.5, 0.0, 0.1, 0.7])

  def u(z, t):  # r fixed
    return wavy(np, z, scale * t[:, None], scale * (t - r)[:, None])

  v, d = eps - x, 1e-5
  z = (1 - t)[:, None] * x + t[:, None] * eps
  du_dt = (u(z + d * v, t + d) - u(z - d * v, t - d)) / (2 * d)
  errors = ((u(z, t) - (v - (t - r)[:, None] * du_dt)) ** 2).sum(1)
  loss, (metrics, _) = loss_of(config, x, t, r, eps, {'a': jnp.float32(1)})
  np.testing.assert_allclose(loss, errors.mean(), rtol=1e-4)
  np.testing.assert_allclose(metrics['net/error'], errors.mean() / 2, rtol=1e-4)
  assert np.abs(du_dt).max() > 1

  # The gradient is that of a regression: it does not reach the target.
  target = v - (t - r)[:, None] * du_dt
  expected = (2 * (u(z, t) - target) * u(z, t)).sum(1).mean()
  found = slope(lambda params: loss_of(config, x, t, r, eps, params)[0], 1.0)
  np.testing.assert_allclose(found, expected, rtol=1e-4)

  # The adaptive weight is of one example, and no gradient reaches it either.
  adaptive = make_config({'net': {'name': Wavy}, 'flow': dict(time_scale=scale, p=0.75, c=0.1)})
  weight = (errors + 0.1) ** -0.75
  loss, (metrics, _) = loss_of(adaptive, x, t, r, eps, {'a': jnp.float32(1)})
  np.testing.assert_allclose(loss, (weight * errors).mean(), rtol=1e-4)
  np.testing.assert_allclose(metrics['net/error'], errors.mean() / 2, rtol=1e-4)
  expected = (weight * (2 * (u(z, t) - target) * u(z, t)).sum(1)).mean()
  found = slope(lambda params: loss_of(adaptive, x, t, r, eps, params)[0], 1.0)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_average_velocity_to_a_point_has_no_error_and_one_step_reaches_it():
  config = make_config({'net': {'name': Point}})
  rng = np.random.default_rng(0)
  t = rng.uniform(0.05, 1, 50)
  r, eps = t * rng.uniform(0, 1, 50), rng.standard_normal((50, 2))
  loss, _ = loss_of(config, np.full((50, 2), POINT), t, r, eps, {'a': jnp.float32(1)})
  np.testing.assert_allclose(loss, 0, atol=1e-8)
  assert loss_of(config, np.full((50, 2), POINT), t, r, eps, {'a': jnp.float32(1.1)})[0] > 0.01
  for steps in (1, 2, 5):
    config = make_config({'net': {'name': Point}, 'sample.steps': steps})
    images = draw_sample(init(config), {'index': jnp.arange(9)}, jax.random.key(0), config=config)
    np.testing.assert_allclose(images['image'], POINT, atol=1e-6)


@pytest.mark.parametrize('t, r', [(1.0, 0.0), (0.8, 0.3), (0.4, 0.4)])
def test_the_loss_is_least_at_the_average_velocity_of_a_gaussian(t, r):
  config = make_config({'data.shape': (1,), 'net': {'name': Gaussian}})
  x, eps = four_points(SPREAD)
  loss = lambda params: loss_of(config, x, np.full(4, t), np.full(4, r), eps, params)[0]
  assert abs(slope(loss, 1.0)) < 1e-5
  assert abs(slope(loss, 1.1)) > 1e-3


@pytest.mark.parametrize('steps', [1, 3])
def test_one_step_carries_noise_to_a_gaussian(steps):
  config = make_config({'net': {'name': Gaussian}, 'sample.steps': steps})
  images = draw_sample(init(config), {'index': jnp.arange(20_000)}, jax.random.key(0),
                       config=config)['image']  # fmt: skip
  # Images are clipped to [-1, 1]: the share inside is that of N(0, SPREAD^2).
  inside = np.abs(images) < 1
  assert inside.mean() == pytest.approx(0.8469, abs=0.008)  # erf(1 / 0.7 / sqrt 2)
  assert np.median(np.abs(images)) == pytest.approx(0.6745 * SPREAD, abs=0.01)
  # Any number of steps carries the same noise to the same places.
  other = make_config({'net': {'name': Gaussian}, 'sample.steps': 7})
  again = draw_sample(init(other), {'index': jnp.arange(20_000)}, jax.random.key(0),
                      config=other)['image']  # fmt: skip
  np.testing.assert_allclose(again, images, atol=1e-5)


def test_intermediate_images_lie_on_the_path():
  config = make_config({'net': {'name': Point}, 'sample': dict(steps=4, intermediates=2)})
  made = draw_sample(init(config), {'index': jnp.arange(3)}, jax.random.key(0), config=config)
  assert made['trajectory'].shape == (3, 2, 2)
  np.testing.assert_array_equal(made['trajectory'][:, -1], made['image'])
  noise = jax.random.normal(jax.random.split(jax.random.key(0))[0], (3, 2))
  middle = np.clip((POINT + noise) / 2, -1, 1)  # t = 1/2 after two of four steps
  np.testing.assert_allclose(made['trajectory'][:, 0], middle, atol=1e-6)


# --- Times, and the net as others see it ----------------------------------------------------------


def test_t_is_logit_normal_and_r_is_at_most_t(monkeypatch):
  config = make_config({'flow': dict(t_mean=-0.6, t_std=1.6, r_mean=-1.0, r_std=1.2, equal=0.25)})
  batch = {'image': jnp.ones((40_000, 2))}
  x, label, t, r, eps = drawn_rows(monkeypatch, config, batch)
  z = (np.log(t / (1 - t)) + 0.6) / 1.6
  np.testing.assert_allclose([z.mean(), z.std(), (z**3).mean()], [0, 1, 0], atol=0.05)
  assert (r <= t).all() and r.min() > 0
  # r = t for the share, and where the r drawn is above t: their logits differ by N(0.4, 4).
  above = 0.4207  # P(N(-0.4, 2) > 0)
  assert (r == t).mean() == pytest.approx(0.25 + 0.75 * above, abs=0.01)
  np.testing.assert_array_equal(x, batch['image'])
  np.testing.assert_allclose([eps.mean(), eps.std()], [0, 1], atol=0.02)
  assert label is None and abs(np.corrcoef(t, eps[:, 0])[0, 1]) < 0.02
  always = make_config({'flow.equal': 1.0})
  _, _, t, r, _ = drawn_rows(monkeypatch, always, batch)
  np.testing.assert_array_equal(r, t)


def test_what_the_net_is_told():
  t, r = jnp.float32([1.0, 0.75]), jnp.float32([0.0, 0.5])
  for what, expected in (('time', [1000, 750]), ('h', [1000, 250])):
    config = make_config({'net': dict(name=Told, what=what), 'flow.time_scale': 1000.0})
    model, x = mean_flow.build(config), jnp.zeros((2, 2))
    u = mean_flow.average_velocity(model, {'a': 0.0}, x, r, t, None, config, train=False)
    np.testing.assert_allclose(u, np.tile(np.c_[expected], 2), rtol=1e-6)


def test_other_samplers_follow_the_velocity():
  s, t = SPREAD, 0.4
  config = make_config({'net': {'name': Gaussian}})
  x = np.float32([[-2.0, 1.0], [0.5, 0.1]])
  found = mean_flow.denoiser({'a': jnp.float32(1)}, None, config=config)(x, jnp.full(2, t))
  total = (1 - t) ** 2 * s**2 + t**2
  np.testing.assert_allclose(-found.eps / t, -x / total, rtol=1e-4)
  np.testing.assert_allclose(found.x_0, (1 - t) * s**2 / total * x, rtol=1e-4)
  config = make_config({'net': {'name': Gaussian}, 'sample': dict(sampler='heun', steps=30)})
  images = draw_sample(init(config), {'index': jnp.arange(20_000)}, jax.random.key(0),
                       config=config)['image']  # fmt: skip
  assert np.median(np.abs(images)) == pytest.approx(0.6745 * SPREAD, abs=0.015)


def test_a_step_trains_and_averages():
  config = make_config({'ema_decay': 0.9, 'net': dict(name=Scaled, start=0.5)})
  batch = {'image': jnp.zeros((256, 2))}
  step = jax.jit(mean_flow.train_step, static_argnames='config')
  state, metrics = step(init(config, batch), batch, jax.random.key(0), config=config)
  after = float(state.net.params['a'])
  assert abs(after - 0.5) == pytest.approx(0.05, rel=1e-3)  # Adam's first step is the rate
  np.testing.assert_allclose(state.net.ema['a'], 0.9 * 0.5 + 0.1 * after, rtol=1e-5)
  assert set(metrics) == {'net/loss', 'net/error', 'net/grad_norm'}


def test_evaluations():
  assert mean_flow.evaluations(make_config({'sample.steps': 3})) == 3
  assert mean_flow.evaluations(make_config({'sample': dict(sampler='heun', steps=5)})) == 9


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('sample.guidance.run', 'runs/c'),
    ('sample.guidance.weak_run', 'runs/w'),
    ('sample.guidance.w', 1.0),
  ],
)
def test_the_average_velocity_is_not_guided(field, value):
  labels = {'net': dict(name='mlp.Denoiser', num_classes=3), 'data.num_classes': 3}
  labels |= {'label_drop': 0.1}
  mean_flow.check(make_config(labels))
  mean_flow.check(make_config(labels | {field: value, 'sample.sampler': 'ddim'}))
  with pytest.raises(UserError, match=f"config.{field}={value!r}.*'mean_flow'") as error:
    mean_flow.check(make_config(labels | {field: value}))
  assert '\n' not in str(error.value)
