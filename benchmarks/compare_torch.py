"""Speed of gen_jax's training steps and samplers against the same in PyTorch, on this machine.

    python -m pip install -r requirements.txt -r benchmarks/requirements.txt
    python benchmarks/compare_torch.py                 # all cases: an hour on two cores
    python benchmarks/compare_torch.py --cases gan_mnist --rounds 3

One process runs gen_jax, one PyTorch, one PyTorch with torch.compile, and, for diffusion models,
one diffusers' net and schedulers. They take turns: ours, theirs, compiled, ours, theirs, ... A turn
lasts some seconds, waits for each step, and reports the median time. The speed-up is the median of
theirs / ours, in bold against the fastest of the others, with its smallest and largest value over
rounds in brackets. Where torch.compile or diffusers fails, the table says so and the rest goes on.
Times to the first step are measured from the start of a process, without caches of compiled code.
The last column is the share of the machine's ceiling: PyTorch's count of operations in products and
convolutions, divided by the time of the step and by the rate of a product of two 2048x2048
matrices, measured in turns with the rest. The last case, `features`, is benchmarks/features.py,
with its own table: the networks whose packages, named there, are installed. Nothing else should run
on the machine at the same time: check the reported load.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Case(NamedTuple):
  config: str
  batch: int
  sampling: dict | None = None  # config fields for sampling; None: a training step


CASES = {
  'gan_mnist': Case('gan_mnist', 64),
  'dcgan_fashion_mnist': Case('dcgan_fashion_mnist', 64),
  'wgan_gp_mnist': Case('wgan_gp_mnist', 64),
  'wgan_gp_cifar': Case('wgan_gp_cifar', 8),
  'sngan': Case('sngan_fashion_mnist', 64),
  'biggan': Case('biggan_fashion_mnist', 64),
  'pix2pix': Case('pix2pix_fashion_mnist', 16),
  'pix2pix_facades': Case('pix2pix_facades', 1),  # 256 pixels
  'cyclegan': Case('cyclegan_emoji', 2),
  'ddpm_digits': Case('ddpm_digits', 64),
  'ddpm_fashion_mnist': Case('ddpm_fashion_mnist', 32),
  'ddpm_cifar': Case('ddpm_cifar', 8),
  'edm_fashion_mnist': Case('edm_fashion_mnist', 32),
  # Few steps, as every step costs the same.
  'digits_ancestral': Case(
    'ddpm_digits',
    64,
    {'sample.sampler': 'ancestral', 'diffusion.steps': '20', 'sample.steps': '20'},
  ),
  'fashion_ddim': Case('ddpm_fashion_mnist', 64, {'sample.steps': '10'}),
  'cifar_ddim': Case(
    'ddpm_cifar', 8, {'sample.sampler': 'ddim', 'sample.clip': 'True', 'sample.steps': '5'}
  ),
  'fashion_heun': Case('edm_fashion_mnist', 64, {'sample.steps': '5'}),
  'fashion_dpm_solver_pp': Case(
    'edm_fashion_mnist', 64, {'sample.sampler': 'dpm_solver_pp', 'sample.steps': '10'}
  ),
}
NAMES = {
  'jax': 'gen_jax',
  'torch': 'PyTorch',
  'compiled': 'PyTorch, torch.compile',
  'diffusers': 'diffusers',  # for diffusion cases only
}
CEILING = 'a matrix product'
# Feature networks of benchmarks/features.py, and the package of the PyTorch port, if it needs one.
FEATURES = {
  'inception': 'torch_fidelity',
  'efficientnet_lite0': 'efficientnet_lite_pytorch',
  'classifier': 'torch',
}


# --- Workers: `make(case) -> (step, parameters)`; step() does one step and waits for it -----------


def load(case):
  """The checked config of a case, and the shapes of the images of its batch by name:
  [(minibatches,) b, h, w, c].
  """
  from gen_jax import config as configs
  from gen_jax import contract, domains
  from gen_jax.systems import find_system

  fields = {'train.batch_size': case.batch, 'sample.batch_size': case.batch}
  fields |= case.sampling or {}
  config = configs.load(
    str(ROOT / 'configs' / f'{case.config}.py'), [(k, str(v)) for k, v in fields.items()]
  )
  system = find_system(config.system)
  k = contract.minibatches(config, system)
  images = {'image': tuple(config.data.shape)}
  if hasattr(system, 'translate'):
    images = {'x': domains.x_shape(config), 'y': tuple(config.data.shape)}
  rows = (*(() if k is None else (k,)), case.batch)
  return config, {name: rows + shape for name, shape in images.items()}


def make_jax(case):
  """gen_jax: the step as the training loop compiles it, or a batch of samples."""
  import jax
  import jax.numpy as jnp

  from gen_jax import contract, sampling
  from gen_jax.devices import compilation, sharding
  from gen_jax.systems import find_system

  config, shapes = load(case)
  system = find_system(config.system)
  init_key, data_key, step_key = jax.random.split(jax.random.key(config.seed), 3)
  batch = {}
  for i, (name, shape) in enumerate(shapes.items()):
    noise = jax.random.normal(jax.random.fold_in(data_key, i), shape)
    batch[name] = jnp.clip(0.5 * noise, -1, 1)
    if config.data.num_classes is not None:
      label = jnp.arange(case.batch) % config.data.num_classes
      label = jnp.broadcast_to(label, shape[: len(shape) - 3])
      batch['label' if name == 'image' else f'{name}_label'] = label
  mesh = sharding.make_mesh(config)

  def init(key):
    return system.init_state(key, batch, config=config)

  init = compilation.compile_once(
    init, sharding.abstract_state(jax.eval_shape(init, init_key), mesh)
  )

  def one_step(state, batch, device_data, key, *, axis_name):
    return system.train_step(state, batch, key, config=config, axis_name=axis_name)

  state = init(init_key)
  players = [player for player in vars(state).values() if hasattr(player, 'params')]
  parameters = [sum(leaf.size for leaf in jax.tree.leaves(p.params)) for p in players]
  if case.sampling:
    draw = sampling.compile_sampler(config, system)
    conditions = contract.conditions(config, case.batch)

    def one_batch():
      images = jax.block_until_ready(draw(state, conditions, step_key))['image']
      return [float(images.mean())]

    return one_batch, parameters

  axes = sharding.BatchAxes(tuple(shape[:-3]))
  train_step = compilation.compile_step(
    one_step, mesh, state, batch, {}, step_key, mode='jit', axes=axes
  )

  def step():
    nonlocal state
    state, metrics = train_step(state, batch, {}, step_key)
    return [float(m) for m in jax.device_get(jax.block_until_ready((state, metrics))[1]).values()]

  return step, parameters


def make_torch(case, compiled=False, diffusers=False):
  """PyTorch, eager or with its nets compiled, or with the nets and samplers of diffusers."""
  import torch
  import torch_nets

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.set_flush_denormal(True)  # as XLA does; the nets' near-zero initial weights make many
  config, shapes = load(case)
  torch.manual_seed(config.seed)
  if case.sampling:
    sampler, of_diffusers = torch_nets.SAMPLERS[config.system]
    draw, nets = of_diffusers(config) if diffusers else sampler(config, compiled)
    return lambda: [draw().mean().item()], [sum(p.numel() for p in n.parameters()) for n in nets]
  more = {'diffusers': True} if diffusers else {}
  train_step, nets = torch_nets.STEPS[config.system](config, compiled, **more)
  images = [torch.randn(shape).mul_(0.5).clamp_(-1, 1) for shape in shapes.values()]
  images = [x.movedim(-1, -3) for x in images]  # the memory stays channels-last
  parameters = [sum(p.numel() for p in net.parameters()) for net in nets]
  return lambda: [m.item() for m in train_step(*images)], parameters


def make_ceiling(case):
  """The peak rate of the machine: a product of two 2048x2048 matrices, in float32."""
  import jax
  import jax.numpy as jnp

  a = jnp.ones((2048, 2048))
  product = jax.jit(lambda a: a @ a)

  def step():
    product(a).block_until_ready()
    return []

  return step, []


def count_operations(step):
  """Floating-point operations of PyTorch's products and convolutions in a step."""
  from torch.utils._python_dispatch import TorchDispatchMode
  from torch.utils.flop_counter import flop_registry

  # PyTorch's own FlopCounterMode hooks into modules, which breaks gradients in inputs.
  class Counter(TorchDispatchMode):
    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
      kwargs = kwargs or {}
      count = flop_registry.get(function._overloadpacket)
      if count is None:
        with self:  # in inference mode conv2d is a composite of other functions
          made = function.decompose(*args, **kwargs)
        if made is not NotImplemented:
          return made
      made = function(*args, **kwargs)
      if count is not None:
        self.total += count(*args, **kwargs, out_val=made)
      return made

  with Counter() as counter:
    step()
  return counter.total


MAKE = {
  'jax': make_jax,
  'torch': make_torch,
  'compiled': functools.partial(make_torch, compiled=True),
  'diffusers': functools.partial(make_torch, diffusers=True),
  CEILING: make_ceiling,
}


def work(side, case):
  """Runs the first step, reports to the parent, then runs for the number of seconds in each line of
  stdin.
  """
  replies = os.fdopen(os.dup(1), 'w', buffering=1)
  os.dup2(2, 1)  # keeps the output of libraries out of the replies
  step, parameters = MAKE[side](CASES[case])
  first = step()
  print(json.dumps({'parameters': parameters, 'metrics': first}), file=replies)
  operations = count_operations(step) if side == 'torch' else None
  for line in sys.stdin:
    seconds, times, metrics = float(line), [], []
    while sum(times) < seconds or len(times) < 3:
      start = time.perf_counter()
      metrics = step()
      times.append(time.perf_counter() - start)
    reply = {
      'seconds': statistics.median(times),
      'steps': len(times),
      'metrics': metrics,
      'operations': operations,
      'cpu': time.process_time(),
      'peak': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,  # GiB
    }
    print(json.dumps(reply), file=replies)


# --- The parent ----------------------------------------------------------------------------------


def environment(side, *paths):
  """Environment variables of a worker process, with `paths` added to its import path."""
  env = os.environ | {
    'PYTHONPATH': os.pathsep.join([str(ROOT), *paths, os.environ.get('PYTHONPATH', '')]),
    'JAX_PLATFORMS': 'cpu',
    'OMP_WAIT_POLICY': 'passive',  # PyTorch's threads must not spin during our turn
    'JAX_ENABLE_COMPILATION_CACHE': 'false',  # times to the first step are without caches
    'TORCHINDUCTOR_FORCE_DISABLE_CACHES': '1',
  }
  if side == 'jax':
    env['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'  # as launch.py; PyTorch does not benefit
  return env


class Worker:
  """A process that runs one side of a case on request, and sleeps otherwise."""

  def __init__(self, side, case):
    self.side, self.replies = side, []
    self.folder = tempfile.TemporaryDirectory()
    start = time.perf_counter()
    self.process = subprocess.Popen(
      [sys.executable, __file__, '--worker', side, case],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=environment(side) | {'JAX_COMPILATION_CACHE_DIR': self.folder.name},
    )
    reply = self.read()
    self.first_step = time.perf_counter() - start
    self.parameters = reply['parameters']

  def read(self):
    line = self.process.stdout.readline()
    if not line:
      status = self.process.wait()
      raise SystemExit(
        f'error: the {NAMES.get(self.side, self.side)} process ended (status {status})'
      )
    return json.loads(line)

  def turn(self, seconds):
    print(seconds, file=self.process.stdin, flush=True)
    self.replies.append(self.read())
    return self.replies[-1]

  def seconds(self):
    return statistics.median(reply['seconds'] for reply in self.replies)

  def close(self):
    self.process.stdin.close()
    self.process.wait()
    self.folder.cleanup()


def compare(case, sides, rounds, seconds):
  """Measures a case and returns its rows of the table."""
  workers, failed, rows = [], [], []
  ceiling = Worker(CEILING, case)
  try:
    for side in sides:
      print(f'{case}: starting {NAMES[side]}', file=sys.stderr)
      try:
        worker = Worker(side, case)
      except SystemExit as error:
        if side in ('jax', 'torch'):
          raise
        print(f'{case}: {error}', file=sys.stderr)
        failed.append(side)
        continue
      workers.append(worker)
      wanted, found = workers[0].parameters, worker.parameters
      # diffusers' net may lack a bias.
      near = side == 'diffusers' and abs(sum(found) - sum(wanted)) <= 1e-3 * sum(wanted)
      if found != wanted and not near:
        raise SystemExit(f'error: {case}: {wanted} parameters, but {found} in {NAMES[side]}')
    for worker in workers:
      worker.turn(seconds / 4)  # warm-up
      worker.replies.clear()
    for i in range(rounds):
      ceiling.turn(seconds / 4)
      times = [f'{NAMES[w.side]} {1e3 * w.turn(seconds)["seconds"]:.1f} ms' for w in workers]
      print(f'{case}: round {i + 1} of {rounds}: {", ".join(times)}', file=sys.stderr)
  finally:
    for worker in [*workers, ceiling]:
      worker.close()

  (operations,) = {r['operations'] for w in workers for r in w.replies if r['operations']}
  most = 2 * 2048**3 / ceiling.seconds()  # operations a second
  print(f'{case}: {operations / 1e9:.1f} GFLOP, at most {most / 1e9:.0f} a second', file=sys.stderr)
  ours = workers[0]
  peer = min((w for w in workers if w.side != 'jax'), key=Worker.seconds)
  for worker in workers:
    ratios = [
      b['seconds'] / a['seconds'] for a, b in zip(ours.replies, worker.replies, strict=True)
    ]
    note = '' if worker is ours else f'{worker.seconds() / ours.seconds():.2f}'
    note += '' if worker is ours else f' ({min(ratios):.2f} to {max(ratios):.2f})'
    rows.append(
      [
        case if worker is ours else '',
        f'{CASES[case].batch}' if worker is ours else '',
        f'{sum(ours.parameters):,}' if worker is ours else '',
        NAMES[worker.side],
        f'{1e3 * worker.seconds():.1f}',
        f'**{note}**' if worker is peer else note,
        f'{worker.first_step:.0f}',
        f'{max(r["peak"] for r in worker.replies):.1f}',
        f'{operations / worker.seconds() / most:.0%}',
      ]
    )
  return rows + [['', '', '', NAMES[side], 'fails', '', '', '', ''] for side in failed]


def machine():
  """One line: commit, processor, cores, versions, load."""

  def output(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()

  models = [
    line.partition(':')[2].strip()
    for line in Path('/proc/cpuinfo').read_text().splitlines()
    if line.startswith('model name')
  ]
  versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in ('jax', 'torch'))
  changed = ' with changes' if output('git', 'status', '--porcelain', '--', 'gen_jax') else ''
  return (
    f'Commit {output("git", "rev-parse", "--short", "HEAD")}{changed}; {models[0]}, '
    f'{len(os.sched_getaffinity(0))} cores, float32; {versions}, '
    f'Python {platform.python_version()}; '
    f'load before: {os.getloadavg()[0]:.1f}.'
  )


def compare_features(rounds, seconds, compiled):
  """Runs benchmarks/features.py, which prints its table, and reports the networks it leaves out."""
  found = [name for name, package in FEATURES.items() if importlib.util.find_spec(package)]
  for name, package in FEATURES.items():
    if name not in found:
      print(f'features: {name} left out, {package} is not installed', file=sys.stderr)
  script = Path(__file__).with_name('features.py')
  command = [sys.executable, str(script), '--networks', *found]
  command += ['--rounds', str(rounds), '--seconds', str(seconds)]
  subprocess.run(command + ['--no-compile'] * (not compiled), check=True)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  names = [*CASES, 'features']
  parser.add_argument('--cases', nargs='+', choices=names, default=names, metavar='CASE')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument(
    '--seconds', type=float, default=4.0, help='length of a turn, at least 3 steps'
  )
  parser.add_argument('--no-compile', action='store_true', help='no torch.compile')
  parser.add_argument('--worker', nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    return work(*args.worker)

  sides = [side for side in NAMES if side != 'compiled' or not args.no_compile]
  header = ['case', 'batch', 'parameters', 'side', 'step, ms', 'speed-up', 'first step, s', 'GiB']
  header.append('of the ceiling')
  cases = [case for case in args.cases if case in CASES]
  if cases:
    print(machine(), flush=True)
    print('', f'| {" | ".join(header)} |', f'|{" --- |" * len(header)}', sep='\n', flush=True)
  for case in cases:
    diffusion = CASES[case].config.startswith(('ddpm', 'edm'))
    of_case = [side for side in sides if diffusion or side != 'diffusers']
    for row in compare(case, of_case, args.rounds, args.seconds):
      print(f'| {" | ".join(row)} |', flush=True)
  if 'features' in args.cases:
    print(flush=True)
    compare_features(args.rounds, args.seconds, not args.no_compile)


if __name__ == '__main__':
  main()
