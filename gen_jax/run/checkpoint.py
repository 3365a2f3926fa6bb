"""Checkpoints: the complete state, exactly, or an error that says what is wrong.

One checkpoint is one folder, `checkpoints/<step>`, which is created by a single rename when all its
files are on disk:

  arrays/           the leaves of the state, written by orbax
  config.json       the resolved config of the run
  manifest.json     size and SHA-256 of every file above, shape and dtype of every leaf,
                    data fingerprint, environment, format version
  manifest.sha256   the SHA-256 of the manifest itself, as `sha256sum -c` reads it

Orbax does not check the bytes of arrays: it restores a flipped bit silently. The manifest detects
it. Everything is JSON or arrays; nothing is unpickled.
"""

import concurrent.futures
import itertools
import json
import logging
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from gen_jax.errors import UserError
from gen_jax.run.leaves import (
  check_finite,
  check_fits,
  has_data,
  place,
  rebuild,
  state_leaves,
  table,
  whole,
)
from gen_jax.run.manifest import (
  FORMAT,
  Damaged,
  Manifest,
  environment,
  file_digest,
  files_below,
  folder_name,
  verify,
)
from gen_jax.run.orbax_arrays import arrays_of_this_process, remove, storage_cause
from gen_jax.run.workdir import checksum_line, sync_directory

_TEMPORARY = '.tmp-'
_log = logging.getLogger(__name__)


class Checkpointer:
  """Saves and restores the state of a run; one process writes to a `directory` at a time.

  The constructor does not access the disk, so that others can read a run in progress.

  Args:
    directory: where the checkpoints are, e.g. `Workdir.checkpoints`.
    config: plain dict of the resolved config; must be JSON.
    data_fingerprint: names the data and their order.
    keep: how many of the newest checkpoints are kept, at least 1.

  Attributes:
    runs: the finished runs that this one started from, for the manifests: see `Manifest.runs`.
  """

  def __init__(self, directory, *, config: dict, data_fingerprint: str, keep: int):
    self._directory = pathlib.Path(directory).absolute()
    self._config = json.dumps(config, indent=2).encode()
    self._data_fingerprint = data_fingerprint
    self._keep = keep
    self.runs: dict[str, dict[str, str]] = {}
    self._arrays = arrays_of_this_process()
    self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix='checkpoint')
    self._pending: concurrent.futures.Future | None = None
    self._prepared = False
    self._written: set[int] = set()
    self._damaged: set[int] = set()
    self._protected: int | None = None

  def steps(self) -> list[int]:
    """The steps of all finished checkpoints, ascending, damaged ones included."""
    try:
      names = os.listdir(self._directory)
    except FileNotFoundError:
      return []
    except OSError as error:
      raise UserError(f'cannot read checkpoints in {self._directory}: {error.strerror}') from error
    return sorted(
      int(name) for name in names if name.isdecimal() and name == folder_name(int(name))
    )

  def protect(self, step: int | None) -> None:
    """Keeps the checkpoint of one step, in addition to the newest, until another is protected."""
    if step != self._protected:
      self.wait()
      self._protected = step
      if self._prepared:
        self._tidy()

  def save(self, step: int, state) -> None:
    """Saves `state`, any pytree of arrays, in the background.

    The arrays are copied on their devices first, so the caller may donate them right afterwards.
    A step that this object has saved before is not written again. Waits for the previous save.
    With several processes, all must call it, and the first one writes.

    Raises:
      ValueError: a leaf holds NaN or infinity; the message names it. Nothing is written.
      UserError: the previous save could not be written.
    """
    self.wait()
    if step in self._written:
      return
    leaves = state_leaves(state)
    check_finite(leaves)
    if jax.process_count() > 1:
      copies = {k: whole(x) for k, x in leaves.items()}
      if jax.process_index() > 0:
        self._written.add(step)
        return
    else:
      copies = {
        k: jnp.copy(x) if isinstance(x, jax.Array) else np.array(x) for k, x in leaves.items()
      }
    self._pending = self._worker.submit(self._write, step, copies)

  def wait(self) -> None:
    """Returns when everything that was saved is on disk.

    Raises:
      UserError: it could not be written; names the path and the cause.
    """
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def check(self) -> None:
    """Raises what `wait` would raise, if a save has failed; does not wait."""
    if self._pending is not None and self._pending.done():
      self.wait()

  def close(self) -> None:
    """`wait`, then shuts down the threads. The object cannot save any more."""
    try:
      self.wait()
    finally:
      self._worker.shutdown()
      self._arrays.close()

  def latest(self, step: int | None = None) -> Manifest | None:
    """The newest checkpoint that verifies, or the one of `step`.

    Every byte is read and compared with the manifest. Damaged checkpoints are logged in one line
    each and kept. None means that there is no checkpoint at all.

    Raises:
      UserError: there are checkpoints but none verifies, or that of `step` is missing or damaged.
    """
    self.wait()
    steps = self.steps()
    if step is not None:
      if step not in steps:
        raise UserError(f'no checkpoint of step {step} in {self._directory}; steps: {steps}')
      try:
        return verify(self._directory / folder_name(step))
      except Damaged as damage:
        raise UserError(f'checkpoint {damage}; steps: {steps}') from None
    while steps:
      for candidate in reversed(steps):
        manifest = self._verified(candidate)
        if manifest is not None:
          return manifest
      # Meanwhile a run in progress may have written a newer one and deleted the last of these.
      before, steps = steps, self.steps()
      if steps == before:
        break
    if left := self._left_over():
      raise UserError(
        f'{self._directory} holds checkpoints ({", ".join(left)}) but none is intact; '
        'move the folder away to start again from step 0, or choose another --workdir'
      )
    return None

  def restore(self, manifest: Manifest, target):
    """The state in a checkpoint that `latest` has verified.

    Args:
      manifest: from `latest`.
      target: a pytree like the state, of arrays or `jax.ShapeDtypeStruct`; a leaf that has a
        sharding is restored to it, others to the default device, numpy arrays to numpy arrays.

    Raises:
      UserError: a leaf is missing or unexpected, or its shape or dtype differs.
    """
    check_fits(manifest, target)
    here = environment()
    if here != manifest.environment:
      names = sorted(here.keys() | manifest.environment.keys())
      pairs = [(n, manifest.environment.get(n), here.get(n)) for n in names]
      changes = ', '.join(f'{n} {old} -> {new}' for n, old, new in pairs if old != new)
      _log.warning(
        'checkpoint of step %d comes from another environment (%s): '
        'later steps may differ in the last bits',
        manifest.step,
        changes,
      )
    return rebuild(target, self.read(manifest, state_leaves(target)))

  def read(self, manifest: Manifest, specs: dict) -> dict:
    """Arrays, some or all, of a checkpoint that `latest` has verified.

    Args:
      manifest: from `latest`.
      specs: `{path: spec}` as `state_leaves` gives it, of arrays that the checkpoint has.
    """
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = {}
    for key, leaf in specs.items():
      if not isinstance(leaf, np.ndarray):
        sharding = getattr(leaf, 'sharding', None) or default
        leaf = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
      placed[key] = leaf
    filled = {k: x for k, x in placed.items() if has_data(x)}
    if jax.process_count() > 1:  # each reads all arrays, and keeps the shards of its devices
      wanted = {k: np.empty(x.shape, x.dtype) for k, x in filled.items()}
    else:
      wanted = filled
    try:
      restored = traverse_util.flatten_dict(self._read(manifest, wanted))
    except Exception as error:
      if manifest.path.exists():
        if not isinstance(error, ValueError | LookupError | TypeError | AttributeError):
          raise
        # The checksums are right, so it was written like this.
        why = f'{type(error).__name__}: {error}'[:200]
        raise UserError(f'checkpoint {manifest.path}: arrays cannot be read ({why})') from error
      raise UserError(
        f'checkpoint {manifest.path} was deleted while it was read, by a run that has written '
        'newer ones; try again'
      ) from error
    if jax.process_count() > 1:
      restored = {k: place(x, placed[k]) for k, x in restored.items()}
    for key in placed.keys() - filled.keys():
      restored[key] = place(np.zeros(placed[key].shape, placed[key].dtype), placed[key])
    return restored

  def _read(self, manifest: Manifest, specs: dict) -> dict:
    tree = traverse_util.unflatten_dict(specs)
    folder = manifest.path / 'arrays'
    if {'/'.join(key) for key in specs} >= {k for k, x in manifest.leaves.items() if 0 not in x[0]}:
      return self._arrays.restore(folder, args=ocp.args.StandardRestore(tree))
    some = arrays_of_this_process(ocp.PyTreeCheckpointHandler)
    try:
      how = ocp.checkpoint_utils.construct_restore_args(tree)
      args = ocp.args.PyTreeRestore(tree, restore_args=how, partial_restore=True)
      return some.restore(folder, args=args)
    finally:
      some.close()

  def _verified(self, step: int) -> Manifest | None:
    path = self._directory / folder_name(step)
    try:
      return verify(path)
    except Damaged as damage:
      # The writer of the run may have deleted an old checkpoint while this process was reading it.
      if path.exists():
        if step not in self._damaged:
          _log.warning('checkpoint %s; it is skipped and kept', damage)
        self._damaged.add(step)
      return None

  def _left_over(self) -> list[str]:
    try:
      return sorted(name for name in os.listdir(self._directory) if name[:1].isdecimal())
    except FileNotFoundError:
      return []

  def _write(self, step: int, leaves: dict) -> None:
    final = self._directory / folder_name(step)
    temporary = self._directory / f'{_TEMPORARY}{folder_name(step)}'
    made = None
    try:
      self._prepare()
      temporary.mkdir()
      made = temporary.stat().st_ino
      data = traverse_util.unflatten_dict({k: x for k, x in leaves.items() if has_data(x)})
      self._arrays.save(temporary / 'arrays', args=ocp.args.StandardSave(data))
      _write_durably(temporary / 'config.json', self._config)
      manifest = dict(
        format=FORMAT,
        step=step,
        data_fingerprint=self._data_fingerprint,
        environment=environment(),
        **({'runs': self.runs} if self.runs else {}),
        leaves={k: [list(shape), dtype] for k, (shape, dtype) in table(leaves).items()},
        files={
          name: file_digest(temporary / name, durable=True) for name in files_below(temporary)
        },
      )
      text = json.dumps(manifest, indent=1).encode()
      _write_durably(temporary / 'manifest.json', text)
      _write_durably(temporary / 'manifest.sha256', checksum_line(text))
      for folder, _, _ in os.walk(temporary):
        sync_directory(folder)
      if final.exists():
        # A damaged checkpoint, or a run that was set back: never delete what may still be needed.
        aside = next(p for n in itertools.count(1) if not (p := _aside(final, n)).exists())
        _log.warning('checkpoint %s exists; the old one is kept as %s', final, aside.name)
        os.rename(final, aside)
        self._damaged.discard(step)
      os.rename(temporary, final)
      sync_directory(self._directory)
    except Exception as error:
      cause = storage_cause(error)
      if made is not None and not (temporary.exists() and temporary.stat().st_ino == made):
        cause = 'it was removed while it was written'
      remove(temporary)
      if cause is None:
        raise
      raise UserError(f'checkpoint {final} cannot be written: {cause}') from error
    self._written.add(step)
    self._tidy()

  def _prepare(self) -> None:
    self._directory.mkdir(exist_ok=True)  # new, or removed during the run
    if self._prepared:
      return
    for path in self._directory.glob(f'{_TEMPORARY}*'):
      shutil.rmtree(path)
    sync_directory(self._directory.parent)
    self._prepared = True

  def _tidy(self) -> None:
    try:
      self._delete_old()
    except (OSError, UserError) as error:
      _log.warning('old checkpoints in %s cannot be deleted: %s', self._directory, error)

  def _delete_old(self) -> None:
    intact = [step for step in reversed(self.steps()) if step not in self._damaged]
    for step in intact[self._keep :]:
      if step == self._protected or self._verified(step) is None:
        continue
      # Renamed first: half deleted under its own name, it would look damaged after a crash.
      rubbish = self._directory / f'{_TEMPORARY}delete-{folder_name(step)}'
      os.rename(self._directory / folder_name(step), rubbish)
      shutil.rmtree(rubbish)


def _aside(path: pathlib.Path, number: int) -> pathlib.Path:
  return path.with_name(f'{path.name}.replaced-{number}')


def _write_durably(path: pathlib.Path, data: bytes) -> None:
  with open(path, 'wb') as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
