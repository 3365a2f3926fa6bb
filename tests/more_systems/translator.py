"""A convolution from images of x to images of y, by least squares: a system of two domains.

min E (y - f(x))^2 over the pairs of a batch; where they are unpaired, f learns the mean of y.
"""

import functools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import domains, fields, nets
from gen_jax.domains import check, inputs
from gen_jax.fields import Measure
from gen_jax.state import OPTIMIZER, Player, init_player, make_optimizer, one_image, update

__all__ = ['FIELDS', 'check', 'evaluate', 'init_state', 'inputs', 'sample', 'train_step']

FIELDS = {
  'net': fields.net(meaning='images of x to images of y'),
  **domains.UNPAIRED,
  **{f'optim.{name}': rule for name, rule in OPTIMIZER.items()},
}
CONDITIONS = ('x', 'y')
METRICS = {'net/loss': 'mean squared difference of f(x) and y'}
MEASURES = {
  'l1': Measure('mean absolute difference', 'exact'),
  'x_label': Measure('mean label of x', 'exact'),
}


class Net(nn.Module):
  shape: tuple[int, ...]

  @nn.compact
  def __call__(self, x):
    *size, channels = self.shape
    x = jax.image.resize(x, (len(x), *size, x.shape[-1]), 'nearest')
    return nn.tanh(nn.Conv(channels, (3, 3))(x))


@flax.struct.dataclass
class State:
  step: jax.Array
  net: Player


def build(config):
  return nets.make(config.net, 'config.net', precision=config.precision, shape=config.data.shape)


def loss_fn(params, rows, keys, *, net):
  x, y = rows
  loss = jnp.square(net.apply({'params': params}, x) - y).mean()
  return loss, ({'net/loss': loss}, {})


def init_state(rng, batch, *, config):
  one_image(batch, config, leaf='y')
  variables = build(config).init(rng, one_image(batch, config, leaf='x'))
  return State(jnp.zeros((), jnp.int32), init_player(variables, make_optimizer(config.optim)))


def train_step(state, batch, rng, *, config, axis_name=None):
  player, metrics = update(
    state.net,
    functools.partial(loss_fn, net=build(config)),
    (batch['x'], batch['y']),
    (),
    name='net',
    optimizer=make_optimizer(config.optim),
    step=state.step,
    accumulate=config.train.accumulate,
    axis_name=axis_name,
  )
  return State(state.step + 1, player), metrics


def translate(state, x, config):
  return build(config).apply({'params': state.net.params}, x)


def sample(state, given, rng, *, config):
  return {
    'image': translate(state, given['x'], config),
    'source': given['x'],
    'target': given['y'],
  }


def evaluate(state, batch, rng, *, config):
  y = translate(state, batch['x'], config)
  values = {'l1': jnp.abs(y - batch['y']).mean((1, 2, 3))}
  if 'x_label' in batch:
    values['x_label'] = batch['x_label'].astype(jnp.float32)
  return values
