r"""Denoising diffusion probabilistic models (Ho, Jain and Abbeel 2020, arXiv 2006.11239), with the
improvements of Nichol and Dhariwal 2021 (arXiv 2102.09672).

Data are destroyed by noise in T small steps, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t)
eps (Eq. 4), and a net learns to reverse a step. Expressing its mean by a prediction of eps turns
the variational bound, without its weights, into (Eq. 14, Algorithm 1)

    L_simple = E || eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t) ||^2

The net may instead predict x_0 or v, and the terms may be weighted by the signal-to-noise ratio
(Hang et al. 2023, arXiv 2303.09556). It may learn the variance of the steps, too, by the bound,
whose gradient does not reach the mean: L_hybrid = L_simple + lambda L_vlb (Nichol and Dhariwal,
Eq. 15 and 16). Sampling runs the learned steps from pure noise (Algorithm 2), or is any other of
the samplers of gen_jax.diffusion, which has the process, the bound and guidance, too.
"""

import functools

import jax
import jax.numpy as jnp

from gen_jax import draws, fields
from gen_jax.diffusion import bound, guidance, paths, predictions, process
from gen_jax.diffusion.paths import per_row
from gen_jax.errors import UserError
from gen_jax.state import step_keys
from gen_jax.systems import _denoising
from gen_jax.systems._denoising import State, drop_labels
from gen_jax.systems._one_net import Model

FIELDS = {
  **_denoising.make_fields(
    'predicts what config.diffusion.prediction names: (x_t, t, label)',
    ema_decay=0.9999,
    sampler='ancestral',
    steps='diffusion.steps',
  ),
  **process.FIELDS,
  'eval.likelihood': fields.one_of(
    'bound',
    'ode',
    default='bound',
    meaning='the bound of the T steps, or the likelihood of the ODE',
  ),
  'diffusion.prediction': fields.one_of(
    'eps', 'x_0', 'v', default='eps', meaning='what the net predicts'
  ),
  'diffusion.time_scale': fields.number(
    above=0, default=1.0, meaning='the net is told t times this (Improved DDPM: 1000 / T)'
  ),
  'diffusion.weighting': fields.one_of(
    'simple', 'min_snr', default='simple', meaning='of t: all alike, or by min(SNR, gamma)'
  ),
  'diffusion.gamma': fields.number(
    above=0, default=5.0, meaning='gamma of min_snr', when=('.weighting', ('min_snr',))
  ),
  'diffusion.learned_variance': fields.one_of(
    False, True, default=False, meaning='the net has twice the channels and learns the variance'
  ),
  'diffusion.vlb_weight': fields.number(
    above=0,
    default=0.001,
    meaning='lambda of L_hybrid, whose bound is in bits per dimension',
    when=('.learned_variance', (True,)),
  ),
}


def check(config) -> None:
  """Checks constraints between fields.

  Raises:
    UserError: as `_denoising.check` or `bound.check`, or a variance is used that is not learned.
  """
  _denoising.check(config)
  if config.eval.likelihood == 'bound':
    bound.check(config)
  if config.sample.variance == 'learned' and not config.diffusion.learned_variance:
    raise UserError(
      "config.sample.variance='learned' with config.diffusion.learned_variance=False: 'large' or "
      "'small' is needed"
    )


def build(config, axis_name=None) -> Model:
  """Module and optimiser; cheap, so every trace builds its own."""
  channels = config.data.shape[-1] * (1 + config.diffusion.learned_variance)
  return _denoising.build(config, axis_name, out_channels=channels)


def path(config) -> paths.Discrete:
  """The T steps of config.diffusion."""
  return process.make_path(process.make_betas(config))


# --- The loss -----------------------------------------------------------------------------------


def predict(model, params, x_t, t, label, config, **how) -> tuple:
  """The net's prediction for x_t [b, ...] and t [b], and what it says of the variance, in [-1, 1]
  (None where it is not learned), both [b, ...].
  """
  channels = x_t.shape[-1] * (1 + config.diffusion.learned_variance)
  t = config.diffusion.time_scale * t
  output = _denoising.apply(model, params, x_t, t, label, channels, **how)
  return jnp.split(output, 2, axis=-1) if config.diffusion.learned_variance else (output, None)


def weights(snr, config) -> jax.Array:
  """Of the squared error of the prediction, for signal-to-noise ratios [b]: those of the error of
  x_0, min(SNR, gamma), in terms of what the net predicts.
  """
  clipped, kind = jnp.minimum(snr, config.diffusion.gamma), config.diffusion.prediction
  return clipped / {'x_0': 1.0, 'eps': snr, 'v': snr + 1}[kind]


def loss_fn(params, rows, key, *, model, tables, config):
  """L_simple, or L_hybrid, of rows (x_0, label, t, eps): x_0 and eps float32 [b, ...], label int32
  [b] or None, t int32 [b]; the mean over all dimensions, then over examples.
  """
  x_0, label, t, eps = rows
  x_t = process.q_sample(tables, x_0, t, eps)
  output, v = predict(model, params, x_t, t, label, config, train=True, rngs={'dropout': key})
  alpha, sigma = (process.at(table, t, 1) for table in (tables.signal, tables.noise))
  kind = config.diffusion.prediction
  errors = (predictions.target(kind, x_0, eps, alpha, sigma) - output) ** 2
  if config.diffusion.weighting == 'min_snr':
    errors *= per_row(weights((alpha / sigma) ** 2, config), x_0.ndim)
  loss = jnp.mean(errors)
  if not config.diffusion.learned_variance:
    return loss, ({'net/loss': loss}, {})
  mean = jax.lax.stop_gradient(output)
  prediction = predictions.to_prediction(kind, mean, x_t, alpha, sigma)._replace(variance=v)
  how = dict(variance='learned', clip=False, bin_width=bound.BIN_WIDTH[config.data.dequantize])
  term = bound.term(prediction, x_0, x_t, t, tables, **how).mean() / jnp.log(2)
  vlb = term * config.diffusion.steps  # t is uniform, the bound a sum over T terms
  hybrid = loss + config.diffusion.vlb_weight * vlb
  return hybrid, ({'net/loss': hybrid, 'net/simple': loss, 'net/vlb': vlb}, {})


METRICS = {
  'net/loss': 'L_simple (Eq. 14), the mean squared error of the prediction, or L_hybrid',
  'net/simple': 'L_simple, where the variance is learned',
  'net/vlb': 'L_vlb, bits/dim, where the variance is learned',
}


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """A fresh net for data like batch['image'] [b, ...]."""
  return _denoising.init_state(rng, batch, model=build(config), config=config)


def train_step(state, batch, rng, *, config, axis_name=None):
  """Algorithm 1: one gradient step on L_simple or L_hybrid.

  Args:
    state: the `State`.
    batch: `image` float32 [b, ...] in [-1, 1]; `label` int32 [b] where the net is conditional.
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and the metrics, float32 scalars.
  """
  model, tables = build(config, axis_name), process.build_process(config)
  keys = step_keys(rng, state.step, 't', 'eps', 'dropout', 'label')
  x_0 = batch['image']
  t = draws.integers(keys['t'], (len(x_0),), 0, config.diffusion.steps, axis_name)
  eps = draws.normal(keys['eps'], x_0.shape, axis_name)
  label = drop_labels(batch.get('label'), keys['label'], config, axis_name)
  # The average starts at the parameters after the first step, as in the released code.
  decay = jnp.where(state.step == 0, 0.0, config.ema_decay)
  loss = functools.partial(loss_fn, model=model, tables=tables, config=config)
  rows = x_0, label, t, eps
  return _denoising.update(state, loss, rows, keys['dropout'], model, config, axis_name, decay)


def denoiser(params, label, *, config):
  """The net as samplers see it; label int32 [b], or None."""
  model, on = build(config), path(config)

  def denoise(x, t):
    output, v = predict(model, params, x, t, label, config, train=False)
    kind = config.diffusion.prediction
    prediction = predictions.to_prediction(kind, output, x, on.alpha(t), on.sigma(t))
    return prediction._replace(variance=v)

  return denoise


sample, conditional = _denoising.sample, _denoising.conditional
encode, decode, prior = _denoising.encode, _denoising.decode, _denoising.prior
evaluations, runs = _denoising.evaluations, guidance.runs
MEASURES = bound.MEASURES | {f'ode_{name}': about for name, about in _denoising.MEASURES.items()}


def evaluate(state, batch, rng, *, config) -> dict:
  """The variational bound of each example of `batch` (Eq. 5), see `bound.evaluate`, or its
  likelihood by the ODE, as config.eval.likelihood says.
  """
  if config.eval.likelihood == 'ode':
    made = _denoising.evaluate(state, batch, rng, config=config)
    return {f'ode_{name}': value for name, value in made.items()}
  denoise = _denoising.plain(state, batch.get('label'), config)
  return bound.evaluate(denoise, batch['image'], rng, process.build_process(config), config)
