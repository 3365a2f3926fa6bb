"""Shared by systems with one net: the module and optimiser, and DDPM's process."""

from typing import Any, NamedTuple

from gen_jax import nets
from gen_jax.diffusion.process import Process, make_betas, make_process
from gen_jax.state import make_optimizer


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


def build_process(config) -> Process:
  """The tables of config.diffusion."""
  return make_process(make_betas(config))
