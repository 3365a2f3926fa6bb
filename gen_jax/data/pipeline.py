"""From a source to the batches of a training run.

A batch is a pure function of `(config.seed, step)`. The examples form an endless sequence of
epochs, each a permutation of its own; step n takes the next `minibatches * batch_size` of them, so
that resuming needs only the step. Both storages share this order. With `device` the whole set is on
the device and the host feeds indices; with `stream` Grain's threads prefetch uint8 batches.
`preprocess` does the rest inside the compiled step.

A permutation is the argsort of random words, computed once per epoch. Grain's own shuffle computes
one index at a time in Python, which is 100 times slower, and gives seed s + 1 the epochs of seed s,
one epoch later.
"""

import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator

import grain
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import draws
from gen_jax.data.pixels import from_pixels
from gen_jax.data.sources import Source, fits_on_device
from gen_jax.errors import UserError


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
  """Returns the order of one epoch: int32 [n], a permutation of 0 .. n-1.

  Philox's raw words and a stable sort are the same in every version of NumPy, which the stream of
  `Generator.permutation` need not be.
  """
  words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
  order = np.argsort(words, kind='stable').astype(np.int32)
  order.flags.writeable = False  # It is shared through the cache.
  return order


class Batches:
  """The batches of one run, by step.

  Attributes:
    source: where the examples come from.
    storage: `device` or `stream`; `config.data.storage='auto'` chooses by size.
    device_data: host arrays to be kept on the device for the whole run; `{}` with `stream`.
  """

  def __init__(
    self,
    source: Source,
    config,
    *,
    minibatches: int | None | Callable[[int], int | None],
    rows=None,
  ):
    """Args:
      source: where the examples come from.
      config: the whole config.
      minibatches: leaves are `[minibatches, batch_size, ...]`; `None`: `[batch_size, ...]`. A
        function of the step where their number varies.
      rows: the rows of each batch that this process, one of several, feeds; `None`: all of them.

    Raises:
      UserError: if the source has fewer examples than `config.train.batch_size`.
    """
    batch_size = config.train.batch_size
    if len(source) < batch_size:
      raise UserError(
        f'config.train.batch_size={batch_size}, but {source.name} has only {len(source)} examples '
        f'in config.data.split={config.data.split!r}: at most that many make a batch'
      )
    self.source = source
    self._seed = config.seed
    self._batch_size = batch_size
    self._minibatches = minibatches if callable(minibatches) else lambda step: minibatches
    self._before, self._lock = [0], threading.Lock()
    self._rows = slice(None) if rows is None else rows
    self._threads = config.data.read_threads
    self._prefetch = config.data.prefetch
    storage = config.data.storage
    if storage == 'auto' and rows is not None:
      storage = 'stream'  # so that each process reads its rows only
    self.storage = 'device' if fits_on_device(source.nbytes, storage) else 'stream'
    self.device_data = source.arrays() if self.storage == 'device' else {}

  def shape(self, step: int) -> tuple[int, ...]:
    """Leading axes of the leaves at a step: `(batch_size,)` or `(minibatches, batch_size)`."""
    k = self._minibatches(step)
    return (self._batch_size,) if k is None else (k, self._batch_size)

  def _examples_before(self, step: int) -> int:
    with self._lock:  # prefetching threads call this, too
      while len(self._before) <= step:
        self._before.append(self._before[-1] + math.prod(self.shape(len(self._before) - 1)))
      return self._before[step]

  def _indices(self, step: int) -> np.ndarray:
    n, count = len(self.source), math.prod(self.shape(step))
    epoch, start = divmod(self._examples_before(step), n)
    parts = []
    while count:
      parts.append(permutation(self._seed, epoch, n)[start : start + count])
      count -= len(parts[-1])
      epoch, start = epoch + 1, 0
    return np.concatenate(parts)

  def host_batch(self, step: int) -> dict[str, np.ndarray]:
    """Returns what the host feeds: `index` int32 (`device`) or `image`, `label` (`stream`)."""
    step = int(step)
    indices = self._indices(step).reshape(self.shape(step))[..., self._rows]
    shape, indices = indices.shape, indices.ravel()
    batch = {'index': indices} if self.storage == 'device' else self.source.read(indices)
    return {key: value.reshape(shape + value.shape[1:]) for key, value in batch.items()}

  def iterate(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields `host_batch(start_step)`, `host_batch(start_step + 1)`, ... without end.

    `stream` reads `config.data.prefetch` batches ahead with `config.data.read_threads` threads;
    `close()` the generator to stop them.
    """
    if self.storage == 'device':
      yield from map(self.host_batch, itertools.count(start_step))
    # A thread reads a whole batch: more threads than prefetched batches would be idle.
    options = grain.ReadOptions(min(self._threads, self._prefetch), self._prefetch)
    steps = grain.MapDataset.range(start_step, 2**62).map(self.host_batch)
    batches = iter(steps.to_iter_dataset(options))
    try:
      yield from batches
    finally:
      batches.close()


def preprocess(device_data, host_batch, rng, *, config, axis_name=None) -> dict[str, jax.Array]:
  """Makes the batch of a step inside the compiled step: gather, scale, flip.

  Args:
    device_data: `Batches.device_data`, on the device.
    host_batch: `Batches.host_batch(step)`; under `pmap`, this device's rows of it.
    rng: key for this batch, the same on every device.
    config: the run's config; `config.data` is used.
    axis_name: name of the `pmap` axis, `None` outside of one.

  Returns:
    `image` float32 in [-1, 1] and, where there are labels, `label` int32, with the leading axes of
    `host_batch`: `[b, ...]` or `[k, b, ...]`.
  """
  batch = dict(host_batch)
  if 'index' in host_batch:
    index = batch.pop('index')
    batch = {key: jnp.take(value, index, axis=0, mode='clip') for key, value in device_data.items()}
  if len(config.data.shape) == 1:
    return batch
  x = batch['image']
  batch_axis = x.ndim - len(config.data.shape) - 1
  u_key, flip_key = jax.random.split(rng)
  noise = None
  if config.data.dequantize == 'uniform':
    noise = draws.uniform(u_key, x.shape, axis_name, batch_axis)
  x = from_pixels(x, config.data.dequantize, noise)
  if config.data.flip > 0:
    leading = x.shape[: batch_axis + 1]
    flip = draws.bernoulli(flip_key, config.data.flip, leading, axis_name, batch_axis)
    x = jnp.where(flip[..., None, None, None], x[..., ::-1, :], x)
  return batch | {'image': x}
