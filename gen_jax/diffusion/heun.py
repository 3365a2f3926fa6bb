"""The sampler of EDM (Karras, Aittala, Aila and Laine 2022, arXiv 2206.00364), for any path."""

import jax.numpy as jnp
import numpy as np

from gen_jax.diffusion.grids import Grid, steps_of
from gen_jax.diffusion.method import Method


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
