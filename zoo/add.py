"""Adds the weights of a trained run to the zoo, or replaces them: an entry is a folder.

    python zoo/add.py runs/ddpm_digits
    python zoo/add.py runs/ddpm_digits --name=ddpm_digits_long --step=2000
    python zoo/add.py runs/gan_mnist --player=G

It exports what the run samples with, in float16 where the samples do not change by that, writes the
numbers of its last evaluation and of a few samples into metrics.json, and renews zoo/README.md.
"""

import argparse
import json
import pathlib
import shutil
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import gen_jax
from gen_jax.errors import UserError
from gen_jax.run import export_format, records
from gen_jax.run.workdir import Workdir, write_atomic

ZOO = pathlib.Path(__file__).parent
MOST_BYTES = 3_000_000  # of a file
SAMPLES, SEED, STEPS = 8, 0, 10  # samples for the test, with few steps where a sampler takes them
UNCHANGED = 0.5  # mean absolute difference in levels of 255, or in thousandths for points
# The metrics of the overview, where an entry has them.
HEADLINE = ('frechet', 'precision', 'recall', 'class_accuracy', 'modes', 'error', 'bits_per_dim')
HEAD = """# Zoo

Weights of trained runs, which `gen_jax.load('zoo/ddpm_digits')` and the verbs read like runs:

    python launch.py --mode=sample --workdir=zoo/ddpm_digits
    python launch.py --mode=compare --workdir=zoo/gan_mnist,zoo/acgan_mnist

Distances (FD) of different data, or by different weights of a classifier, cannot be compared: all
numbers of an entry, with their protocols, are in its `metrics.json`. Samples are in the
[gallery](../docs/gallery.md), tables in the [results](../docs/results.md). `python zoo/add.py
runs/NAME` adds an entry; a file has at most 3 MB, all of them 40 MB.

"""


def settings(run) -> dict:
  """Fields of config.sample for the samples that the test draws again."""
  fast = dict(batch_size=SAMPLES)
  if 'sampler' in run.config.sample:
    fast |= dict(sampler='ddim', steps=STEPS, intermediates=0)
  return fast


def summary(samples: np.ndarray) -> list:
  """A number of each sample: its mean level; of points, their coordinates."""
  return (samples if samples.ndim == 2 else samples.mean((1, 2, 3))).round(4).tolist()


def change(a: np.ndarray, b: np.ndarray) -> float:
  """Mean absolute difference of samples, in levels, or in thousandths for points."""
  return float(np.abs(a.astype(np.float64) - b).mean() * (1000 if a.ndim == 2 else 1))


def add(
  folder, name: str, step: int | None = None, evaluate: bool = False, player: str | None = None
) -> pathlib.Path:
  """Writes the entry `name` for the run in `folder`; returns its path.

  `evaluate` measures the entry; otherwise its numbers are those of the run's last evaluation.
  `player` is the only net of it, where both do not fit.

  Raises:
    UserError: there is no run, or its weights take more than MOST_BYTES.
  """
  run, out = gen_jax.load(folder, step), ZOO / name
  fast = settings(run)
  samples = run.sample(SAMPLES, seed=SEED, **fast)
  for dtype in ('float16', 'float32'):
    entry = gen_jax.load(run.export(out, player, dtype))
    exported = entry.sample(SAMPLES, seed=SEED, **fast)
    if (changed := change(samples, exported)) < UNCHANGED:
      break
  if (size := (out / export_format.WEIGHTS).stat().st_size) > MOST_BYTES:
    shutil.rmtree(out)
    raise UserError(f'{out}: {size:,} bytes in {dtype}; at most {MOST_BYTES:,} belong into the zoo')
  if evaluate:
    entry.evaluate()
  lines = records.read(Workdir(out if evaluate else folder))
  rows = [row for row in lines if row['version'] == 'full' and row['step'] == run.step]
  last = {row['metric']: row for row in rows}
  metrics = dict(
    samples=dict(n=SAMPLES, seed=SEED, settings=fast, summary=summary(exported), changed=changed),
    evaluation=[{k: v for k, v in row.items() if v is not None} for row in last.values()],
  )
  write_atomic(out / 'metrics.json', (json.dumps(metrics, indent=1) + '\n').encode())
  return out


def readme() -> str:
  """The text of zoo/README.md for the entries that there are."""
  lines = [['entry', 'system', 'data', 'step', 'weights', 'bytes', 'evaluation']]
  for path in sorted(ZOO.glob('*/manifest.json')):
    manifest, metrics = (
      export_format.open_export(path.parent),
      json.loads((path.parent / 'metrics.json').read_text()),
    )
    found = {row['metric']: row for row in metrics['evaluation'] if 'value' in row}
    shown = [found[metric] for metric in HEADLINE if metric in found]
    lines.append(
      [
        f'[{path.parent.name}]({path.parent.name})',
        manifest.config['system'],
        manifest.config['data']['name'],
        f'{manifest.step:,}',
        f'{manifest.weights}, {manifest.dtype}',
        f'{(path.parent / export_format.WEIGHTS).stat().st_size:,}',
        ', '.join(f'{row["label"]}: {row["value"]:.4g}' for row in shown) or '-',
      ]
    )
  return HEAD + records.markdown(lines) + '\n'


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('run', help='folder of the run')
  parser.add_argument('--name', help='of the entry (default: that of the folder)')
  parser.add_argument('--step', type=int, help='which checkpoint (default: the newest)')
  parser.add_argument('--player', help='the only net, such as G (default: all)')
  parser.add_argument('--evaluate', action='store_true', help='measure the entry itself')
  flags = parser.parse_args()
  name = flags.name or pathlib.Path(flags.run).resolve().name
  try:
    out = add(flags.run, name, flags.step, flags.evaluate, flags.player)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  write_atomic(ZOO / 'README.md', readme().encode())
  print(out)
  return 0


if __name__ == '__main__':
  sys.exit(main())
