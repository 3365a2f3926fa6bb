"""Shared by systems with one net and a diffusion process: the module, optimiser and process."""

from typing import Any, NamedTuple

from gen_jax import nets
from gen_jax.diffusion.process import Process, make_betas, make_process
from gen_jax.state import make_optimizer


class Model(NamedTuple):
  """The module, optimiser and process of a config."""

  net: nets.Net
  optimizer: Any
  process: Process


def make_net(config, axis_name=None, **offered) -> nets.Net:
  """The module of config.net; `offered` as in `nets.make`."""
  offered |= {'shape': config.data.shape, 'axis_name': axis_name}
  return nets.make(config.net, 'config.net', precision=config.precision, **offered)


def build(config, axis_name=None, **offered) -> Model:
  """Module, optimiser and tables; cheap, so every trace builds its own."""
  return Model(
    net=make_net(config, axis_name, **offered),
    optimizer=make_optimizer(config.optim),
    process=make_process(make_betas(config)),
  )
