"""What a sampler with a fixed number of steps is: coefficients for each evaluation of the net, and
what a step does with them.

A sampler visits the times of a grid and ends at alpha = 1, sigma = 0 with the predicted x_0,
without noise. In all samplers x is at a time t with (alpha, sigma), and goes to (a, s), the values
at the next time. Coefficients are computed in float64 on the host; `samplers.run` makes the whole
trajectory one `lax.scan` over evaluations of the net.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gen_jax.diffusion.grids import Grid


class Method(NamedTuple):
  """A sampler on a grid: one row of coefficients for each evaluation of the net."""

  rows: dict[str, np.ndarray]  # [evaluations] each; 't' is the time that the net is told
  # (x, memory, row, prediction, noise) -> (x, memory); memory has the shape of x.
  step: Callable
  noisy: bool  # whether steps use noise
  before: Callable | None = None  # (x, row, noise) -> x, what the net is given


LAST = {'x': 0.0, 'x_0': 1.0, 'eps': 0.0, 'noise': 0.0}  # the step to alpha = 1, sigma = 0


def linear(grid: Grid, x, x_0, eps, noise) -> Method:
  """x' = x X + x_0 X_0 + eps E + noise S; coefficients [N], whose last row is replaced by the
  prediction of x_0.
  """
  rows = {'x': x, 'x_0': x_0, 'eps': eps, 'noise': noise}
  rows = {k: np.append(np.broadcast_to(v, len(grid.t))[:-1], LAST[k]) for k, v in rows.items()}

  def step(x, memory, row, prediction, noise):
    x = row['x'] * x + row['x_0'] * prediction.x_0 + row['eps'] * prediction.eps
    return x + row['noise'] * noise if noisy else x, memory

  noisy = bool(np.any(rows['noise']))
  return Method({'t': grid.t, **rows}, step, noisy)
