"""Domain adaptation, MNIST -> USPS and USPS -> MNIST: accuracies on the target's test split of
classifiers that see labels of the source only, and of one trained on the target: a table in
Markdown, beside published accuracies.

    python benchmarks/adaptation.py --usps='usps/{split}.npz' --workdir=runs/adaptation
    python benchmarks/adaptation.py --usps='usps/{split}.npz' --methods unit --seeds=3

The full protocol: all training images of both domains, no augmentation, the last step. A cell is a
run of a config, in a folder of its own, which is resumed where it was stopped; a finished one has a
JSON file beside it and is not measured again. Several programs may make different cells of one
--workdir at once. `usps/train.npz` and `usps/test.npz` hold
`image` uint8 [n, 16, 16, 1] and `label`. Flags --config.FIELD=VALUE apply to all runs.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gen_jax
from gen_jax import config as configs
from gen_jax import contract, data, evaluate, train
from gen_jax.errors import in_one_line
from gen_jax.run import restoring

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
# Name in the table, config, seeds.
METHODS = {
  'source': ('source only', 'classifier_mnist_usps', 3),
  'cogan': ('CoGAN', 'cogan_mnist_usps', 1),
  'cyclegan': ('CycleGAN, then source only', 'cyclegan_mnist_usps', 1),
  'unit': ('UNIT', 'unit_mnist_usps', 1),
  'target': ('trained on the target', 'classifier_mnist_usps', 3),
}
DIRECTIONS = ('mnist_usps', 'usps_mnist')
OTHER = dict(zip(DIRECTIONS, reversed(DIRECTIONS), strict=True))
MADE_AT_ONCE = 500  # images that a classifier reads together
# Full protocol: Tzeng et al. 2017 and Hoffman et al. 2018 (source only, target, CyCADA), Liu and
# Tuzel 2016 and Liu et al. 2017 by the latter's table.
PUBLISHED = {
  'source': (0.822, 0.696),
  'cogan': (0.9565, 0.9315),
  'cyclegan': (None, None),
  'unit': (0.9597, 0.9358),
  'CyCADA': (0.956, 0.965),
  'target': (0.963, 0.992),
}


def fields_of(direction: str, usps: str) -> dict:
  """The fields by which a config from MNIST to USPS has this direction."""
  if direction == 'mnist_usps':
    return {'data.path': usps}
  return {
    'data.name': 'mnist',
    'data.path': None,
    'data.x.name': 'arrays',
    'data.x.path': usps,
    'eval.held_out_examples': 10_000,  # all of MNIST's test split
  }


def finish(config, folder: Path) -> float:
  """Trains a run, or resumes it; the seconds that took."""
  started = time.monotonic()
  if status := train.run(config, folder):
    sys.exit(status)
  return time.monotonic() - started


def measure(config, trained_config, folder: Path) -> dict:
  """Trains a run, or resumes it, and measures its last step on the test splits of `config`."""
  seconds = finish(trained_config, folder)
  system = contract.check(config)
  manifest, state = restoring.restore(trained_config, system, folder, None)
  with tempfile.TemporaryDirectory() as parts:  # of one measurement
    rows, _ = evaluate.measured(config, system, state, data.held_out(config), Path(parts), None)
  values = {row.metric: [row.value, row.spread] for row in rows}
  about = dict(step=manifest.step, seconds=round(seconds), reference=rows[0].reference)
  return values | about | {'parameters': contract.parameters(state)}


def measure_translated(to, config, folder, classifier_config, classifier_folder) -> dict:
  """Trains a CycleGAN and a classifier of the source, or resumes them, and measures the classifier
  on translations of the target's test split into the source, which is the CycleGAN's `to`.
  """
  seconds = finish(config, folder) + finish(classifier_config, classifier_folder)
  system = contract.check(classifier_config)
  _, state = restoring.restore(classifier_config, system, classifier_folder, None)
  held_out, run = data.held_out(classifier_config), gen_jax.load(folder)
  key, right = jax.random.key(0), []
  total = min(len(held_out), classifier_config.eval.held_out_examples)
  for start in range(0, total, MADE_AT_ONCE):
    rows = held_out.read(np.arange(start, min(start + MADE_AT_ONCE, total)))
    image = data.from_pixels(run.translate(rows['y'], to=to), config.data.dequantize)
    batch = {'x': image, 'y': image} | {f'{d}_label': rows['y_label'] for d in 'xy'}
    right.append(system.evaluate(state, batch, key, config=classifier_config)['accuracy'])
  right = np.concatenate(right)
  spread = right.std() / len(right) ** 0.5
  return {'accuracy': [float(right.mean()), float(spread)], 'seconds': round(seconds)}


def table(workdir: Path) -> str:
  """The finished cells as Markdown: mean and deviation over seeds, and what was published."""
  lines = ['| | MNIST to USPS | published | USPS to MNIST | published |']
  lines.append('| --- | ---: | ---: | ---: | ---: |')
  for method, published in PUBLISHED.items():
    name = METHODS[method][0] if method in METHODS else method
    cells = [name]
    for direction, value in zip(DIRECTIONS, published, strict=True):
      finished = sorted((workdir / direction).glob(f'{method}_*.json'))
      values = [json.loads(kept.read_text())['accuracy'][0] for kept in finished]
      mean = f'{np.mean(values):.3f}' if values else ''
      mean += f' ± {np.std(values, ddof=1):.3f} ({len(values)} seeds)' if len(values) > 1 else ''
      cells += [mean, f'{value:.4g}' if value else '']
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def main(argv) -> None:
  overrides, argv = configs.split_overrides(argv)
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--usps', required=True, help="'usps/{split}.npz'")
  parser.add_argument('--workdir', type=Path, default=Path('runs/adaptation'))
  parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS))
  parser.add_argument('--directions', nargs='+', choices=DIRECTIONS, default=DIRECTIONS)
  parser.add_argument('--seeds', type=int, help='of a cell; by default 3 of classifiers, else 1')
  parser.add_argument('--smoke', action='store_true', help='small nets, few steps, made data')
  flags = parser.parse_args(argv)

  def run_of(method, direction, seed):
    """The config and the folder of a training."""
    own = {} if flags.smoke else fields_of(direction, flags.usps)
    own = [(path, str(value)) for path, value in (own | {'seed': seed}).items()]
    spec = f'{CONFIGS}/{METHODS[method][1]}.py{":smoke" if flags.smoke else ""}'
    config = configs.load(spec, [*own, *overrides])
    return config, flags.workdir / direction / f'{method}_{seed}'

  def cell(method, direction, seed):
    if method == 'cyclegan':  # one training for both directions
      game, to = run_of('cyclegan', DIRECTIONS[0], seed), {'mnist_usps': 'x', 'usps_mnist': 'y'}
      return measure_translated(to[direction], *game, *run_of('source', direction, seed))
    if method == 'target':  # also one: it is `source` of the other direction
      config, _ = run_of('source', direction, seed)
      return measure(config, *run_of('source', OTHER[direction], seed))
    config, folder = run_of(method, direction, seed)
    return measure(config, config, folder)

  for method in flags.methods:
    for direction in flags.directions:
      for seed in range(flags.seeds or METHODS[method][2]):
        kept = flags.workdir / direction / f'{method}_{seed}.json'
        if not kept.exists():
          found = cell(method, direction, seed)
          kept.parent.mkdir(parents=True, exist_ok=True)
          kept.write_text(json.dumps(found, indent=1))
          print(direction, method, seed, found, flush=True)
  print(table(flags.workdir))


if __name__ == '__main__':
  in_one_line()
  main(sys.argv[1:])
