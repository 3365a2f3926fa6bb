"""`curves.png`: the metrics of a run and its quick evaluations over steps, read from its files."""

import collections
import math
from collections.abc import Iterator

from gen_jax.run import pictures, records
from gen_jax.run.workdir import Workdir

ACROSS = 4  # panels in a row
_NO_METRICS = ('step', 'time', 'rate')


def draw(folder: Workdir) -> None:
  """Plots every metric of `metrics.jsonl` and of the quick evaluations over steps, a panel each.

  Raises:
    UserError: the file cannot be written.
  """
  found = collections.defaultdict(lambda: ([], []))
  for step, name, value in [*_metrics(folder), *_evaluations(folder)]:
    found[name][0].append(step)
    found[name][1].append(value)
  if not found:
    return
  rows = math.ceil(len(found) / ACROSS)
  with pictures.figure(folder.curves, figsize=(3.2 * ACROSS, 2.2 * rows), dpi=80) as figure:
    for i, (name, (steps, values)) in enumerate(found.items()):
      axes = figure.add_subplot(rows, ACROSS, i + 1)
      axes.plot(steps, values, linewidth=1, marker='.' if len(steps) < 30 else None)
      axes.set_title(name, fontsize=9)
      axes.tick_params(labelsize=7)
    figure.subplots_adjust(0.05, 0.3 / (2.2 * rows), 0.99, 1 - 0.25 / (2.2 * rows), 0.25, 0.4)


def _metrics(folder) -> Iterator[tuple[int, str, float]]:
  for line in records.read_metrics(folder):
    for name, value in line.items():
      if name not in _NO_METRICS and records.is_number(value):
        yield line['step'], name, value


def _evaluations(folder) -> Iterator[tuple[int, str, float]]:
  for line in records.quick_values(records.read(folder)):
    yield line['step'], f'{line["label"]}, quick', line['value']
