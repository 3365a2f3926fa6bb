r"""Denoising diffusion probabilistic models (Ho, Jain and Abbeel 2020, arXiv 2006.11239).

Data are destroyed by noise in T small steps, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t)
eps (Eq. 4), and a net learns to undo a step. Writing its mean through a prediction of eps turns the
variational bound, less its weights, into (Eq. 14, Algorithm 1)

    L_simple = E || eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t) ||^2

Sampling runs the learned steps from pure noise (Algorithm 2), or fewer of them, without or with
less noise (DDIM: Song, Meng and Ermon 2020, arXiv 2010.02502), or towards a class that a classifier
knows (Dhariwal and Nichol 2021, arXiv 2105.05233). The process, both samplers and guidance stand in
gen_jax.diffusion.
"""

import functools
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp

from gen_jax import draws, fields, nets
from gen_jax.diffusion import guidance, process, samplers
from gen_jax.diffusion.bound import BIN_WIDTH, bound
from gen_jax.diffusion.process import Process, make_betas, make_process, q_sample
from gen_jax.errors import UserError
from gen_jax.fields import Measure
from gen_jax.state import (
  OPTIMIZER,
  Frozen,
  Player,
  batch_size,
  init_player,
  make_optimizer,
  step_keys,
  update,
)
from gen_jax.systems import noisy_classifier

FIELDS = {
  'net': fields.net(meaning='predicts the noise in x_t: (x_t, t, label) to eps'),
  **process.FIELDS,
  'ema_decay': fields.number(0, below=1, default=0.9999, meaning='decay of the averaged weights'),
  **{f'optim.{name}': field for name, field in OPTIMIZER.items()},
  **samplers.FIELDS,
  **guidance.FIELDS,
  'sample.weights': fields.one_of('ema', 'raw', default='ema', meaning='averaged or raw weights'),
}


@flax.struct.dataclass
class State:
  """Everything that a step changes."""

  step: jax.Array  # int32
  net: Player
  guide: Frozen | None = None  # a classifier of noisy images; only while sampling, see `runs`


class Model(NamedTuple):
  """The module, optimiser and process of a config."""

  net: nets.Net
  optimizer: Any
  process: Process


def build(config, axis_name=None) -> Model:
  """Module, optimiser and tables; cheap, so it is done anew in every trace."""
  return Model(
    net=nets.make(
      config.net,
      'config.net',
      precision=config.precision,
      shape=config.data.shape,
      axis_name=axis_name,
    ),
    optimizer=make_optimizer(config.optim),
    process=make_process(make_betas(config)),
  )


def check(config) -> None:
  """Checks what no single field shows.

  Raises:
    UserError: as `samplers.check`; a conditional net for data without labels, or a bound for
      points.
  """
  samplers.check(config)
  classes = config.net.get('num_classes')
  if classes is not None and classes != config.data.num_classes:
    raise UserError(
      f'config.net.num_classes={classes} but config.data.num_classes={config.data.num_classes}; '
      'they must be equal, or config.net.num_classes None'
    )
  held_out = config.eval.held_out_examples
  if len(config.data.shape) == 1 and held_out is not None:
    raise UserError(
      f'config.eval.held_out_examples={held_out}: the bound is that of 8-bit images; for points '
      'None is needed'
    )


def predict(model, params, x_t, t, label, **how) -> jax.Array:
  """The net's eps_hat for x_t [b, ...] and t [b].

  Raises:
    UserError: it has not the shape of x_t. The loss would broadcast, and train without a word.
  """
  eps_hat = model.net.apply({'params': params}, x_t, t, label, **how)
  if eps_hat.shape != x_t.shape:
    raise UserError(
      f'config.net: {type(model.net.module).__name__} maps {x_t.shape} to {eps_hat.shape}; the '
      'noise that it predicts must have the shape of its input'
    )
  return eps_hat


def loss_fn(params, rows, key, *, model):
  """L_simple of rows (x_0, label, t, eps): x_0 and eps float32 [b, ...], label int32 [b] or None,
  t int32 [b]; the mean over all dimensions, then over examples.
  """
  x_0, label, t, eps = rows
  x_t = q_sample(model.process, x_0, t, eps)
  eps_hat = predict(model, params, x_t, t, label, train=True, rngs={'dropout': key})
  loss = jnp.mean((eps - eps_hat) ** 2)
  return loss, ({'net/loss': loss}, {})


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """A fresh net for data like batch['image'] [b, ...]."""
  model = build(config)
  one = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape[1:]), leaf.dtype), dict(batch))
  t = jnp.zeros((1,), jnp.int32)
  variables = model.net.init(rng, one['image'], t, one.get('label'), train=False)
  return State(step=jnp.zeros((), jnp.int32), net=init_player(variables, model.optimizer, ema=True))


def train_step(state, batch, rng, *, config, axis_name=None):
  """Algorithm 1: one gradient step on L_simple.

  Args:
    state: the `State`.
    batch: `image` float32 [b, ...] in [-1, 1]; `label` int32 [b] where the net is conditional.
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and metrics, float32 scalars: the loss and the gradient norm (before clipping).
  """
  model = build(config, axis_name)
  keys = step_keys(rng, state.step, 't', 'eps', 'dropout')
  x_0 = batch['image']
  t = draws.integers(keys['t'], (len(x_0),), 0, config.diffusion.steps, axis_name)
  eps = draws.normal(keys['eps'], x_0.shape, axis_name)
  # The average starts at the parameters that the first step leaves, as in the released code.
  decay = jnp.where(state.step == 0, 0.0, config.ema_decay)
  net, metrics = update(
    state.net,
    functools.partial(loss_fn, model=model),
    (x_0, batch.get('label'), t, eps),
    keys['dropout'],
    name='net',
    optimizer=model.optimizer,
    step=state.step,
    accumulate=config.train.accumulate,
    ema_decay=decay,
    axis_name=axis_name,
  )
  return state.replace(step=state.step + 1, net=net), metrics


def trained_eps(model, state, batch, config):
  """eps(x, t) of a state, with the weights that config.sample.weights names and the labels of
  `batch`.
  """
  params = state.net.ema if config.sample.weights == 'ema' else state.net.params
  return lambda x, t: predict(model, params, x, t, batch.get('label'), train=False)


def sample(state, batch, rng, *, config) -> dict:
  """Generated examples, one for each row of `batch`, by the sampler that `config.sample` names;
  where a classifier guides it, towards the label of the row.

  Returns:
    {'image': float32 [n, ...] in [-1, 1]}, and with config.sample.intermediates = m also
    'trajectory' [n, m, ...], evenly spaced images from noise to data.
  """
  model = build(config)
  noise_key, steps_key = jax.random.split(rng)
  x = draws.normal(noise_key, (batch_size(batch), *config.data.shape))

  eps = trained_eps(model, state, batch, config)
  guide = None
  if state.guide is not None:
    guide = noisy_classifier.guide(state.guide, batch['label'], config)
  x, kept = samplers.run(eps, x, steps_key, model.process, config.sample, guide)
  images = {'image': jnp.clip(x, -1, 1)}
  if config.sample.intermediates:
    images['trajectory'] = jnp.clip(jnp.swapaxes(kept, 0, 1), -1, 1)
  return images


def evaluations(config) -> int:
  """Passes of the net for one sample."""
  return samplers.evaluations(config)


def runs(config) -> dict[str, str]:
  """The finished runs that sampling needs, {field of the state: path}."""
  return guidance.runs(config)


def bound_settings(config) -> str:
  """What the numbers of `evaluate` depend on."""
  text = f'variational bound, {config.diffusion.steps} steps, variance {config.sample.variance}'
  return text + ', given the label' * (config.net.get('num_classes') is not None)


# One draw of x_t makes each term of the bound but L_T.
MEASURES = {
  'bits_per_dim': Measure('bits/dim', 'upper bound', bound_settings),
  'L_0': Measure('L_0, bits/dim', 'estimate', bound_settings),
  'L_t': Measure('sum of L_1 to L_{T-1}, bits/dim', 'estimate', bound_settings),
  'L_T': Measure('L_T, bits/dim', 'exact', bound_settings),
  'terms': Measure(
    'L_t, bits/dim', 'estimate', bound_settings, index='term L_t, t = 0 to T', log=True
  ),
}


def evaluate(state, batch, rng, *, config) -> dict:
  """The variational bound of each example, in bits per dimension (Eq. 5), with the weights and the
  variance that `config.sample` names. T evaluations of the net.

  Args:
    state: the `State`.
    batch: `image` float32 [b, ...], 8-bit data in [-1, 1], the centres of their bins; `label`
      where conditional.
    rng: key of the noise.
    config: as for `train_step`.

  Returns:
    In bits per dimension: 'bits_per_dim' [b], the bound; 'L_0', 'L_t' (the sum of L_1 to L_{T-1})
    and 'L_T' [b], whose sum it is; and 'terms' [b, T + 1], L_0 to L_T.
  """
  model = build(config)
  eps = trained_eps(model, state, batch, config)
  nats = bound(
    eps,
    batch['image'],
    rng,
    model.process,
    variance=config.sample.variance,
    bin_width=BIN_WIDTH[config.data.dequantize],
  )
  terms = nats / jnp.log(2)
  return {
    'bits_per_dim': nats.sum(0) / jnp.log(2),
    'L_0': terms[0],
    'L_t': terms[1:-1].sum(0),
    'L_T': terms[-1],
    'terms': terms.T,
  }
