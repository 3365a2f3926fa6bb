"""Training from the weights of another run, which `config.train.init_from` names."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from gen_jax.errors import UserError
from gen_jax.run import export_format
from gen_jax.run.leaves import rebuild, shape_text, state_leaves, table
from gen_jax.run.manifest import Manifest
from gen_jax.run.restoring import find, players, read
from gen_jax.run.workdir import Workdir

INIT_FROM = 'train.init_from'


def check_trainable(path) -> None:
  """Refuses to train in the folder of an export, which has no optimiser state.

  Raises:
    UserError: the folder holds one.
  """
  if export_format.is_export(path):
    raise UserError(
      f'{path} is an export, which cannot be resumed: start from its weights in another --workdir, '
      f'with --config.{INIT_FROM}={path}'
    )


def initial_weights(config, resumed: Manifest | None) -> dict[str, dict[str, str]]:
  """The run that config.train.init_from names, for the manifests of this one (`Manifest.runs`).

  Args:
    config: checked config.
    resumed: the checkpoint from which this run resumes; None: it starts.

  Raises:
    UserError: there is no such run, or the run in the workdir began from another one. (Another path
      is fine, and so is a folder that is gone.)
  """
  path = config.train.init_from
  before = {} if resumed is None else resumed.runs.get(INIT_FROM, {})
  if path is None and not before:
    return {}
  if resumed is not None and (path is None or not before):
    began = f'from {before["path"]}' if before else 'from fresh weights'
    raise UserError(
      f'config.{INIT_FROM}={path!r}, but the run in {resumed.path.parent.parent} began {began}: '
      'set it back, or start a new run with another --workdir'
    )
  if before and path == before['path'] and not Workdir(path).config.exists():
    return {INIT_FROM: dict(before)}
  found = find(path)
  if before and found.sha256 != before['sha256']:
    raise UserError(
      f'config.{INIT_FROM}={path!r} has the checksum {found.sha256[:16]}, but the run in '
      f'{resumed.path.parent.parent} began from {before["sha256"][:16]}: give it the same weights, '
      'or start a new run with another --workdir'
    )
  return {INIT_FROM: dict(path=str(path), sha256=found.sha256)}


def start_from(path, state):
  """A fresh state with the weights of the run or the export in a folder: parameters and batch
  statistics of the players that both have, moving averages equal to the parameters.

  Of a run with moving averages, it takes what that run samples with.

  Args:
    path: the folder.
    state: arrays, or `jax.ShapeDtypeStruct`, which checks only that the weights fit.

  Raises:
    UserError: no player is common to both, or a parameter differs in shape.
  """
  manifest = find(path)
  weights = 'params'
  if not isinstance(manifest, export_format.Manifest):
    sampling = manifest.config.get('sample')
    averaged = isinstance(sampling, dict) and sampling.get('weights') == 'ema'
    weights = 'ema' if averaged else 'params'
  changed, specs = {}, {}
  for name, player in players(state).items():
    average = (
      weights if any(k.startswith(f'{name}/{weights}/') for k in manifest.leaves) else 'params'
    )
    if not any(key.startswith(f'{name}/{average}/') for key in manifest.leaves):
      continue
    for part, source in (('params', average), ('stats', 'stats')):
      tree = getattr(player, part)
      leaves = state_leaves(tree)
      there = _below(manifest.leaves, f'{name}/{source}/')
      _check_fit(path, f'{name}/{part}', table(leaves), there)
      specs |= {(name, source, *key): leaf for key, leaf in leaves.items()}
      changed[name, part] = source, tree
  if not changed:
    raise UserError(
      f'config.{INIT_FROM}={path!r} has no player {" or ".join(players(state))} to start from'
    )
  specs = {
    key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    for key, leaf in specs.items()
  }
  if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
    return state
  arrays = read(manifest, specs)
  for (name, part), (source, tree) in changed.items():
    mine = {key[2:]: x for key, x in arrays.items() if key[:2] == (name, source)}
    player = getattr(state, name).replace(**{part: rebuild(tree, mine)})
    if part == 'params' and player.ema is not None:
      # A copy: the step donates its state, and one buffer cannot be donated twice.
      player = player.replace(ema=jax.tree.map(jnp.copy, player.params))
    state = state.replace(**{name: player})
  return state


def _below(leaves: Mapping, prefix: str) -> dict:
  return {k.removeprefix(prefix): v for k, v in leaves.items() if k.startswith(prefix)}


def _check_fit(path, where: str, wanted: dict, found: dict) -> None:
  def text(leaf) -> str:
    return 'absent' if leaf is None else shape_text(leaf)

  for name in sorted(wanted.keys() | found.keys()):
    if wanted.get(name) != found.get(name):
      raise UserError(
        f'config.{INIT_FROM}={path!r}: {where}/{name} is {text(found.get(name))} in it and '
        f'{text(wanted.get(name))} in this model'
      )
