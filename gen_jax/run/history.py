"""What a run has left behind, read for comparisons: `read_run(path)`.

Nothing is trained, drawn or scored here. Rates of training come from `metrics.jsonl`, parameters
from the newest checkpoint, everything else from `--mode=evaluate` at the latest step that it was
used on or, where it was not, from the last quick evaluation in training.
"""

import collections
import dataclasses
import math
import pathlib
import statistics
from collections.abc import Iterable

from gen_jax import config as configs
from gen_jax import contract
from gen_jax.errors import UserError
from gen_jax.run import records, restoring
from gen_jax.run.workdir import Workdir
from gen_jax.systems import find_system

PAUSE = 5  # an interval this many times longer than usual is a stop, not training


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run has left behind. None and empty: it was not measured."""

  name: str
  system: str
  fields: dict  # of the config, by dotted path
  parameters: dict[str, int]  # by player
  examples_per_second: float | None  # in training
  seconds: float | None  # of training, without stops
  machine: str  # of the training
  step: int  # of the newest checkpoint
  rows: dict[str, dict]  # of the evaluation, by metric
  evaluated_step: int | None
  quick: bool  # the evaluation is a quick one, in training
  measure: str | None  # of the system's own values, the one that stands for it
  picture: pathlib.Path | None  # of samples
  points: bool  # which the picture plots
  losses: dict[str, dict[int, float]]  # of training, by name and step
  evaluations: dict[str, dict[int, float]]  # the quick ones, by metric and step


def read_run(path) -> Run:
  """Reads what the run in a folder has left behind.

  Raises:
    UserError: there is no run.
  """
  folder = Workdir(path)
  if not folder.config.is_file():
    raise UserError(f'--workdir: no run in {path} ({folder.config}: missing)')
  config = configs.load(str(folder.config))
  manifest = restoring.find(path)
  parameters = collections.Counter()
  for leaf, (shape, _) in manifest.leaves.items():
    player, _, rest = leaf.partition('/')
    if rest.startswith('params/'):
      parameters[player] += math.prod(shape)
  system = find_system(config.system)
  minibatches = contract.minibatches(config, system, config.train.steps - 1) or 1
  metrics = records.read_metrics(folder)
  per_step, seconds = training_time(metrics)
  lines = [line for line in records.read(folder) if line['step'] is not None]
  quick = not any(line['version'] == 'full' for line in lines)
  rows = [line for line in lines if line['version'] == ('quick' if quick else 'full')]
  step = max((row['step'] for row in rows), default=None)
  pictures = (  # of the evaluation, of training, of --mode=sample
    *_newest_first(folder.evaluation.glob(f'{step or 0:07d}_*samples.png')),
    folder.image_path(manifest.step, 'samples'),
    *_newest_first(folder.samples.glob(f'step_{manifest.step:07d}_*_grid.png')),
    *_newest_first(folder.samples.glob(f'step_{manifest.step:07d}_*_plot.png')),  # of points
  )
  evaluations = collections.defaultdict(dict)
  for line in records.quick_values(lines):
    evaluations[line['metric']][line['step']] = line['value']
  return Run(
    name=str(path),
    system=config.system,
    fields=dict(configs.leaves(config)),
    parameters=dict(parameters),
    examples_per_second=per_step and config.train.batch_size * minibatches / per_step,
    seconds=seconds,
    machine=records.machine(manifest.environment),
    step=manifest.step,
    rows={row['metric']: row for row in rows if row['step'] == step},  # the last one of each
    evaluated_step=step,
    quick=quick and bool(rows),
    measure=next(iter(contract.measures(system)), None),
    picture=next((picture for picture in pictures if picture.is_file()), None),
    points=len(config.data.shape) == 1,
    losses=curves(metrics),
    evaluations=dict(evaluations),
  )


def _newest_first(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
  return sorted(paths, key=lambda path: path.lstat().st_mtime, reverse=True)


def curves(metrics: list[dict]) -> dict[str, dict[int, float]]:
  """{loss: {step: value}} of the lines of `metrics.jsonl`."""
  found = collections.defaultdict(dict)
  for line in metrics:
    for name, value in line.items():
      if 'loss' in name and records.is_number(value):
        found[name][line['step']] = value
  return dict(found)


def training_time(metrics: list[dict]) -> tuple[float | None, float | None]:
  """Median seconds of a training step, and seconds of all of them, from the lines of
  `metrics.jsonl`.

  Pictures and checkpoints on the way count in the second number; stops count as if the run had gone
  on, and so does the compilation before the first line.
  """
  points = [(line['step'], line['time']) for line in metrics]
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
