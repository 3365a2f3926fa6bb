r"""Gaussian paths from data to noise, the one notation of the diffusion, score and flow family:

    x_t = alpha_t x_0 + sigma_t eps,  eps ~ N(0, I)

t = 0 is data, t = t_max is noise. The path is the marginal of the linear SDE

    dx = f(t) x dt + g(t) dw,  f = alpha' / alpha,  g^2 = 2 sigma sigma' - 2 f sigma^2

(Song et al. 2021, arXiv 2011.13456; Kingma et al. 2021, arXiv 2107.00630, for any alpha and sigma),
and of the probability-flow ODE dx/dt = alpha' x_0 + sigma' eps, in which x_0 and eps are the
predictions for x_t.

All paths are one path at other speeds and scales: x / alpha is data plus noise of standard
deviation sigma / alpha (Karras et al. 2022, arXiv 2206.00364, appendix C). So a net trained on one
path predicts on another, at the time where the ratio sigma / alpha is the same (`denoise_on`).

Functions of t take floats and NumPy arrays, computed in float64, or JAX arrays.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Prediction(NamedTuple):
  """What a net says of x = alpha x_0 + sigma eps, [b, ...] each."""

  x_0: jax.Array
  eps: jax.Array
  # The logarithm of the variance of p(x_{t-1} | x_t), where the net learns it: 1 is the larger of
  # its bounds, -1 the smaller (see `samplers.ancestral`).
  variance: jax.Array | None = None


# A net as samplers, likelihoods and guidance see it: x [b, ...] and t float32 [b], in the time of a
# path, to a `Prediction`.
Denoise = Callable[[jax.Array, jax.Array], Prediction]


def _lib(t):
  return jnp if isinstance(t, jax.Array) else np


def per_row(value, ndim: int) -> jax.Array:
  """[b] as [b, 1, ..., 1], to broadcast to an array with `ndim` dimensions."""
  return jnp.asarray(value).reshape(-1, *[1] * (ndim - 1))


@dataclasses.dataclass(frozen=True)
class Path:
  """A path; see the module. Subclasses define the methods that raise here."""

  t_min = 1e-5  # the least time of training and of likelihoods
  t_last = 1e-3  # the last time at which samplers evaluate a net
  t_max = 1.0

  def alpha(self, t):
    """Factor of the data."""
    raise NotImplementedError

  def sigma(self, t):
    """Standard deviation of the noise."""
    raise NotImplementedError

  def derivatives(self, t):
    """alpha' and sigma'."""
    raise NotImplementedError

  def time_of(self, ratio):
    """The time at which sigma / alpha is `ratio`; inf where alpha is 0."""
    raise NotImplementedError

  def ratio(self, t):
    """sigma / alpha, the noise of x / alpha."""
    return _lib(t).divide(self.sigma(t), self.alpha(t))

  def drift(self, t):
    """f of the SDE."""
    return self.derivatives(t)[0] / self.alpha(t)

  def diffusion_squared(self, t):
    """g^2 of the SDE."""
    (d_alpha, d_sigma), sigma = self.derivatives(t), self.sigma(t)
    return 2 * sigma * d_sigma - 2 * d_alpha / self.alpha(t) * sigma**2

  def prior_std(self, t) -> float:
    """The standard deviation of Gaussian noise from which samplers start at time t."""
    return self.sigma(t)


def add_noise(path: Path, x_0, t, eps) -> jax.Array:
  """x_t of x_0 and eps [b, ...] at t float32 [b]."""
  alpha, sigma = (per_row(a(t), x_0.ndim) for a in (path.alpha, path.sigma))
  return alpha * x_0 + sigma * eps


# --- The paths ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class VP(Path):
  """Variance preserving (Song et al. 2021, Eq. 11 and 32): alpha^2 + sigma^2 = 1, beta linear."""

  beta_min: float = 0.1
  beta_max: float = 20.0

  def log_alpha(self, t):
    """-1/4 t^2 (beta_max - beta_min) - 1/2 t beta_min."""
    return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

  def alpha(self, t):
    return _lib(t).exp(self.log_alpha(t))

  def sigma(self, t):
    return _lib(t).sqrt(-_lib(t).expm1(2 * self.log_alpha(t)))

  def derivatives(self, t):
    beta = self.beta_min + t * (self.beta_max - self.beta_min)
    alpha = self.alpha(t)
    return -0.5 * beta * alpha, 0.5 * beta * alpha**2 / self.sigma(t)

  def time_of(self, ratio):
    return self._time_of_log_alpha(-0.5 * _lib(ratio).log1p(ratio**2))

  def _time_of_log_alpha(self, log_alpha):
    a, b = 0.25 * (self.beta_max - self.beta_min), 0.5 * self.beta_min
    return -2 * log_alpha / (b + _lib(log_alpha).sqrt(b**2 - 4 * a * log_alpha))

  def prior_std(self, t):
    return 1.0


@dataclasses.dataclass(frozen=True)
class SubVP(VP):
  """sub-VP (Song et al. 2021, Eq. 13 and 34): the drift of VP, sigma = 1 - alpha^2."""

  def sigma(self, t):
    return -_lib(t).expm1(2 * self.log_alpha(t))

  def derivatives(self, t):
    d_alpha, _ = super().derivatives(t)
    return d_alpha, -2 * self.alpha(t) * d_alpha

  def time_of(self, ratio):  # 1 / alpha - alpha = ratio
    return self._time_of_log_alpha(-_lib(ratio).arcsinh(ratio / 2))

  def prior_std(self, t):
    return self.sigma(t)


@dataclasses.dataclass(frozen=True)
class VE(Path):
  """Variance exploding (Song et al. 2021, Eq. 9 and 30): alpha = 1, sigma geometric in t."""

  sigma_min: float = 0.02
  sigma_max: float = 100.0
  t_last = 1e-5

  def alpha(self, t):
    return _lib(t).ones_like(t)

  def sigma(self, t):
    return self.sigma_min * _lib(t).exp(self._rate * t)

  def derivatives(self, t):
    return _lib(t).zeros_like(t), self._rate * self.sigma(t)

  def time_of(self, ratio):
    return _lib(ratio).log(ratio / self.sigma_min) / self._rate

  @property
  def _rate(self):
    return math.log(self.sigma_max / self.sigma_min)


@dataclasses.dataclass(frozen=True)
class EDM(Path):
  """alpha = 1, sigma = t (Karras et al. 2022, table 1)."""

  sigma_min: float = 0.002
  sigma_max: float = 80.0

  t_min = t_last = property(lambda self: self.sigma_min)
  t_max = property(lambda self: self.sigma_max)

  def alpha(self, t):
    return _lib(t).ones_like(t)

  def sigma(self, t):
    return t

  def derivatives(self, t):
    return _lib(t).zeros_like(t), _lib(t).ones_like(t)

  def time_of(self, ratio):
    return ratio


@dataclasses.dataclass(frozen=True)
class Linear(Path):
  """alpha = 1 - t, sigma = t: the straight path of flow matching (Lipman et al. 2023, arXiv
  2210.02747) and rectified flow (Liu et al. 2023, arXiv 2209.03003), t = 1 being noise.
  """

  def alpha(self, t):
    return 1 - t

  def sigma(self, t):
    return t

  def derivatives(self, t):
    return -_lib(t).ones_like(t), _lib(t).ones_like(t)

  def time_of(self, ratio):
    return ratio / (1 + ratio)


@dataclasses.dataclass(frozen=True, eq=False)
class Discrete(Path):
  """The T steps of DDPM, at t = 0, 1, ..., T - 1; between them log alpha is linear in t, as in
  DPM-Solver (Lu et al. 2022, arXiv 2206.00927, appendix D).
  """

  alpha_bars: np.ndarray  # float64 [T]

  t_min = t_last = 0.0
  t_max = property(lambda self: self.steps - 1.0)

  def __eq__(self, other):
    return isinstance(other, Discrete) and np.array_equal(self.alpha_bars, other.alpha_bars)

  __hash__ = None

  @property
  def steps(self) -> int:
    """T."""
    return len(self.alpha_bars)

  def _log_alpha(self, t):
    lib, table = _lib(t), 0.5 * np.log(self.alpha_bars)
    if lib is jnp:
      table = table.astype(np.float32)
    return lib.interp(t, lib.arange(self.steps, dtype=table.dtype), table)

  def alpha(self, t):
    return _lib(t).exp(self._log_alpha(t))

  def sigma(self, t):
    return _lib(t).sqrt(-_lib(t).expm1(2 * self._log_alpha(t)))

  def derivatives(self, t):  # at an index, of the step back from it
    lib, slopes = _lib(t), np.diff(0.5 * np.log(self.alpha_bars))
    index = lib.clip(lib.ceil(t) - 1, 0, self.steps - 2).astype('int32')
    slope, alpha = lib.asarray(slopes)[index], self.alpha(t)
    return slope * alpha, -slope * alpha**2 / self.sigma(t)

  def time_of(self, ratio):
    lib, table = _lib(ratio), -0.5 * np.log(self.alpha_bars)
    if lib is jnp:
      table = table.astype(np.float32)
    where = lib.arange(self.steps, dtype=table.dtype)
    return lib.interp(0.5 * lib.log1p(ratio**2), table, where)

  def prior_std(self, t):
    return 1.0


def denoise_on(path: Path, denoise: Denoise, trained_on: Path) -> Denoise:
  """A net trained on one path as a function of x and t of another one, `path`: the same ratio
  sigma / alpha, and x scaled by the ratio of the alphas. Beyond the times of training it is told
  the first or last of them, and x has the spread that data of variance 1 would have there.
  """
  if path == trained_on:
    return denoise

  def on_path(x, t):
    alpha, sigma = path.alpha(t), path.sigma(t)
    ratio = sigma / jnp.where(alpha > 0, alpha, 1.0)
    other = jnp.where(alpha > 0, trained_on.time_of(ratio), trained_on.t_max)
    other = jnp.clip(other, trained_on.t_min, trained_on.t_max)
    # For equal ratios this is the ratio of the alphas; it is finite where alpha is 0.
    scale = jnp.hypot(trained_on.alpha(other), trained_on.sigma(other)) / jnp.hypot(alpha, sigma)
    return denoise(x * per_row(scale, x.ndim), other)

  return on_path
