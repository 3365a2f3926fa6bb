"""The trade-off table of several runs, from what they have left behind: `run(workdirs)`.

Runs of one config that differ in their seed only are one row, with mean and standard deviation.
"""

import collections
import json
import math
import os
import pathlib
import statistics
import sys
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from gen_jax.errors import UserError
from gen_jax.host import console
from gen_jax.host.files import open_file
from gen_jax.run import listing, pictures, records, signals
from gen_jax.run.history import Run, read_run
from gen_jax.run.workdir import write_atomic

PICTURE_BYTES, PICTURE_PIXELS = 2**26, 2**26  # of a picture of a run, at most
# metric: what the head of its column is where runs do not agree on a label.
COLUMNS = {
  'frechet': 'Frechet distance',
  'kernel': 'kernel distance',
  'precision': 'precision',
  'recall': 'recall',
  'modes': 'modes',
}


class Group(NamedTuple):
  """Runs of one config that differ in `seed` only; often a single one."""

  name: str
  runs: list[Run]


def grouped(runs: Sequence[Run]) -> list[Group]:
  """The runs by their configs without the seed, in the order of the first ones. Two runs of one
  seed are in two groups.
  """
  found, times = collections.defaultdict(list), collections.Counter()
  for run in runs:
    config, seed = json.dumps(run.fields | {'seed': None}, sort_keys=True), run.fields.get('seed')
    found[config, times[config, seed]].append(run)
    times[config, seed] += 1
  return [Group(_common_name([run.name for run in same]), same) for same in found.values()]


def _common_name(names: list[str]) -> str:
  """One name for several, as a shell expands it: 'runs/ring_{0,1}'."""
  if len(names) == 1:
    return names[0]
  start = os.path.commonprefix(names)
  rest = [name[len(start) :] for name in names]
  end = os.path.commonprefix([name[::-1] for name in rest])[::-1]
  return f'{start}{{{",".join(name[: len(name) - len(end)] for name in rest)}}}{end}'


def columns(runs: Sequence[Run]) -> dict[str, str]:
  """{metric: head where runs do not agree on a label}: `COLUMNS`, and the systems' own values."""
  own = (run.measure for run in runs if run.measure is not None)
  return COLUMNS | {name: name for name in own}


def notes(runs: Sequence[Run]) -> list[str]:
  """What a reader of the table must know: what is missing, and what does not compare."""
  lines = []
  for run in runs:
    if not run.rows:
      lines.append(f'{run.name} is not evaluated: --mode=evaluate --workdir={run.name}')
    elif run.quick:
      lines.append(
        f'{run.name}: only a quick evaluation in training, of step {run.evaluated_step:,}'
      )
    elif run.evaluated_step != run.step:
      lines.append(f'{run.name}: evaluated at step {run.evaluated_step}, trained to {run.step}')
    if run.picture is None:
      lines.append(f'{run.name} has no picture: --mode=sample --workdir={run.name}')
  differences = collections.defaultdict(list)
  for name, title in columns(runs).items():
    for field in records.PROTOCOL + ('sampler', 'kind') * (name not in COLUMNS):
      found = collections.defaultdict(list)
      for run in runs:
        if field in (row := run.rows.get(name, {})):  # lines of earlier versions have fewer
          found[row[field]].append(run.name)
      if len(found) > 1:
        each = '; '.join(f'{value}: {", ".join(names)}' for value, names in found.items())
        differences[f'for their {field}: {each}'].append(title)
  for difference, names in differences.items():
    lines.append(f'not comparable ({", ".join(names)}), {difference}')
  machines = collections.defaultdict(list)
  for run in runs:
    machines[f'trained on {run.machine}'].append(run.name)
    if rate := run.rows.get('samples_per_second'):
      machines[f'sampled on {rate["machine"]}'].append(run.name)
  each = '; '.join(f'{machine}: {", ".join(names)}' for machine, names in machines.items())
  return [*lines, each]


def differences(groups: Sequence[Group]) -> list[str]:
  """The fields of the configs that differ, a line each: values, and which groups have them. Fields
  that only some configs have are left out: they follow from system and nets.
  """
  lines = []
  for path in sorted({path for group in groups for path in group.runs[0].fields}, key=_order):
    found = collections.defaultdict(list)
    for group in groups:
      values = dict.fromkeys(repr(run.fields[path]) for run in group.runs if path in run.fields)
      if values:
        found[', '.join(values)].append(group.name)
    if len(found) > 1:
      lines.append(f'{path}: ' + '; '.join(f'{v} in {", ".join(n)}' for v, n in found.items()))
  return lines


def _order(path: str) -> tuple:
  return '.' in path, path


def table(groups: Sequence[Group], beside: pathlib.Path) -> list[list[str]]:
  """The table as text, its head first, its last column pictures for a Markdown file in the folder
  `beside`.
  """
  runs = [run for group in groups for run in group.runs]
  titles = columns(runs)
  used = [name for name in titles if any(name in run.rows for run in runs)]
  heads = []
  for name in used:
    labels = {run.rows[name]['label'] for run in runs if name in run.rows}
    heads.append(labels.pop() if len(labels) == 1 else titles[name])
  lines = [
    [
      'run',
      'system',
      'parameters',
      'training, examples/s',
      'time to train',
      'sampling, examples/s',
      'evaluations per sample',
      *heads,
      'samples',
    ]
  ]
  for name, runs in groups:
    first = runs[0]
    rates = [run.rows.get('samples_per_second', {}) for run in runs]
    picture = next((run.picture for run in runs if run.picture), None)
    lines.append(
      [
        name,
        first.system,
        ', '.join(f'{player} {count:,}' for player, count in first.parameters.items()),
        _number(_mean(run.examples_per_second for run in runs)),
        _duration(_mean(run.seconds for run in runs)),
        _number(_mean(rate.get('value') for rate in rates)),
        str(rates[0].get('evaluations', '-')),
        *(_value(runs, metric) for metric in used),
        f'![samples]({os.path.relpath(picture, beside)})' if picture else '-',
      ]
    )
  return lines


def _mean(values) -> float | None:
  known = [value for value in values if value is not None]
  return statistics.mean(known) if known else None


def _number(value) -> str:
  return '-' if value is None else f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def _value(runs: Sequence[Run], metric: str) -> str:
  """The value of a metric with its standard error; of several runs, mean and deviation, without
  quick evaluations where there are full ones.
  """
  rows = [run.rows[metric] for run in runs if metric in run.rows]
  rows = [row for row in rows if row['value'] is not None]
  quick = all(row['version'] == 'quick' for row in rows)
  values = [row['value'] for row in rows if quick or row['version'] != 'quick']
  if not values:
    return '-'
  spread = rows[0].get('spread') if len(runs) == 1 else None  # a standard error is no deviation
  if len(values) > 1:
    spread = statistics.stdev(values)
  text = f'{statistics.mean(values):.4g}' + ('' if spread is None else f' ± {spread:.2g}')
  return text + f' ({len(values)} of {len(runs)})' * (len(values) < len(runs)) + ' (quick)' * quick


def _duration(seconds: float | None) -> str:
  if seconds is None:
    return '-'
  minutes = round(seconds / 60)
  return f'{minutes // 60} h {minutes % 60:02d} min' if minutes >= 60 else f'{seconds / 60:.1f} min'


# --- The picture --------------------------------------------------------------------------------

ROW, PANEL = 1.5, 2.4  # inches, heights of a row of the table and of curves
STYLES = [f'C{i % 10}{"- -- : -.".split()[i // 10 % 4]}' for i in range(40)]


def panels(groups: Sequence[Group]) -> dict[str, dict[int, tuple]]:
  """The curves to draw: {title: {number of the group: (steps [k], values [n, k])}} with n runs of
  the group. Losses have a panel for each system, quick evaluations for each metric of the table.
  """
  several = len({run.system for group in groups for run in group.runs}) > 1
  found = collections.defaultdict(lambda: collections.defaultdict(list))
  metrics = columns([run for group in groups for run in group.runs])
  for i, (_, runs) in enumerate(groups):
    for run in runs:
      for name, curve in run.losses.items():
        found[f'{run.system}: {name}' if several else name][i].append(curve)
  for i, (_, runs) in enumerate(groups):
    for run in runs:
      for name, curve in run.evaluations.items():
        if name in metrics:
          found[f'{metrics[name]}, quick'][i].append(curve)
  return {
    title: {i: _aligned(curves) for i, curves in by_group.items()}
    for title, by_group in found.items()
  }


def _aligned(curves: list[dict[int, float]]) -> tuple:
  """Steps [k] that all curves have, and their values [n, k]."""
  steps = sorted(set.intersection(*map(set, curves)))
  return steps, np.array([[curve[step] for step in steps] for curve in curves])


def draw(lines, groups: Sequence[Group], path) -> None:
  """Writes the table as a PNG, with a column of sample pictures at its end, and the curves below,
  in the colours of the runs' names.
  """
  cells = [[textwrap.fill(cell, 14) for cell in lines[0]]]
  for name, *line, _ in lines[1:]:
    cells.append([os.path.relpath(name, pathlib.Path(path).parent), *map(_shown, line)])
  widths = [
    0.085 * max(len(part) for line in cells for part in line[i].splitlines() or ['']) + 0.15
    for i in range(len(cells[1]))
  ]
  drawn = panels(groups)
  width = sum(widths) + 3.0
  across = max(1, int(width / 3.5))
  top = 0.7 + ROW * len(groups)  # inches that the table takes
  height = top + PANEL * math.ceil(len(drawn) / across)
  with pictures.figure(path, figsize=(width, height), dpi=110) as figure:
    lefts = np.concatenate([[0], np.cumsum(widths)]) / width
    for row, line in enumerate(cells):
      middle = 1 - (0.35 if row == 0 else 0.7 + ROW * (row - 0.5)) / height
      for column, (left, cell) in enumerate(zip(lefts, line, strict=False)):
        style = dict(weight='bold' if row == 0 else 'normal')
        if row and not column and drawn:
          style |= dict(color=STYLES[(row - 1) % len(STYLES)][:2])
        figure.text(left + 0.08 / width, middle, cell, fontsize=9, va='center', **style)
    for row, (_, runs) in enumerate(groups, 1):
      run = next((run for run in runs if run.picture), None)
      if run is None:
        continue
      bottom = 1 - (0.7 + ROW * row) / height
      axes = figure.add_axes([lefts[-1], bottom + 0.03 / height, 3.0 / width, 1.44 / height])
      axes.axis('off')
      try:
        with open_file(run.picture, PICTURE_BYTES) as content:
          with Image.open(content, formats=('PNG',)) as file:
            if file.width * file.height > PICTURE_PIXELS:
              raise ValueError(f'it has {file.height}x{file.width} pixels')
            picture = np.asarray(file.convert('RGB'))
      except Exception as error:  # whatever Pillow raises, the file is the cause
        cause = getattr(error, 'strerror', None) or error
        raise UserError(f'{run.picture} cannot be read: {cause}') from error
      # The upper half of a grid is enough; a plot is not cut.
      axes.imshow(picture if run.points else picture[: picture.shape[0] // 2])
    each = width / across
    for number, (title, curves) in enumerate(drawn.items()):
      left = number % across * each + 0.6
      bottom = height - top - PANEL * (number // across + 1) + 0.35
      axes = figure.add_axes(
        [left / width, bottom / height, (each - 0.7) / width, (PANEL - 0.65) / height]
      )
      axes.set_title(title, fontsize=9)
      axes.tick_params(labelsize=7)
      for i, (steps, values) in curves.items():
        style, mean = STYLES[i % len(STYLES)], values.mean(0)
        axes.plot(steps, mean, style, linewidth=1, marker='.' if len(steps) < 30 else None)
        if len(values) > 1:
          spread = values.std(0, ddof=1)
          axes.fill_between(steps, mean - spread, mean + spread, color=style[:2], alpha=0.25, lw=0)


def _shown(cell: str) -> str:
  """A cell of the picture: lists and spreads on lines of their own."""
  return cell.replace(', ', '\n').replace(' ± ', '\n± ').replace(' (', '\n(')


# --- The verb -----------------------------------------------------------------------------------


@signals.exit_in_order()
def run(workdirs: str) -> int:
  """Prints the table of the runs in folders and writes it as `comparison.md` and `comparison.png`
  beside the first one.

  Args:
    workdirs: as for `listing.folders`; a match of a pattern that has no checkpoint is left out.

  Returns:
    The exit status, 0.

  Raises:
    UserError: there is no run in a folder, or nothing can be written beside the first one.
  """
  runs, told = [], []
  for path in listing.folders(workdirs, of_runs=True):
    try:
      runs.append(read_run(path))
    except UserError as error:
      if str(path) in workdirs.split(','):
        raise
      told.append(f'{path} is left out: {error}')
  if not runs:
    raise UserError(told[0])
  out, groups = pathlib.Path(runs[0].name).parent, grouped(runs)
  lines = table(groups, out)
  several = [group for group in groups if len(group.runs) > 1]
  parts = [records.markdown(lines)]
  if several:
    seeds = [Group(run.name, [run]) for group in several for run in group.runs]
    parts += ['Each seed:', records.markdown(table(seeds, out))]
    told.append('± of several seeds is their standard deviation, of one run the standard error')
    for name, same in several:
      steps = {run.evaluated_step for run in same if run.rows}
      if len(steps) > 1:
        told.append(f'seeds of {name} are evaluated at different steps: {sorted(steps)}')
  if fields := differences(groups):
    parts += ['Fields that differ:', _list(fields)]
  parts += ['Notes:', _list([*told, *notes(runs)])]
  text = '\n\n'.join(parts)
  write_atomic(out / 'comparison.md', f'{text}\n'.encode())
  draw(lines, groups, out / 'comparison.png')
  console.tell(f'{text}\n\n{out / "comparison.md"} {out / "comparison.png"}', sys.stdout)
  return 0


def _list(lines: list[str]) -> str:
  return '\n'.join(f'- {line}' for line in lines)
