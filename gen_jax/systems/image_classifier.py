r"""A classifier of images, trained on the labels of one of two domains and measured on both.

    min E -log p(label | image),  images of x or of y

Trained on x, it is the baseline of domain adaptation ("source only"); trained on y, whose labels
an adapted classifier does not see, it is the ceiling. It generates nothing: there is no `sample`.
"""

import functools

import flax
import jax
import jax.numpy as jnp
import optax

from gen_jax import domains, fields, nets
from gen_jax.domains import inputs
from gen_jax.state import (
  OPTIMIZER,
  Player,
  init_player,
  make_optimizer,
  one_image,
  step_keys,
  update,
)
from gen_jax.systems._two_domains import MEASURES, check_one_shape, scores

__all__ = ['FIELDS', 'MEASURES', 'METRICS', 'State', 'check', 'init_state', 'inputs', 'train_step']

FIELDS = {
  'net': fields.net(meaning='images to class logits'),
  **domains.UNPAIRED,
  'loss.domain': fields.one_of('x', 'y', default='x', meaning='the domain whose labels are used'),
  **{f'optim.{name}': rule for name, rule in OPTIMIZER.items()},
}
METRICS = {
  'net/loss': 'cross-entropy, nats',
  'net/accuracy': 'share of the images of a batch whose class is right',
}
check = check_one_shape


@flax.struct.dataclass
class State:
  """Everything that a step changes."""

  step: jax.Array  # int32
  net: Player


def build(config, axis_name=None):
  """The module and the optimiser."""
  offered = dict(num_classes=config.data.num_classes, axis_name=axis_name)
  net = nets.make(config.net, 'config.net', precision=config.precision, **offered)
  return net, make_optimizer(config.optim)


def loss_fn(params, rows, key, *, net):
  """The mean cross-entropy of rows (images [b, ...], labels int32 [b]), and metrics."""
  image, label = rows
  logits = net.apply({'params': params}, image, train=True, rngs={'dropout': key})
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
  return loss, ({'net/loss': loss, 'net/accuracy': scores(logits, label).mean()}, {})


def init_state(rng, batch, *, config) -> State:
  """A fresh net for data like batch['x'] or batch['y'] [b, ...]."""
  net, optimizer = build(config)
  image, _ = (one_image(batch, config, leaf=leaf) for leaf in 'xy')  # of one shape
  return State(jnp.zeros((), jnp.int32), init_player(net.init(rng, image, train=False), optimizer))


def train_step(state, batch, rng, *, config, axis_name=None):
  """One gradient step on the images and labels of one domain.

  Args:
    state: the `State`.
    batch: `x` and `y` float32 [b, ...] in [-1, 1]; `x_label` and `y_label` int32 [b].
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and metrics, float32 scalars.
  """
  net, optimizer = build(config, axis_name)
  domain = config.loss.domain
  player, metrics = update(
    state.net,
    functools.partial(loss_fn, net=net),
    (batch[domain], batch[f'{domain}_label']),
    step_keys(rng, state.step, 'dropout')['dropout'],
    name='net',
    optimizer=optimizer,
    step=state.step,
    accumulate=config.train.accumulate,
    axis_name=axis_name,
  )
  return State(state.step + 1, player), metrics


def evaluate(state, batch, rng, *, config) -> dict:
  """Whether the class of each image of either domain is right, 1 or 0: [b] each."""
  net, _ = build(config)

  def of(domain):
    logits = net.apply(state.net.variables(), batch[domain], train=False)
    return scores(logits, batch[f'{domain}_label'])

  return {'accuracy': of('y'), 'accuracy_x': of('x')}
