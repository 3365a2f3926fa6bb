"""DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095)."""

import numpy as np

from gen_jax.diffusion.grids import Grid, steps_of
from gen_jax.diffusion.method import Method


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
