r"""Samplers: each turns noise into data with a function `denoise(x, t)` (`paths.Denoise`), whatever
path the net was trained on and whatever it predicts.

A sampler visits times t_0 > t_1 > ... > t_{N-1} (gen_jax.diffusion.grids) and ends at alpha = 1,
sigma = 0 with the predicted x_0, without noise. Below, x is at t with (alpha, sigma), and goes to
(a, s), the values at the next time. Coefficients are computed in float64 on the host; the whole
trajectory is one `lax.scan` over evaluations of the net.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import draws, fields
from gen_jax.diffusion.grids import BY_INDEX, SPACINGS, Grid, make_grid, spacing_of
from gen_jax.diffusion.paths import Denoise, Discrete, Path, Prediction, per_row
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


# --- Samplers with a fixed number of steps --------------------------------------------------------


class Method(NamedTuple):
  """A sampler on a grid: one row of coefficients for each evaluation of the net."""

  rows: dict[str, np.ndarray]  # [evaluations] each; 't' is the time that the net is told
  # (x, memory, row, prediction, noise) -> (x, memory); memory has the shape of x.
  step: Callable
  noisy: bool  # whether steps use noise
  before: Callable | None = None  # (x, row, noise) -> x, what the net is given


_LAST = {'x': 0.0, 'x_0': 1.0, 'eps': 0.0, 'noise': 0.0}  # the step to alpha = 1, sigma = 0


def _linear(grid: Grid, x, x_0, eps, noise) -> Method:
  """x' = x X + x_0 X_0 + eps E + noise S; coefficients [N], whose last row is replaced by the
  prediction of x_0.
  """
  rows = {'x': x, 'x_0': x_0, 'eps': eps, 'noise': noise}
  rows = {k: np.append(np.broadcast_to(v, len(grid.t))[:-1], _LAST[k]) for k, v in rows.items()}

  def step(x, memory, row, prediction, noise):
    x = row['x'] * x + row['x_0'] * prediction.x_0 + row['eps'] * prediction.eps
    return x + row['noise'] * noise if noisy else x, memory

  noisy = bool(np.any(rows['noise']))
  return Method({'t': grid.t, **rows}, step, noisy)


class Steps(NamedTuple):
  """Each step of a grid, float64 [N]: from (alpha, sigma) at t to (a, s)."""

  alpha: np.ndarray
  sigma: np.ndarray
  a: np.ndarray
  s: np.ndarray

  @property
  def variance(self):
    """Of q(x_t | x_s); for DDPM beta_t."""
    return np.maximum(self.sigma**2 - (self.alpha / self.a * self.s) ** 2, 0)

  @property
  def posterior_variance(self):
    """Of q(x_s | x_t, x_0); for DDPM beta tilde_t."""
    return self.variance * self.s**2 / self.sigma**2


def steps_of(grid: Grid) -> Steps:
  """The steps of a grid."""
  return Steps(grid.alpha[:-1], grid.sigma[:-1], grid.alpha[1:], grid.sigma[1:])


def ancestral(grid: Grid, *, variance: str = 'large', guide: Callable | None = None) -> Method:
  """Ancestral sampling (Ho et al. 2020, Algorithm 2, for any times and path; Song et al. 2021,
  appendix F): the mean of q(x_s | x_t, x_0) at the predicted x_0 plus noise.

  Args:
    grid: the times.
    variance: 'large', 'small' or 'learned' (Nichol and Dhariwal 2021, arXiv 2102.09672, Eq. 15: the
      logarithm is between those of the two).
    guide: maps x and t to the scaled gradient of a classifier, see `guidance`.
  """
  c = steps_of(grid)
  large, small = c.variance, c.posterior_variance
  rows = {
    't': grid.t,
    'x': (c.alpha / c.a) * c.s**2 / c.sigma**2,
    'x_0': c.a * large / c.sigma**2,
    'std': np.sqrt(small if variance == 'small' else large),
    # The variances are 0 between equal times, the small one at the end as well.
    'log_large': np.log(np.maximum(large, 1e-300)),
    'log_small': np.log(np.maximum(small, 1e-300)),
    'go': c.s > 0,
  }

  def step(x, memory, row, prediction, noise):
    mean = row['x'] * x + row['x_0'] * prediction.x_0
    std = row['std']
    if variance == 'learned':
      share = (prediction.variance + 1) / 2
      std = jnp.exp(0.5 * (share * row['log_large'] + (1 - share) * row['log_small']))
    if guide is not None:  # Dhariwal and Nichol 2021, Algorithm 1
      mean += std**2 * guide(x, jnp.full(len(x), row['t']))
    return jnp.where(row['go'], mean + std * noise, mean), memory

  return Method(rows, step, noisy=True)


def ddim(grid: Grid, *, eta: float = 0.0) -> Method:
  """DDIM (Song, Meng and Ermon 2020, Eq. 12 and 16, for any path):

  x_s = a x_0 + sqrt(s^2 - std^2) eps + std noise,  std^2 = eta^2 times the posterior variance
  """
  c = steps_of(grid)
  std = eta * np.sqrt(c.posterior_variance)
  return _linear(grid, 0.0, c.a, np.sqrt(np.maximum(c.s**2 - std**2, 0)), std)


def dpm_solver_pp(grid: Grid, *, stochastic: bool = False, order: int = 2) -> Method:
  """DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095): exact in x, with x_0 extrapolated linearly in
  lambda = log(alpha / sigma) from this and the last evaluation (2M), or constant (order 1, DDIM).

    x_s = (s / sigma) x - a (e^{-h} - 1) D                        Algorithm 2, h the step of lambda
    x_s = (s / sigma) e^{-h} x + a (1 - e^{-2h}) D + s sqrt(1 - e^{-2h}) noise       the SDE form
    D = x_0 + (x_0 - the last x_0) h / (2 h_last)

  The first step, the last, and any from alpha = 0 have order 1.
  """
  c = steps_of(grid)
  with np.errstate(divide='ignore', invalid='ignore'):
    h = np.diff(np.log(grid.alpha) - np.log(grid.sigma))  # exactly 0 between equal times
    w = np.append(0.0, h[1:] / (2 * h[:-1])) * (order == 2)
  w = np.where(np.isfinite(w), w, 0.0)
  if stochastic:
    gain = -np.expm1(-2 * h)
    x, x_0, std = c.s / c.sigma * np.exp(-h), c.a * gain, c.s * np.sqrt(gain)
  else:
    x, x_0, std = c.s / c.sigma, c.a * -np.expm1(-h), np.zeros_like(h)
  rows = {'t': grid.t, 'x': x, 'x_0': x_0, 'w': w, 'noise': std}

  def step(x, last, row, prediction, noise):
    now = prediction.x_0
    x = row['x'] * x + row['x_0'] * (now + row['w'] * (now - last))
    return x + row['noise'] * noise if stochastic else x, now

  return Method(rows, step, noisy=stochastic)


def heun(
  grid: Grid, *, churn: float = 0.0, churn_range=(0.0, np.inf), churn_noise: float = 1.0
) -> Method:
  """The sampler of EDM (Karras et al. 2022, Algorithms 1 and 2): Heun's method in sigma / alpha for
  x / alpha, whose slope is eps, after noise that raises sigma / alpha by a factor 1 + gamma.

  Two evaluations in each step; one, Euler's method, in the last and in one from alpha = 0.
  """
  c, n = steps_of(grid), len(grid.t)
  with np.errstate(divide='ignore'):
    ratio = c.sigma / c.alpha
  inside = (churn_range[0] <= ratio) & (ratio <= churn_range[1]) & np.isfinite(ratio)
  gamma = np.where(inside, min(churn / n, np.sqrt(2) - 1), 0.0)
  raised = np.where(np.isfinite(ratio), ratio * (1 + gamma), 0.0)
  t = np.where(gamma > 0, grid.path.time_of(raised), grid.t)
  with np.errstate(divide='ignore'):  # a discrete process has a last time
    raised = np.where(gamma > 0, grid.path.ratio(t), raised)
  alpha = np.where(gamma > 0, grid.path.alpha(t), c.alpha)
  safe = np.where(c.alpha > 0, c.alpha, 1.0)
  scale = np.where(gamma > 0, alpha / safe, 1.0)
  added = (
    alpha
    * churn_noise
    * np.sqrt(np.maximum(raised**2 - ratio**2, 0, where=gamma > 0, out=np.zeros(n)))
  )
  # x_s = (a / alpha) x + (s - (a / alpha) sigma) slope, as a correction of Euler's x_s.
  sigma = np.where(gamma > 0, alpha * raised, c.sigma)
  half = np.where(alpha > 0, 0.5 * (c.s - c.a * sigma / np.where(alpha > 0, alpha, 1.0)), 0.0)

  def rows_of(first, second):  # interleaved, without the second evaluation of the last step
    return np.stack([first, second], 1).reshape(-1)[:-1]

  following, zeros = np.append(grid.t[1:], 0.0), np.zeros(n)
  rows = {
    't': rows_of(t, following),
    'first': rows_of(np.ones(n, bool), np.zeros(n, bool)),
    'scale': rows_of(scale, np.ones(n)),
    'added': rows_of(added, zeros),
    'a': rows_of(c.a, zeros),
    's': rows_of(c.s, zeros),
    'half': rows_of(zeros, half),
  }

  def before(x, row, noise):
    return row['scale'] * x + row['added'] * noise if churn else x

  def step(x, slope, row, prediction, noise):
    euler = row['a'] * prediction.x_0 + row['s'] * prediction.eps
    x = jnp.where(row['first'], euler, x + row['half'] * (prediction.eps - slope))
    return x, jnp.where(row['first'], prediction.eps, slope)

  return Method(rows, step, noisy=bool(churn), before=before)


def euler_maruyama(grid: Grid) -> Method:
  """Euler and Maruyama's method for the reverse SDE (Song et al. 2021, Eq. 6), in the time of the
  path:

    x_s = x - (f x - g^2 score) dt + g sqrt(dt) noise,  score = -eps / sigma

  Where alpha is 0 the SDE is singular, and the step is one of DDIM.
  """
  path, t = grid.path, grid.t
  dt = np.append(t[:-1] - t[1:], 0.0)
  c = steps_of(grid)
  with np.errstate(divide='ignore', invalid='ignore'):
    f, g_squared = path.drift(t), path.diffusion_squared(t)
  regular = c.alpha > 0
  f, g_squared = np.where(regular, f, 0.0), np.where(regular, g_squared, 0.0)
  return _linear(
    grid,
    np.where(regular, 1 - f * dt, 0.0),
    np.where(regular, 0.0, c.a),
    np.where(regular, -g_squared / c.sigma * dt, c.s),
    np.sqrt(g_squared * dt),
  )


def predictor_corrector(grid: Grid, *, snr: float = 0.16, corrector_steps: int = 1) -> Method:
  """Predictor-corrector sampling (Song et al. 2021, Algorithm 1 and appendix G): at each time,
  Langevin steps (Algorithms 4 and 5), then a step of the reverse diffusion (Eq. 46):

    x <- x + e score + sqrt(2 e) noise,  e = 2 r^2 alpha_{t|s}^2 (||noise|| / ||score||)^2
    x_s = (2 - alpha_{t|s}) x + (the variance of q(x_t | x_s)) score + its root times noise

  with alpha_{t|s} = alpha / a; from alpha = 0, a step of DDIM. The norms are means over the batch,
  as in the released code: a sample depends on the others.
  """
  c, n = steps_of(grid), len(grid.t)
  ratio = c.alpha / c.a
  regular = c.alpha > 0
  once = dict(
    t=grid.t,
    sigma=c.sigma,
    step=2 * (snr * ratio) ** 2,
    x=np.where(regular, 2 - ratio, 0.0),
    x_0=np.where(regular, 0.0, c.a),
    eps=np.where(regular, -c.variance / c.sigma, c.s),
    noise=np.where(regular, np.sqrt(c.variance), 0.0),
  )
  for name, last in _LAST.items():
    once[name][-1] = last
  rows = {name: np.repeat(value, corrector_steps + 1) for name, value in once.items()}
  rows['correct'] = np.tile(np.append(np.ones(corrector_steps, bool), False), n)

  def norm(x):
    return jnp.sqrt(jnp.sum(x.reshape(len(x), -1) ** 2, axis=-1)).mean()

  def step(x, memory, row, prediction, noise):
    score = -prediction.eps / row['sigma']
    e = row['step'] * (norm(noise) / norm(score)) ** 2
    corrected = x + e * score + jnp.sqrt(2 * e) * noise
    predicted = row['x'] * x + row['x_0'] * prediction.x_0 + row['eps'] * prediction.eps
    predicted += row['noise'] * noise
    return jnp.where(row['correct'], corrected, predicted), memory

  return Method(rows, step, noisy=True)


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


# --- By the settings of a config ------------------------------------------------------------------


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
