r"""EDM: the design of Karras, Aittala, Aila and Laine 2022 (arXiv 2206.00364).

Data plus noise of standard deviation sigma is denoised by a net F whose input and target have unit
variance at every sigma (Eq. 7 and table 1, with sigma_data the standard deviation of the data):

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma))

    c_skip = sigma_data^2 / (sigma^2 + sigma_data^2)        c_in = 1 / sqrt(sigma^2 + sigma_data^2)
    c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2)            c_noise = ln(sigma) / 4

    L = E lambda(sigma) || D(y + n; sigma) - y ||^2,  lambda = 1 / c_out^2           (Eq. 2 and 51)
    ln sigma ~ N(P_mean, P_std^2),  n ~ N(0, sigma^2 I)

Images may be augmented without the samples being so, because the net is told how (appendix F.2).
Sampling follows the probability-flow ODE by Heun's method, with or without fresh noise (Algorithms
1 and 2, gen_jax.diffusion.heun), or is any other sampler.
"""

import functools

import jax
import jax.numpy as jnp

from gen_jax import draws, fields
from gen_jax.diffusion import augment, guidance, paths, predictions
from gen_jax.diffusion.paths import per_row
from gen_jax.state import step_keys
from gen_jax.systems import _denoising
from gen_jax.systems._denoising import drop_labels

FIELDS = {
  **_denoising.make_fields(
    'F: (c_in x, c_noise, label), unit variance at every noise level',
    ema_decay=0.999,
    sampler='heun',
    steps=18,
  ),
  'edm.sigma_data': fields.number(
    above=0, default=0.5, meaning='standard deviation of the data, in [-1, 1]'
  ),
  'edm.P_mean': fields.number(-20, 20, default=-1.2, meaning='mean of ln sigma in training'),
  'edm.P_std': fields.number(
    above=0, high=20, default=1.2, meaning='standard deviation of ln sigma in training'
  ),
  'edm.sigma_min': fields.number(above=0, default=0.002, meaning='where samplers end'),
  'edm.sigma_max': fields.number(above=0, default=80.0, meaning='where samplers start'),
  'edm.ema_rampup': fields.number(
    above=0,
    optional=True,
    default=None,
    meaning='the half-life of the average is at most this share of the images seen so far (the '
    'paper: 0.05); None: it is that of ema_decay from the start',
  ),
  **augment.FIELDS,
}


def check(config) -> None:
  """Checks constraints between fields.

  Raises:
    UserError: as `_denoising.check` or `augment.check`.
  """
  _denoising.check(config)
  augment.check(config)


def path(config) -> paths.EDM:
  """alpha = 1, sigma = t."""
  return paths.EDM(config.edm.sigma_min, config.edm.sigma_max)


# --- The loss -----------------------------------------------------------------------------------


def coefficients(sigma, sigma_data: float) -> tuple:
  """c_skip, c_out, c_in and c_noise at sigma [b] (table 1)."""
  total = sigma**2 + sigma_data**2
  root = jnp.sqrt(total)
  return sigma_data**2 / total, sigma * sigma_data / root, 1 / root, jnp.log(sigma) / 4


def denoised(model, params, x, sigma, label, config, **how) -> jax.Array:
  """D(x; sigma) for x [b, ...] and sigma [b]."""
  *factors, c_noise = coefficients(sigma, config.edm.sigma_data)
  c_skip, c_out, c_in = (per_row(c, x.ndim) for c in factors)
  return c_skip * x + c_out * _denoising.apply(model, params, c_in * x, c_noise, label, **how)


def loss_fn(params, rows, key, *, model, config):
  """lambda ||D - y||^2 of rows (y, label, sigma, eps, augmentation): summed over dimensions as in
  the released code, the mean over examples.
  """
  y, label, sigma, eps, augmentation = rows
  how = dict(train=True, rngs={'dropout': key})
  if augmentation is not None:
    how['augment'] = augmentation
  noisy = y + per_row(sigma, y.ndim) * eps
  D = denoised(model, params, noisy, sigma, label, config, **how)
  _, c_out, *_ = coefficients(sigma, config.edm.sigma_data)
  loss = jnp.mean(jnp.sum((D - y).reshape(len(y), -1) ** 2, axis=-1) / c_out**2)
  return loss, ({'net/loss': loss}, {})


METRICS = {
  'net/loss': 'L (Eq. 2): the weighted squared error of the denoised data, over dimensions'
}


# --- The contract -------------------------------------------------------------------------------


build, init_state = _denoising.build, _denoising.init_state


def train_step(state, batch, rng, *, config, axis_name=None):
  """One gradient step on L.

  Args:
    state: the `State`.
    batch: `image` float32 [b, ...] in [-1, 1]; `label` int32 [b] where the net is conditional.
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and the metrics, float32 scalars.
  """
  model = build(config, axis_name)
  keys = step_keys(rng, state.step, 'sigma', 'eps', 'dropout', 'label', 'augment')
  y, augmentation = augment.apply(batch['image'], keys['augment'], config, axis_name)
  c = config.edm
  sigma = jnp.exp(c.P_mean + c.P_std * draws.normal(keys['sigma'], (len(y),), axis_name))
  eps = draws.normal(keys['eps'], y.shape, axis_name)
  label = drop_labels(batch.get('label'), keys['label'], config, axis_name)
  loss = functools.partial(loss_fn, model=model, config=config)
  rows = y, label, sigma, eps, augmentation
  decay = ema_decay(state.step, config)
  return _denoising.update(state, loss, rows, keys['dropout'], model, config, axis_name, decay)


def ema_decay(step, config):
  """The decay of the average at a step: its half-life grows with the images seen."""
  if config.edm.ema_rampup is None:
    return config.ema_decay
  half_life = jnp.log(0.5) / jnp.log(config.ema_decay)  # in steps
  return 0.5 ** (1 / jnp.maximum(jnp.minimum(half_life, step * config.edm.ema_rampup), 1e-8))


def denoiser(params, label, *, config):
  """The net as samplers see it; label int32 [b], or None."""
  model = build(config)

  def denoise(x, t):
    D = denoised(model, params, x, t, label, config, train=False)
    return predictions.to_prediction('x_0', D, x, jnp.ones_like(t), t)

  return denoise


sample, conditional = _denoising.sample, _denoising.conditional
encode, decode, prior = _denoising.encode, _denoising.decode, _denoising.prior
evaluate, MEASURES = _denoising.evaluate, _denoising.MEASURES
evaluations, runs = _denoising.evaluations, guidance.runs
