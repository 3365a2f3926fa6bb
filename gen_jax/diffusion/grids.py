"""The times at which samplers evaluate a net."""

from typing import NamedTuple

import numpy as np

from gen_jax.diffusion.paths import EDM, Discrete, Linear, Path

BY_INDEX = ('uniform', 'even', 'quadratic', 'trailing')  # of the times of a discrete process
SPACINGS = (*BY_INDEX, 'karras', 'logsnr')


class Grid(NamedTuple):
  """The times of a sampler, descending float64 [N], and alpha and sigma [N + 1] at these and, last,
  at the end: 1 and 0.
  """

  path: Path
  t: np.ndarray
  alpha: np.ndarray
  sigma: np.ndarray


def spacing_of(sampler: str, spacing: str, path: Path) -> str:
  """The spacing that 'auto' is, for a sampler on a path."""
  if spacing != 'auto':
    return spacing
  own = {'heun': 'karras', 'dpm_solver_pp': 'logsnr'}
  return own.get(sampler) or {EDM: 'karras', Linear: 'trailing'}.get(type(path), 'uniform')


def make_grid(path: Path, steps: int | None, spacing: str, sigma_max: float = 80.0) -> Grid:
  """N = `steps` times on a path; None: all of a discrete process.

  `uniform` and `quadratic` on a discrete process as Song, Meng and Ermon 2020 (arXiv 2010.02502,
  appendix D.2), `trailing` as Lin et al. 2023 (arXiv 2305.08891, table 2), `karras` as Karras et
  al. 2022 (Eq. 5, rho = 7), `logsnr` as Lu et al. 2022. A single step takes the last time, as its
  input is pure noise.
  """
  if isinstance(path, Discrete) and spacing in BY_INDEX:
    t = discrete_times(path.steps, steps or path.steps, spacing)[::-1].astype(np.float64)
  elif spacing == 'trailing':
    t = path.t_max * (1 - np.arange(steps) / steps)
  elif spacing in ('uniform', 'even'):
    t = np.linspace(path.t_max, path.t_last, steps)
  elif spacing == 'quadratic':
    t = np.linspace(path.t_max**0.5, path.t_last**0.5, steps) ** 2
  else:
    n, last, first = steps or path.steps, path.ratio(path.t_last), sigma_max
    if spacing == 'karras':  # the paper's sigma_min; also that of flow matching's released code
      last = max(last, 0.002)
    with np.errstate(divide='ignore'):
      most = path.ratio(np.float64(path.t_max))
    first = min(first, most) if spacing == 'karras' or np.isinf(most) else most
    if spacing == 'karras':
      ratio = np.linspace(first ** (1 / 7), last ** (1 / 7), n) ** 7
    else:
      ratio = np.geomspace(first, last, n)
    t = path.time_of(ratio)
  return Grid(path, t, np.append(path.alpha(t), 1.0), np.append(path.sigma(t), 0.0))


def discrete_times(total: int, steps: int, spacing: str) -> np.ndarray:
  """Time indices of `total`, ascending int32 [steps].

  'uniform' takes floor(i total / steps) for i = 0, 1, ...; 'quadratic' squares an even grid up to
  sqrt(0.8 total), as the released code of DDIM does, and repeats small indices for many steps;
  'even' has the first and the last index, as the released code of Improved DDPM;
  'trailing' counts back from the last index. With any, a single step takes the last time.
  """
  if steps == 1:
    return np.array([total - 1], np.int32)
  if spacing == 'uniform':
    return (np.arange(steps) * total // steps).astype(np.int32)
  if spacing == 'even':
    strides = np.full(steps - 1, (total - 1) / (steps - 1))
    return np.round(np.cumsum(np.append(0, strides))).astype(np.int32)  # which rounds as theirs
  if spacing == 'trailing':
    return (np.round(np.arange(total, 0, -total / steps))[:steps][::-1] - 1).astype(np.int32)
  return (np.linspace(0, np.sqrt(total * 0.8), steps) ** 2).astype(np.int32)


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
