"""Samplers by the settings of a config: their fields, and how they run.

A sampler turns noise into data with a function `denoise(x, t)` (`paths.Denoise`), whatever path the
net was trained on and whatever it predicts. Each is a `Method` of its own file:

    ancestral.py    `ancestral` (DDPM), `ddim`
    dpm_solver.py   `dpm_solver_pp`
    heun.py         `heun` (EDM)
    reverse_sde.py  `euler_maruyama`, `predictor_corrector` (score SDEs)

and `ode.py` has the adaptive solver of the probability-flow ODE.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import draws, fields
from gen_jax.diffusion.ancestral import ancestral, ddim
from gen_jax.diffusion.dpm_solver import dpm_solver_pp
from gen_jax.diffusion.grids import BY_INDEX, SPACINGS, Grid, make_grid, spacing_of
from gen_jax.diffusion.heun import heun
from gen_jax.diffusion.method import Method
from gen_jax.diffusion.paths import Denoise, Discrete, Path, Prediction, per_row
from gen_jax.diffusion.reverse_sde import euler_maruyama, predictor_corrector
from gen_jax.errors import UserError

SAMPLERS = (
  'ancestral',
  'ddim',
  'dpm_solver_pp',
  'heun',
  'euler_maruyama',
  'predictor_corrector',
  'ode',
)
# Those that can run backwards, from data to noise.
DETERMINISTIC = ('ddim', 'heun', 'ode')
_FIXED_STEPS = SAMPLERS[:-1]


def _only(*names):
  return dict(when=('.sampler', names))


# What does not depend on the system.
_OPTIONS = {
  'sample.sigma_max': fields.number(
    above=0,
    default=80.0,
    meaning='largest sigma / alpha of the spacing karras, and of logsnr where alpha may be 0',
    **_only(*_FIXED_STEPS),
  ),
  'sample.variance': fields.one_of(
    'large',
    'small',
    'learned',
    default='large',
    meaning='variance of ancestral steps (and of the bound): that of q(x_t | x_s), for DDPM '
    'beta_t; of q(x_s | x_t, x_0), beta tilde_t; or what the net learned',
    **_only('ancestral'),
  ),
  'sample.eta': fields.number(
    0,
    1,
    default=0.0,
    meaning='0: deterministic, 1: as random as ancestral sampling with the small variance',
    **_only('ddim'),
  ),
  'sample.stochastic': fields.one_of(
    False,
    True,
    default=False,
    meaning='the SDE form of DPM-Solver++, with fresh noise in every step',
    **_only('dpm_solver_pp'),
  ),
  'sample.order': fields.integer(
    1, 2, default=2, meaning='1: DDIM, 2: multistep, 2M', **_only('dpm_solver_pp')
  ),
  'sample.churn': fields.number(
    0,
    default=0.0,
    meaning='S_churn: noise added before each step, over all steps; 0: deterministic',
    **_only('heun'),
  ),
  'sample.churn_range': fields.numbers(
    0, length=(2,), default=(0.0, 1e30), meaning='S_min and S_max', **_only('heun')
  ),
  'sample.churn_noise': fields.number(
    above=0, default=1.0, meaning='S_noise, standard deviation of that noise', **_only('heun')
  ),
  'sample.snr': fields.number(
    above=0,
    default=0.16,
    meaning='r, signal-to-noise ratio of a Langevin step; its norms are means over '
    'sample.batch_size samples, which therefore depend on each other',
    **_only('predictor_corrector'),
  ),
  'sample.corrector_steps': fields.integer(
    0, default=1, meaning='M, Langevin steps at each time', **_only('predictor_corrector')
  ),
  'sample.tolerance': fields.number(
    1e-7,  # float32 has 1.2e-7
    0.1,
    default=1e-5,
    meaning='relative and absolute, of the adaptive Runge-Kutta method of order 5',
    **_only('ode'),
  ),
  'sample.clip': fields.one_of(
    True,
    False,
    optional=True,
    default=None,
    meaning='clip the predicted x_0 to [-1, 1]; None: as published, only in ancestral sampling',
  ),
  'sample.intermediates': fields.integer(
    0, default=0, smoke=2, meaning='intermediate images to return', protocol=False
  ),
}


def make_fields(sampler: str, steps: int | str, more: tuple[str, ...] = ()) -> dict:
  """The rules of config.sample for a system whose defaults these are; `more`: samplers of its own,
  with a number of steps. `steps` may be the path of a field with that number.
  """
  choice = functools.partial(fields.one_of, *more, *SAMPLERS)
  return {
    'sample.sampler': choice(
      default=sampler, smoke='ddim', meaning='the sampler; any net can be sampled by any'
    ),
    'sample.steps': fields.integer(
      1,
      default=steps,
      same_as=steps if isinstance(steps, str) else None,
      smoke=5,
      meaning='N, times at which the net is evaluated (twice by heun, but for the last; 1 + '
      'corrector steps times by predictor_corrector)',
      **_only(*more, *_FIXED_STEPS),
    ),
    'sample.spacing': fields.one_of(
      'auto',
      *SPACINGS,
      default='auto',
      meaning='of the times: uniform (discrete: floor(i T / N)), even (from the last time to the '
      'first, as Improved DDPM), quadratic, trailing (uniform, ending one step before 0), karras '
      '(sigma / alpha to the power 1/7) or logsnr; auto: karras for heun, logsnr for '
      'dpm_solver_pp, otherwise that of the path: karras for edm, trailing '
      'for linear, uniform for all others',
      **_only(*_FIXED_STEPS),
    ),
    **_OPTIONS,
    # For quick evaluations, instead of `sample.*`.
    'eval.quick.sampler': choice(
      default='ddim' if sampler == 'ancestral' else sampler, meaning='sampler of quick evaluations'
    ),
    'eval.quick.steps': fields.integer(
      1,
      default=20 if isinstance(steps, str) else min(steps, 20),
      smoke=5,
      meaning='sample.steps in quick evaluations',
      **_only(*more, *_FIXED_STEPS),
    ),
    'eval.quick.intermediates': fields.integer(
      0, default=0, meaning='sample.intermediates in quick evaluations', protocol=False
    ),
  }


def check(config, path: Path) -> None:
  """Checks the fields above against the path.

  Raises:
    UserError: more steps than a discrete process has, more intermediate images than there are
      evaluations, intermediate images of `ode`, or noise levels that are out of order.
  """
  used = ['sample'] + ['eval.quick'] * (config.eval.every_steps is not None)
  for group in used:
    c, name = config[group], f'config.{group}'
    if c.sampler == 'ode':
      if c.intermediates:
        raise UserError(
          f'{name}.intermediates={c.intermediates}: the times of an adaptive solver are not known '
          f"before it runs; with {name}.sampler='ode', 0 is needed"
        )
      continue
    spacing = spacing_of(c.sampler, config.sample.spacing, path)
    if isinstance(path, Discrete) and c.steps > path.steps and spacing in BY_INDEX:
      raise UserError(
        f'{name}.steps={c.steps}: at most config.diffusion.steps={path.steps} is possible'
      )
    least = max(path.ratio(np.float64(path.t_last)), 0.002)
    if spacing == 'karras' and config.sample.sigma_max <= least:
      raise UserError(
        f'config.sample.sigma_max={config.sample.sigma_max:g}: more than {least:.2g} is needed, '
        'where samplers end'
      )
    taken = _rows(c, c.steps, config.sample.corrector_steps)
    if c.intermediates > taken:
      raise UserError(
        f'{name}.intermediates={c.intermediates}: the sampler takes {taken} steps, and at '
        'most that many images are possible'
      )


def _rows(c, steps: int, corrector_steps: int) -> int:
  """Evaluations of a sampler with `steps` times."""
  return {'heun': 2 * steps - 1, 'predictor_corrector': steps * (1 + corrector_steps)}.get(
    c.sampler, steps
  )


# --- By the settings of a config ----------------------------------------------------------------


def grid_of(c, path: Path) -> Grid:
  """The times that `c`, the group `sample` of a config, names; not for 'ode'."""
  return make_grid(path, c.steps, spacing_of(c.sampler, c.spacing, path), c.sigma_max)


def make_method(c, path: Path, guide: Callable | None = None) -> Method:
  """The sampler that `c`, the group `sample` of a config, names; not for 'ode'."""
  grid = grid_of(c, path)
  return {
    'ancestral': lambda: ancestral(grid, variance=c.variance, guide=guide),
    'ddim': lambda: ddim(grid, eta=c.eta),
    'dpm_solver_pp': lambda: dpm_solver_pp(grid, stochastic=c.stochastic, order=c.order),
    'heun': lambda: heun(grid, churn=c.churn, churn_range=c.churn_range, churn_noise=c.churn_noise),
    'euler_maruyama': lambda: euler_maruyama(grid),
    'predictor_corrector': lambda: predictor_corrector(
      grid, snr=c.snr, corrector_steps=c.corrector_steps
    ),
  }[c.sampler]()


def clipped(denoise: Denoise, path: Path) -> Denoise:
  """`denoise` with x_0 clipped to [-1, 1], and eps recomputed from it."""

  def clipping(x, t):
    x_0, _, variance = denoise(x, t)
    x_0 = jnp.clip(x_0, -1, 1)
    alpha, sigma = per_row(path.alpha(t), x.ndim), per_row(path.sigma(t), x.ndim)
    return Prediction(x_0, (x - alpha * x_0) / sigma, variance)

  return clipping


def clips(c) -> bool:
  """Whether the group `sample` of a config clips the predicted x_0."""
  return c.sampler == 'ancestral' if c.clip is None else c.clip


def start(path: Path, c) -> float:
  """The time at which the sampler of `c` starts."""
  if c.sampler == 'ode':
    return path.t_max
  return grid_of(c, path).t[0]


def noise(shape, rng, path: Path, c) -> jax.Array:
  """Standard normal [n, ...] times the standard deviation at the start of the path."""
  return np.float32(path.prior_std(start(path, c))) * draws.normal(rng, shape)


# --- Running a sampler --------------------------------------------------------------------------


def run(method: Method, denoise: Denoise, x, rng, keep: int = 0):
  """Runs a sampler from x [b, ...], noise of the standard deviation that `Path.prior_std` names.

  Args:
    method: the sampler on its grid.
    denoise: the net.
    x: float32 [b, ...].
    rng: key of the noise of all steps.
    keep: number of intermediate images to return.

  Returns:
    The samples [b, ...], and `keep` evenly spaced intermediate images, [keep, b, ...], including
    the last.
  """
  total = len(method.rows['t'])
  # slots[i]: the index of the image after row i; `keep`, out of bounds and dropped, for most.
  slots = np.full(total, keep, np.int32)
  slots[kept_rows(total, keep)] = np.arange(keep)
  rows = {
    name: jnp.asarray(value, bool if value.dtype == bool else jnp.float32)
    for name, value in method.rows.items()
  }

  def body(carry, scanned):
    x, memory, kept = carry
    slot, left, row = scanned
    noise = jax.random.normal(jax.random.fold_in(rng, left), x.shape) if method.noisy else None
    if method.before is not None:
      x = method.before(x, row, noise)
    prediction = denoise(x, jnp.full(len(x), row['t']))
    x, memory = method.step(x, memory, row, prediction, noise)
    return (x, memory, kept.at[slot].set(x, mode='drop') if keep else kept), None

  kept = jnp.zeros((keep, *x.shape), x.dtype)
  left = jnp.arange(total)[::-1]  # evaluations to come
  (x, _, kept), _ = jax.lax.scan(
    body, (x, jnp.zeros_like(x), kept), (jnp.asarray(slots), left, rows)
  )
  return x, kept


def kept_rows(total: int, keep: int) -> np.ndarray:
  """`keep` evenly spaced indices of `total`, the last one included: int [keep]."""
  return np.round(np.arange(1, keep + 1) * (total / max(keep, 1))).astype(int) - 1


def pictures(x, kept) -> dict:
  """What a system's `sample` returns: samples [n, ...] as 'image' and intermediate images
  [m, n, ...], if any, as 'trajectory' [n, m, ...], clipped to [-1, 1].
  """
  images = {'image': jnp.clip(x, -1, 1)}
  if len(kept):
    images['trajectory'] = jnp.clip(jnp.swapaxes(kept, 0, 1), -1, 1)
  return images
