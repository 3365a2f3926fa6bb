"""The interface of a data set to the pipeline, and the embedded set of handwritten digits."""

import contextlib
import hashlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np

from gen_jax.errors import UserError

# Sets up to this size stay on the device (CIFAR-10 takes 0.15 GiB). Every device gets a copy.
DEVICE_BYTES = 2**30


def fits_on_device(nbytes: int, storage: str) -> bool:
  """Whether a set of `nbytes` is kept on the device under `config.data.storage`."""
  return storage == 'device' or (storage == 'auto' and nbytes <= DEVICE_BYTES)


class Source:
  """Random access to the examples of one data set.

  Attributes:
    name: as in `config.data.name`.
    shape: `(h, w, c)` of an image, `(2,)` of a point.
    dtype: of an image, uint8 in [0, 255], or of a point, float32 in [-1, 1].
    num_classes: number of classes, `None` where there are no labels.
    classes: names of the classes, index = label; empty where they have none.
    fingerprint: `name/split/length/hex`; changes whenever the examples or their order change.
    content: a hash of the content, where the fingerprint does not include one.
  """

  name: str
  shape: tuple[int, ...]
  dtype = np.dtype(np.uint8)
  num_classes: int | None
  classes: tuple[str, ...] = ()
  fingerprint: str
  content = ''

  def __len__(self) -> int:
    raise NotImplementedError

  def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns `image` [n, *shape] and, where there are labels, `label` int32 [n].

    Several threads may call this at once.
    """
    raise NotImplementedError

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """Returns one example: `image` of `shape` and, where there are labels, int32 `label`."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    return {key: value[0] for key, value in self.read([index]).items()}

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns the whole set in memory, as `read` does."""
    return self.read(range(len(self)))

  def streams(self) -> dict[str, 'Source']:
    """The sources, by name, whose examples are permuted independently; '' for this one."""
    return {'': self}

  @property
  def nbytes(self) -> int:
    """Size of `arrays()` in bytes."""
    label = 0 if self.num_classes is None else 4
    return len(self) * (math.prod(self.shape) * self.dtype.itemsize + label)


class ArraySource(Source):
  """A source whose examples are in memory."""

  def __init__(self, name: str, arrays: Mapping[str, np.ndarray], num_classes, fingerprint: str):
    self.name = name
    self.shape = arrays['image'].shape[1:]
    self.dtype = arrays['image'].dtype
    self.num_classes = num_classes
    self.fingerprint = fingerprint
    self._arrays = dict(arrays)

  def __len__(self):
    return len(self._arrays['image'])

  def read(self, indices):
    indices = np.asarray(indices)
    return {key: value[indices] for key, value in self._arrays.items()}

  def arrays(self):
    return dict(self._arrays)


def content_hash(*parts: bytes) -> str:
  """16 hex digits of the SHA-256 of the parts, each preceded by its length."""
  digest = hashlib.sha256()
  for part in parts:
    digest.update(len(part).to_bytes(8, 'little'))
    digest.update(part)
  return digest.hexdigest()[:16]


def file_hash(file: BinaryIO) -> str:
  """`content_hash` of the content of a file, read in pieces."""
  digest = hashlib.sha256(file.seek(0, io.SEEK_END).to_bytes(8, 'little'))
  file.seek(0)
  while piece := file.read(2**20):
    digest.update(piece)
  return digest.hexdigest()[:16]


@contextlib.contextmanager
def reading_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
  """A pool of threads that cancels its pending work when an exception (including Ctrl-C) ends its
  block.
  """
  with ThreadPoolExecutor(threads) as pool:
    try:
      yield pool
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def check_image_shape(shape: tuple[int, ...], background: tuple[int, ...] | None = None) -> None:
  """Rejects a `config.data.shape` that no image can have, and a `config.data.background` that is
  no colour of such images.

  Raises:
    UserError: it is not (height, width, channels) with 1, 3 or 4 channels; a colour for grey ones.
  """
  if len(shape) != 3 or shape[2] not in (1, 3, 4):
    raise UserError(
      f'config.data.shape={shape}: images need (height, width, channels) with 1, 3 or 4 channels'
    )
  if background is not None and shape[2] == 1 and len(background) > 1:
    raise UserError(
      f'config.data.background={background} is a colour, but images of config.data.shape={shape} '
      'are grey: one level, from 0 to 255, is needed'
    )


class Part(Source):
  """A subset of another source, in its order."""

  def __init__(self, source: Source, split: str, rows: np.ndarray):
    self.name = source.name
    self.shape = source.shape
    self.dtype = source.dtype
    self.num_classes, self.classes = source.num_classes, source.classes
    content = content_hash(source.fingerprint.encode(), rows.astype('<i8').tobytes())
    self.fingerprint = f'{source.name}/{split}/{len(rows)}/{content}'
    self.content = source.content
    self._source, self._rows = source, rows

  def __len__(self):
    return len(self._rows)

  def read(self, indices):
    return self._source.read(self._rows[np.asarray(indices)])

  @property
  def nbytes(self):
    return self._source.nbytes * len(self) // len(self._source)


def part(source: Source, split: str, field: str = 'data.split', whole: str = 'train') -> Source:
  """The subset that a split names of a source with no other split than `whole`.

  Args:
    source: the full source.
    split: 'train' or a slice in the syntax of tensorflow-datasets, such as 'train[:80%]' or
      'train[-100:]', in a fixed shuffled order, as a folder is sorted by class.
    field: the config field whose value `split` is.
    whole: the name of the split that the source is.

  Raises:
    UserError: there is no such slice, or it is empty.
  """
  bound = r'(?:(-?)(\d{1,18})(%?))?'
  match = re.fullmatch(rf'{re.escape(whole)}(?:\[{bound}:{bound}\])?', split)
  n = len(source)
  if match is None:
    more = '; with {split} in its path it has others' * (source.name in ('folder', 'arrays'))
    raise UserError(
      f'config.{field}={split!r}, but {source.name} has only one split, {whole!r}, and parts of '
      f"it, such as '{whole}[:80%]'{more}"
    )
  if split == whole:
    return source
  edges = []
  for sign, number, percent in (match.groups()[:3], match.groups()[3:]):
    if number is None:
      edges.append(None)
      continue
    if int(number) > (100 if percent else n):
      raise UserError(
        f'config.{field}={split!r} names {number}{percent}, but {source.name} has '
        + ('100%' if percent else f'{n} examples')
      )
    edge = int(f'{sign}{number}')
    edges.append(round(n * edge / 100) if percent else edge)
  shuffled = np.argsort(np.random.Philox(key=0).random_raw(n), kind='stable')
  rows = np.sort(shuffled[slice(*edges)])
  if not len(rows):
    raise UserError(f'config.{field}={split!r} is empty: {source.name} has {n} examples')
  return Part(source, split, rows)


def digits() -> ArraySource:
  """The 1,797 handwritten digits of scikit-learn: 8x8 grey, labels 0 to 9, no download."""
  from sklearn.datasets import load_digits

  bunch = load_digits()
  # The 17 grey levels, 0 to 16, are scaled to 0 to 255.
  image = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
  label = bunch.target.astype(np.int32)
  content = content_hash(image.tobytes(), label.tobytes())
  fingerprint = f'digits/train/{len(image)}/{content}'
  return ArraySource('digits', {'image': image, 'label': label}, 10, fingerprint)
