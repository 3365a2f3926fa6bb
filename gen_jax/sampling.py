"""Samples from a state, in batches: what `sample` of a system is given, and what it returns in the
data's dtype. Training, evaluation, `--mode=sample` and `gen_jax.load(...)` share this.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import contract, data
from gen_jax.devices import compilation, processes
from gen_jax.errors import Diverged
from gen_jax.host import console

SAMPLE_MODE = 0x5A3B1E  # folded in; anything but 0 to 3, the keys that a run splits from its seed


def compile_sampler(config, system):
  """Returns `sample(state, batch, rng) -> {name: array}`, compiled for the devices that hold the
  state.
  """
  return compilation.ShardedForward(
    lambda state, batch, rng: system.sample(state, batch, rng, config=config)
  )


def as_trained(batch, config) -> dict:
  """Preprocesses examples of a source as training does, without noise, crops and flips."""
  made = {}
  for name, value in batch.items():
    if not name.endswith('label'):
      points = len(config.data.shape) == 1
      made[name] = jnp.asarray(value) if points else data.from_pixels(value, config.data.dequantize)
    elif config.data.num_classes is not None:
      made[name] = jnp.asarray(value)
  return made


def held_out_conditions(config, system) -> Callable[[int, int], dict]:
  """Returns `conditions(n, start) -> given`: `contract.conditions`, and rows `start` to `start` + n
  of the held-out split as far as the `CONDITIONS` of the system name their leaves.

  Raises:
    UserError: the system needs that split, and it cannot be opened.
  """
  names = getattr(system, 'CONDITIONS', ())
  source = data.held_out(config) if names else None

  def conditions(n, start):
    given = contract.conditions(config, n, start)
    if names:
      rows = as_trained(source.read(np.arange(start, start + n) % len(source)), config)
      given |= {name: rows[name] for name in names}
    return given

  return conditions


def default_conditions(config, system) -> Callable[[int, int], dict]:
  """`conditions(n, start)` of samples that are measured: without the leaves of held-out examples,
  unless the system has no samples without them.
  """
  if contract.needed(system):
    return held_out_conditions(config, system)
  return functools.partial(contract.conditions, config)


def make_sampler(config, system, conditions=None):
  """Returns `draw(state, rng, n, stop=None, labels=None) -> {name: numpy array}`, which generates n
  samples in batches: uint8 images, or float32 points.

  `conditions(n, start)` makes what `sample` is given; None: `default_conditions`.

  Every batch has config.sample.batch_size rows, so that one program serves all and batch
  statistics, where a net uses them, are those of a full batch. With `stop` (a `signals.Stop`), it
  returns None when a stop is requested. `labels`, int32 [n], replace the cycle through the classes.
  It raises `Diverged` for values that are not finite.
  """
  size = config.sample.batch_size
  sample = compile_sampler(config, system)
  conditions = conditions or default_conditions(config, system)

  def draw(state, rng, n, stop=None, labels=None):
    parts, quiet = [], stop is not None or n <= size or not processes.is_first()
    for i in console.bar(range(-(-n // size)), desc='samples', disable=quiet):
      batch = conditions(size, i * size)
      if labels is not None:  # the last batch is padded
        batch['label'] = jnp.asarray(np.resize(labels[i * size :], size))
      made = sample(state, batch, jax.random.fold_in(rng, i))
      if stop is not None and not stop.wait_ready(made):
        return None
      parts.append(jax.device_get(made))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {
      name: value[:n] if name == 'evaluations' else as_data(value[:n], config)
      for name, value in joined.items()
    }

  return draw


def as_data(images, config) -> np.ndarray:
  """Samples in the data's dtype: images in uint8, points in float32.

  Raises:
    Diverged: they are not finite.
  """
  images = np.asarray(images)
  if not np.isfinite(images).all():
    raise Diverged('the samples are not finite: training has diverged')
  points = len(config.data.shape) == 1
  return images if points else data.to_pixels(images, config.data.dequantize)
