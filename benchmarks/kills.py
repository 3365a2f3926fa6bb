"""Kills training at random times until it is finished, and compares what it leaves with an
uninterrupted run: checkpoint, metrics, evaluations and images, bit for bit.

    python benchmarks/kills.py --kills=67 gan_ring wgan_gp_ring ddpm_ring

Quick evaluations are on. A run gets SIGKILL, SIGTERM, SIGINT or SIGHUP after 0 to 12 seconds, from
its first instruction on, is started again, and when it is finished, the next run begins.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from gen_jax import config as configs
from gen_jax import contract
from gen_jax.run import checkpoint
from gen_jax.systems import find_system

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
FLAGS = (
  '--config.train.checkpoint_steps=50',
  '--config.train.sample_steps=100',
  '--config.train.log_steps=5',
  '--config.eval.every_steps=100',
  '--config.eval.num_reference=500',
  '--config.eval.quick_samples=200',
)


def start(name: str, workdir, steps: int, log):
  """A training run in a process of its own."""
  command = [sys.executable, 'launch.py', f'--config=configs/{name}.py:smoke']
  command += [f'--workdir={workdir}', *FLAGS, f'--config.train.steps={steps}']
  return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def left_behind(workdir: pathlib.Path) -> dict:
  """What a run leaves: every leaf of the state, images, metrics and evaluations without times."""
  config = configs.load(str(workdir / 'config.json'))
  abstract = contract.abstract_state(config, find_system(config.system))
  about = dict(config=configs.to_dict(config), data_fingerprint='', keep=9)
  saver = checkpoint.Checkpointer(workdir / 'checkpoints', **about)
  manifest = saver.latest()
  leaves = jax.tree.leaves(saver.restore(manifest, abstract))
  saver.close()
  digest = lambda data: hashlib.sha256(data).hexdigest()
  found = {'step': manifest.step, 'leaves': [digest(np.asarray(leaf).tobytes()) for leaf in leaves]}
  found |= {path.name: digest(path.read_bytes()) for path in workdir.glob('samples/*.png')}
  for name in ('metrics.jsonl', 'evaluation.jsonl'):
    lines = [json.loads(line) for line in (workdir / name).read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if k not in ('time', 'rate')} for line in lines]
    found[name] = kept
  return found


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('configs', nargs='+', help='names of configs; their :smoke is trained')
parser.add_argument('--kills', type=int, default=67, help='of each config')
parser.add_argument('--steps', type=int, default=2000)
parser.add_argument('--seed', type=int, default=0, help='of the times and the signals')
flags = parser.parse_args()
chance = random.Random(flags.seed)
status = 0
for name in flags.configs:
  folder = pathlib.Path(tempfile.mkdtemp())
  with open(folder / 'log', 'w') as log:
    if start(name, folder / 'straight', flags.steps, log).wait():
      sys.exit((folder / 'log').read_text())
    wanted = left_behind(folder / 'straight')
    seen, runs, equal = collections.Counter(), 0, 0
    while sum(seen.values()) < flags.kills:
      broken = folder / f'broken_{runs}'
      while True:
        process = start(name, broken, flags.steps, log)
        try:
          ended = process.wait(chance.uniform(0, 12))
        except subprocess.TimeoutExpired:
          process.send_signal(number := chance.choice(SIGNALS))
          ended = process.wait()
          if ended not in (-number, 128 + number, 0):
            print(f'{name}: {number.name} ended with status {ended}: {folder}/log', flush=True)
            status = 1
          seen[number.name] += ended != 0
        if ended == 0:
          break
      runs += 1
      same = left_behind(broken) == wanted
      equal += same
      if same:
        shutil.rmtree(broken)
      else:
        status = 1
    print(
      f'{name}: {dict(seen)}, {sum(seen.values())} in all; runs {runs}, equal {equal}', flush=True
    )
  if not status:
    shutil.rmtree(folder)
sys.exit(status)
