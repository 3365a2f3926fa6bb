"""Modules by their dotted paths, as configs name nets and systems; never one from a run's folder.

A run that somebody sends must be safe to open, and the names in its files are theirs. So whatever
lies in the folder of a run is refused before it is executed, however it is spelt: by a path through
the working directory, an entry of `sys.path`, a link, an archive, a package that extends its
`__path__`, or from within another module. Modules elsewhere are the user's.

The folder of a run is the one at hand, and any that has a config.json of ours beside checkpoints or
a manifest.
"""

import contextlib
import functools
import importlib
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from types import ModuleType

from gen_jax.errors import UserError
from gen_jax.host.files import JSON_BYTES, read_file

# This package and the environment that runs it, even where somebody trains around them.
_OURS = (str(pathlib.Path(__file__).resolve().parents[1]), sys.prefix, sys.base_prefix)
_PYTHON = pathlib.Path(os.__file__).resolve().parent


def module(name: str) -> ModuleType:
  """Imports a module by its dotted path.

  Raises:
    UserError: it belongs to a run's folder or to Python itself.
    Exception: it cannot be imported.
  """
  top = name.partition('.')[0]
  with guarded():
    # Nothing of Python itself is a net, but some of it acts when it is imported; so does what
    # `python -m` starts.
    if '.__main__' in name or (top in sys.stdlib_module_names and _is_pythons(top)):
      raise UserError(f'{name} is no module of nets or systems')
    found = importlib.import_module(name)
  if name != '__main__':  # which runs already, wherever it lies
    _Guard().check(getattr(found, '__file__', None), *getattr(found, '__path__', ()))
  return found


@contextlib.contextmanager
def guarded(run=None) -> Iterator[None]:
  """Within the block, an import from the folder of a run raises a UserError.

  Args:
    run: the folder whose files name the modules. Packages that contain this folder are refused,
      too: they came with it.
  """
  guard = _Guard(run)
  sys.meta_path.insert(0, guard)
  try:
    yield
  finally:
    sys.meta_path.remove(guard)


class _Guard:
  """A finder that asks those after it, and looks at what they have found before it is executed."""

  def __init__(self, run=None):
    self._run = None if run is None else pathlib.Path(os.path.realpath(run))
    self._known = {str(self._run): True}
    self._real = functools.cache(os.path.realpath)

  def find_spec(self, name, path=None, target=None):
    for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
      if not hasattr(finder, 'find_spec'):
        continue
      if (spec := finder.find_spec(name, path, target)) is not None:
        folders = list(spec.submodule_search_locations or ())
        self.check(spec.origin if spec.has_location else None, *folders)
        for folder in folders if self._run else ():
          if self._run.is_relative_to(os.path.realpath(folder)):
            raise _refused(folder, f'holds the run {self._run}')
        return spec
    return None

  def check(self, *places) -> None:
    """Raises a UserError if a file or folder, or what it links to, is in the folder of a run."""
    for place in filter(None, places):
      path = os.path.abspath(place)
      folder = path if os.path.isdir(path) else os.path.dirname(path)
      target = os.path.dirname(os.path.realpath(path)) if os.path.islink(path) else folder
      if any(map(self._is_in_run, (folder, target, self._real(folder)))):
        raise _refused(place, 'is in the folder of a run')

  def _is_in_run(self, path: str) -> bool:
    """Whether it or a folder above it is that of a run."""
    if path in _OURS:
      return False
    if path not in self._known:
      above = os.path.dirname(path)
      self._known[path] = _holds_run(path) or (above != path and self._is_in_run(above))
    return self._known[path]


def _refused(place, why: str) -> UserError:
  return UserError(
    f'{place} {why}, from which nothing is imported: modules of your own belong elsewhere, beside '
    'your script or in a package'
  )


def _holds_run(folder: str) -> bool:
  """Whether a folder has checkpoints, or a config.json of ours beside those of a run."""
  here = pathlib.Path(folder)
  if not any(os.path.exists(here / name) for name in ('checkpoints', 'manifest.json', '.lock')):
    return False
  with contextlib.suppress(OSError, ValueError, RecursionError):
    if (file := here / 'config.json').is_file():
      config = json.loads(read_file(file, JSON_BYTES))
      if isinstance(config, dict) and 'gen_jax' in config:
        return True
  return any(here.glob('checkpoints/[0-9]*/manifest.json'))


def _is_pythons(top: str) -> bool:
  try:
    spec = importlib.util.find_spec(top)
  except ValueError:  # imported, and without a spec
    return False
  return (
    spec is None
    or not spec.has_location
    or pathlib.Path(spec.origin).resolve().is_relative_to(_PYTHON)
  )
