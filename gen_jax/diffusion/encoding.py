"""Encodings: the noise that a deterministic sampler turns into given data, found by running it
backwards over its own times (Song, Meng and Ermon 2020, arXiv 2010.02502, section 4.3 and Eq. 14).

With X = x / alpha and r = sigma / alpha the ODE is dX/dr = eps (Song, Meng and Ermon, Eq. 14;
Karras et al. 2022, arXiv 2206.00364, Eq. 4). DDIM is Euler's method for it, and EDM's sampler
Heun's. Backwards the steps are the same, but DDIM evaluates the net where a step starts, which is
where the step that it inverts ends: what `decode` makes of an encoding of N steps differs from the
data by O(1/N). For `heun` it is O(1/N^3), as the leading errors of the two directions cancel. `ode`
has the error of its tolerance.
"""

import jax
import numpy as np

from gen_jax.diffusion import ode, samplers
from gen_jax.diffusion.grids import Grid, steps_of
from gen_jax.diffusion.method import Method
from gen_jax.diffusion.paths import Denoise, Path
from gen_jax.diffusion.samplers import DETERMINISTIC
from gen_jax.errors import UserError

# Fields of samplers that may add noise.
_NOISE = {'ddim': 'eta', 'heun': 'churn', 'dpm_solver_pp': 'stochastic'}


def check(c, allowed=DETERMINISTIC, purpose: str = 'run backwards, from data to noise') -> None:
  """Checks that the sampler of `c`, the group `sample` of a config, can encode.

  Raises:
    UserError: it is not one of `allowed`, or adds noise.
  """
  if c.sampler not in allowed:
    names = ' or '.join(map(repr, allowed))
    raise UserError(f'config.sample.sampler={c.sampler!r} cannot {purpose}; {names} is needed')
  name = _NOISE.get(c.sampler)
  if name is not None and c[name]:
    raise UserError(
      f'config.sample.{name}={c[name]}: {c.sampler} then adds noise and cannot {purpose}; '
      f'{type(c[name])(0)} is needed'
    )


def backwards(grid: Grid, *, corrected: bool) -> Method:
  """DDIM or, `corrected`, Heun's method from data to the first time of a grid. In each step, from
  (a, s) to (alpha, sigma),

    x_t = (alpha / a) x + (sigma - s alpha / a) eps

  The first step takes data, at alpha = 1 and sigma = 0, to the last time of the grid, and the net
  is told that time. Heun's method evaluates the net once in that step and in one to alpha = 0, as
  it does forwards, and twice in all others.
  """
  c, n = steps_of(grid), len(grid.t)
  alpha, sigma, a, s = (value[::-1] for value in c)
  told, eps = np.append(grid.t[-1], grid.t[:0:-1]), sigma - s * alpha / a
  rows = {'t': told, 'x': alpha / a, 'eps': eps, 'last': np.zeros(n)}
  if corrected:
    again = {'t': grid.t[::-1], 'x': np.ones(n), 'eps': eps / 2, 'last': -eps / 2}
    twice = (alpha > 0) & (np.arange(n) > 0)
    used = np.stack([np.ones(n, bool), twice], 1)
    rows = {name: np.stack([rows[name], again[name]], 1)[used] for name in rows}

  def step(x, last, row, prediction, noise):
    return row['x'] * x + row['eps'] * prediction.eps + row['last'] * last, prediction.eps

  return Method(rows, step, noisy=False)


def encode(denoise: Denoise, x, path: Path, c) -> jax.Array:
  """The noise from which the sampler of `c` makes data.

  Args:
    denoise: the net.
    x: data, float32 [b, ...].
    path: of the net.
    c: the group `sample` of a config.

  Returns:
    [b, ...], of unit variance where the net is right.

  Raises:
    UserError: as `check`.
  """
  check(c)
  if c.sampler == 'ode':
    x = ode.encode(denoise, x, path, c.tolerance)
  else:
    method = backwards(samplers.grid_of(c, path), corrected=c.sampler == 'heun')
    x, _ = samplers.run(method, denoise, x, None)
  return x / np.float32(path.prior_std(samplers.start(path, c)))


def decode(denoise: Denoise, z, path: Path, c) -> jax.Array:
  """What the sampler of `c` makes of noise z [b, ...] of unit variance; arguments as in `encode`.

  Raises:
    UserError: the sampler adds noise.
  """
  check(c, (*DETERMINISTIC, 'dpm_solver_pp'), 'make one image of an encoding')
  x = np.float32(path.prior_std(samplers.start(path, c))) * z
  if c.sampler == 'ode':
    return ode.sample(denoise, x, path, c.tolerance)[0]
  return samplers.run(samplers.make_method(c, path), denoise, x, None)[0]
