"""Data to noise and back, for data whose score is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from test_ode import GAUSSIAN, MIXTURE, PATHS, draw, each_path, exact

from gen_jax.diffusion import encoding
from gen_jax.diffusion.paths import Linear, Prediction, per_row
from gen_jax.errors import UserError


def settings(sampler, steps=None, spacing='auto', **more):
  c = dict(sampler=sampler, steps=steps, spacing=spacing, sigma_max=80.0, eta=0.0, churn=0.0)
  c |= dict(churn_range=(0.0, 1e30), churn_noise=1.0, stochastic=False, order=2, tolerance=1e-5)
  return ConfigDict(c | more)


def there_and_back(path, data, x, c):
  def both(x):
    denoise = exact(path, data)
    z = encoding.encode(denoise, x, path, c)
    return z, encoding.decode(denoise, z, path, c)

  return map(np.asarray, jax.jit(both)(x))


@each_path('linear')
def test_the_ode_returns_to_the_data(name):
  x = draw(MIXTURE, 200)
  z, again = there_and_back(PATHS[name], MIXTURE, x, settings('ode'))
  np.testing.assert_allclose(again, x, atol=3e-3)
  assert np.sqrt(np.mean((again - x) ** 2)) < 3e-4
  np.testing.assert_allclose(z.mean(0), 0, atol=0.25)  # standard errors are 0.07
  np.testing.assert_allclose(np.cov(z.T), np.eye(2), atol=0.3)


# For step sizes h and -h errors of order h^2 in a step, Euler's, add up; those of order h^3 cancel.
@pytest.mark.parametrize('sampler, order', [('ddim', 1), ('heun', 3)])
@each_path('edm', 'linear')
def test_the_error_falls_with_the_steps(name, sampler, order):
  x, errors = draw(GAUSSIAN, 100), []
  for steps in (15, 30, 60):
    c = settings(sampler, steps, 'karras')  # whose ends do not depend on the number of steps
    z, again = there_and_back(PATHS[name], GAUSSIAN, x, c)
    errors.append(np.sqrt(np.mean((again - x) ** 2)))
  np.testing.assert_allclose(-np.diff(np.log2(errors)), order, atol=0.3)
  np.testing.assert_allclose(np.cov(z.T), np.eye(2), atol=0.4)  # standard errors are 0.14


@pytest.mark.parametrize('sampler, evaluations', [('ddim', 3), ('heun', 4)])
def test_steps_from_data_to_alpha_0(sampler, evaluations):
  """A net whose eps is t x, at t = 1/3, 1/3, 2/3 (and, by Heun's method, again at 2/3)."""
  calls = []

  def denoise(x, t):
    jax.debug.callback(lambda: calls.append(1))
    return Prediction(jnp.full_like(x, jnp.nan), per_row(t, 2) * x)

  z = encoding.encode(denoise, jnp.ones((1, 1)), Linear(), settings(sampler, 3, 'trailing'))
  jax.effects_barrier()
  assert len(calls) == evaluations
  x = 2 / 3 + 1 / 3 * (1 / 3)  # alpha x + sigma eps
  eps = x / 3
  further = (x / (2 / 3) + (2 - 1 / 2) * eps) / 3  # from sigma / alpha = 1/2 to 2
  if sampler == 'heun':
    further = (x / (2 / 3) + (2 - 1 / 2) * (eps + 2 / 3 * further) / 2) / 3
  assert float(z[0, 0]) == pytest.approx(2 / 3 * further, rel=1e-6)


@pytest.mark.parametrize(
  'c, message',
  [
    (settings('ancestral'), "sampler='ancestral' cannot run backwards"),
    (settings('dpm_solver_pp', 9), "'ddim' or 'heun' or 'ode' is needed"),
    (settings('ddim', 9, eta=0.5), 'sample.eta=0.5: ddim then adds noise .* 0.0 is needed'),
    (settings('heun', 9, churn=1.0), 'sample.churn=1.0: heun then adds noise .* 0.0 is needed'),
  ],
)
def test_samplers_that_do_not_encode(c, message):
  with pytest.raises(UserError, match=message):
    encoding.encode(None, None, PATHS['vp'], c)


def test_samplers_that_decode():
  x, path = draw(GAUSSIAN, 50), PATHS['vp']
  denoise = exact(path, GAUSSIAN)
  z = jax.jit(lambda x: encoding.encode(denoise, x, path, settings('heun', 40)))(x)
  solver = settings('dpm_solver_pp', 100)
  again = jax.jit(lambda z: encoding.decode(denoise, z, path, solver))(z)
  np.testing.assert_allclose(again, x, atol=0.02)
  for c, message in (
    (settings('ancestral'), "sampler='ancestral' cannot make one image of an encoding"),
    (settings('dpm_solver_pp', 9, stochastic=True), 'sample.stochastic=True: .* False is needed'),
  ):
    with pytest.raises(UserError, match=message):
      encoding.decode(None, z, path, c)
