"""The Gaussian diffusion process of Ho et al. 2020 (arXiv 2006.11239), in the paper's symbols.

    q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, beta_t I),  alpha_t = 1 - beta_t             (Eq. 2)
    q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I),  alpha_bar_t = prod alpha (Eq. 4)
    q(x_{t-1} | x_t, x_0) = N(mu_tilde_t(x_t, x_0), beta_tilde_t I)                         (Eq. 6)

Time is an index 0..T-1: index 0 is the paper's t = 1, the least noise, and alpha_bar_{-1} = 1.
Tables are computed in float64 on the host and stored as float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import fields
from gen_jax.diffusion.paths import Discrete, Prediction

_LINEAR = ('.schedule', ('linear',))

FIELDS = {
  'diffusion.steps': fields.integer(2, 100_000, default=1000, meaning='T'),
  'diffusion.schedule': fields.one_of(
    'linear', 'cosine', default='linear', meaning='schedule of beta over the T steps'
  ),
  'diffusion.beta_min': fields.number(
    above=0, below=1, default=1e-4, meaning='the first beta', when=_LINEAR
  ),
  'diffusion.beta_max': fields.number(
    above=0, below=1, default=0.02, meaning='the last beta', when=_LINEAR
  ),
}


class Process(NamedTuple):
  """Tables over the T time indices, each float32 [T]."""

  betas: jax.Array
  alphas: jax.Array
  alpha_bars: jax.Array
  alpha_bars_prev: jax.Array  # alpha_bar_{t-1}
  signal: jax.Array  # sqrt(alpha_bar)
  noise: jax.Array  # sqrt(1 - alpha_bar); from a float32 alpha_bar it would be inexact at small t
  posterior_variance: jax.Array  # beta_tilde
  posterior_coef_x0: jax.Array  # coefficient of x_0 in mu_tilde
  posterior_coef_xt: jax.Array  # coefficient of x_t in mu_tilde
  log_variance_large: jax.Array  # log of [beta_tilde_1, beta_1, ..., beta_{T-1}]
  log_variance_small: jax.Array  # log of [beta_tilde_1, beta_tilde_1, beta_tilde_2, ...]
  log_betas: jax.Array


def linear_betas(steps: int, beta_min: float, beta_max: float) -> np.ndarray:
  """beta_t linear from beta_min to beta_max: float64 [T].

  Ho et al. 2020 use 1e-4 to 0.02 in 1000 steps.
  """
  return np.linspace(beta_min, beta_max, steps, dtype=np.float64)


def cosine_betas(steps: int, offset: float = 0.008, beta_max: float = 0.999) -> np.ndarray:
  """alpha_bar_t = cos^2((t / T + s) / (1 + s) pi / 2),
  beta clipped to at most 0.999 (Nichol and Dhariwal 2021, Eq. 17).
  """
  f = np.cos((np.arange(steps + 1) / steps + offset) / (1 + offset) * np.pi / 2) ** 2
  return np.minimum(1 - f[1:] / f[:-1], beta_max)


def make_betas(config) -> np.ndarray:
  """The schedule that `config.diffusion` names: float64 [T]."""
  d = config.diffusion
  schedules = {
    'linear': lambda: linear_betas(d.steps, d.beta_min, d.beta_max),
    'cosine': lambda: cosine_betas(d.steps),
  }
  return schedules[d.schedule]()


def make_process(betas: np.ndarray) -> Process:
  """All tables that follow from the betas (float64 [T], each in (0, 1))."""
  betas = np.asarray(betas, np.float64)
  alphas = 1 - betas
  alpha_bars = np.cumprod(alphas)
  prev = np.append(1.0, alpha_bars[:-1])
  variance = betas * (1 - prev) / (1 - alpha_bars)
  # beta_tilde_0 is 0; the released code replaces it by beta_tilde_1, whose logarithm is finite.
  first = variance[min(1, len(betas) - 1)]
  tables = Process(
    betas=betas,
    alphas=alphas,
    alpha_bars=alpha_bars,
    alpha_bars_prev=prev,
    signal=np.sqrt(alpha_bars),
    noise=np.sqrt(1 - alpha_bars),
    posterior_variance=variance,
    posterior_coef_x0=betas * np.sqrt(prev) / (1 - alpha_bars),
    posterior_coef_xt=np.sqrt(alphas) * (1 - prev) / (1 - alpha_bars),
    log_variance_large=np.log(np.append(first, betas[1:])),
    log_variance_small=np.log(np.append(first, variance[1:])),
    log_betas=np.log(betas),
  )
  return Process(*(np.asarray(table, np.float32) for table in tables))


def build_process(config) -> Process:
  """The tables of `config.diffusion`."""
  return make_process(make_betas(config))


def make_path(betas: np.ndarray) -> Discrete:
  """The path of the betas (float64 [T])."""
  return Discrete(np.cumprod(1 - np.asarray(betas, np.float64)))


def at(table, t, ndim: int) -> jax.Array:
  """table[t] for t int32 [b], as [b, 1, ..., 1] to broadcast to an array with `ndim` dimensions."""
  return jnp.asarray(table)[t].reshape(-1, *[1] * (ndim - 1))


def q_sample(process: Process, x_0, t, eps) -> jax.Array:
  """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (Eq. 4);
  x_0 and eps [b, ...], t int32 [b].
  """
  return at(process.signal, t, x_0.ndim) * x_0 + at(process.noise, t, x_0.ndim) * eps


def p_mean_variance(prediction: Prediction, x_t, t, process: Process, *, variance: str, clip: bool):
  """Mean and log variance of p(x_{t-1} | x_t), both [b, ...] or broadcast against it, as in the
  released code.

  Args:
    prediction: of the net for x_t and t.
    x_t: [b, ...].
    t: int32 [b].
    process: tables of the T steps.
    variance: 'large' (sigma_t^2 = beta_t), 'small' (beta_tilde_t), or 'learned' (Nichol and
      Dhariwal 2021, Eq. 15): the logarithm is between those of the two.
    clip: clip the predicted x_0 to [-1, 1].
  """
  x_0 = jnp.clip(prediction.x_0, -1, 1) if clip else prediction.x_0
  large, small = (
    at(log_variance, t, x_t.ndim)
    for log_variance in (process.log_variance_large, process.log_variance_small)
  )
  log_variance = {'large': large, 'small': small}.get(variance)
  if variance == 'learned':
    share = (prediction.variance + 1) / 2
    log_variance = share * at(process.log_betas, t, x_t.ndim) + (1 - share) * small
  return posterior_mean(process, x_0, x_t, t), log_variance


def posterior_mean(process: Process, x_0, x_t, t) -> jax.Array:
  """mu_tilde_t(x_t, x_0), the mean of q(x_{t-1} | x_t, x_0) (Eq. 7). Shapes as in `q_sample`."""
  coef_x0 = at(process.posterior_coef_x0, t, x_t.ndim)
  coef_xt = at(process.posterior_coef_xt, t, x_t.ndim)
  return coef_x0 * x_0 + coef_xt * x_t
