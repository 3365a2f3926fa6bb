"""What the folder of a run, or of an export of it, holds, and a state from it: without the
optimisers, which only training needs, on all devices there are; with the runs that it needs.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from gen_jax import config as configs
from gen_jax import contract
from gen_jax.devices import processes, sharding
from gen_jax.errors import UserError
from gen_jax.host import imports
from gen_jax.run import checkpoint, export_format
from gen_jax.run.leaves import check_fits, rebuild, state_leaves
from gen_jax.run.manifest import Manifest
from gen_jax.run.paths import local
from gen_jax.run.workdir import Workdir
from gen_jax.state import Frozen, Player


@contextlib.contextmanager
def _reader(path) -> Iterator[checkpoint.Checkpointer]:
  """The checkpoints of the run in a folder, to be read."""
  saver = checkpoint.Checkpointer(Workdir(path).checkpoints, config={}, data_fingerprint='', keep=1)
  try:
    yield saver
  finally:
    saver.close()


def find(path, step: int | None = None) -> Manifest:
  """The verified manifest of a checkpoint of the run in a folder, or of the export in it.

  Args:
    path: the folder.
    step: which checkpoint; None: the newest that is intact.

  Raises:
    UserError: there is none, or it is damaged.
  """
  if export_format.is_export(path):
    manifest = export_format.open_export(path)
    if step not in (None, manifest.step):
      raise UserError(f'no step {step} in {path}: it is an export of step {manifest.step}')
    return manifest
  with _reader(path) as saver:
    manifest = saver.latest(step)
    # A run in progress may have saved a newer one meanwhile: all processes take the first one's.
    newest = processes.from_first(lambda: manifest and manifest.step)
    if newest is not None and (manifest is None or manifest.step != newest):
      manifest = saver.latest(newest)
  if manifest is None:
    raise UserError(
      f'no checkpoint in {Workdir(path).checkpoints}; train first, or give another --workdir'
    )
  return manifest


def read(manifest, specs: dict) -> dict:
  """Some arrays of a checkpoint or an export, {path: array}; see `Checkpointer.read`."""
  if isinstance(manifest, export_format.Manifest):
    return export_format.read(manifest, specs)
  with _reader(manifest.path.parent.parent) as saver:
    return saver.read(manifest, specs)


def players(state) -> dict[str, Player]:
  """The networks of a state, by name."""
  return {name: value for name, value in vars(state).items() if isinstance(value, Player)}


def restore(config, system, path, step: int | None = None):
  """The manifest and the state of a run or an export, without optimisers, on all devices there are.

  Args:
    config: checked config; it may differ from the run's in fields that are safe to change.
    system: its module.
    path: folder of the run or the export.
    step: which checkpoint; None: the newest that is intact.

  Raises:
    UserError: there is none, it is one of another config, or an export lacks the weights that
      config.sample.weights names.
  """
  manifest = find(path, step)
  # Checked, so that a field that came later than the run has its default in both.
  try:
    with imports.guarded(path):
      earlier = configs.check(manifest.config)
  except UserError as error:
    raise UserError(f'{manifest.path}/config.json: {error}') from error
  configs.check_resumable(earlier, configs.to_dict(config), path)
  exported = isinstance(manifest, export_format.Manifest)
  abstract = contract.abstract_state(config, system)
  kept = {name: player.replace(opt_state=None) for name, player in players(abstract).items()}
  averaged = [name for name, player in kept.items() if player.ema is not None]
  if exported:
    if (wanted := chosen(config, averaged)) != manifest.weights:
      raise UserError(
        f'{path} is an export of {manifest.weights} weights and has no {wanted} ones: '
        f'{manifest.weights!r} is needed'
      )
    for name, player in kept.items():
      kept[name] = player.replace(ema=None) if name in manifest.players else None
  target = sharding.abstract_state(abstract.replace(**kept), sharding.mesh_of_all(config))
  leaves = {name: leaf for name, leaf in manifest.leaves.items() if '/opt_state/' not in name}
  check_fits(dataclasses.replace(manifest, leaves=leaves), target)
  state = rebuild(target, read(manifest, state_leaves(target)))
  if exported:
    same = {name: getattr(state, name) for name in averaged if name in manifest.players}
    state = state.replace(**{name: p.replace(ema=p.params) for name, p in same.items()})
  return manifest, state


def chosen(config, averaged) -> str:
  """The weights that a config samples with: 'ema' or 'raw'. `averaged` holds the names of players
  with a moving average.
  """
  return config.sample.get('weights', 'raw') if averaged else 'raw'


def sampled_weights(config, state) -> str:
  """As `chosen`, for a state."""
  return chosen(config, [player for player in players(state).values() if player.ema is not None])


def weights_of(player: Player, weights: str):
  """The parameters that a network of a run samples with: 'ema', its moving average, or 'raw'."""
  return player.ema if weights == 'ema' and player.ema is not None else player.params


def player_of(state, name: str | None, path) -> Player:
  """A network of the state of the run in `path`; None: the only one.

  Raises:
    UserError: there is none of this name, or there are several.
  """
  known = players(state)
  if name is None and len(known) == 1:
    return next(iter(known.values()))
  if name not in known:
    raise UserError(f'player={name!r}: {path} has {", ".join(known)}')
  return known[name]


def config_of(path):
  """The config of the run or the export in a folder, and the path of the folder.

  Raises:
    UserError: there is none.
  """
  folder = Workdir(local(path, 'path'))
  if not folder.config.is_file():
    raise UserError(f'no run in {path}: {folder.config} is missing')
  return configs.load(str(folder.config)), folder.path


def attach(state, config, system) -> tuple[Any, dict[str, str]]:
  """The state with the finished runs that `system.runs(config)` names, as `Frozen` players: what
  only sampling needs.

  Returns:
    The state, and {field of the state: checksum of that run's manifest}.

  Raises:
    UserError: there is no such run; it has several players and the system names none; or it does
      not fit this one.
  """
  named, checksums = contract.runs(config, system), {}
  for field, where in named.items():
    path, player = where if isinstance(where, tuple) else (where, None)
    its_config, folder = config_of(path)
    manifest, its_state = restore(its_config, contract.check(its_config), folder)
    found = player_of(its_state, player, folder)
    params = weights_of(found, sampled_weights(its_config, its_state))
    frozen = Frozen(params, found.stats, its_config)
    mesh = sharding.mesh_of(state)
    if mesh is not None:
      frozen = sharding.put(frozen, sharding.replicated(mesh))
    state = state.replace(**{field: frozen})
    checksums[field] = manifest.sha256
  if named and contract.has_samples(system):
    contract.abstract_samples(config, system, state)  # raises before anything is compiled
  return state, checksums
