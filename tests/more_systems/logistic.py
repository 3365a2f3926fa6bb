"""Logistic regression of the labels on noised examples: a system without samples, for tests.

One step is one gradient step on the cross-entropy, with noise of a scale between 0 and 1 for each
example.
"""

import functools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from gen_jax import draws, fields, nets
from gen_jax.fields import Measure
from gen_jax.state import OPTIMIZER, Player, init_player, make_optimizer, step_keys, update

FIELDS = {
  'net': fields.net(meaning='examples to logits'),
  **{f'optim.{name}': rule for name, rule in OPTIMIZER.items()},
}
SCALES = (0.0, 0.5, 1.0)
MEASURES = {
  'accuracy': Measure('accuracy', 'exact', lambda config: 'without noise'),
  'nats': Measure('cross-entropy, nats', 'exact'),
  'by_noise': Measure('accuracy', 'estimate', index=f'scale of the noise, of {SCALES}'),
}


class Net(nn.Module):
  classes: int = 10

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.classes)(x.reshape(len(x), -1))


@flax.struct.dataclass
class State:
  step: jax.Array
  net: Player


def build(config):
  return nets.make(config.net, 'config.net', precision=config.precision)


def loss_fn(params, rows, keys, *, net):
  x, label = rows
  logits = net.apply({'params': params}, x)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
  return loss, ({'net/loss': loss}, {})


def init_state(rng, batch, *, config):
  variables = build(config).init(rng, batch['image'])
  return State(jnp.zeros((), jnp.int32), init_player(variables, make_optimizer(config.optim)))


def train_step(state, batch, rng, *, config, axis_name=None):
  keys = step_keys(rng, state.step, 'scale', 'noise')
  x = batch['image']
  scale = draws.uniform(keys['scale'], (len(x),), axis_name).reshape(-1, *[1] * (x.ndim - 1))
  noised = x + scale * draws.normal(keys['noise'], x.shape, axis_name)
  player, metrics = update(
    state.net,
    functools.partial(loss_fn, net=build(config)),
    (noised, batch['label']),
    (),
    name='net',
    optimizer=make_optimizer(config.optim),
    step=state.step,
    accumulate=config.train.accumulate,
    axis_name=axis_name,
  )
  return State(state.step + 1, player), metrics


def evaluate(state, batch, rng, *, config):
  noise, label = draws.normal(rng, batch['image'].shape), batch['label']
  logits = jnp.stack(
    [
      build(config).apply({'params': state.net.params}, batch['image'] + scale * noise)
      for scale in SCALES
    ]
  )
  right = (logits.argmax(-1) == label[None]).astype(jnp.float32)
  nats = optax.softmax_cross_entropy_with_integer_labels(logits[0], label)
  return {'by_noise': right.T, 'accuracy': right[0], 'nats': nats}
