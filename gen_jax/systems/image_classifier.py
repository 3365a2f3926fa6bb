r"""A classifier of images, trained on the labels of one of two domains and measured on both.

    min E -log p(label | image),  images of x or of y

Trained on x, it is the baseline of domain adaptation ("source only"); trained on y, whose labels
an adapted classifier does not see, it is the ceiling. It generates nothing: there is no `sample`.
"""

import functools

import jax.numpy as jnp
import optax

from gen_jax import domains, fields
from gen_jax.state import OPTIMIZER, init_player, one_image, step_keys, update
from gen_jax.systems import _one_net, _two_domains
from gen_jax.systems._one_net import Model, State
from gen_jax.systems._two_domains import correct

FIELDS = {
  'net': fields.net(meaning='images to class logits'),
  **domains.UNPAIRED,
  'loss.domain': fields.one_of('x', 'y', default='x', meaning='the domain whose labels are used'),
  **{f'optim.{name}': rule for name, rule in OPTIMIZER.items()},
}
inputs, check = domains.inputs, _two_domains.check_one_shape


def build(config, axis_name=None) -> Model:
  """Module and optimiser; cheap, so every trace builds its own."""
  return _one_net.build(config, axis_name, num_classes=config.data.num_classes)


# --- The loss -----------------------------------------------------------------------------------


def loss_fn(params, rows, key, *, model):
  """The mean cross-entropy of rows (image [b, ...], label int32 [b]); also metrics."""
  image, label = rows
  logits = model.net.apply({'params': params}, image, train=True, rngs={'dropout': key})
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
  return loss, ({'net/loss': loss, 'net/accuracy': correct(logits, label).mean()}, {})


METRICS = {
  'net/loss': 'cross-entropy, nats',
  'net/accuracy': 'share of the images of a batch whose class is right',
}


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """A fresh net for data like batch['x'] or batch['y'] [b, ...]."""
  model = build(config)
  image, _ = (one_image(batch, config, leaf=leaf) for leaf in 'xy')  # of one shape
  variables = model.net.init(rng, image, train=False)
  return State(step=jnp.zeros((), jnp.int32), net=init_player(variables, model.optimizer))


def train_step(state, batch, rng, *, config, axis_name=None):
  """One gradient step on the images and labels of one domain.

  Args:
    state: the `State`.
    batch: `x` and `y` float32 [b, ...] in [-1, 1]; `x_label` and `y_label` int32 [b].
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and the metrics, float32 scalars.
  """
  model, domain = build(config, axis_name), config.loss.domain
  keys = step_keys(rng, state.step, 'dropout')
  net, metrics = update(
    state.net,
    functools.partial(loss_fn, model=model),
    (batch[domain], batch[f'{domain}_label']),
    keys['dropout'],
    name='net',
    optimizer=model.optimizer,
    step=state.step,
    accumulate=config.train.accumulate,
    axis_name=axis_name,
  )
  return State(state.step + 1, net), metrics


MEASURES = _two_domains.MEASURES


def evaluate(state, batch, rng, *, config) -> dict:
  """Whether the class of each image of either domain is right, 1 or 0: [b] each."""
  net = build(config).net

  def of(domain):
    logits = net.apply(state.net.variables(), batch[domain], train=False)
    return correct(logits, batch[f'{domain}_label'])

  return {'accuracy': of('y'), 'accuracy_x': of('x')}
