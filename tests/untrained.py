"""Runs that were not trained, for tests that need one."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import config as configs
from gen_jax import contract
from gen_jax.run import checkpoint
from gen_jax.run.workdir import Workdir

ROOT = pathlib.Path(__file__).parent.parent


def load_config(name, **overrides):
  """The config of this name in :smoke."""
  return configs.load(f'{ROOT}/configs/{name}.py:smoke', list(overrides.items()))


def save_untrained(folder, name, **overrides):
  """A run folder without training: every leaf of the state is another random number."""
  config = load_config(name, **overrides)
  system = contract.check(config)
  rng = np.random.RandomState(0)

  def draw(path, leaf):
    x = 0.2 * rng.standard_normal(leaf.shape)
    x = np.abs(x) if path[-1] == jax.tree_util.DictKey('var') else x
    return jnp.asarray(x if leaf.ndim else 7, leaf.dtype)

  state = jax.tree.map_with_path(draw, contract.abstract_state(config, system))
  workdir = Workdir(folder)
  workdir.path.mkdir(parents=True)
  workdir.write_config(configs.to_json(config))
  saver = checkpoint.Checkpointer(
    workdir.checkpoints, config=configs.to_dict(config), data_fingerprint='data/7', keep=1
  )
  saver.save(7, state)
  saver.close()
  return workdir.path
