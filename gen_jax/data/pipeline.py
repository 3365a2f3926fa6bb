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

from gen_jax import domains, draws
from gen_jax.data import made
from gen_jax.data.pixels import from_pixels
from gen_jax.data.sources import Source, fits_on_device
from gen_jax.errors import UserError


@functools.lru_cache(maxsize=8)
def permutation(seed: int, epoch: int, n: int, stream: int = 0) -> np.ndarray:
  """Returns the order of one epoch of a stream: int32 [n], a permutation of 0 .. n-1.

  Philox's raw words and a stable sort are the same in every version of NumPy, which the stream of
  `Generator.permutation` need not be.
  """
  key = np.array([seed + (stream << 32), epoch], np.uint64)  # a seed has 32 bits
  words = np.random.Philox(key=key).random_raw(n)
  order = np.argsort(words, kind='stable').astype(np.int32)
  order.flags.writeable = False  # It is shared through the cache.
  return order


class Batches:
  """The batches of one run, by step.

  A source of unpaired domains has a stream for each (`Source.streams`), which is permuted on its
  own; all have the same number of examples in a batch.

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
    self._streams = source.streams()
    for name, stream in self._streams.items():
      if len(stream) < batch_size:
        field = 'data.split'
        if name == 'x' and config.data.x_from == 'domain' and config.data.x.split is not None:
          field = 'data.x.split'
        of = f' (the domain {name})' if name else ''
        raise UserError(
          f'config.train.batch_size={batch_size}, but {stream.name}{of} has only {len(stream)} '
          f'examples in config.{field}={config[field]!r}: at most that many make a batch'
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
    self.device_data = {}
    if self.storage == 'device':
      for stream in self._streams.values():
        self.device_data |= stream.arrays()

  def shape(self, step: int) -> tuple[int, ...]:
    """Leading axes of the leaves at a step: `(batch_size,)` or `(minibatches, batch_size)`."""
    k = self._minibatches(step)
    return (self._batch_size,) if k is None else (k, self._batch_size)

  def _examples_before(self, step: int) -> int:
    with self._lock:  # prefetching threads call this, too
      while len(self._before) <= step:
        self._before.append(self._before[-1] + math.prod(self.shape(len(self._before) - 1)))
      return self._before[step]

  def _indices(self, step: int, stream: int, n: int) -> np.ndarray:
    count = math.prod(self.shape(step))
    epoch, start = divmod(self._examples_before(step), n)
    parts = []
    while count:
      parts.append(permutation(self._seed, epoch, n, stream)[start : start + count])
      count -= len(parts[-1])
      epoch, start = epoch + 1, 0
    return np.concatenate(parts)

  def host_batch(self, step: int) -> dict[str, np.ndarray]:
    """Returns what the host feeds: the examples' leaves, such as `image`, `label` (`stream`), or
    `index` int32 (`device`), of unpaired domains `x_index` and `y_index`.
    """
    step = int(step)
    batch = {}
    for number, (name, stream) in enumerate(self._streams.items()):
      indices = self._indices(step, number, len(stream)).reshape(self.shape(step))[..., self._rows]
      shape, indices = indices.shape, indices.ravel()
      if self.storage == 'device':
        rows = {f'{name}_index' if name else 'index': indices}
      else:
        rows = stream.read(indices)
      batch |= {key: value.reshape(shape + value.shape[1:]) for key, value in rows.items()}
    return batch

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
    `host_batch`: `[b, ...]` or `[k, b, ...]`. Of two domains: `x`, `y`, `x_label` and `y_label`.
  """
  batch = _gather(device_data, host_batch)
  if len(config.data.shape) == 1:
    return batch
  if 'x_from' in config.data:
    return _two_domains(batch, rng, config, axis_name)
  x = batch['image']
  batch_axis = x.ndim - len(config.data.shape) - 1
  u_key, flip_key = jax.random.split(rng)
  noise = None
  if config.data.dequantize == 'uniform':
    noise = draws.uniform(u_key, x.shape, axis_name, batch_axis)
  x = from_pixels(x, config.data.dequantize, noise)
  if config.data.flip > 0:
    leading = x.shape[: batch_axis + 1]
    x = _flip(x, draws.bernoulli(flip_key, config.data.flip, leading, axis_name, batch_axis))
  return batch | {'image': x}


def _gather(device_data, host_batch) -> dict[str, jax.Array]:
  """The examples of the indices that the host feeds, or those that it feeds."""
  batch = dict(host_batch)
  for name in [name for name in batch if name.endswith('index')]:
    index, stream = batch.pop(name), name.removesuffix('index').removesuffix('_')
    for key, value in device_data.items():
      if key == stream or not stream or key.startswith(f'{stream}_'):
        batch[key] = jnp.take(value, index, axis=0, mode='clip')
  return batch


def _two_domains(batch, rng, config, axis_name) -> dict[str, jax.Array]:
  """x and y of a step, with their labels: one crop and flip for both where they are pairs."""
  data = config.data
  shapes = {'x': domains.x_shape(config), 'y': tuple(data.shape)}
  is_made = data.x_from in domains.MADE
  batch_axis = batch['y'].ndim - 4
  rows = batch['y'].shape[: batch_axis + 1]
  crop_key, flip_key, noise_key, hole_key = jax.random.split(rng, 4)

  def uniform(key, shape):
    return draws.uniform(key, (*rows, *shape), axis_name, batch_axis)

  def for_both(draw, key):
    if data.paired:
      return dict.fromkeys(shapes, draw(key))
    return {name: draw(k) for name, k in zip(shapes, jax.random.split(key), strict=True)}

  images = {name: batch[name] for name in shapes if name in batch}  # a made x may have no images
  if data.load_size is not None:
    where = for_both(lambda key: uniform(key, (2,)), crop_key)
    for name, image in images.items():
      images[name] = _crop(image, where[name], shapes['y' if is_made else name])
  if data.flip > 0:
    flip = for_both(
      lambda key: draws.bernoulli(key, data.flip, rows, axis_name, batch_axis), flip_key
    )
    images = {name: _flip(image, flip[name]) for name, image in images.items()}
  if is_made:
    holes = uniform(hole_key, (made.NUM_UNIFORMS,))
    images['x'] = made.make_x(images.get('x', images['y']), holes, config)
  noise = dict.fromkeys(shapes)
  if data.dequantize == 'uniform':
    keys = zip(shapes.items(), jax.random.split(noise_key), strict=True)
    noise = {name: uniform(key, shape) for (name, shape), key in keys}
  labels = {name: value for name, value in batch.items() if name.endswith('label')}
  if 'y_label' in labels:
    labels = {'x_label': labels['y_label']} | labels
  return labels | {name: from_pixels(images[name], data.dequantize, noise[name]) for name in shapes}


def _flip(images, flip) -> jax.Array:
  """Mirrors those of images [..., h, w, c] for which `flip` [...] is true."""
  return jnp.where(flip[..., None, None, None], images[..., ::-1, :], images)


def _crop(images, where, shape: tuple[int, int, int]) -> jax.Array:
  """A part `shape` of each of the images [..., H, W, c]: all places are equally likely for uniform
  `where` [..., 2] in [0, 1).
  """
  sizes = images.shape[-3:-1]

  def crop(image, where):
    rooms = [size - part for size, part in zip(sizes, shape[:2], strict=True)]
    starts = [
      jnp.minimum((u * (room + 1)).astype(jnp.int32), room)
      for u, room in zip(where, rooms, strict=True)
    ]
    return jax.lax.dynamic_slice(image, (*starts, 0), shape)

  for _ in range(images.ndim - 3):
    crop = jax.vmap(crop)
  return crop(images, where)
