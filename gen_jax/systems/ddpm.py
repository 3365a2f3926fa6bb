r"""Denoising diffusion probabilistic models (Ho, Jain and Abbeel 2020, arXiv 2006.11239).

Data are destroyed by noise in T small steps, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t)
eps (Eq. 4), and a net learns to undo a step. Writing its mean through a prediction of eps turns the
variational bound, less its weights, into (Eq. 14, Algorithm 1)

    L_simple = E || eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t) ||^2

Sampling runs the learned steps from pure noise (Algorithm 2), or fewer of them, without or with
less noise (DDIM: Song, Meng and Ermon 2020, arXiv 2010.02502). The process and both samplers stand
in gen_jax.diffusion.
"""

import functools
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp

from gen_jax import config as rules
from gen_jax import draws, nets
from gen_jax.diffusion import samplers
from gen_jax.diffusion.bound import BIN_WIDTH, bound
from gen_jax.diffusion.process import Process, make_betas, make_process, q_sample
from gen_jax.errors import UserError
from gen_jax.fields import Measure
from gen_jax.state import (
  OPTIMIZER,
  Player,
  batch_size,
  init_player,
  make_optimizer,
  step_keys,
  update,
)

FIELDS = {
  'net': rules.NET,
  'diffusion.steps': rules.integer(low=2),  # T
  'diffusion.schedule': rules.one_of('linear', 'cosine'),
  'diffusion.beta_min': rules.number(above=0, below=1),  # of the linear schedule
  'diffusion.beta_max': rules.number(above=0, below=1),
  'ema_decay': rules.number(low=0, below=1),
  **{f'optim.{name}': field for name, field in OPTIMIZER.items()},
  'sample.sampler': rules.one_of('ancestral', 'ddim'),
  'sample.variance': rules.one_of('large', 'small'),  # of the ancestral sampler
  'sample.steps': rules.integer(low=1),  # of DDIM
  'sample.spacing': rules.one_of('uniform', 'quadratic'),  # of DDIM
  'sample.eta': rules.number(low=0, high=1),  # of DDIM: 0 deterministic, 1 as random as DDPM
  # Cut the predicted x_0 to [-1, 1]; None: as published, ancestral sampling only.
  'sample.clip': rules.one_of(True, False, optional=True),
  'sample.intermediates': rules.integer(low=0),  # pictures of the way to return
  'sample.weights': rules.one_of('ema', 'raw'),
  'eval.quick_steps': rules.integer(low=1),  # of DDIM in quick evaluations
  'eval.likelihood_split': rules.text(),
  'eval.likelihood_examples': rules.integer(low=2, optional=True),
}


@flax.struct.dataclass
class State:
  """Everything that a step changes."""

  step: jax.Array  # int32
  net: Player


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
    UserError: more sampling steps than the process has, a conditional net for data without labels,
      or a bound for points.
  """
  steps, total = config.sample.steps, config.diffusion.steps
  if steps > total:
    raise UserError(
      f'config.sample.steps={steps}: at most config.diffusion.steps={total} is possible'
    )
  taken = total if config.sample.sampler == 'ancestral' else steps
  if config.sample.intermediates > taken:
    raise UserError(
      f'config.sample.intermediates={config.sample.intermediates}: the sampler takes {taken} '
      'steps, and at most that many pictures are possible'
    )
  classes = config.net.get('num_classes')
  if classes is not None and classes != config.data.num_classes:
    raise UserError(
      f'config.net.num_classes={classes} but config.data.num_classes={config.data.num_classes}; '
      'they must be equal, or config.net.num_classes None'
    )
  held_out = config.eval.likelihood_examples
  if len(config.data.shape) == 1 and held_out is not None:
    raise UserError(
      f'config.eval.likelihood_examples={held_out}: the bound is that of 8-bit images; for points '
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
  return State(state.step + 1, net), metrics


def trained_eps(model, state, batch, config):
  """eps(x, t) of a state, with the weights that config.sample.weights names and the labels of
  `batch`.
  """
  params = state.net.ema if config.sample.weights == 'ema' else state.net.params
  return lambda x, t: predict(model, params, x, t, batch.get('label'), train=False)


def sample(state, batch, rng, *, config) -> dict:
  """Generated examples, one for each row of `batch`, by the sampler that `config.sample` names.

  Returns:
    {'image': float32 [n, ...] in [-1, 1]}, and with config.sample.intermediates = m also
    'trajectory' [n, m, ...], evenly spaced images from noise to data.
  """
  model = build(config)
  noise_key, steps_key = jax.random.split(rng)
  x = draws.normal(noise_key, (batch_size(batch), *config.data.shape))

  eps = trained_eps(model, state, batch, config)
  c = config.sample
  sampler = {
    'ancestral': functools.partial(samplers.ancestral, variance=c.variance),
    'ddim': functools.partial(samplers.ddim, steps=c.steps, spacing=c.spacing, eta=c.eta),
  }[c.sampler]
  clip = c.sampler == 'ancestral' if c.clip is None else c.clip
  x, kept = sampler(eps, x, steps_key, model.process, clip=clip, keep=c.intermediates)
  images = {'image': jnp.clip(x, -1, 1)}
  if c.intermediates:
    images['trajectory'] = jnp.clip(jnp.swapaxes(kept, 0, 1), -1, 1)
  return images


def sampling(config) -> dict:
  """How `sample` draws with this config, in words and in evaluations of the net."""
  c = config.sample
  if c.sampler == 'ancestral':
    evaluations = config.diffusion.steps
    text = f'ancestral, {evaluations} steps, variance {c.variance}'
  else:
    evaluations = c.steps
    text = f'ddim, {evaluations} {c.spacing} steps, eta {c.eta:g}'
  cut = c.sampler == 'ancestral' if c.clip is None else c.clip
  return dict(
    text=text + ', x_0 cut' * cut,
    evaluations=evaluations,
    weights=c.weights,
  )


def quick(config):
  """The config with `eval.quick_steps` steps of DDIM."""
  steps = min(config.eval.quick_steps, config.diffusion.steps)
  return rules.replace(
    config, {'sample.sampler': 'ddim', 'sample.steps': steps, 'sample.intermediates': 0}
  )


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
