"""Quality of samples against evaluations of the net, for every sampler on one run: a table in
Markdown and a picture.

    python benchmarks/samplers.py --workdir=runs/edm_fashion_mnist --out=docs/gallery/samplers.png

Rows and grids of samples also go to `samplers/` in the run's folder. Numbers in the .json beside
the picture, measured before with the same samples, are not measured again.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gen_jax
from gen_jax.errors import in_one_line
from gen_jax.run.pictures import figure

# What is drawn as one curve: settings of config.sample, without the number of evaluations.
CURVES = {
  'ancestral': dict(sampler='ancestral', clip=False, variance='small'),
  'ddim': dict(sampler='ddim'),
  'dpm_solver_pp': dict(sampler='dpm_solver_pp'),
  'dpm_solver_pp, stochastic': dict(sampler='dpm_solver_pp', stochastic=True),
  'heun': dict(sampler='heun'),
  'heun, churn 10': dict(sampler='heun', churn=10.0),
  'euler_maruyama': dict(sampler='euler_maruyama'),
  'predictor_corrector': dict(sampler='predictor_corrector'),
  'ode': dict(sampler='ode'),
}
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--workdir', required=True, help='a run of the diffusion family')
parser.add_argument('--out', required=True, type=Path, help='the picture; a .json comes beside it')
parser.add_argument('--evaluations', type=int, nargs='+', default=[5, 10, 20, 40, 80])
parser.add_argument('--curves', nargs='+', default=list(CURVES), choices=list(CURVES))
parser.add_argument('--samples', type=int, default=2000)
flags = parser.parse_args()
in_one_line()
OUT = Path(flags.workdir, 'samplers')


def settings(curve: str) -> list[dict]:
  """The settings of the points of a curve, with as many evaluations as were asked for, or one
  fewer where steps have two of them.
  """
  base = CURVES[curve]
  if base['sampler'] == 'ode':
    return [base | dict(tolerance=tolerance) for tolerance in TOLERANCES]
  per_step = 2 if base['sampler'] in ('heun', 'predictor_corrector') else 1
  more = 1 if base['sampler'] == 'heun' else 0
  return [base | dict(steps=(n + more) // per_step) for n in flags.evaluations if n >= per_step]


def measure(run, how: dict) -> dict:
  """{metric: value} of the samples, their evaluations and protocol."""
  toys = len(run.config.data.shape) == 1
  metric, names = ('good', ('modes',)) if toys else ('frechet', ('frechet',))
  rows = {
    row.metric: row
    for row in run.evaluate(
      OUT, num_samples=flags.samples, metrics=names, held_out_examples=None, **how
    )
  }
  row = rows[metric]
  about = dict(metric=row.label, protocol=dataclasses.asdict(row))
  return dict(value=row.value, evaluations=row.evaluations, settings=how) | about


def picture(found: dict):
  """The metric over the evaluations, both on logarithmic axes, a line for each sampler."""
  with figure(flags.out, figsize=(7, 5), dpi=100, layout='constrained') as drawn:
    axes = drawn.subplots()
    for curve, points in found.items():
      points = sorted(points.values(), key=lambda point: point['evaluations'])
      x, y = ([point[name] for point in points] for name in ('evaluations', 'value'))
      axes.plot(x, y, marker='o', label=curve)
    axes.set(
      xlabel='evaluations of the net', ylabel=points[0]['metric'], xscale='log', yscale='log'
    )
    axes.set_xticks(flags.evaluations, flags.evaluations)
    axes.set_xticks([], minor=True)
    axes.legend(loc='upper left', bbox_to_anchor=(1, 1))


kept = flags.out.with_suffix('.json')
found = json.loads(kept.read_text()) if kept.exists() else {}
run = gen_jax.load(flags.workdir)
for curve in flags.curves:
  for how in settings(curve):
    points = found.setdefault(curve, {})
    name = json.dumps(how | dict(samples=flags.samples), sort_keys=True)
    if name not in points:
      points[name] = measure(run, how)
      kept.parent.mkdir(parents=True, exist_ok=True)
      kept.write_text(json.dumps(found, indent=1) + '\n')
    print(curve, points[name]['evaluations'], round(points[name]['value'], 4), flush=True)
picture(found)
print('| sampler | evaluations: ' + next(iter(found[flags.curves[0]].values()))['metric'] + ' |')
print('| --- | --- |')
for curve, points in found.items():
  points = sorted(points.values(), key=lambda point: point['evaluations'])
  cells = ', '.join(f'{point["evaluations"]}: {point["value"]:.3g}' for point in points)
  print(f'| {curve} | {cells} |')
