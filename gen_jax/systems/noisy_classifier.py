r"""A classifier of noisy images (Dhariwal and Nichol 2021, arXiv 2105.05233, section 4).

It learns p(y | x_t) for the noisy images x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps of
a diffusion process, at all t alike:

    L = -E log p(y | sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t),  t uniform

Near t = 0 that is a classifier of images, and at t = T - 1 no more than the prior p(y) can be
known: the accuracy falls with t. Its gradient grad log p(y | x_t) guides the samples of a
model of the diffusion family towards the class y, on whatever path it was trained, see
gen_jax.diffusion.guidance. A classifier generates nothing: this system has no `sample`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_jax import draws, fields, nets
from gen_jax.diffusion import guidance, process
from gen_jax.diffusion.paths import Path
from gen_jax.diffusion.process import q_sample
from gen_jax.errors import UserError
from gen_jax.fields import Measure
from gen_jax.state import OPTIMIZER, Frozen, init_player, one_image, step_keys, update
from gen_jax.systems import _one_net
from gen_jax.systems._one_net import Model, State

FIELDS = {
  'net': fields.net(meaning='classifies x_t: (x_t, t) to logits'),
  **process.FIELDS,
  **{f'optim.{name}': field for name, field in OPTIMIZER.items()},
  'eval.time_steps': fields.integer(
    2, default=20, smoke=3, meaning='evenly spaced time steps, 0 and T - 1 among them'
  ),
}


def build(config, axis_name=None) -> Model:
  """Module and optimiser; cheap, so every trace builds its own."""
  return _one_net.build(config, axis_name, num_classes=config.data.num_classes)


def check(config) -> None:
  """Checks constraints between fields.

  Raises:
    UserError: the data have no labels, or more time steps are evaluated than there are.
  """
  if config.data.num_classes is None:
    raise UserError('config.data.num_classes=None: a classifier needs the number of classes')
  steps, total = config.eval.time_steps, config.diffusion.steps
  if steps > total:
    raise UserError(
      f'config.eval.time_steps={steps}: at most config.diffusion.steps={total} is possible'
    )


# --- The loss -----------------------------------------------------------------------------------


def predict(net: nets.Net, variables, x_t, t, classes: int, **how) -> jax.Array:
  """The logits [b, classes] of x_t [b, ...] and t int32 [b].

  Raises:
    UserError: the net returns another shape.
  """
  logits = net.apply(variables, x_t, t, **how)
  if logits.shape != (len(x_t), classes):
    raise UserError(
      f'config.net: {type(net.module).__name__} maps {x_t.shape} to {logits.shape}; logits '
      f'{(len(x_t), classes)} are needed, for config.data.num_classes={classes}'
    )
  return logits


def scores(logits, label) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy in nats and correctness (0 or 1), each float32 [b], of logits [b, classes] and
  labels int32 [b].
  """
  correct = jnp.argmax(logits, axis=-1) == label
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
  return losses, correct.astype(jnp.float32)


def loss_fn(params, rows, key, *, model, tables, classes):
  """The mean cross-entropy of rows (x_0, label, t, eps): x_0 and eps float32 [b, ...], label and t
  int32 [b].
  """
  x_0, label, t, eps = rows
  x_t = q_sample(tables, x_0, t, eps)
  how = dict(train=True, rngs={'dropout': key})
  losses, correct = scores(predict(model.net, {'params': params}, x_t, t, classes, **how), label)
  loss = losses.mean()
  return loss, ({'net/loss': loss, 'net/accuracy': correct.mean()}, {})


METRICS = {
  'net/loss': 'cross-entropy of the classes of noisy images, nats',
  'net/accuracy': 'share of noisy images whose class is right, over all t',
}


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """A fresh net for data like batch['image'] [b, ...]."""
  model = build(config)
  x, t = one_image(batch, config), jnp.zeros((1,), jnp.int32)
  variables = model.net.init(rng, x, t, train=False)
  return State(step=jnp.zeros((), jnp.int32), net=init_player(variables, model.optimizer))


def train_step(state, batch, rng, *, config, axis_name=None):
  """One gradient step on the cross-entropy of noisy images.

  Args:
    state: the `State`.
    batch: `image` float32 [b, ...] in [-1, 1]; `label` int32 [b].
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and the metrics, float32 scalars.
  """
  model, tables = build(config, axis_name), process.build_process(config)
  keys = step_keys(rng, state.step, 't', 'eps', 'dropout')
  x_0 = batch['image']
  t = draws.integers(keys['t'], (len(x_0),), 0, config.diffusion.steps, axis_name)
  eps = draws.normal(keys['eps'], x_0.shape, axis_name)
  net, metrics = update(
    state.net,
    functools.partial(loss_fn, model=model, tables=tables, classes=config.data.num_classes),
    (x_0, batch['label'], t, eps),
    keys['dropout'],
    name='net',
    optimizer=model.optimizer,
    step=state.step,
    accumulate=config.train.accumulate,
    axis_name=axis_name,
  )
  return State(state.step + 1, net), metrics


def time_steps(config) -> np.ndarray:
  """The time steps of an evaluation: int32 [config.eval.time_steps], from 0 to T - 1."""
  last = config.diffusion.steps - 1
  return np.round(np.linspace(0, last, config.eval.time_steps)).astype(np.int32)


def settings(config) -> str:
  """The settings that the values of `evaluate` depend on, as text."""
  d = config.diffusion
  return f'{d.steps} steps, {d.schedule} schedule, mean over {config.eval.time_steps} of them'


MEASURES = {
  'accuracy': Measure('accuracy', 'estimate', settings),
  'cross_entropy': Measure('cross-entropy, nats', 'estimate', settings),
  'accuracy_by_step': Measure(
    'accuracy', 'estimate', settings, index='i of evenly spaced time steps, from t = 0 to T - 1'
  ),
}


def evaluate(state, batch, rng, *, config) -> dict:
  """How well the noisy images of a batch are classified, at evenly spaced time steps.

  Args:
    state: the `State`.
    batch: `image` float32 [b, ...] in [-1, 1]; `label` int32 [b].
    rng: key of the noise.
    config: as for `train_step`.

  Returns:
    'accuracy' and 'cross_entropy' (nats) [b], means over the time steps; 'accuracy_by_step' [b, k],
    1 where the class is right and 0 elsewhere.
  """
  model, tables = build(config), process.build_process(config)
  x_0 = batch['image']

  def at(t):
    eps = jax.random.normal(jax.random.fold_in(rng, t), x_0.shape)
    times = jnp.full(len(x_0), t)
    x_t = q_sample(tables, x_0, times, eps)
    how = dict(classes=config.data.num_classes, train=False)
    return scores(predict(model.net, state.net.variables(), x_t, times, **how), batch['label'])

  losses, correct = jax.lax.map(at, jnp.asarray(time_steps(config)))
  return {
    'accuracy': correct.mean(0),
    'cross_entropy': losses.mean(0),
    'accuracy_by_step': correct.T,
  }


# --- For the systems that it guides -------------------------------------------------------------


def guide(classifier: Frozen, label, path: Path, config) -> Callable:
  """The `guide(x, t)` of samplers on a path: config.sample.guidance.scale times
  grad log p(label | x_t).

  Args:
    classifier: the net of a finished run of this system.
    label: the class of each row, int32 [b].
    path: of x and t; another one than the classifier's is fine.
    config: of the diffusion model.

  Raises:
    UserError: the run is of another system, or its data differ.
  """
  guidance.check_run(config, classifier.config, 'run', ('noisy_classifier',))
  classes = classifier.config.data.num_classes
  net = _one_net.make_net(classifier.config, num_classes=classes)

  def logits(x, t):
    return predict(net, classifier.variables(), x, t, classes, train=False)

  trained_on = process.make_path(process.make_betas(classifier.config))
  return guidance.make_guide(logits, label, config.sample.guidance.scale, path, trained_on)
