"""Samplers: each turns noise into data with a function `eps(x, t)` that predicts the noise in x.

All have one signature, `sampler(eps, x, rng, process, ..., keep=0) -> (x_0, kept)`: `x` is the
starting noise [b, ...], and `kept` holds `keep` evenly spaced intermediate images, [keep, b, ...],
including the last one. The whole trajectory is one `lax.scan`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import draws, fields
from gen_jax.diffusion.guidance import guided_eps, guided_mean
from gen_jax.diffusion.process import Process, p_mean_variance
from gen_jax.errors import UserError

_DDIM = dict(when=('.sampler', ('ddim',)))
_SAMPLER = functools.partial(fields.one_of, 'ancestral', 'ddim')

FIELDS = {
  'sample.sampler': _SAMPLER(
    default='ancestral', smoke='ddim', meaning='ancestral (DDPM, all T steps) or ddim'
  ),
  'sample.variance': fields.one_of(
    'large',
    'small',
    default='large',
    meaning='variance of ancestral steps and of the bound: beta_t or the posterior beta tilde_t',
    when=('.sampler', ('ancestral',)),
  ),
  'sample.steps': fields.integer(
    1,
    default=50,
    smoke=5,
    meaning='S, evaluations of the net: exactly S, even where S does not divide T (the released '
    "code's uniform spacing takes more); S = 1 takes the last time (the released code the first)",
    **_DDIM,
  ),
  'sample.spacing': fields.one_of(
    'uniform',
    'quadratic',
    default='uniform',
    meaning='spacing of the S times: floor(i T / S) (the released code: every floor(T / S)-th) or '
    'squares',
    **_DDIM,
  ),
  'sample.eta': fields.number(
    0, 1, default=0.0, meaning='0: deterministic, 1: as random as ancestral sampling', **_DDIM
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
  # For quick evaluations, instead of `sample.*`.
  'eval.quick.sampler': _SAMPLER(default='ddim', meaning='sampler of quick evaluations'),
  'eval.quick.steps': fields.integer(
    1, default=20, smoke=5, meaning='sample.steps in quick evaluations', **_DDIM
  ),
  'eval.quick.intermediates': fields.integer(
    0, default=0, meaning='sample.intermediates in quick evaluations', protocol=False
  ),
}


def check(config) -> None:
  """Checks the fields above against config.diffusion.steps.

  Raises:
    UserError: more steps or intermediate images than the process has steps.
  """
  total = config.diffusion.steps
  used = ['sample'] + ['eval.quick'] * (config.eval.every_steps is not None)
  for group in used:
    c = config[group]
    if c.steps > total:
      raise UserError(
        f'config.{group}.steps={c.steps}: at most config.diffusion.steps={total} is possible'
      )
    taken = total if c.sampler == 'ancestral' else c.steps
    if c.intermediates > taken:
      raise UserError(
        f'config.{group}.intermediates={c.intermediates}: the sampler takes {taken} steps, and at '
        'most that many images are possible'
      )


def evaluations(config) -> int:
  """Number of forward passes of the net for one sample."""
  c = config.sample
  return config.diffusion.steps if c.sampler == 'ancestral' else c.steps


def sample(eps: Callable, shape, rng, process: Process, c, guide: Callable | None = None) -> dict:
  """Samples with the sampler and settings of `c`, the group `sample` of a config.

  Args:
    eps, process, guide: as in `ancestral`.
    shape: (n, ...) of the samples.
    rng: key of all noise.
    c: config.sample, with the fields above.

  Returns:
    {'image': float32 [n, ...] in [-1, 1]}, and with c.intermediates = m also 'trajectory'
    [n, m, ...], evenly spaced images from noise to data.
  """
  noise_key, steps_key = jax.random.split(rng)
  x = draws.normal(noise_key, shape)
  sampler = {
    'ancestral': functools.partial(ancestral, variance=c.variance),
    'ddim': functools.partial(ddim, steps=c.steps, spacing=c.spacing, eta=c.eta),
  }[c.sampler]
  clip = c.sampler == 'ancestral' if c.clip is None else c.clip
  x, kept = sampler(eps, x, steps_key, process, clip=clip, keep=c.intermediates, guide=guide)
  images = {'image': jnp.clip(x, -1, 1)}
  if c.intermediates:
    images['trajectory'] = jnp.clip(jnp.swapaxes(kept, 0, 1), -1, 1)
  return images


def ancestral(
  eps: Callable,
  x,
  rng,
  process: Process,
  *,
  variance: str = 'large',
  clip: bool = True,
  keep: int = 0,
  guide: Callable | None = None,
):
  """Ancestral sampling (Ho et al. 2020, Algorithm 2, with x_0 clipped as in the released code).

  Args:
    eps: maps x [b, ...] and t int32 [b] to the predicted noise [b, ...].
    x: x_T, standard normal [b, ...].
    rng: key of the noise of all steps.
    process: tables of the T steps.
    variance: 'large' (sigma_t^2 = beta_t) or 'small' (beta_tilde_t).
    clip: clip the predicted x_0 to [-1, 1].
    keep: number of intermediate images to return.
    guide: maps x and t to the scaled gradient of a classifier, see `guidance`; None: no guidance.
  """
  steps = len(process.betas)

  def step(x, t):
    times = jnp.full(x.shape[0], t)
    mean, log_variance = p_mean_variance(eps, x, times, process, variance=variance, clip=clip)
    if guide is not None:
      mean = guided_mean(mean, log_variance, guide(x, times))
    noise = jax.random.normal(jax.random.fold_in(rng, t), x.shape)
    sigma = jnp.exp(0.5 * log_variance)
    return mean + jnp.where(t > 0, sigma, 0) * noise

  return _run(step, x, (jnp.arange(steps)[::-1],), keep)


def ddim_times(total: int, steps: int, spacing: str) -> np.ndarray:
  """The sub-sequence tau of time indices, ascending int32 [steps] (Song et al. 2020, appendix D.2).

  'uniform' takes floor(i total / steps) for i = 0, 1, ...; 'quadratic' squares an even grid up to
  sqrt(0.8 total), as the released code does, and repeats small indices for many steps. With either,
  a single step takes the last time, as its input is pure noise.
  """
  if steps == 1:
    return np.array([total - 1], np.int32)
  if spacing == 'uniform':
    return (np.arange(steps) * total // steps).astype(np.int32)
  return (np.linspace(0, np.sqrt(total * 0.8), steps) ** 2).astype(np.int32)


def ddim(
  eps: Callable,
  x,
  rng,
  process: Process,
  *,
  steps: int,
  spacing: str = 'uniform',
  eta: float = 0.0,
  clip: bool = False,
  keep: int = 0,
  guide: Callable | None = None,
):
  """DDIM (Song, Meng and Ermon 2020, Eq. 12 and 16): `steps` evaluations of the net.

    x_{tau-} = sqrt(alpha_bar_{tau-}) x_0 + sqrt(1 - alpha_bar_{tau-} - sigma^2) eps + sigma noise

  Args:
    eps, x, rng, process, keep, guide: as in `ancestral`.
    steps: length of the sub-sequence, 1..T.
    spacing: 'uniform' or 'quadratic', see `ddim_times`.
    eta: 0 is deterministic; 1 has the variance of the DDPM posterior.
    clip: clip the predicted x_0 to [-1, 1] and recompute the noise from it, as Dhariwal and Nichol
      2021 do (the published numbers of DDIM are without clipping). The contribution of guidance is
      not clipped.
  """
  tau = ddim_times(len(process.betas), steps, spacing)
  # sqrt(alpha_bar) and sqrt(1 - alpha_bar) at this time and the next.
  signal, noise = np.asarray(process.signal)[tau], np.asarray(process.noise)[tau]
  signal_prev, noise_prev = np.append(1, signal[:-1]), np.append(0, noise[:-1])
  # Where an index repeats (quadratic spacing), sigma is 0 and the step changes nothing.
  sigmas = eta * noise_prev / noise * np.sqrt(np.maximum(1 - (signal / signal_prev) ** 2, 0))
  directions = np.sqrt(np.maximum(noise_prev**2 - sigmas**2, 0))

  def step(x, inputs):
    t, signal, noise, signal_prev, direction, sigma = inputs
    times = jnp.full(x.shape[0], t)
    noise_hat = eps(x, times)
    x_0 = (x - noise * noise_hat) / signal
    if clip:
      x_0 = jnp.clip(x_0, -1, 1)
      noise_hat = (x - signal * x_0) / noise
    if guide is not None:
      noise_hat = guided_eps(noise_hat, noise, guide(x, times))
      x_0 = (x - noise * noise_hat) / signal
    return signal_prev * x_0 + direction * noise_hat, sigma

  def noisy(x, inputs):
    i, *rest = inputs
    mean, sigma = step(x, rest)
    return mean + sigma * jax.random.normal(jax.random.fold_in(rng, i), x.shape) if eta else mean

  tables = (np.float32(o) for o in (signal, noise, signal_prev, directions, sigmas))
  order = (np.arange(steps), tau, *tables)
  return _run(noisy, x, tuple(jnp.asarray(o[::-1]) for o in order), keep)


def _run(step, x, inputs, keep):
  """Scans `step` over `inputs`; also returns x after `keep` evenly spaced steps."""
  total = len(inputs[0])
  # slots[i]: the index of the image after step i; `keep`, out of bounds and dropped, for most.
  slots = np.full(total, keep, np.int32)
  if keep:
    ends = np.round(np.linspace(total / keep, total, keep)).astype(int) - 1
    slots[ends] = np.arange(keep)

  def body(carry, scanned):
    x, kept = carry
    slot, inputs = scanned
    x = step(x, inputs if len(inputs) > 1 else inputs[0])
    return (x, kept.at[slot].set(x, mode='drop') if keep else kept), None

  kept = jnp.zeros((keep, *x.shape), x.dtype)
  (x, kept), _ = jax.lax.scan(body, (x, kept), (jnp.asarray(slots), inputs))
  return x, kept
