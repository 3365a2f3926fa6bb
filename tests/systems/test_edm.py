"""EDM: its published coefficients, its loss for nets whose error is known, and its average."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from denoisers import Constant, Scaled, Told, assert_minimum, drawn_rows, four_points, init
from denoisers import make_config as make

from gen_jax.systems import edm

make_config = functools.partial(make, 'edm')


def loss_of(config, y, sigma, eps, params):
  rows = (jnp.float32(y), None, jnp.float32(sigma), jnp.float32(eps), None)
  how = dict(model=edm.build(config), config=config)
  return edm.loss_fn(params, rows, jax.random.key(0), **how)[0]


@pytest.mark.parametrize(
  'sigma, c_skip, c_out, c_in, c_noise, weight',
  [
    (0.002, 0.999984, 0.002, 1.999984, -1.5536520, 250004.0),
    (0.5, 0.5, 0.3535534, 1.4142136, -0.1732868, 8.0),
    (80.0, 3.9061e-5, 0.49999023, 0.01249976, 1.0955067, 4.00015625),
  ],
)
def test_the_published_coefficients(sigma, c_skip, c_out, c_in, c_noise, weight):
  found = edm.coefficients(jnp.float32(sigma), 0.5)
  np.testing.assert_allclose(found, [c_skip, c_out, c_in, c_noise], rtol=1e-4)
  # The weight of the loss, by a net that predicts 0 for data that are 0: D = c_skip n.
  config = make_config()
  loss = loss_of(config, np.zeros((1, 2)), [sigma], np.ones((1, 2)), {'a': jnp.float32(0)})
  np.testing.assert_allclose(loss, weight * 2 * (c_skip * sigma) ** 2, rtol=1e-4)


def test_the_input_and_the_target_of_the_net_have_unit_variance():
  """Karras et al. 2022, appendix B.6, for data of the standard deviation sigma_data."""
  for sigma in (0.002, 0.3, 80.0):
    c_skip, c_out, c_in, _ = (float(c) for c in edm.coefficients(jnp.float32(sigma), 0.7))
    assert c_in**2 * (0.7**2 + sigma**2) == pytest.approx(1, rel=1e-5)
    target = ((1 - c_skip) ** 2 * 0.7**2 + (c_skip * sigma) ** 2) / c_out**2
    assert target == pytest.approx(1, rel=1e-3)


def test_the_loss_is_a_sum_over_dimensions_and_a_mean_over_examples():
  rng = np.random.default_rng(0)
  y, eps = (rng.standard_normal((5, 2, 2, 3)).astype(np.float32) for _ in range(2))
  sigma = np.array([0.1, 0.5, 1.0, 3.0, 20.0])
  config = make_config({'data.shape': (2, 2, 3), 'edm.sigma_data': 0.4})
  s = sigma[:, None, None, None]
  total = s**2 + 0.4**2
  D = 0.4**2 / total * (y + s * eps) + 0.3 * s * 0.4 / np.sqrt(total)  # F = 0.3
  weight = total / (s * 0.4) ** 2
  expected = (weight * (D - y) ** 2).sum((1, 2, 3)).mean()
  found = loss_of(config, y, sigma, eps, {'a': jnp.float32(0.3)})
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize('sigma', [0.05, 0.5, 10.0])
def test_the_best_linear_net_on_a_gaussian_knows_its_score(sigma):
  s = 0.7  # not sigma_data
  config = make_config({'data.shape': (1,), 'net': {'name': Scaled}})
  total = sigma**2 + 0.25
  c_skip, c_out, c_in = 0.25 / total, 0.5 * sigma / np.sqrt(total), 1 / np.sqrt(total)
  gain = s**2 / (s**2 + sigma**2)  # E[y | x] = gain x
  best = (gain - c_skip) / (c_out * c_in)
  y, eps = four_points(s)
  assert_minimum(lambda params: loss_of(config, y, np.full(4, sigma), eps, params), best)
  x = np.float32([[-2.0], [0.5]])
  denoise = edm.denoiser({'a': jnp.float32(best)}, None, config=config)
  found = denoise(x, jnp.full(2, sigma, jnp.float32))
  np.testing.assert_allclose(found.x_0, gain * x, rtol=1e-4)
  np.testing.assert_allclose(-found.eps / sigma, -x / (s**2 + sigma**2), rtol=1e-3)


def test_what_the_net_is_told():
  config = make_config({'net': {'name': Told}})
  x, sigma = jnp.zeros((3, 2)), jnp.float32([0.002, 0.5, 80.0])
  D = edm.denoised(edm.build(config), {'a': 0.0}, x, sigma, None, config, train=False)
  c_out = 0.5 * sigma / np.sqrt(sigma**2 + 0.25)
  told = [-1.5536520, -0.1732868, 1.0955067]
  np.testing.assert_allclose(D / c_out[:, None], np.tile(np.c_[told], 2), rtol=1e-5)


def test_ln_sigma_is_normal(monkeypatch):
  config = make_config({'edm.P_mean': -0.5, 'edm.P_std': 2.0})
  batch = {'image': jnp.ones((40_000, 2))}
  y, label, sigma, eps, augmentation = drawn_rows(monkeypatch, config, batch)
  z = (np.log(sigma) + 0.5) / 2.0
  np.testing.assert_allclose([z.mean(), z.std(), (z**3).mean()], [0, 1, 0], atol=0.05)
  np.testing.assert_array_equal(y, batch['image'])
  np.testing.assert_allclose([eps.mean(), eps.std()], [0, 1], atol=0.02)
  assert label is None and augmentation is None
  assert abs(np.corrcoef(z, eps[:, 0])[0, 1]) < 0.02
  assert abs(np.corrcoef(eps.T)[0, 1]) < 0.02


def test_the_half_life_of_the_average_grows_with_the_images_seen():
  # The released settings for CIFAR-10: 500,000 images of half-life, batches of 512, a ramp of 0.05.
  decay = 0.5 ** (512 / 500_000)
  config = make_config({'ema_decay': decay, 'edm.ema_rampup': 0.05})
  decay_at = lambda step: float(edm.ema_decay(jnp.int32(step), config))
  assert decay_at(0) == 0
  assert decay_at(100) == pytest.approx(0.5 ** (512 / (0.05 * 51_200)), rel=1e-5)
  assert decay_at(10_000_000 // 512 + 1) == pytest.approx(0.99929047, rel=1e-6)
  assert decay_at(1_000_000) == pytest.approx(0.99929047, rel=1e-6)
  assert edm.ema_decay(jnp.int32(0), make_config()) == 0.999


def test_a_step_trains_and_averages():
  config = make_config({'ema_decay': 0.9, 'net': {'name': Constant, 'start': 0.5}})
  batch = {'image': jnp.zeros((256, 2))}
  step = jax.jit(edm.train_step, static_argnames='config')
  state, metrics = step(init(config, batch), batch, jax.random.key(0), config=config)
  # Adam's first step is the rate, towards 0.
  np.testing.assert_allclose(state.net.params['a'], 0.45, rtol=1e-4)
  np.testing.assert_allclose(state.net.ema['a'], 0.9 * 0.5 + 0.1 * 0.45, rtol=1e-5)
  assert state.step == 1 and set(metrics) == {'net/loss', 'net/grad_norm'}
