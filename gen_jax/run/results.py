"""Where results lie that depend on settings: none replaces one of other settings.

A result has a name, and beside it lies `<name>.json` with everything that decides it. The name
begins with the step, and holds the settings that differ from those of the checkpoint, as in
`step_0001000_seed_0_sampler=ddim_steps=50`. With the same settings the same files are written
again; where the name is taken by another result, `_2`, `_3`, ... is added to it.
"""

import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterable

from gen_jax import config as configs
from gen_jax.host.files import read_file

LONGEST_VALUE, LONGEST = 40, 150  # bytes of a name, which the file system limits to 255


def place(
  start: pathlib.Path,
  config,
  manifest,
  paths: Iterable[str],
  *,
  files: Iterable[str] = ('',),
  named: Iterable[str] = (),
  **also,
) -> tuple[pathlib.Path, bytes]:
  """The place of a result of a checkpoint, and what `<name>.json` beside it must hold.

  Args:
    start: a folder, and how the name begins.
    config: checked config.
    manifest: of the checkpoint.
    paths: the fields of the config that decide the result.
    files: what the result adds to its name for each of its files.
    named: fields among `paths` that `start` names already.
    **also: what else decides the result, such as checksums of further runs.
  """
  usual = dict(configs.leaves(configs.check(manifest.config)))
  settings = {path: config[path] for path in sorted(paths)}
  name = start.name
  for path, value in settings.items():
    if value != usual.get(path) and path not in named:
      name += f'_{path.removeprefix("sample.")}={_short(value)}'
  about = dict(step=manifest.step, checkpoint=manifest.sha256, **also, settings=settings)
  text = json.dumps(about, indent=1).encode() + b'\n'
  for i in itertools.count(1):
    # The cut may leave a part of a character, and the target of a link may not be UTF-8.
    found = start.with_name(os.fsencode(name)[:LONGEST].decode(errors='ignore') + f'_{i}' * (i > 1))
    taken = any(os.path.lexists(beside(found, file)) for file in ('.json', *files))
    if not taken or _holds(beside(found, '.json'), text):
      return found, text


def beside(path: pathlib.Path, text: str) -> pathlib.Path:
  """The file whose name is that of `path` and `text`."""
  return path.with_name(path.name + text)


def _holds(path: pathlib.Path, text: bytes) -> bool:
  try:
    return read_file(path, len(text)) == text
  except OSError:
    return False


def _short(value) -> str:
  """A value as a part of a file's name: a path by its last component, a tuple as '255,255,255'."""
  if isinstance(value, tuple):
    return ','.join(map(_short, value))[:LONGEST_VALUE]
  text = f'{value:g}' if isinstance(value, float) else str(value)
  text = text.rstrip('/').rpartition('/')[2]
  return re.sub(r'[^A-Za-z0-9.+-]+', '-', text)[:LONGEST_VALUE]
