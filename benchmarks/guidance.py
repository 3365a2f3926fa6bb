"""Precision, recall, class accuracy and Frechet distance of guided samples by scale: a table in
Markdown and a picture.

    python benchmarks/guidance.py --workdir=runs/ddpm_fashion_mnist \
        --classifier=runs/noisy_classifier_fashion_mnist --out=docs/gallery/guidance.png

Scale 0 is no guidance. Numbers also go to `evaluation.jsonl` of the run; those that are there
already, with the same settings, are not measured again.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gen_jax
from gen_jax.run.pictures import figure, image_grid

METRICS = {
  'precision': 'precision',
  'recall': 'recall',
  'class_accuracy': 'class accuracy',
  'frechet': 'FD-classifier',
}

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--workdir', required=True, help='a run of ddpm')
parser.add_argument('--classifier', required=True, help='a run of noisy_classifier')
parser.add_argument('--out', required=True, type=Path, help='the picture; a .json comes beside it')
parser.add_argument('--scales', type=float, nargs='+', default=[0, 0.5, 1, 2, 4, 8])
parser.add_argument('--samples', type=int, default=2000)
parser.add_argument('--steps', type=int, default=50, help='of DDIM')
flags = parser.parse_args()


def measure(run, scale: float) -> dict:
  """{metric: [value, standard error or None]} of a scale, and its first ten samples, a class each:
  'images' [10][h][w].
  """
  how = dict(
    steps=flags.steps,
    batch_size=100,
    guidance=dict(run=flags.classifier if scale else None, scale=scale),
  )
  names = ('frechet', 'precision_recall', 'modes')
  chosen = run.evaluate(num_samples=flags.samples, metrics=names, held_out_examples=None, **how)
  rows = {row.metric: row for row in chosen}
  images = run.sample(10, **how)[..., 0].tolist()
  # A net that ignores labels, without guidance, is asked for no class.
  values = {name: [rows[name].value, rows[name].spread] for name in METRICS if name in rows}
  return values | {'images': images, 'protocol': dataclasses.asdict(rows['frechet'])}


def picture(found: dict):
  """The metrics over the scale, and samples: a row for each scale, a column for each class."""
  scales = sorted(map(float, found))
  at = [found[f'{scale:g}'] for scale in scales]
  with figure(flags.out, figsize=(10, 4.6), dpi=100, layout='constrained') as drawn:
    left, right = drawn.subplots(1, 2, width_ratios=(1, 1.25))
    places = range(len(scales))
    for name in ('precision', 'recall', 'class_accuracy'):
      values = [values.get(name, [np.nan])[0] for values in at]
      left.plot(places, values, marker='o', label=METRICS[name])
    left.set(xlabel='scale', ylabel='share', ylim=(0, 1.02))
    left.set_xticks(places, [f'{scale:g}' for scale in scales])
    distance = left.twinx()
    distance.plot(places, [values['frechet'][0] for values in at], 'k--', marker='s', markersize=4)
    distance.set(ylabel=f'{METRICS["frechet"]} (dashed)', ylim=(0, None))
    left.legend(loc='lower left')
    images = np.uint8([values['images'] for values in at])
    grid = image_grid(images.reshape(-1, *images.shape[2:], 1), columns=images.shape[1])
    right.imshow(np.asarray(grid).squeeze(), cmap='gray', vmin=0, vmax=255)
    height = grid.shape[0] / len(scales)
    right.set_yticks([(i + 0.5) * height for i in range(len(scales))], [f'{s:g}' for s in scales])
    right.set(xticks=[], ylabel='scale', xlabel='classes 0 to 9, from the same noise')


kept = flags.out.with_suffix('.json')
found = json.loads(kept.read_text()) if kept.exists() else {}
run = gen_jax.load(flags.workdir)
for scale in flags.scales:
  if f'{scale:g}' not in found:
    found[f'{scale:g}'] = measure(run, scale)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found))
  print(f'{scale:g}', {name: found[f'{scale:g}'].get(name) for name in METRICS}, flush=True)
picture(found)
print(f'| scale | {" | ".join(METRICS.values())} |\n| ---: | {" | ".join(["---:"] * 4)} |')
for scale in sorted(map(float, found)):
  values = [found[f'{scale:g}'].get(name, [np.nan])[0] for name in METRICS]
  print(f'| {scale:g} | ' + ' | '.join(f'{value:.3f}' for value in values) + ' |')
