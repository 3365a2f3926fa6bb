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
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
import pathlib
import platform
import re
import reprlib
import shutil
import sys
import time
import traceback

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util
from jax.experimental import multihost_utils

from gen_jax import __version__
from gen_jax.errors import UserError
from gen_jax.run.files import JSON_BYTES, read_file
from gen_jax.run.workdir import checksum_line, parse_json, sync_directory

FORMAT = 2  # of the manifest; written since gen_jax 0.2
LATE_SECONDS = 10.0  # for threads that still write when a save has failed
_TEMPORARY = '.tmp-'
_SEAL = ('manifest.json', 'manifest.sha256')
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The manifest of a checkpoint.

  Attributes:
    step: number of finished steps.
    path: the folder.
    config: the resolved config; JSON has turned tuples into lists.
    data_fingerprint: names the data and their order.
    leaves: `{path: (shape, dtype)}`, e.g. `{'net/params/dense/kernel': ((3, 4), 'float32')}`.
    environment: what the bits of a step may depend on besides the program, {name: text}.
    format: version of the layout of the folder.
    sha256: of the manifest, which holds those of all files.
    runs: the finished runs that it started from, `{config field: {'path': ..., 'sha256': ...}}`.
  """

  step: int
  path: pathlib.Path
  config: dict
  data_fingerprint: str
  leaves: dict[str, tuple[tuple[int, ...], str]]
  environment: dict[str, str]
  format: int
  sha256: str
  runs: dict[str, dict[str, str]]


class _Damaged(Exception):
  """A checkpoint fails verification; the message says which file and why."""


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
    self._arrays = _arrays_of_this_process()
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
    return sorted(int(name) for name in names if name.isdecimal() and name == _name(int(name)))

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
    _check_finite(leaves)
    if jax.process_count() > 1:
      copies = {k: _whole(x) for k, x in leaves.items()}
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
        return _verify(self._directory / _name(step))
      except _Damaged as damage:
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
    filled = {k: x for k, x in placed.items() if _has_data(x)}
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
    some = _arrays_of_this_process(ocp.PyTreeCheckpointHandler)
    try:
      how = ocp.checkpoint_utils.construct_restore_args(tree)
      args = ocp.args.PyTreeRestore(tree, restore_args=how, partial_restore=True)
      return some.restore(folder, args=args)
    finally:
      some.close()

  def _verified(self, step: int) -> Manifest | None:
    path = self._directory / _name(step)
    try:
      return _verify(path)
    except _Damaged as damage:
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
    final = self._directory / _name(step)
    temporary = self._directory / f'{_TEMPORARY}{_name(step)}'
    made = None
    try:
      self._prepare()
      temporary.mkdir()
      made = temporary.stat().st_ino
      data = traverse_util.unflatten_dict({k: x for k, x in leaves.items() if _has_data(x)})
      self._arrays.save(temporary / 'arrays', args=ocp.args.StandardSave(data))
      _write_durably(temporary / 'config.json', self._config)
      manifest = dict(
        format=FORMAT,
        step=step,
        data_fingerprint=self._data_fingerprint,
        environment=environment(),
        **({'runs': self.runs} if self.runs else {}),
        leaves={k: [list(shape), dtype] for k, (shape, dtype) in table(leaves).items()},
        files={name: _digest(temporary / name, durable=True) for name in _files(temporary)},
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
      cause = _storage_cause(error)
      if made is not None and not (temporary.exists() and temporary.stat().st_ino == made):
        cause = 'it was removed while it was written'
      _remove(temporary)
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
      rubbish = self._directory / f'{_TEMPORARY}delete-{_name(step)}'
      os.rename(self._directory / _name(step), rubbish)
      shutil.rmtree(rubbish)


# --- The manifest -------------------------------------------------------------------------------


def environment() -> dict[str, str]:
  """What the bits of a compiled step may depend on besides the program and its inputs."""
  device = jax.devices()[0]
  return dict(
    jax=jax.__version__,
    jaxlib=jaxlib.__version__,
    backend=jax.default_backend(),
    device=device.device_kind,
    devices=str(jax.device_count()),
    processes=str(jax.process_count()),
    cpu=_cpu_name(),
    cpu_cores=str(
      len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    ),
    matmul_precision=str(jax.config.jax_default_matmul_precision),
    random_bits=str(jax.config.jax_default_prng_impl),
    xla_flags=os.environ.get('XLA_FLAGS', ''),
  )


def _is_count(value) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _all(is_right):
  return lambda value: isinstance(value, dict) and all(map(is_right, value.values()))


def is_text(value) -> bool:
  """Whether a value of JSON is a text."""
  return isinstance(value, str)


def _is_leaf(value) -> bool:
  return (
    isinstance(value, list)
    and len(value) == 2
    and isinstance(value[0], list)
    and all(map(_is_count, value[0]))
    and is_text(value[1])
    and bool(re.fullmatch(r'bool|b?float\w+|u?int\d+|complex\d+|key<\w+>', value[1]))
  )


def _is_file(value) -> bool:
  return isinstance(value, dict) and _is_count(value.get('size')) and is_text(value.get('sha256'))


# The parts of a manifest, and whether a value is one.
PARTS = dict(
  step=_is_count,
  data_fingerprint=is_text,
  environment=_all(is_text),
  leaves=_all(_is_leaf),
  files=_all(_is_file),
  runs=_all(lambda run: _all(is_text)(run) and {'path', 'sha256'} <= run.keys()),
)


def described(manifest, parts=PARTS) -> dict:
  """The fields of `Manifest` that a manifest holds, read as JSON, besides path and checksum.

  Args:
    manifest: any value.
    parts: what it must hold, {name: whether a value is right}.

  Raises:
    ValueError: it is not one; says which field it lacks, or what it has there.
  """
  if not isinstance(manifest, dict):
    raise ValueError('no JSON object')
  for name, is_right in parts.items():
    if name not in manifest and name != 'runs':
      raise ValueError(f'{name} is missing')
    if not is_right(manifest.get(name, {})):
      raise ValueError(f'{name}={reprlib.repr(manifest[name])[:80]}')
  leaves = {k: (tuple(shape), dtype) for k, (shape, dtype) in manifest['leaves'].items()}
  named = {name: manifest[name] for name in ('step', 'data_fingerprint', 'environment')}
  return named | dict(leaves=leaves, runs=manifest.get('runs', {}))


def _cpu_name() -> str:
  with contextlib.suppress(OSError):
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.machine()


# --- Several processes --------------------------------------------------------------------------


def _arrays_of_this_process(handler=ocp.StandardCheckpointHandler) -> ocp.Checkpointer:
  """Orbax for arrays on disk; with several processes, without waiting for the others."""
  _mute_orbax()
  if jax.process_count() == 1:
    return ocp.Checkpointer(handler())
  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me, active_processes={me}, barrier_sync_key_prefix=f'process{me}'
  )
  return ocp.Checkpointer(handler(multiprocessing_options=alone), multiprocessing_options=alone)


def _whole(x) -> np.ndarray:
  """An array sharded over several processes, gathered on the host of each."""
  if not isinstance(x, jax.Array):
    return np.array(x)
  if x.is_fully_replicated:
    return np.asarray(x.addressable_data(0))
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def place(x: np.ndarray, spec):
  """Shards an array that every process holds as `spec` says; a numpy array for a numpy spec."""
  if isinstance(spec, np.ndarray):
    return x
  if spec.sharding is None:
    return jnp.asarray(x)
  return jax.make_array_from_callback(x.shape, spec.sharding, lambda index: x[index])


def _name(step: int) -> str:
  return f'{step:010d}'


def _aside(path: pathlib.Path, number: int) -> pathlib.Path:
  return path.with_name(f'{path.name}.replaced-{number}')


def _flatten(state) -> dict:
  # A None or an empty node holds no array but is part of the structure.
  return traverse_util.flatten_dict(serialization.to_state_dict(state), keep_empty_nodes=True)


def state_leaves(state) -> dict:
  """`{path: array}` with paths as tuples of strings."""
  found = {}
  for key, leaf in _flatten(state).items():
    if leaf is None or leaf is traverse_util.empty_node:
      continue
    if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
      raise TypeError(f'{"/".join(key)} is a {type(leaf).__name__}; a state is made of arrays')
    found[key] = leaf
  return found


def rebuild(target, arrays: dict):
  """The pytree `target` with these arrays, `{path: array}`, in place of its leaves."""
  nodes = _flatten(target)
  return serialization.from_state_dict(target, traverse_util.unflatten_dict(nodes | arrays))


def _has_data(leaf) -> bool:
  # Orbax rejects arrays of size zero; shape and dtype in the manifest determine them.
  return 0 not in leaf.shape


def table(leaves: dict) -> dict[str, tuple[tuple[int, ...], str]]:
  """`Manifest.leaves` of arrays by path, as `state_leaves` gives them."""
  return {'/'.join(key): (tuple(x.shape), str(x.dtype)) for key, x in leaves.items()}


@jax.jit
def _all_finite(arrays: list) -> jax.Array:
  return jnp.stack([jnp.isfinite(x).all() for x in arrays])


def _check_finite(leaves: dict) -> None:
  floats = {k: x for k, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
  if not floats:
    return
  for key, finite in zip(floats, np.asarray(_all_finite(list(floats.values()))), strict=True):
    if not finite:
      raise ValueError(f'{"/".join(key)} holds NaN or infinity; such a state is not saved')


def check_fits(manifest: Manifest, target) -> None:
  """Compares the leaves of a checkpoint with those of `target`, as for `Checkpointer.restore`.

  Raises:
    UserError: a leaf is missing or unexpected, or its shape or dtype differs.
  """
  found, wanted = manifest.leaves, table(state_leaves(target))
  where = f'checkpoint {manifest.path} does not fit this model'
  if missing := sorted(wanted.keys() - found.keys()):
    raise UserError(f'{where}: it lacks {_some(missing)}')
  if extra := sorted(found.keys() - wanted.keys()):
    raise UserError(f'{where}: the model lacks {_some(extra)}')
  for leaf, new in wanted.items():
    if found[leaf] != new:
      raise UserError(
        f'{where}: {leaf} is {shape_text(found[leaf])} in it and {shape_text(new)} in the model'
      )


def _some(names: list[str]) -> str:
  return names[0] if len(names) == 1 else f'{names[0]} and {len(names) - 1} more'


def shape_text(leaf) -> str:
  """A shape and dtype of `Manifest.leaves` as text: 'float32[3,4]'."""
  shape, dtype = leaf
  return f'{dtype}[{",".join(map(str, shape))}]'


# --- Files and checksums ------------------------------------------------------------------------


# What the file managers of desktops leave in folders, in lower case.
_LITTER = ('.ds_store', 'thumbs.db', 'ehthumbs.db', 'desktop.ini', '.directory')


def _files(folder: pathlib.Path) -> list[str]:
  """Names of all files below `folder`, relative to it, with `/`, sorted; without what desktops
  leave there.
  """
  names = []
  for parent, folders, files in os.walk(folder):
    names += [os.path.join(parent, name) for name in files]
    # A link to a folder: `walk` does not follow it, and we never create one.
    names += [p for name in folders if os.path.islink(p := os.path.join(parent, name))]
  paths = [pathlib.Path(name).relative_to(folder) for name in names]
  litter = [p for p in paths if p.name.lower() in _LITTER or p.name.startswith('._')]
  return sorted(path.as_posix() for path in set(paths).difference(litter))


def _digest(path: pathlib.Path, durable: bool = False) -> dict:
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
    if durable:
      os.fsync(file.fileno())
    return dict(size=os.fstat(file.fileno()).st_size, sha256=digest)


def _write_durably(path: pathlib.Path, data: bytes) -> None:
  with open(path, 'wb') as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _verify(path: pathlib.Path) -> Manifest:
  """Reads the manifest and compares every byte with it; raises `_Damaged`."""
  try:
    found = _files(path)
    for name in _SEAL:
      if name not in found:
        raise _Damaged(f'{path} is damaged: {name} is missing')
    for name in found:
      if (path / name).is_symlink() or not (path / name).is_file():
        raise _Damaged(f'{path} is damaged: {name} is not a regular file')
    text = read_file(path / 'manifest.json', JSON_BYTES)
    if read_file(path / 'manifest.sha256', JSON_BYTES) != checksum_line(text):
      raise _Damaged(f'{path} is damaged: manifest.json does not match manifest.sha256')
    manifest = parse_json(text)
    written = manifest.get('format') if isinstance(manifest, dict) else None
    if not _is_count(written):
      raise ValueError('it has no format')
    if written != FORMAT:
      raise UserError(
        f'checkpoint {path} has format {written}, gen_jax {__version__} reads format {FORMAT}: '
        'train again, or use the version that wrote it'
      )
    fields = described(manifest)
    if _name(fields['step']) != path.name:
      raise _Damaged(f'{path} is damaged: its manifest is that of step {fields["step"]}')
    listed = manifest['files']
    for name in sorted(listed.keys() ^ set(found).difference(_SEAL)):
      fault = 'is missing' if name in listed else 'does not belong to it'
      raise _Damaged(f'{path} is damaged: {name} {fault}')
    # Sizes first: a truncated file is found without reading gigabytes.
    for name, file in listed.items():
      if (size := (path / name).stat().st_size) != file['size']:
        raise _Damaged(f'{path} is damaged: {name} has {size} bytes instead of {file["size"]}')
    for name, file in listed.items():
      if _digest(path / name) != file:
        raise _Damaged(f'{path} is damaged: the checksum of {name} is wrong')
    if not isinstance(config := parse_json(read_file(path / 'config.json', JSON_BYTES)), dict):
      raise _Damaged(f'{path} is damaged: config.json is no JSON object')
    digest = hashlib.sha256(text).hexdigest()
    return Manifest(path=path, config=config, format=FORMAT, sha256=digest, **fields)
  except ValueError as error:
    raise _Damaged(f'{path} is damaged: manifest.json is not one ({error})') from error
  except OSError as error:
    raise _Damaged(f'{path} cannot be read: {error.strerror}') from error


def _storage_cause(error: Exception) -> str | None:
  """Why the storage failed, as text; None if `error` is not about storage."""
  if isinstance(error, OSError):
    return error.strerror or str(error)
  # TensorStore raises ValueError with a paragraph; only the system's error code is useful.
  if code := re.search(r"os_error_code='(\d+)'", str(error)):
    return os.strerror(int(code.group(1)))
  if re.match('[A-Z_]+: ', str(error)):
    return str(error)[:300]
  return None


def _remove(folder: pathlib.Path) -> None:
  """Removes the folder of a failed save: other threads of TensorStore may still write to it."""
  deadline, absent = time.monotonic() + LATE_SECONDS, 0
  while absent < 5 and time.monotonic() < deadline:
    shutil.rmtree(folder, ignore_errors=True)
    absent = 0 if folder.exists() else absent + 1
    time.sleep(0.02)


@functools.cache
def _mute_orbax() -> None:
  """Where a save or a restore fails, Orbax raises the error of one array and leaves those of others
  to the event loop, logs the tracebacks of its threads, and leaves callbacks for an event loop that
  it has closed, each of which Python reports, even later.
  """

  def is_new(record):
    if not record.exc_info:
      return True
    # asyncio reports an exception that nobody fetched without saying which code raised it, and
    # TensorStore's have no frames.
    frames = traceback.walk_tb(record.exc_info[2])
    files = (frame.f_code.co_filename for frame, _ in frames)
    said = ' '.join((record.pathname, record.getMessage(), *files))
    return 'orbax' not in said and 'tensorstore' not in said

  for name in ('absl', 'asyncio'):
    logging.getLogger(name).addFilter(is_new)
  report = sys.unraisablehook

  def report_new(unraisable):
    if str(unraisable.exc_value) != 'Event loop is closed':
      report(unraisable)

  sys.unraisablehook = report_new
