"""The compiled step of an earlier start, read while this start still traces its own.

JAX's cache finds a program by a hash of what has been traced and lowered: a start first traces,
then reads, and for a large net each takes seconds. So the program is kept a second time beside
JAX's, with a note of which one the last start of a config like this one needed. That one is read in
a thread from the beginning, and used only if what is then lowered is the same to the letter.
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jaxlib
from jax.experimental import serialize_executable

from gen_jax import config as configs
from gen_jax.run.cache import programs_folder
from gen_jax.run.workdir import write_atomic

_KEPT = '/jax/compilation_cache/cache_misses'  # what JAX reports when it keeps a new program
_log = logging.getLogger(__name__)


class Prefetch:
  """The program of one step function, for one process under `jit`; otherwise, and where JAX keeps
  nothing on a local disk, it only compiles.
  """

  def __init__(self, config, mesh):
    """Begins to read the program that the last start with such a config needed, if one is there."""
    self._devices = list(mesh.devices.flat)
    self._pool = ThreadPoolExecutor(1)
    self._begun = self._note = None
    folder = programs_folder()
    if folder is None or jax.process_count() > 1 or config.parallel.mode != 'jit':
      return
    self._folder = pathlib.Path(folder)
    if not self._folder.is_dir():  # a bucket
      return
    like = {path: v for path, v in configs.leaves(config) if not configs.is_safe_to_change(path)}
    like = like | {'seed': None, 'devices': mesh.size}
    self._note = self._folder / f'last_step_{_digest(sorted(like.items()))[:16]}'
    with contextlib.suppress(OSError, ValueError):
      key, taken, returned = self._note.read_text().split()
      begun = self._pool.submit(self._read, key, int(taken), int(returned))
      self._begun = key, begun

  def compile(self, lowered: jax.stages.Lowered, options: dict | None) -> Callable:
    """`lowered.compile(options)`, or the same program from the disk."""
    if self._note is None:
      return lowered.compile(options)
    key, out_tree = self._key(lowered, options), lowered.out_tree
    leaves = lowered.in_tree.num_leaves, out_tree.num_leaves
    begun, self._begun = self._begun, None
    flat = begun[1].result() if begun and begun[0] == key else None
    if flat is None and (flat := self._read(key, *leaves)):  # another start's than the last one's
      self._pool.submit(self._write, key, leaves)
    if flat is not None:
      return lambda *args: out_tree.unflatten(flat(*jax.tree.leaves(args)))
    program, is_new = _compile(lowered, options)
    if is_new:
      self._pool.submit(self._write, key, leaves, program)
    return program

  def _key(self, lowered, options):
    """Of all that the program depends on, as far as JAX's cache has it in its own keys, and of the
    trees that it takes and returns.
    """
    device = self._devices[0]
    environment = [os.environ.get(name) for name in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')]
    return _digest(
      *(lowered.as_text(), lowered.in_tree, lowered.out_tree, options),
      *(jax.__version__, jaxlib.__version__, device.client.platform_version, environment),
      *(device.device_kind, [d.id for d in self._devices]),
      *sorted(jax.config.values.items()),
    )

  def _path(self, key):
    return self._folder / f'{key}.step'

  def _read(self, key, taken, returned):
    """The program, from so many arrays to so many arrays; None: it is not there, or broken."""
    try:
      return serialize_executable.deserialize_and_load(
        zlib.decompress(self._path(key).read_bytes()),
        jax.tree.structure(((0,) * taken, {})),  # positional arguments, and those by name
        jax.tree.structure((0,) * returned),
        execution_devices=self._devices,
      )
    except FileNotFoundError:
      return None
    except Exception as error:  # of whatever a broken file makes
      _log.debug('%s cannot be read: %s', self._path(key), error)
      return None

  def _write(self, key, leaves, program=None):
    """Keeps the program, and the note that it is the last one."""
    try:
      if program is not None:
        data, _, _ = serialize_executable.serialize(program)
        write_atomic(self._path(key), zlib.compress(data, 1))
      write_atomic(self._note, ' '.join(map(str, (key, *leaves))).encode())
    except Exception as error:  # a full disk, a program with constants: the next start compiles
      _log.debug('%s is not kept: %s', self._path(key), error)


def _digest(*parts) -> str:
  return hashlib.sha256('\n'.join(map(str, parts)).encode()).hexdigest()


def _compile(lowered, options):
  """The program, and whether it has just been made, for long enough that JAX keeps it. What JAX
  has read from its cache cannot be serialised again: it would lack the functions (jaxlib 0.10).
  """
  thread, heard = threading.get_ident(), []

  def listen(event, **_):
    if event == _KEPT and threading.get_ident() == thread:
      heard.append(event)

  jax.monitoring.register_event_listener(listen)
  try:
    return lowered.compile(options), bool(heard)
  finally:
    jax.monitoring.unregister_event_listener(listen)
