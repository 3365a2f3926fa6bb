"""The paths against published digits and SDEs, finite differences, and one another."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import grids, samplers
from gen_jax.diffusion.paths import (
  EDM,
  VE,
  VP,
  Discrete,
  Linear,
  Prediction,
  SubVP,
  add_noise,
  denoise_on,
  per_row,
)
from gen_jax.diffusion.process import cosine_betas, linear_betas

BETAS = linear_betas(1000, 1e-4, 0.02)
DDPM = Discrete(np.cumprod(1 - BETAS))
COSINE = Discrete(np.cumprod(1 - cosine_betas(1000)))
PATHS = {
  'ddpm': DDPM,
  'cosine': COSINE,
  'vp': VP(),
  'sub_vp': SubVP(),
  've': VE(),
  'edm': EDM(),
  'linear': Linear(),
}
EACH = pytest.mark.parametrize('name', PATHS)


def times(path, n=201):
  """float64 [n] from t_min to t_max; on the linear path to just before alpha = 0. They are float32
  values, so that both precisions are given the same ones. Not at the indices of a process, where it
  has two slopes.
  """
  last = 0.9999 if isinstance(path, Linear) else path.t_max
  even = np.linspace(path.t_min, last, n)
  if isinstance(path, Discrete):
    even = np.floor(even[:-1]) + 0.3
  else:  # half of them close to 0
    even = np.unique(np.append(even, np.geomspace(path.t_min, last, n)))
  return np.clip(np.float64(np.float32(even)), path.t_min, last)


# --- Published digits -----------------------------------------------------------------------------


def test_the_variance_preserving_paths():
  vp = VP()
  np.testing.assert_allclose(vp.sigma(1e-5), 0.0010005, rtol=1e-4)
  np.testing.assert_allclose(vp.alpha(1e-3), 0.999945, rtol=1e-6)
  np.testing.assert_allclose(vp.sigma(1e-3), 0.0104854, rtol=1e-5)
  np.testing.assert_allclose(vp.alpha(0.5), 0.2811829, rtol=1e-6)
  np.testing.assert_allclose(vp.sigma(0.5), 0.959654, rtol=1e-6)
  np.testing.assert_allclose(vp.alpha(1.0), 0.0065716, rtol=1e-5)
  np.testing.assert_allclose(vp.sigma(1.0), 0.9999784, rtol=1e-7)
  np.testing.assert_allclose(SubVP().alpha(0.5), 0.2811829, rtol=1e-6)
  np.testing.assert_allclose(SubVP().sigma(0.5), 0.920936, rtol=1e-6)
  # Karras et al. 2022, table 1: sigma of VP in their notation, where alpha is 1.
  t = np.array([1e-5, 0.01, 0.3, 1.0])
  np.testing.assert_allclose(
    vp.ratio(t), np.sqrt(np.exp(0.5 * 19.9 * t**2 + 0.1 * t) - 1), rtol=1e-10
  )


def test_the_variance_exploding_paths():
  paper = VE(0.01, 50.0)
  np.testing.assert_allclose(paper.sigma(np.array([0.0, 0.5, 1.0])), [0.01, 0.70710678, 50.0])
  # Data in [-1, 1] are twice as wide as the paper's in [0, 1].
  t = np.linspace(0, 1, 5)
  np.testing.assert_allclose(VE().sigma(t), 2 * paper.sigma(t), rtol=1e-12)
  assert EDM().sigma(0.7) == 0.7 and EDM().alpha(0.7) == 1
  assert (EDM().t_min, EDM().t_max) == (0.002, 80.0)


def test_the_processes_of_ddpm_at_their_indices():
  t = np.array([0, 1, 499, 999])
  published = [0.9999, 0.99978009, 0.07858724, 4.03582977e-5]
  np.testing.assert_allclose(DDPM.alpha(t) ** 2, published, rtol=1e-7)
  np.testing.assert_allclose(DDPM.sigma(t) ** 2, 1 - np.array(published), rtol=5e-5)
  np.testing.assert_allclose(COSINE.alpha(499.0) ** 2, 0.49384, rtol=1e-5)
  assert DDPM.steps == 1000 and (DDPM.t_min, DDPM.t_max) == (0, 999)
  # Between indices log alpha is linear.
  np.testing.assert_allclose(DDPM.alpha(500.5) ** 2, DDPM.alpha(500) * DDPM.alpha(501), rtol=1e-12)


def test_the_straight_path():
  t = np.array([0.0, 0.25, 1.0])
  np.testing.assert_array_equal(Linear().alpha(t), [1, 0.75, 0])
  np.testing.assert_array_equal(Linear().sigma(t), t)
  with np.errstate(divide='ignore'):
    assert Linear().ratio(1.0) == np.inf
  np.testing.assert_allclose(Linear().ratio(0.8), 4)


def test_the_published_sdes():
  t = np.linspace(0.01, 0.99, 50)
  beta = 0.1 + 19.9 * t
  for vp in (VP(), SubVP()):
    np.testing.assert_allclose(vp.drift(t), -beta / 2, rtol=1e-10)
  np.testing.assert_allclose(VP().diffusion_squared(t), beta, rtol=1e-10)
  shrunk = 1 - np.exp(-2 * 0.1 * t - 19.9 * t**2)
  np.testing.assert_allclose(SubVP().diffusion_squared(t), beta * shrunk, rtol=1e-10)
  g = 0.02 * 5000**t * np.sqrt(2 * (np.log(100) - np.log(0.02)))
  np.testing.assert_array_equal(VE().drift(t), 0)
  np.testing.assert_allclose(VE().diffusion_squared(t), g**2, rtol=1e-10)
  np.testing.assert_allclose(EDM().diffusion_squared(t), 2 * t, rtol=1e-10)
  np.testing.assert_allclose(Linear().drift(t), -1 / (1 - t), rtol=1e-10)
  np.testing.assert_allclose(Linear().diffusion_squared(t), 2 * t / (1 - t), rtol=1e-10)


def test_a_process_is_an_sde_that_does_each_step_in_one_unit_of_time():
  # dx = -c/2 x dt + sqrt(c) dw over one unit: the variance kept is e^{-c} = 1 - beta.
  for path, betas in ((DDPM, BETAS), (COSINE, cosine_betas(1000))):
    t = np.arange(1, 1000)  # at an index, the step back from it
    np.testing.assert_allclose(path.diffusion_squared(t), -np.log1p(-betas[1:]), rtol=1e-6)
    np.testing.assert_allclose(path.drift(t), 0.5 * np.log1p(-betas[1:]), rtol=1e-6)


def test_the_spread_of_the_noise_that_samplers_start_from():
  found = {name: path.prior_std(path.t_max) for name, path in PATHS.items()}
  assert found.pop('sub_vp') == pytest.approx(1 - 0.0065716**2)
  assert found.pop('ve') == pytest.approx(100)
  assert found == dict(ddpm=1, cosine=1, vp=1, edm=80, linear=1)
  assert EDM().prior_std(40.0) == 40 and Linear().prior_std(0.9) == 0.9


# --- Each path with itself ------------------------------------------------------------------------


@EACH
def test_derivatives_are_those_of_alpha_and_sigma(name):
  path = PATHS[name]
  t = times(path)
  t = t[(t > path.t_min) & (t < path.t_max)]
  # In proportion to t, as some sigmas have a root at 0; within one step of a process.
  h = 1e-4 * np.minimum(t, 10)
  found = path.derivatives(t)
  differences = [(f(t + h) - f(t - h)) / (2 * h) for f in (path.alpha, path.sigma)]
  np.testing.assert_allclose(found[0], differences[0], rtol=1e-5, atol=1e-8)
  np.testing.assert_allclose(found[1], differences[1], rtol=1e-5, atol=1e-8)
  single = jnp.float32(t)
  found, gradients = jax.jit(
    lambda t: (path.derivatives(t), [jax.vmap(jax.grad(f))(t) for f in (path.alpha, path.sigma)])
  )(single)
  for values, gradient in zip(found, gradients, strict=True):
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, gradient, rtol=2e-4, atol=2e-6)


@EACH
def test_the_time_of_a_ratio(name):
  path = PATHS[name]
  t = times(path)
  assert (np.diff(path.ratio(t)) > 0).all()
  np.testing.assert_allclose(path.time_of(path.ratio(t)), t, rtol=1e-9, atol=1e-12)
  single = jnp.float32(t)
  # In float32 log(sigma) of VE, and half of log(1 + ratio^2) of the others, have 1e-6 at best.
  atol = {'ve': 1e-6, 'ddpm': 2e-4, 'cosine': 2e-4}.get(name, 0)
  np.testing.assert_allclose(path.time_of(path.ratio(single)), t, rtol=2e-5, atol=atol)


@EACH
def test_float32_on_the_device_is_float64_on_the_host(name):
  path = PATHS[name]
  t = times(path)
  ratio = path.ratio(t)
  values = {
    'alpha': (path.alpha, t),
    'sigma': (path.sigma, t),
    'ratio': (path.ratio, t),
    'drift': (path.drift, t),
    'diffusion_squared': (path.diffusion_squared, t),
    'time_of': (path.time_of, np.float64(np.float32(ratio))),
  }
  evaluate = jax.jit(lambda x: {what: function(x[what]) for what, (function, _) in values.items()})
  found = evaluate({what: jnp.float32(argument) for what, (_, argument) in values.items()})
  for what, (function, argument) in values.items():
    assert found[what].dtype == jnp.float32, what
    expected = function(argument)
    assert expected.dtype == np.float64, what
    # Relative, so that the smallest sigma is as exact as all others; the time on VE is a logarithm.
    atol = 2e-8 if (name, what) == ('ve', 'time_of') else 1e-9
    np.testing.assert_allclose(found[what], expected, rtol=2e-5, atol=atol, err_msg=what)
  # Floats are taken as arrays are.
  np.testing.assert_allclose(path.sigma(float(t[7])), path.sigma(t)[7], rtol=1e-14)
  np.testing.assert_allclose(path.time_of(float(ratio[7])), t[7], rtol=1e-9)


@EACH
def test_the_least_noise_has_all_digits_of_float32(name):
  path = PATHS[name]
  first = float(np.float32(max(path.t_min, 1e-5)))
  for t in (first, 2 * first, 3 * first):
    np.testing.assert_allclose(path.sigma(jnp.float32(t)), path.sigma(t), rtol=2e-6)


def test_noise_is_added_row_by_row():
  x_0, eps = np.random.default_rng(0).standard_normal((2, 3, 4, 4, 2)).astype(np.float32)
  t = np.float32([0.1, 0.5, 0.9])
  x = add_noise(VP(), jnp.asarray(x_0), jnp.asarray(t), jnp.asarray(eps))
  alpha, sigma = VP().alpha(0.5), VP().sigma(0.5)
  np.testing.assert_allclose(x[1], alpha * x_0[1] + sigma * eps[1], rtol=1e-5, atol=1e-6)


def test_paths_are_equal_by_their_values():
  assert VP() == VP() and VP() != VP(0.2) and VP() != SubVP() and VP() != DDPM
  assert Discrete(DDPM.alpha_bars.copy()) == DDPM and DDPM != COSINE


# --- A net of one path on another -----------------------------------------------------------------

MEAN, SPREAD = 0.3, 0.6


def exact(path):
  """The prediction for data N(0.3, 0.6^2)."""

  def denoise(x, t):
    alpha, sigma = (per_row(f(t), x.ndim) for f in (path.alpha, path.sigma))
    shift = (x - alpha * MEAN) / ((alpha * SPREAD) ** 2 + sigma**2)
    return Prediction(MEAN + alpha * SPREAD**2 * shift, sigma * shift)

  return denoise


@pytest.mark.parametrize('trained_on', PATHS)
def test_the_exact_net_of_one_path_is_that_of_another(trained_on):
  ratio = np.array([0.03, 0.2, 1.0, 7.0, 50.0])
  times = {name: jnp.float32(path.time_of(ratio)) for name, path in PATHS.items()}

  def predictions(times):
    net, pairs = exact(PATHS[trained_on]), {}
    for name, path in PATHS.items():
      t = times[name]
      x = per_row(path.alpha(t) + path.sigma(t), 2)
      pairs[name] = denoise_on(path, net, PATHS[trained_on])(x, t)[:2], exact(path)(x, t)[:2]
    return pairs

  for found, expected in predictions(times).values():
    np.testing.assert_allclose(found, expected, rtol=3e-4, atol=1e-5)


def test_trajectories_on_all_paths_are_one_at_other_scales():
  ratio = np.geomspace(50, 0.03, 12)

  def net(x, t):  # of VP; nothing that a Gaussian could explain
    x_0 = jnp.tanh(2 * x - t[:, None])
    return Prediction(x_0, (x - per_row(VP().alpha(t), 2) * x_0) / per_row(VP().sigma(t), 2))

  def trajectory(path):
    t = path.time_of(ratio)
    grid = grids.Grid(path, t, np.append(path.alpha(t), 1.0), np.append(path.sigma(t), 0.0))
    start = np.float32(grid.alpha[0] * 50) * np.float32([[0.7, -1.2, 0.1]]).T
    denoise = denoise_on(path, net, VP())
    _, kept = samplers.run(samplers.ddim(grid), denoise, jnp.asarray(start), jax.random.key(0), 12)
    return np.asarray(kept)[..., 0] / grid.alpha[1:, None]

  expected = trajectory(VP())
  assert np.abs(expected[-1]).min() > 0.1
  for name, path in PATHS.items():
    np.testing.assert_allclose(trajectory(path), expected, rtol=2e-3, atol=2e-3, err_msg=name)


@pytest.mark.parametrize(
  'path, trained_on', list(itertools.permutations(['vp', 'linear', 'edm', 'ddpm', 've'], 2))
)
def test_a_net_is_told_times_of_its_training_and_data_of_the_right_spread(path, trained_on):
  path, trained_on = PATHS[path], PATHS[trained_on]

  def net(x, t):
    return Prediction(x, jnp.broadcast_to(t[:, None], x.shape))

  t = np.float32([path.t_min, path.t_last, path.t_max])
  x = np.sqrt(path.alpha(t) ** 2 + path.sigma(t) ** 2)[:, None]
  seen, told = denoise_on(path, net, trained_on)(jnp.float32(x), jnp.asarray(t))[:2]
  told = np.asarray(told)[:, 0]
  assert (told >= np.float32(trained_on.t_min)).all() and (told <= trained_on.t_max).all()
  spread = np.sqrt(trained_on.alpha(told) ** 2 + trained_on.sigma(told) ** 2)
  np.testing.assert_allclose(seen[:, 0], spread, rtol=1e-5)
  if isinstance(path, Linear):  # alpha is 0: the most noise that there is
    assert told[-1] == trained_on.t_max


def test_a_net_on_its_own_path_is_itself():
  net = exact(VP())
  assert denoise_on(VP(), net, VP()) is net
  assert denoise_on(DDPM, net, Discrete(DDPM.alpha_bars.copy())) is net
