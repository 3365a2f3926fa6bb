"""The trade-off table of several runs, from what they have left behind: `run(workdirs)`.

Nothing is trained, drawn or scored here. Rates of training come from `metrics.jsonl`, parameters
from the newest checkpoint, everything else from `--mode=evaluate` at the latest step that it was
used on.
"""

import collections
import dataclasses
import math
import os
import pathlib
import statistics
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image

from gen_jax import config as configs
from gen_jax import contract
from gen_jax.errors import UserError
from gen_jax.run import records, trained, writers
from gen_jax.run.workdir import Workdir, write_atomic
from gen_jax.systems import find_system

# metric: what the head of its column is where runs do not agree on a label.
COLUMNS = {
  'frechet': 'Frechet distance',
  'kernel': 'kernel distance',
  'precision': 'precision',
  'recall': 'recall',
  'modes': 'modes',
}
PAUSE = 5  # an interval this many times longer than usual is a stop, not training


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run has left behind. None and empty: it was not measured."""

  name: str
  system: str
  parameters: dict[str, int]  # by player
  examples_per_second: float | None  # in training
  seconds: float | None  # of training, without stops
  machine: str  # of the training
  step: int  # of the newest checkpoint
  rows: dict[str, dict]  # of the evaluation, by metric
  evaluated_step: int | None
  measure: str | None  # of the system's own values, the one that stands for it
  picture: pathlib.Path | None  # of samples
  points: bool  # which the picture plots


def read_run(path) -> Run:
  """Reads what the run in a folder has left behind.

  Raises:
    UserError: there is no run.
  """
  folder = Workdir(path)
  if not folder.config.is_file():
    raise UserError(f'--workdir: no run in {path} ({folder.config}: missing)')
  config = configs.load(str(folder.config))
  manifest = trained.find(path)
  parameters = collections.Counter()
  for leaf, (shape, _) in manifest.leaves.items():
    player, _, rest = leaf.partition('/')
    if rest.startswith('params/'):
      parameters[player] += math.prod(shape)
  system = find_system(config.system)
  minibatches = contract.minibatches(config, system, config.train.steps - 1) or 1
  per_step, seconds = training_time(folder)
  rows = [
    line for line in records.read(folder) if line['version'] == 'full' and line['step'] is not None
  ]
  step = max((row['step'] for row in rows), default=None)
  picture = folder.evaluation / f'{step or 0:07d}_samples.png'
  return Run(
    name=str(path),
    system=config.system,
    parameters=dict(parameters),
    examples_per_second=per_step and config.train.batch_size * minibatches / per_step,
    seconds=seconds,
    machine=records.machine(manifest.environment),
    step=manifest.step,
    rows={row['metric']: row for row in rows if row['step'] == step},  # the last one of each
    evaluated_step=step,
    measure=next(iter(contract.measures(system)), None),
    picture=picture if picture.exists() else None,
    points=len(config.data.shape) == 1,
  )


def training_time(folder: Workdir) -> tuple[float | None, float | None]:
  """Median seconds of a training step, and seconds of all of them, from `metrics.jsonl`.

  Pictures and checkpoints on the way count in the second number; stops count as if the run had gone
  on, and so does the compilation before the first line.
  """
  lines = records.lines_of(folder.metrics, records.is_metrics)
  points = [(line['step'], line['time']) for _, line in lines]
  intervals = [
    (b[0] - a[0], b[1] - a[1])
    for a, b in zip(points, points[1:], strict=False)
    if b[0] > a[0] and b[1] > a[1]
  ]
  if not intervals:
    return None, None
  per_step = statistics.median(t / steps for steps, t in intervals)
  longest = PAUSE * per_step
  seconds = sum(t if t <= longest * steps else per_step * steps for steps, t in intervals)
  return per_step, seconds + points[0][0] * per_step


def columns(runs: Sequence[Run]) -> dict[str, str]:
  """{metric: head where runs do not agree on a label}: `COLUMNS`, and the systems' own values."""
  own = (run.measure for run in runs if run.measure is not None)
  return COLUMNS | {name: name for name in own}


def notes(runs: Sequence[Run]) -> list[str]:
  """What a reader of the table must know: what is missing, and what does not compare."""
  lines = []
  for run in runs:
    if not run.rows:
      lines.append(
        f'{run.name} is not evaluated: python launch.py --mode=evaluate --workdir={run.name}'
      )
    elif run.evaluated_step != run.step:
      lines.append(f'{run.name}: evaluated at step {run.evaluated_step}, trained to {run.step}')
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


def table(runs: Sequence[Run], beside: pathlib.Path) -> list[list[str]]:
  """The table as text, its head first, its last column pictures for a Markdown file in the folder
  `beside`.
  """
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
  for run in runs:
    rate = run.rows.get('samples_per_second', {})
    lines.append(
      [
        run.name,
        run.system,
        ', '.join(f'{player} {count:,}' for player, count in run.parameters.items()),
        _number(run.examples_per_second),
        '-' if run.seconds is None else _duration(run.seconds),
        _number(rate.get('value')),
        str(rate.get('evaluations', '-')),
        *(_value(run.rows.get(name)) for name in used),
        f'![samples]({os.path.relpath(run.picture, beside)})' if run.picture else '-',
      ]
    )
  return lines


def _number(value) -> str:
  return '-' if value is None else f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def _value(row) -> str:
  if row is None or row['value'] is None:
    return '-'
  spread = '' if row['spread'] is None else f' ± {row["spread"]:.2g}'
  return f'{row["value"]:.4g}{spread}'


def _duration(seconds: float) -> str:
  minutes = round(seconds / 60)
  return f'{minutes // 60} h {minutes % 60:02d} min' if minutes >= 60 else f'{seconds / 60:.1f} min'


def draw(lines, runs: Sequence[Run], path) -> None:
  """Writes the table as a PNG, with a column of sample pictures at its end."""
  from matplotlib.figure import Figure

  cells = [[textwrap.fill(cell, 14) for cell in lines[0]]]
  cells += [[*map(_shown, line[:-1])] for line in lines[1:]]
  widths = [
    0.085 * max(len(part) for line in cells for part in line[i].splitlines() or ['']) + 0.15
    for i in range(len(cells[1]))
  ]
  width, height = sum(widths) + 3.0, 0.7 + 1.5 * len(runs)
  figure = Figure(figsize=(width, height), dpi=110)
  lefts = np.concatenate([[0], np.cumsum(widths)]) / width
  for row, line in enumerate(cells):
    middle = 1 - (0.35 if row == 0 else 0.7 + 1.5 * (row - 0.5)) / height
    for left, cell in zip(lefts, line, strict=False):
      weight = 'bold' if row == 0 else 'normal'
      figure.text(left + 0.08 / width, middle, cell, fontsize=9, weight=weight, va='center')
  for row, run in enumerate(runs, 1):
    if run.picture is None:
      continue
    bottom = 1 - (0.7 + 1.5 * row) / height
    axes = figure.add_axes([lefts[-1], bottom + 0.03 / height, 3.0 / width, 1.44 / height])
    axes.axis('off')
    try:
      with Image.open(run.picture, formats=('PNG',)) as file:
        picture = np.asarray(file.convert('RGB'))
    except OSError as error:
      raise UserError(f'{run.picture} cannot be read: {error}') from error
    # The upper half of a grid is enough; a plot is not cut.
    axes.imshow(picture if run.points else picture[: picture.shape[0] // 2])
  writers.save_figure(figure, path)


def _shown(cell: str) -> str:
  """A cell of the picture: a folder by its name, lists and spreads on lines of their own."""
  return pathlib.PurePath(cell).name.replace(', ', '\n').replace(' ± ', '\n± ')


def run(workdirs: str) -> int:
  """Prints the table of the runs in folders, separated by commas, and writes it as
  `comparison.md` and `comparison.png` beside the first one.

  Returns:
    The exit status, 0.

  Raises:
    UserError: there is no run in a folder, or nothing can be written beside the first one.
  """
  runs = [read_run(path) for path in workdirs.split(',') if path]
  if not runs:
    raise UserError(f'--workdir={workdirs!r} names no folder')
  out = pathlib.Path(runs[0].name).parent
  lines = table(runs, out)
  text = records.markdown(lines)
  below = '\n'.join(f'- {line}' for line in notes(runs))
  try:
    write_atomic(out / 'comparison.md', f'{text}\n\n{below}\n'.encode())
    draw(lines, runs, out / 'comparison.png')
  except OSError as error:
    raise UserError(f'{out / "comparison.md"} cannot be written: {error.strerror}') from error
  print(f'{text}\n\n{below}\n\n{out / "comparison.md"} {out / "comparison.png"}')
  return 0
