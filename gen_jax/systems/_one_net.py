"""Shared by systems with one net: state, the module and its optimiser. Losses and steps are in the
systems.
"""

from typing import Any, NamedTuple

import flax
import jax

from gen_jax import nets
from gen_jax.state import Player, make_optimizer


@flax.struct.dataclass
class State:
  """Everything that a step changes."""

  step: jax.Array  # int32
  net: Player


class Model(NamedTuple):
  """The module and optimiser of a config."""

  net: nets.Net
  optimizer: Any


def make_net(config, axis_name=None, **offered) -> nets.Net:
  """The module of config.net; `offered` as in `nets.make`."""
  offered |= {'shape': config.data.shape, 'axis_name': axis_name}
  return nets.make(config.net, 'config.net', precision=config.precision, **offered)


def build(config, axis_name=None, **offered) -> Model:
  """Module and optimiser; cheap, so every trace builds its own."""
  return Model(make_net(config, axis_name, **offered), make_optimizer(config.optim))
