"""The samplers of DDPM (Ho, Jain and Abbeel 2020, arXiv 2006.11239) and DDIM (Song, Meng and Ermon
2020, arXiv 2010.02502), for any path.

Both replace x_0 by its prediction in q(x_s | x_t, x_0), the distribution of a less noisy x_s: DDPM
in that of its process, DDIM in one with any variance up to it, and 0 by default.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from gen_jax.diffusion.grids import Grid, steps_of
from gen_jax.diffusion.method import Method, linear


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
  return linear(grid, 0.0, c.a, np.sqrt(np.maximum(c.s**2 - std**2, 0)), std)
