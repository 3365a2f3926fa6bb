"""Precision, recall and Frechet distance of samples of a BigGAN run by the threshold of their
truncated latents: a table in Markdown and a picture.

    python benchmarks/truncation.py --workdir=runs/biggan_fashion_mnist

Rows, the picture and its numbers go to `truncation/` in the run's folder, the picture also to
--out. Thresholds that are in truncation.json are not measured again.
"""

import argparse
import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gen_jax
from gen_jax.errors import in_one_line
from gen_jax.run.pictures import figure, image_grid

METRICS = {
  'precision': 'precision',
  'recall': 'recall',
  'frechet': 'FD',
}

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--workdir', required=True, help='a run of biggan')
parser.add_argument('--out', type=Path, help='a further place for the picture, a .png')
parser.add_argument('--thresholds', type=float, nargs='+', default=[0.1, 0.2, 0.4, 0.7, 1, 1.5, 2])
parser.add_argument('--samples', type=int, default=2000)
flags = parser.parse_args()
in_one_line()
OUT = Path(flags.workdir, 'truncation')


def measure(run, threshold: float) -> dict:
  """{metric: [value, standard error or None]} of a threshold, inf for none, and its first samples:
  'images' [n][h][w][c].
  """
  how = dict(truncation=None if math.isinf(threshold) else threshold)
  names = ('frechet', 'precision_recall')
  rows = run.evaluate(OUT, num_samples=flags.samples, metrics=names, held_out_examples=None, **how)
  rows = {row.metric: row for row in rows}
  values = {name: [rows[name].value, rows[name].spread] for name in METRICS}
  images = run.sample(min(run.config.data.num_classes, 10), **how).tolist()
  return values | {'images': images, 'protocol': dataclasses.asdict(rows['frechet'])}


def name_of(threshold: float) -> str:
  return 'none' if math.isinf(threshold) else f'{threshold:g}'


def picture(found: dict, thresholds: list[float], path: Path) -> None:
  """Precision against recall, and samples: a row for each threshold, a column for each class."""
  at = [found[name_of(t)] for t in thresholds]
  with figure(path, figsize=(11, 4.4), dpi=100, layout='constrained') as drawn:
    left, right = drawn.subplots(1, 2, width_ratios=(1, 1.25))
    recall, precision = ([v[name][0] for v in at] for name in ('recall', 'precision'))
    left.plot(recall, precision, marker='o')
    for place, threshold in zip(zip(recall, precision, strict=True), thresholds, strict=True):
      left.annotate(name_of(threshold), place, xytext=(5, 4), textcoords='offset points')
    left.set(xlabel='recall', ylabel='precision', title='by the threshold of truncation')
    images = np.uint8([v['images'] for v in at])
    grid = np.asarray(image_grid(images.reshape(-1, *images.shape[2:]), columns=images.shape[1]))
    right.imshow(grid.squeeze(), cmap='gray', vmin=0, vmax=255)
    height = grid.shape[0] / len(at)
    right.set_yticks([(i + 0.5) * height for i in range(len(at))], map(name_of, thresholds))
    right.set(xticks=[], ylabel='threshold', xlabel='classes, from the same noise')


kept = OUT / 'truncation.json'
found = json.loads(kept.read_text()) if kept.exists() else {}
run = gen_jax.load(flags.workdir)
thresholds = [*sorted(flags.thresholds), math.inf]
for threshold in thresholds:
  if name_of(threshold) not in found:
    found[name_of(threshold)] = measure(run, threshold)
    kept.write_text(json.dumps(found))
  shown = {name: found[name_of(threshold)][name] for name in METRICS}
  print(name_of(threshold), shown, flush=True)
picture(found, thresholds, OUT / 'truncation.png')
if flags.out:
  flags.out.parent.mkdir(parents=True, exist_ok=True)
  shutil.copy(OUT / 'truncation.png', flags.out)
print(f'| truncation | {" | ".join(METRICS.values())} |\n| --- {"| ---: " * len(METRICS)}|')
for threshold in thresholds:
  values = [found[name_of(threshold)][name][0] for name in METRICS]
  print(f'| {name_of(threshold)} | ' + ' | '.join(f'{value:.3f}' for value in values) + ' |')
