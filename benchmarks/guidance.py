"""Precision, recall, class accuracy and Frechet distance of guided samples by scale, for each kind
of guidance that the runs allow: a table in Markdown and a picture.

    python benchmarks/guidance.py --workdir=runs/edm_fashion_mnist \
        --classifier=runs/noisy_classifier_fashion_mnist --weak=runs/edm_fashion_mnist_weak_raw \
        --out=docs/gallery/guidance.png

Rows and grids of samples also go to `guidance/` in the run's folder. Numbers in the .json beside
the picture are not measured again.
"""

import argparse
import dataclasses
import json
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
  'class_accuracy': 'class accuracy',
  'frechet': 'FD-classifier',
}

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--workdir', required=True, help='a run of the diffusion family')
parser.add_argument('--classifier', help='a run of noisy_classifier')
parser.add_argument('--weak', help='a weaker run of the same data')
parser.add_argument('--out', required=True, type=Path, help='the picture; a .json comes beside it')
parser.add_argument('--scales', type=float, nargs='+', default=[0, 0.5, 1, 2, 4, 8])
parser.add_argument('--samples', type=int, default=2000)
parser.add_argument('--steps', type=int, help="of the run's sampler; by default as in its config")
flags = parser.parse_args()
in_one_line()
OUT = Path(flags.workdir, 'guidance')


def kinds(run) -> dict:
  """{name of a kind: scale -> the group sample.guidance}; at scale 0 none of them guides."""
  made = {}
  if flags.classifier:
    made['classifier, scale s'] = lambda s: dict(run=flags.classifier if s else None, scale=s)
  if run.config.label_drop:
    made['classifier-free, w'] = lambda w: dict(w=w)
  if flags.weak:
    made['autoguidance, w - 1'] = lambda w: dict(weak_run=flags.weak if w else None, weak_w=1 + w)
  return made


def measure(run, guidance: dict) -> dict:
  """{metric: [value, standard error or None]} of a scale, and its first ten samples, a class each:
  'images' [10][h][w].
  """
  how = dict(batch_size=100, guidance=guidance) | (dict(steps=flags.steps) if flags.steps else {})
  names = ('frechet', 'precision_recall', 'modes')
  chosen = run.evaluate(
    OUT, num_samples=flags.samples, metrics=names, held_out_examples=None, **how
  )
  rows = {row.metric: row for row in chosen}
  images = run.sample(10, **how)[..., 0].tolist()
  # A net that ignores labels, without guidance, is asked for no class.
  values = {name: [rows[name].value, rows[name].spread] for name in METRICS if name in rows}
  return values | {'images': images, 'protocol': dataclasses.asdict(rows['frechet'])}


def picture(found: dict):
  """The metrics over the scale, and samples: a row for each scale, a column for each class."""
  with figure(flags.out, figsize=(10, 4.2 * len(found)), dpi=100, layout='constrained') as drawn:
    grid = drawn.subplots(len(found), 2, width_ratios=(1, 1.25), squeeze=False)
    for (kind, by_scale), (left, right) in zip(found.items(), grid, strict=True):
      scales = sorted(map(float, by_scale))
      at = [by_scale[f'{scale:g}'] for scale in scales]
      places = range(len(scales))
      for name in ('precision', 'recall', 'class_accuracy'):
        values = [values.get(name, [np.nan])[0] for values in at]
        left.plot(places, values, marker='o', label=METRICS[name])
      left.set(xlabel=kind, ylabel='share', ylim=(0, 1.02))
      left.set_xticks(places, [f'{scale:g}' for scale in scales])
      distance = left.twinx()
      distance.plot(places, [v['frechet'][0] for v in at], 'k--', marker='s', markersize=4)
      distance.set(ylabel=f'{METRICS["frechet"]} (dashed)', ylim=(0, None))
      left.legend(loc='lower left')
      images = np.uint8([values['images'] for values in at])
      rows = image_grid(images.reshape(-1, *images.shape[2:], 1), columns=images.shape[1])
      right.imshow(np.asarray(rows).squeeze(), cmap='gray', vmin=0, vmax=255)
      height = rows.shape[0] / len(scales)
      right.set_yticks([(i + 0.5) * height for i in range(len(scales))], [f'{s:g}' for s in scales])
      right.set(xticks=[], ylabel=kind, xlabel='classes 0 to 9, from the same noise')


kept = flags.out.with_suffix('.json')
found = json.loads(kept.read_text()) if kept.exists() else {}
run = gen_jax.load(flags.workdir)
for kind, group in kinds(run).items():
  points = found.setdefault(kind, {})
  for scale in flags.scales:
    if f'{scale:g}' not in points:
      # At scale 0 none of them guides: one measurement serves all.
      known = [each['0'] for each in found.values() if scale == 0 and '0' in each]
      points[f'{scale:g}'] = known[0] if known else measure(run, group(scale))
      kept.parent.mkdir(parents=True, exist_ok=True)
      kept.write_text(json.dumps(found))
    shown = {name: points[f'{scale:g}'].get(name) for name in METRICS}
    print(kind, f'{scale:g}', shown, flush=True)
picture(found)
print(f'| guidance | scale | {" | ".join(METRICS.values())} |\n| --- {"| ---: " * 5}|')
for kind, points in found.items():
  for scale in sorted(map(float, points)):
    values = [points[f'{scale:g}'].get(name, [np.nan])[0] for name in METRICS]
    print(f'| {kind} | {scale:g} | ' + ' | '.join(f'{value:.3f}' for value in values) + ' |')
