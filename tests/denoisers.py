"""Nets whose predictions are known in closed form, for the systems that denoise."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import config as configs
from gen_jax import state as players
from gen_jax.systems import find_system


class Constant(nn.Module):
  """Predicts one number."""

  start: float = 0.0

  @nn.compact
  def __call__(self, x, t, label=None, h=None, *, train):
    return jnp.zeros_like(x) + self.param('a', lambda _: jnp.array(self.start))


class Scaled(nn.Module):
  """Predicts a multiple of its input."""

  start: float = 1.0

  @nn.compact
  def __call__(self, x, t, label=None, h=None, *, train):
    return self.param('a', lambda _: jnp.array(self.start)) * x


class Told(nn.Module):
  """Predicts what it is told: of the time, the label or h."""

  what: str = 'time'

  @nn.compact
  def __call__(self, x, t, label=None, h=None, *, train):
    self.param('a', nn.initializers.zeros, ())
    value = {'time': t, 'label': label, 'h': h}[self.what]
    return jnp.zeros_like(x) + value.astype(jnp.float32).reshape(-1, *[1] * (x.ndim - 1))


def make_config(system, changes=None):
  """The config of a system for points in two dimensions and the net `Constant`."""
  values = {'data.shape': (2,), 'net': {'name': Constant}, 'optim.lr': 0.05}
  return configs.make(system, values | (changes or {}))


def init(config, batch=None):
  batch = {'image': jnp.zeros((4, *config.data.shape))} if batch is None else batch
  return find_system(config.system).init_state(jax.random.key(0), batch, config=config)


def drawn_rows(monkeypatch, config, batch, key=0):
  """The rows that a training step gives to its loss."""
  system, seen = find_system(config.system), []

  def update(player, loss, rows, keys, **options):
    seen.append(rows)
    return player, {}

  with monkeypatch.context() as patched:
    patched.setattr(players, 'update', update)
    system.train_step(init(config, batch), batch, jax.random.key(key), config=config)
  return seen[0]


def four_points(spread):
  """x_0 and eps [4, 1] with exactly the second moments of N(0, spread^2) and N(0, 1), independent:
  a squared error that is linear in x_0 and eps has its mean over both.
  """
  x_0 = np.float32([[spread], [spread], [-spread], [-spread]])
  return x_0, np.float32([[1], [-1], [1], [-1]])


def slope(loss, at):
  """The derivative of `loss(params)` for a net with one parameter at a number."""
  return float(jax.grad(lambda a: loss({'a': a}))(jnp.float32(at)))


def assert_minimum(loss, at):
  """`loss(params)` is least where the one parameter is `at`."""
  beside = slope(loss, at + 0.1)
  assert beside > 0
  assert abs(slope(loss, at)) < 2e-4 * beside
