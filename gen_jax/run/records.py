"""Results of an evaluation: numbers with their protocol, in `evaluation.jsonl` and as tables."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import math
import os
import pathlib
import re
import textwrap
import time
import typing
from collections.abc import Callable, Iterable
from typing import Any

from gen_jax.host.files import JSON_BYTES, LOG_BYTES, read_file
from gen_jax.run import workdir
from gen_jax.run.workdir import Workdir, parse_json, write_atomic

# Fields that must be equal for numbers to be comparable: across runs, and within one run.
PROTOCOL = ('reference', 'data', 'samples', 'features', 'resize')
COMPARED = (*PROTOCOL, 'weights', 'sampler', 'runs', 'seed')
_log = logging.getLogger(__name__)
LOWER_IS_BETTER = ('frechet', 'kernel', 'modes_kl')  # among the values of config.eval.best


@dataclasses.dataclass(frozen=True)
class Row:
  """One number, and what it depends on. None: does not apply to this number."""

  metric: str  # the name for programs, e.g. 'frechet'
  label: str  # the name for readers, e.g. 'FID' or 'FD-classifier'
  value: float
  spread: float | None = None  # standard error; for the inception score, deviation over splits
  kind: str | None = None  # for values of `evaluate`: exact, lower bound, upper bound or estimate
  reference: str | None = None  # data set, split and number of examples
  data: str | None = None  # fingerprint of that set, and the shape of its examples
  samples: str | None = None  # how many, and from where if not from the run
  features: str | None = None  # feature network and the checksum of its weights
  note: str | None = None  # about that network, e.g. its accuracy
  resize: str | None = None  # how images are resized for its input
  weights: str | None = None  # of the generator: ema or raw
  sampler: str | None = None
  runs: str | None = None  # finished runs that the sampler needs, with their checksums
  evaluations: int | None = None  # forward passes of a net per sample
  seed: int | None = None  # seed of the samples
  version: str = 'full'  # or quick: in training, with config.eval.quick_samples
  machine: str | None = None  # for a number that is a time


_NUMBER = int | float | None  # JSON has no NaN
_KINDS = {'step': int | None, 'time': _NUMBER} | {
  name: _NUMBER if float in (kind, *typing.get_args(kind)) else kind
  for name, kind in typing.get_type_hints(Row).items()
}
_NEEDED = {'step', 'metric', 'label', 'value', 'version'}  # in lines of every version

# --- evaluation.jsonl ---------------------------------------------------------------------------


def append(folder: Workdir, step: int | None, made: list[Row]) -> None:
  """Appends a line for every row to `evaluation.jsonl`. NaN and infinity become null.

  Raises:
    UserError: it cannot be written.
  """
  lines, now = [], time.time()  # the same for all rows of an evaluation
  for row in made:
    line = dict(step=step, time=now) | dataclasses.asdict(row)
    finite = {k: v for k, v in line.items() if not isinstance(v, float) or math.isfinite(v)}
    lines.append(json.dumps(dict.fromkeys(line) | finite))
  if not _ends_a_line(folder.evaluations):  # the process was killed
    lines.insert(0, '')
  workdir.append(folder.evaluations, ''.join(f'{line}\n' for line in lines).encode())


def _ends_a_line(path) -> bool:
  with contextlib.suppress(OSError), open(path, 'rb') as file:
    if file.seek(0, os.SEEK_END):
      file.seek(-1, os.SEEK_END)
      return file.read() == b'\n'
  return True


def read(folder: Workdir) -> list[dict]:
  """The lines of `evaluation.jsonl` that are records of it; where there are none, the rows of
  `metrics.json`, with which an entry of the zoo comes.
  """
  return [row for _, row in lines_of(folder.evaluations, is_row)] or _rows_of_an_entry(folder)


def _rows_of_an_entry(folder: Workdir) -> list[dict]:
  try:
    found = parse_json(read_file(folder.path / 'metrics.json', JSON_BYTES))
  except (OSError, ValueError):
    return []
  rows = found.get('evaluation') if isinstance(found, dict) else None
  return [row for row in rows if is_row(row)] if isinstance(rows, list) else []


def read_metrics(folder: Workdir) -> list[dict]:
  """The lines of `metrics.jsonl` that are records of it, to be looked at."""
  return [line for _, line in lines_of(folder.metrics, is_metrics, LOG_BYTES)]


def quick_values(lines: Iterable[dict]) -> list[dict]:
  """The finite values of quick evaluations among `lines`, as `read` gives them."""
  return [line for line in lines if line['version'] == 'quick' and line['value'] is not None]


def lines_of(
  path: pathlib.Path, is_record: Callable[[Any], bool], limit: int | None = None
) -> list[tuple[bytes, dict]]:
  """The lines of a file that are JSON and records of it, with their values; how many are not, is
  logged once. What a killed process leaves of its last line does not count. A file of more than
  `limit` bytes counts as empty.
  """
  try:
    data = read_file(path, limit)
  except OSError:
    return []
  *lines, last = data.split(b'\n')
  lines = [line for line in lines if line.strip()]
  lines += [last] if is_record(_value(last)) else []
  found = [(line, value) for line in lines if is_record(value := _value(line))]
  if skipped := len(lines) - len(found):
    _tell_skipped(path, skipped)
  return found


def _value(line: bytes) -> Any:
  try:
    return parse_json(line)
  except ValueError:
    return None


@functools.cache
def _tell_skipped(path: pathlib.Path, count: int) -> None:
  what = '1 line is no record' if count == 1 else f'{count} lines are no records'
  _log.warning('%s: %s: skipped', path, what)


def is_row(line) -> bool:
  """Whether a value of JSON is a line of `evaluation.jsonl`: a `Row`, its step and time."""
  return (
    isinstance(line, dict)
    and _NEEDED <= line.keys()
    and all(_is(line[name], kind) for name, kind in _KINDS.items() if name in line)
    and (line['version'] != 'quick' or line['step'] is not None)
  )


def is_metrics(line) -> bool:
  """Whether a value of JSON is a line of `metrics.jsonl`, which has a step and a time."""
  return (
    isinstance(line, dict) and _is(line.get('step'), int) and _is(line.get('time'), int | float)
  )


def is_number(value) -> bool:
  """Whether a value of JSON is a finite number of a size that programs compute with."""
  return _is(value, int | float)


def _is(value, kind) -> bool:
  if isinstance(value, bool) or not isinstance(value, kind):
    return False
  if isinstance(value, str):
    return not re.search('[\ud800-\udfff]', value)  # no text can have these
  return value is None or (abs(value) < 2**63 and math.isfinite(value))


def is_measured(lines: Iterable[dict], step: int) -> bool:
  """Whether `lines`, as `read` gives them, hold the quick evaluation of a step."""
  return any(line['version'] == 'quick' and line['step'] == step for line in lines)


def forget_quick(folder: Workdir, step: int) -> None:
  """Drops the quick evaluations after `step`, from which the run resumes."""
  lines = read(folder)
  kept = [line for line in lines if line['version'] != 'quick' or line['step'] <= step]
  if len(kept) < len(lines):
    text = ''.join(f'{json.dumps(line)}\n' for line in kept)
    write_atomic(folder.evaluations, text.encode())


def best_step(lines: Iterable[dict], name: str) -> int | None:
  """The step of the best of the quick evaluations in `lines`, as `read` gives them; ties: the
  first. None: there is none.

  Those whose protocol differs from the last one's are ignored: their numbers are not comparable.
  """
  quick = [line for line in lines if line['version'] == 'quick' and line['metric'] == name]
  values = {
    line['step']: line['value']
    for line in quick
    if line['value'] is not None
    and all(line.get(f) == quick[-1].get(f) for f in COMPARED if f in line)
  }
  sign = 1 if name in LOWER_IS_BETTER else -1
  return min(values, key=lambda step: (sign * values[step], step), default=None)


# --- Tables -------------------------------------------------------------------------------------


# What a number depends on, in the order in which tables name it.
_PROTOCOL = ('reference', 'samples', 'features', 'resize', 'weights', 'sampler', 'runs', 'machine')
_COLUMNS = 120


def table(made: list[Row]) -> str:
  """Rows as aligned Markdown tables of at most 120 columns: one for the rows of each protocol, with
  the protocol above it.
  """
  heads = ['metric', 'value', 'spread', 'kind']
  groups = {}
  for row in made:
    protocol = (f'{name} {text}' for name in _PROTOCOL if (text := _cell(row, name)))
    how = '; '.join(protocol).replace('sampler sampler ', 'sampler ')
    cells = [row.label, *(_cell(row, name) for name in heads[1:])]
    groups.setdefault(how, []).append(cells)
  columns = [*zip(*itertools.chain(*groups.values()), strict=True)]
  used = [i for i, column in enumerate(columns) if any(column)]
  # All tables have the same columns, of the same widths.
  head = [heads[i].ljust(max(map(len, columns[i]))) for i in used]
  return '\n\n'.join(
    textwrap.fill(how, _COLUMNS, break_long_words=False, break_on_hyphens=False)
    + '\n\n'
    + markdown([head, *([line[i] for i in used] for line in lines)])
    for how, lines in groups.items()
  )


def markdown(lines: list[list[str]]) -> str:
  """A table of text, whose first line is the header, as aligned Markdown."""
  # A bar in a cell, as in p(x|z), would start another cell.
  lines = [[cell.replace('|', r'\|') for cell in line] for line in lines]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  rule = [['-' * width for width in widths]]
  return '\n'.join(
    '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + ' |'
    for line in lines[:1] + rule + lines[1:]
  )


def _cell(row: Row, name: str) -> str:
  value = getattr(row, name)
  if value is None:
    return ''
  if name == 'features' and ', sha256 ' in value:  # shorter than in the file
    title, _, checksum = value.partition(', sha256 ')
    note = f' ({row.note})' if row.note else ''
    return f'{title.partition(" of ")[0]} {checksum[:8]}{note}'
  return f'{value:.4g}' if isinstance(value, float) else str(value)


def machine(environment: dict) -> str:
  """The machine of an environment, as `manifest.environment` gives it, as text."""
  if not environment:
    return 'an unknown machine'  # of imported weights
  named = collections.defaultdict(lambda: 'unknown', environment)
  if named['backend'] == 'cpu':
    return f'{named["cpu"]}, {named["cpu_cores"]} cores'
  return f'{named["devices"]} x {named["device"]}'
