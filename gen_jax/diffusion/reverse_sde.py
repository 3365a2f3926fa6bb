"""Samplers of the reverse SDE (Song et al. 2021, arXiv 2011.13456), for any path."""

import jax.numpy as jnp
import numpy as np

from gen_jax.diffusion.grids import Grid, steps_of
from gen_jax.diffusion.method import LAST, Method, linear


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
  return linear(
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
  for name, last in LAST.items():
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
