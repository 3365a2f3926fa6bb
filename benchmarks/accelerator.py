"""Training speed of a config on the available devices: images per second, share of the device's
peak, memory, and whether bfloat16 learns like float32.

    python benchmarks/accelerator.py
    python benchmarks/accelerator.py --config=configs/ddpm_digits.py --batches 64 --ceiling 2048

Synthetic images are on the device and the step is the training loop's own, several steps per
dispatch; calls are dispatched without waiting for the previous one. The ceiling is a product of two
square random matrices in bfloat16 on one device; operations are XLA's count for the step as
written; memory is XLA's allocation for a call: state, data and temporary buffers. Batch sizes
larger than the first one process as many images, in fewer calls. Loss curves are those of the first
batch size: means of 50 steps, and the largest difference of bfloat16 from float32. (Both have the
same images and noise.)
"""

import argparse
import functools
import itertools
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gen_jax import config as configs
from gen_jax import contract, data
from gen_jax.devices import compilation, sharding
from gen_jax.errors import in_one_line
from gen_jax.systems import find_system

WINDOW = 50  # number of steps over which the compared losses are averaged


def ceiling(size: int) -> float:
  """Operations per second of a product of two [size, size] matrices in bfloat16."""
  a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
  product = jax.jit(jnp.matmul)
  jax.block_until_ready(product(a, b))
  times = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready([product(a, b) for _ in range(10)])
    times.append((time.perf_counter() - start) / 10)
  return 2 * size**3 / min(times)


def operations(step, args) -> float:
  """Floating-point operations of a step as written. It is lowered for the CPU, where XLA counts
  them; the plugins of accelerators do not.
  """
  cpu = jax.sharding.SingleDeviceSharding(jax.devices('cpu')[0])
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cpu)
  lowered = jax.jit(functools.partial(step, axis_name=None)).lower(*jax.tree.map(like, args))
  return (lowered.cost_analysis() or {}).get('flops', 0)


class Run:
  """The training of a config with a batch size and a precision."""

  def __init__(self, path: str, batch: int, precision: str, steps_per_call: int):
    config = configs.load(path)
    system = find_system(config.system)
    changes = {'train.batch_size': batch, 'precision': precision, 'parallel.mode': 'jit'}
    changes |= {'data.name': 'shapes', 'data.split': 'train', 'data.path': None}
    changes |= {'data.storage': 'device'}
    if config.data.num_classes is not None:
      changes |= {'data.num_classes': 2, 'net.num_classes': 2}
    config = configs.check(configs.replace(config, changes))
    configs.check_devices(config, jax.device_count())
    minibatches = contract.minibatches(config, system)
    self.batches = data.Batches(data.open_source(config), config, minibatches=minibatches)
    self.mesh, self.steps = sharding.make_mesh(config), steps_per_call
    self.axes = sharding.BatchAxes(self.batches.shape(1), self.steps)
    whole = sharding.replicated(self.mesh)
    init_key, data_key, step_key = jax.random.split(jax.random.key(config.seed), 3)
    self.keys = sharding.put({'data': data_key, 'step': step_key}, whole)
    self.device_data = sharding.put(self.batches.device_data, whole)

    def init(host_batch, device_data):
      rows = data.preprocess(device_data, host_batch, data_key, config=config)
      return system.init_state(init_key, rows, config=config)

    def step(state, host_batch, device_data, keys, *, axis_name):
      key = jax.random.fold_in(keys['data'], state.step)
      rows = data.preprocess(device_data, host_batch, key, config=config, axis_name=axis_name)
      return system.train_step(state, rows, keys['step'], config=config, axis_name=axis_name)

    host_batch = self.batches.host_batch(0)
    target = sharding.abstract_state(jax.eval_shape(init, host_batch, self.device_data), self.mesh)
    self.state = compilation.compile_once(init, target)(host_batch, self.device_data)
    self.operations = operations(step, (target, host_batch, self.device_data, self.keys))
    self.feed = self.batches.iterate(0)
    start = time.perf_counter()
    self.call = compilation.compile_step(
      step,
      self.mesh,
      target,
      self.next(),
      self.device_data,
      self.keys,
      mode=config.parallel.mode,
      axes=self.axes,
    )
    self.compile_seconds = time.perf_counter() - start
    self.memory = self.call.memory_analysis().peak_memory_in_bytes

  def next(self):
    """The batch of the next call."""
    return self.axes.batch(list(itertools.islice(self.feed, self.steps)), self.mesh)

  def calls(self, number: int) -> tuple[float, np.ndarray]:
    """Seconds of `number` calls, and the loss of the last player in each of their steps."""
    start, losses = time.perf_counter(), []
    for _ in range(number):
      self.state, metrics = self.call(self.state, self.next(), self.device_data, self.keys)
      losses.append([value for name, value in metrics.items() if name.endswith('/loss')][-1])
    jax.block_until_ready(self.state)
    seconds = time.perf_counter() - start
    return seconds, np.concatenate([np.atleast_1d(x) for x in jax.device_get(losses)])


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--config', default='configs/ddpm_cifar.py')
  parser.add_argument('--batches', type=int, nargs='+', default=[128, 512])
  parser.add_argument(
    '--calls',
    type=int,
    default=50,
    help='timed calls of the first batch size, after as many for warm-up',
  )
  parser.add_argument('--steps_per_call', type=int, default=10)
  parser.add_argument('--ceiling', type=int, default=8192, help='rows of the square matrices')
  flags = parser.parse_args()
  devices, most = jax.devices(), ceiling(flags.ceiling)
  print(
    f'{flags.config}, {flags.steps_per_call} steps a call; {len(devices)} x '
    f'{devices[0].device_kind}; jax {jax.__version__}; ceiling {most / 1e12:.3g} TFLOP/s in '
    'bfloat16\n'
  )
  header = ['batch', 'precision', 'images/s', 'of the ceiling', 'ms a step', 'compiled in, s']
  header += ['memory, GiB', 'loss, last 50 steps']
  print(f'| {" | ".join(header)} |', f'|{" --- |" * len(header)}', sep='\n')
  curves = {}
  for batch in flags.batches:
    for precision in ('float32', 'bfloat16'):
      run = Run(flags.config, batch, precision, flags.steps_per_call)
      number = max(1, flags.calls * flags.batches[0] // batch)
      _, before = run.calls(number)
      seconds, after = run.calls(number)
      losses = np.concatenate([before, after])
      assert np.isfinite(losses).all(), (batch, precision)
      curves[batch, precision] = losses
      steps = number * run.steps
      images = steps * int(np.prod(run.batches.shape(1))) / seconds
      share = run.operations * steps / seconds / len(devices) / most
      cells = [
        f'{batch}',
        precision,
        f'{images:,.0f}',
        f'{share:.1%}',
        f'{1e3 * seconds / steps:.2f}',
      ]
      cells += [f'{run.compile_seconds:.0f}', f'{run.memory / 2**30:.1f}']
      cells += [f'{losses[-WINDOW:].mean():.5f}']
      print(f'| {" | ".join(cells)} |', flush=True)
      del run
  whole = len(curves[flags.batches[0], 'float32']) // WINDOW * WINDOW
  if whole:
    a, b = (
      curves[flags.batches[0], precision][:whole].reshape(-1, WINDOW).mean(1)
      for precision in ('float32', 'bfloat16')
    )
    apart = np.abs(b - a) / np.abs(a)
    print(
      f'\nloss of bfloat16 against float32, mean of every 50 steps: at most {apart.max():.2%} apart'
    )


if __name__ == '__main__':
  in_one_line()
  main()
