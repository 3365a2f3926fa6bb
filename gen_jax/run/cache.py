"""The user's cache of what can be fetched or computed again: weights of feature networks,
classifiers, reference features, compiled programs.
"""

import functools
import logging
import os
import pathlib
import tempfile

from gen_jax.errors import UserError, writing
from gen_jax.run.paths import local
from gen_jax.run.workdir import check_folder, write_atomic

_log = logging.getLogger(__name__)


def cache_folder(*names: str) -> pathlib.Path:
  """`$GEN_JAX_CACHE`, or `gen_jax` in `$XDG_CACHE_HOME` (`~/.cache`), and `names` below it; it need
  not exist.

  Raises:
    UserError: it is no path of this machine.
  """
  home = local(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'XDG_CACHE_HOME')
  root = local(os.environ.get('GEN_JAX_CACHE') or home / 'gen_jax', 'GEN_JAX_CACHE')
  return root.joinpath(*names)


def keep(path: pathlib.Path, data: bytes) -> pathlib.Path:
  """Writes a file of the cache. Where that fails, a line says so, and the file is one of this
  process only.

  Returns:
    The path of the file.
  """
  try:
    with writing(path):
      path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
    return path
  except UserError as error:
    path = _instead(error) / path.name
    write_atomic(path, data)
    return path


def working_folder(path: pathlib.Path) -> pathlib.Path:
  """The folder `path` of the cache, for files of a computation that may be stopped; where it cannot
  be written, as with `keep`, one of this process only.
  """
  try:
    check_folder(path)
    return path
  except UserError as error:
    return _instead(error) / path.name


def _instead(error: UserError) -> pathlib.Path:
  _log.warning('%s: nothing is kept for later (GEN_JAX_CACHE names another folder)', error)
  return pathlib.Path(_own().name)


@functools.cache
def _own() -> tempfile.TemporaryDirectory:
  with writing(tempfile.gettempdir()):
    return tempfile.TemporaryDirectory(prefix='gen_jax-')
