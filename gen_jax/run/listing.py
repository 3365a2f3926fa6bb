"""The table of the runs in folders: `run(workdirs)`.

It is made of small files: JAX is not imported and no array is read, so that a hundred runs take a
second. Of a checkpoint only the checksum of its manifest and the sizes of its files are compared;
what uses a checkpoint compares every byte.
"""

import glob
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from gen_jax.errors import UserError
from gen_jax.host import console
from gen_jax.host.files import JSON_BYTES, open_file, read_file
from gen_jax.run import records
from gen_jax.run.workdir import Workdir, checksum_line, parse_json

DEFAULT = ('runs', 'zoo')  # without --workdir
TAIL = 4096  # bytes at the end of metrics.jsonl that hold its last line


# --- Folders ------------------------------------------------------------------------------------


def folders(text: str, of_runs: bool = False) -> list[pathlib.Path]:
  """The folders that --workdir names: several with commas between them, or patterns such as
  `runs/gan_*`, whose matches are in the order of their names and numbers.

  Args:
    text: the value of the flag.
    of_runs: matches of a pattern that are not runs are left out.

  Raises:
    UserError: a pattern has no match, or there is no name.
  """
  found = []
  for part in [text] if os.path.isdir(text) else filter(None, text.split(',')):
    if glob.has_magic(part) and not os.path.isdir(part):
      names = filter(str.isprintable, glob.glob(part, recursive=True))
      matches = filter(is_run if of_runs else os.path.isdir, names)
      found += (matches := sorted(matches, key=_by_number))
      if not matches:
        raise UserError(f'--workdir={part!r} matches no {"run" if of_runs else "folder"}')
    else:
      found.append(part)
  if not found:
    raise UserError(f'--workdir={text!r} names no folder')
  return [pathlib.Path(path) for path in dict.fromkeys(found)]


def _by_number(name: str) -> list:
  """A key that sorts run_2 before run_10."""
  return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', name)]


def is_run(path) -> bool:
  """Whether a folder looks like that of a run, finished, stopped or damaged, or like an export."""
  folder = Workdir(path)
  own = (folder.config, folder.path / 'manifest.json')
  return (
    folder.lock.is_file() or bool(_checkpoints(folder)) or any('gen_jax' in _json(f) for f in own)
  )


def find(folder) -> Iterator[pathlib.Path]:
  """The runs and exports in a folder, itself included, at any depth."""
  own = Workdir('.')
  own = {own.checkpoints.name, own.samples.name, own.evaluation.name, own.tensorboard.name}
  for path, inside, _ in os.walk(folder):
    found = is_run(path)
    if found:
      yield pathlib.Path(path)
    names = (n for n in inside if n.isprintable() and not n.startswith('.'))
    inside[:] = sorted((n for n in names if not (found and n in own)), key=_by_number)


# --- A run --------------------------------------------------------------------------------------


class Entry(NamedTuple):
  """What the table says of a run. None: it is not known, or there is none."""

  path: pathlib.Path
  system: str | None
  step: int | None
  total: int | None
  state: str
  best: str | None
  changed: float  # seconds since 1970


def read(path) -> Entry:
  """Reads what the folder of a run or an export says about it."""
  folder = Workdir(path)
  config, manifest = _json(folder.config), _json(folder.path / 'manifest.json')
  rows = records.read(folder)
  if 'export' in manifest:
    step, total, state = _get(manifest, 'step', int), None, 'export'
  else:
    step, total = None, _get(_get(config, 'train', dict) or {}, 'steps', int)
    saved = sorted(_checkpoints(folder), reverse=True)
    sound = (number for number in saved if _is_sound(folder.checkpoints / f'{number:010d}'))
    step = next(sound, None)
    if folder.in_use():
      state = 'running'
      step = max((n for n in (step, _last_step(folder.metrics)) if n is not None), default=None)
    elif not config:
      state = 'damaged: config.json' if saved or folder.config.exists() else 'not started'
    elif step is None:
      state = 'damaged: checkpoints' if saved else 'no checkpoint'
    else:
      state = 'finished' if total is not None and step >= total else 'stopped'
      state += f', step {saved[0]:,} is damaged' * (step != saved[0])
  files = (folder.config, folder.metrics, folder.evaluations, folder.checkpoints, folder.lock)
  return Entry(
    folder.path,
    _get(config, 'system', str),
    step,
    total,
    state,
    _best(rows, _get(_get(config, 'eval', dict) or {}, 'best', str)),
    max(map(_changed, files)),
  )


def _checkpoints(folder: Workdir) -> list[int]:
  try:
    names = os.listdir(folder.checkpoints)
  except OSError:
    return []
  return [int(name) for name in names if re.fullmatch(r'\d{10,}', name)]


def _is_sound(path) -> bool:
  """Whether the manifest of a checkpoint has its checksum, and its files the sizes in it."""
  try:
    text = read_file(path / 'manifest.json', JSON_BYTES)
    seal = read_file(path / 'manifest.sha256', JSON_BYTES)
    sizes = {name: file['size'] for name, file in parse_json(text)['files'].items()}
    return seal == checksum_line(text) and all(
      (path / name).stat().st_size == size for name, size in sizes.items()
    )
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return False


def _last_step(metrics: pathlib.Path) -> int | None:
  try:
    with open_file(metrics) as file:
      file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
      lines = file.read().splitlines()
  except OSError:
    return None
  for line in reversed(lines):
    try:
      line = parse_json(line)
    except ValueError:  # incomplete, or cut at the front
      continue
    if records.is_metrics(line):
      return line['step']
  return None


def _best(rows: list, name: str | None) -> str | None:
  """The best of the quick evaluations by the metric `name`, or else its value, or the first one, of
  the last full evaluation.
  """
  rows = [row for row in rows if row['value'] is not None]
  step = records.best_step(rows, name)
  if step is not None:
    found = [r for r in rows if (r['version'], r['step'], r['metric']) == ('quick', step, name)]
    return f'{found[-1]["label"]} {found[-1]["value"]:.4g}, quick, at step {step:,}'
  full = [r for r in rows if r['version'] == 'full' and r.get('time') == rows[-1].get('time')]
  chosen = next((r for r in full if r['metric'] == name), full[0] if full else None)
  return chosen and f'{chosen["label"]} {chosen["value"]:.4g}'


def _json(path) -> dict:
  """The object in a JSON file; {} where there is none."""
  try:
    found = parse_json(read_file(path, JSON_BYTES))
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _get(tree: dict, name: str, kind):
  """An entry of a tree; None: there is none of this kind."""
  return found if isinstance(found := tree.get(name), kind) else None


def _changed(path) -> float:
  try:
    return path.stat().st_mtime
  except OSError:
    return 0.0


# --- The verb -----------------------------------------------------------------------------------


def table(entries: list[Entry]) -> str:
  """The entries as an aligned Markdown table."""
  lines = [['run', 'system', 'step', 'state', 'best value', 'last change']]
  for entry in entries:
    step = '-' if entry.step is None else f'{entry.step:,}'
    step += f' of {entry.total:,}' if entry.total is not None else ''
    when = time.strftime('%Y-%m-%d %H:%M', time.localtime(entry.changed))
    row = (entry.path, entry.system, step, entry.state, entry.best, when)
    lines.append(['-' if cell is None else str(cell) for cell in row])
  return records.markdown(lines)


def run(workdirs: str | None = None) -> int:
  """Prints the table of the runs and exports in folders.

  Args:
    workdirs: as for `folders`; None: `DEFAULT`, those of them that there are.

  Returns:
    The exit status, 0.

  Raises:
    UserError: there is no run.
  """
  if workdirs is None:
    named = [pathlib.Path(name) for name in DEFAULT if os.path.isdir(name)]
  else:
    named = folders(workdirs)
    if missing := [str(folder) for folder in named if not folder.is_dir()]:
      raise UserError(f'--workdir={missing[0]!r}: no such folder')
  found = dict.fromkeys(path for folder in named for path in find(folder))
  if not found:
    where = ' and '.join(DEFAULT) if workdirs is None else workdirs
    raise UserError(f'--workdir: no run in {where}')
  console.tell(table([read(path) for path in found]), sys.stdout)
  return 0
