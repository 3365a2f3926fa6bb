r"""Denoising diffusion probabilistic models (Ho, Jain and Abbeel 2020, arXiv 2006.11239).

Data are destroyed by noise in T small steps, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t)
eps (Eq. 4), and a net learns to reverse a step. Expressing its mean by a prediction of eps turns
the variational bound, without its weights, into (Eq. 14, Algorithm 1)

    L_simple = E || eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t) ||^2

Sampling runs the learned steps from pure noise (Algorithm 2), or fewer of them, with less noise or
none (DDIM: Song, Meng and Ermon 2020, arXiv 2010.02502), or guided towards a class by a classifier
(Dhariwal and Nichol 2021, arXiv 2105.05233). The process, both samplers and guidance are in
gen_jax.diffusion.
"""

import functools

import flax
import jax
import jax.numpy as jnp

from gen_jax import draws, fields
from gen_jax.diffusion import bound, guidance, process, samplers
from gen_jax.diffusion.process import q_sample
from gen_jax.errors import UserError
from gen_jax.state import (
  OPTIMIZER,
  Frozen,
  Player,
  batch_size,
  init_player,
  one_image,
  step_keys,
  update,
)
from gen_jax.systems import noisy_classifier
from gen_jax.systems._diffusion import build

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


def check(config) -> None:
  """Checks constraints between fields.

  Raises:
    UserError: as `samplers.check` and `bound.check`; or a conditional net for data without labels.
  """
  samplers.check(config)
  bound.check(config)
  classes = config.net.get('num_classes')
  if classes is not None and classes != config.data.num_classes:
    raise UserError(
      f'config.net.num_classes={classes} but config.data.num_classes={config.data.num_classes}; '
      'they must be equal, or config.net.num_classes None'
    )


def predict(model, params, x_t, t, label, **how) -> jax.Array:
  """The net's eps_hat for x_t [b, ...] and t [b].

  Raises:
    UserError: its shape differs from that of x_t, so that the loss would silently broadcast.
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


METRICS = {'net/loss': 'L_simple (Eq. 14): the mean squared error of the predicted noise'}


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """A fresh net for data like batch['image'] [b, ...]."""
  model = build(config)
  x, t = one_image(batch, config), jnp.zeros((1,), jnp.int32)
  label = jnp.zeros((1,), jnp.int32) if 'label' in batch else None
  variables = model.net.init(rng, x, t, label, train=False)
  return State(step=jnp.zeros((), jnp.int32), net=init_player(variables, model.optimizer, ema=True))


def train_step(state, batch, rng, *, config, axis_name=None):
  """Algorithm 1: one gradient step on L_simple.

  Args:
    state: the `State`.
    batch: `image` float32 [b, ...] in [-1, 1]; `label` int32 [b] where the net is conditional.
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.
  """
  model = build(config, axis_name)
  keys = step_keys(rng, state.step, 't', 'eps', 'dropout')
  x_0 = batch['image']
  t = draws.integers(keys['t'], (len(x_0),), 0, config.diffusion.steps, axis_name)
  eps = draws.normal(keys['eps'], x_0.shape, axis_name)
  # The average starts at the parameters after the first step, as in the released code.
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


def sample(state, given, rng, *, config) -> dict:
  """One sample for each row of `given`, by `samplers.sample` with config.sample; a classifier, if
  any, guides it towards the label of the row.
  """
  model, guide = build(config), None
  if state.guide is not None:
    guide = noisy_classifier.guide(state.guide, given['label'], config)
  eps, shape = trained_eps(model, state, given, config), (batch_size(given), *config.data.shape)
  return samplers.sample(eps, shape, rng, model.process, config.sample, guide)


def conditional(state, *, config) -> bool:
  """Whether samples depend on labels: by the net, or by a classifier that guides them."""
  return config.net.get('num_classes') is not None or state.guide is not None


evaluations = samplers.evaluations
runs = guidance.runs
MEASURES = bound.MEASURES


def evaluate(state, batch, rng, *, config) -> dict:
  """The variational bound of each example of `batch` (Eq. 5), see `bound.evaluate`."""
  eps = trained_eps(model := build(config), state, batch, config)
  return bound.evaluate(eps, batch['image'], rng, model.process, config)
