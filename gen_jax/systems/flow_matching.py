r"""Flow matching (Lipman et al. 2023, arXiv 2210.02747) on the straight path, which is rectified
flow (Liu et al. 2023, arXiv 2209.03003).

Data x_0 and noise eps are joined by x_t = (1 - t) x_0 + t eps, t from 0 (data) to 1 (noise), whose
velocity is eps - x_0. A net learns its mean given x_t, which is the velocity of a flow that carries
noise to data (Lipman et al., Eq. 23, with sigma_min = 0 and time running the other way):

    L = E || u_theta((1 - t) x_0 + t eps, t) - (eps - x_0) ||^2

t is uniform, or its logit is normal, which puts more weight on the middle, or any other part, of
the path (Esser et al. 2024, arXiv 2403.03206, Eq. 19). Sampling solves dx/dt = u_theta(x, t) from
t = 1 to 0: Euler's method is `ddim` here, Heun's is `heun`, an adaptive one `ode`.
"""

import functools

import jax
import jax.numpy as jnp

from gen_jax import draws, fields
from gen_jax.diffusion import guidance, paths, predictions
from gen_jax.state import step_keys
from gen_jax.systems import _denoising
from gen_jax.systems._denoising import drop_labels

FIELDS = {
  **_denoising.make_fields(
    'u: (x_t, time_scale t, label) to the velocity eps - x_0',
    ema_decay=0.9999,
    sampler='heun',
    steps=50,
  ),
  'flow.times': fields.one_of(
    'uniform', 'logit_normal', default='uniform', meaning='distribution of t in training'
  ),
  'flow.mean': fields.number(
    -20, 20, default=0.0, meaning='mean of logit(t)', when=('.times', ('logit_normal',))
  ),
  'flow.std': fields.number(
    above=0,
    high=20,
    default=1.0,
    meaning='standard deviation of logit(t)',
    when=('.times', ('logit_normal',)),
  ),
  'flow.time_scale': fields.number(
    above=0,
    default=1.0,
    meaning='what the net is told is t times this (the sinusoids of DDPM: 1000)',
  ),
}

check = _denoising.check


def path(config) -> paths.Linear:
  """alpha = 1 - t, sigma = t."""
  del config
  return paths.Linear()


# --- The loss -----------------------------------------------------------------------------------


def draw_times(key, shape, config, axis_name=None) -> jax.Array:
  """t of a batch as config.flow says, float32 [b] in [0, 1)."""
  c = config.flow
  if c.times == 'uniform':
    return draws.uniform(key, shape, axis_name)
  return jax.nn.sigmoid(c.mean + c.std * draws.normal(key, shape, axis_name))


def velocity(model, params, x, t, label, config, **how) -> jax.Array:
  """u(x, t) for x [b, ...] and t [b]."""
  return _denoising.apply(model, params, x, config.flow.time_scale * t, label, **how)


def loss_fn(params, rows, key, *, model, config):
  """L of rows (x_0, label, t, eps), the mean over all dimensions, then over examples."""
  x_0, label, t, eps = rows
  x_t = paths.add_noise(path(config), x_0, t, eps)
  how = dict(train=True, rngs={'dropout': key})
  loss = jnp.mean((velocity(model, params, x_t, t, label, config, **how) - (eps - x_0)) ** 2)
  return loss, ({'net/loss': loss}, {})


METRICS = {'net/loss': 'L: the mean squared error of the velocity'}


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
  keys = step_keys(rng, state.step, 't', 'eps', 'dropout', 'label')
  x_0 = batch['image']
  t = draw_times(keys['t'], (len(x_0),), config, axis_name)
  eps = draws.normal(keys['eps'], x_0.shape, axis_name)
  label = drop_labels(batch.get('label'), keys['label'], config, axis_name)
  loss = functools.partial(loss_fn, model=model, config=config)
  rows = x_0, label, t, eps
  return _denoising.update(state, loss, rows, keys['dropout'], model, config, axis_name)


def denoiser(params, label, *, config):
  """The net as samplers see it; label int32 [b], or None."""
  model = build(config)

  def denoise(x, t):
    u = velocity(model, params, x, t, label, config, train=False)
    return predictions.to_prediction('velocity', u, x, 1 - t, t)

  return denoise


sample, conditional = _denoising.sample, _denoising.conditional
encode, decode, prior = _denoising.encode, _denoising.decode, _denoising.prior
evaluate, MEASURES = _denoising.evaluate, _denoising.MEASURES
evaluations, runs = _denoising.evaluations, guidance.runs
