"""How much longer an evaluation takes than sampling alone: ratios, measured in turns.

    python benchmarks/evaluation.py --workdir=runs/ddpm_digits --num=400 --rounds=3

The run's own config and newest checkpoint; programs are compiled before the clock starts.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gen_jax import config as configs
from gen_jax import contract, data, evaluate
from gen_jax.errors import in_one_line
from gen_jax.metrics import networks
from gen_jax.run import restoring
from gen_jax.systems import find_system

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--workdir', required=True)
parser.add_argument('--num', type=int, default=400)
parser.add_argument('--rounds', type=int, default=3)
flags = parser.parse_args()
in_one_line()

config = configs.load(f'{flags.workdir}/config.json')
system = find_system(config.system)
_, state = restoring.restore(config, system, flags.workdir)
network = networks.open_network(
  config.eval.network, path=config.eval.weights, source=data.open_source(config)
)
draw, size = evaluate.batches(config, system, state), config.sample.batch_size


def sampling_alone() -> float:
  started = time.monotonic()
  for i in range(-(-flags.num // size)):
    jax.device_get(draw(i))
  return time.monotonic() - started


def evaluation() -> float:
  """Samples, features and their files."""
  with tempfile.TemporaryDirectory() as folder:
    started = time.monotonic()
    made = evaluate.drawn_features(config, draw, network, flags.num, Path(folder))
    assert len(made.seen.features) == flags.num
    return time.monotonic() - started


sampling_alone(), evaluation()  # compiles
ratios = []
for i in range(flags.rounds):
  alone, whole = sampling_alone(), evaluation()
  ratios.append(whole / alone)
  print(f'round {i + 1}: sampling {alone:.1f} s, evaluation {whole:.1f} s, ratio {ratios[-1]:.2f}')
how = contract.sampling(config, system).text
print(
  f'{flags.workdir}, {flags.num} samples, {how}, {network.name}: '
  f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'
)
