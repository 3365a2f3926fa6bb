"""Any image set of tensorflow-datasets, read as array_record without importing TensorFlow.

Preparing a set does need TensorFlow. That happens once, in a child process: `prepare_tfds`.
"""

import contextlib
import difflib
import os
import pathlib
import subprocess
import sys

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

import gen_jax
from gen_jax.data.decoding import BadImage, decode
from gen_jax.data.sources import Source, check_image_shape, content_hash, reading_pool
from gen_jax.errors import UserError
from gen_jax.host import console

_CHUNK = 1_000
_BAR_FROM = 2_000


@contextlib.contextmanager
def _quiet():
  """Suppresses TFDS's warnings, such as that of a set not prepared yet."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


def _find(name: str, data_dir: str | None, own_names: tuple[str, ...]):
  """Returns TFDS's builder and whether its data are prepared."""
  try:
    if tfds.core.naming.parse_builder_name_kwargs(name)[0].namespace:
      raise ValueError('sets with a namespace bring code from elsewhere, which is not executed')
    with _quiet():
      builder = tfds.builder(name, data_dir=data_dir)
      return builder, builder.is_prepared()
  except tfds.core.DatasetNotFoundError:
    known = [*own_names, *tfds.list_builders(with_community_datasets=False)]
    close = ' or '.join(map(repr, difflib.get_close_matches(name, known)))
    hint = f'did you mean {close}?' if close else 'tensorflow.org/datasets lists them'
    raise UserError(
      f'config.data.name={name!r} is neither one of {", ".join(own_names)} nor a data set of '
      f'tensorflow-datasets; {hint}'
    ) from None
  except (ValueError, AssertionError) as error:  # An unknown config or version; a malformed name.
    raise UserError(f'config.data.name={name!r}: {str(error)[:300]}') from error


def prepare(name: str, data_dir: str) -> str | None:
  """Prepares a set in a child process, progress on stderr; returns why that failed, or `None`."""
  root = str(pathlib.Path(gen_jax.__file__).parents[1])
  env = os.environ | {
    'PYTHONPATH': os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')])),
    'CUDA_VISIBLE_DEVICES': '',  # TensorFlow would take the memory of the GPU.
    'TF_CPP_MIN_LOG_LEVEL': '3',
  }
  command = [sys.executable, '-m', 'gen_jax.data.prepare_tfds', name, data_dir]
  child = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
  if child.returncode == 0:
    return None
  return child.stdout.strip() or f'the preparing process ended with status {child.returncode}'


class TFDSSource(Source):
  """The images of `config.data.name` below `config.data.path` (`None`: TFDS's default folder).

  The set must have 8-bit images as its feature `image`; a class as its feature `label` is used
  where there is one.

  Raises:
    UserError: if the set is unknown, cannot be prepared or read, or has no such images.
  """

  def __init__(self, config, own_names: tuple[str, ...] = (), field: str = 'data.split'):
    data, split = config.data, config[field]
    self.name = data.name
    builder, prepared = _find(data.name, data.path, own_names)
    if not prepared:
      root = str(builder.data_dir_root)
      problem = prepare(data.name, root)
      # Look again: ours may have failed because another process was preparing the set.
      builder, prepared = _find(data.name, data.path, own_names)
      if not prepared:
        problem = problem or f'{builder.data_path} is incomplete, remove that folder'
        raise UserError(
          f'config.data.name={data.name!r} is not prepared in {root}, and preparing failed: '
          f'{problem}; `python -m gen_jax.data.prepare_tfds {data.name} {root}` fetches it'
        )
    info = builder.info
    self._folder = str(builder.data_path)
    try:
      self._length = info.splits[split].num_examples
    except (KeyError, ValueError):
      raise UserError(
        f'config.{field}={split!r}, but {data.name} has {", ".join(info.splits)} (parts '
        "such as 'train[:90%]', up to their number of examples or 100%, work too)"
      ) from None
    if self._length < 1:
      raise UserError(f'config.{field}={split!r} is empty')
    self._fit, self._background = data.fit, data.get('background')
    self._threads = data.read_threads
    self._check_features(info.features, data)
    try:
      # Pillow decodes, as for folders: TFDS's own choice depends on whether OpenCV is installed.
      skip = {'image': tfds.decode.SkipDecoding()}
      self._records = builder.as_data_source(split, decoders=skip)
    except NotImplementedError:
      raise UserError(
        f'config.data.name={data.name!r} is prepared in {self._folder} as '
        f'{info.file_format.value}, which only TensorFlow reads; set config.data.path to another '
        'folder, and it will be prepared there as array_record'
      ) from None
    laid_over = '' if self._background is None else f' over {self._background}'
    content = content_hash(f'{info.full_name} {split} {self._length}{laid_over}'.encode())
    self.fingerprint = f'{self.name}/{split}/{self._length}/{content}'
    self.read([0, self._length - 1])  # Finds a missing or truncated file before training does.

  @property
  def content(self):
    """A hash of names, sizes and times of the files: the version, which is part of the fingerprint,
    does not change when a user rebuilds a set.
    """
    if not os.path.isdir(self._folder):
      return ''  # a set in a bucket is identified by its version only
    files = sorted(os.scandir(self._folder), key=lambda file: file.name)
    stats = [(f.name, (s := f.stat()).st_size, int(s.st_mtime)) for f in files if f.is_file()]
    return content_hash(repr(stats).encode())

  def _check_features(self, features, data) -> None:
    named = isinstance(features, tfds.features.FeaturesDict)
    image = features['image'] if named and 'image' in features else None
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
      found = ', '.join(f'{key}: {value}' for key, value in features.items()) if named else features
      raise UserError(f"config.data.name={data.name!r} has no 8-bit images as 'image', but {found}")
    self.shape = tuple(data.shape)
    check_image_shape(self.shape, self._background)
    if data.fit == 'exact':
      if None in image.shape:
        raise UserError(
          f"config.data.fit='exact', but the images of {data.name} have several sizes, "
          f"{tuple(image.shape)}; 'crop' crops and resizes them to config.data.shape={self.shape}"
        )
      self.shape = tuple(image.shape)
    self.num_classes = None
    label = features['label'] if 'label' in features else None
    if isinstance(label, tfds.features.ClassLabel):
      self.num_classes, self.classes = label.num_classes, tuple(label.names)

  def __len__(self):
    return self._length

  def read(self, indices):
    try:
      records = self._records.__getitems__([int(i) for i in indices])
    except RuntimeError as error:  # array_record's error for a missing, truncated or damaged file.
      raise UserError(
        f'{self._folder} is damaged ({str(error)[:200]}); remove that folder, and {self.name} '
        'will be prepared again'
      ) from error
    try:
      contents = [record['image'] or b'' for record in records]  # None where records are cut off
      image = np.stack([decode(c, self.shape, self._fit, self._background) for c in contents])
    except BadImage as error:
      raise UserError(
        f'config.data.shape={self.shape} with config.data.fit={self._fit!r}, but an image in '
        f'{self._folder} {error}'
      ) from error
    if self.num_classes is None:
      return {'image': image}
    return {'image': image, 'label': np.array([record['label'] for record in records], np.int32)}

  def arrays(self):
    chunks = [range(i, min(i + _CHUNK, len(self))) for i in range(0, len(self), _CHUNK)]
    hidden = True if len(self) < _BAR_FROM else None  # None: hidden unless on a terminal
    bar = console.bar(total=len(self), desc=f'Reading {self.name}', disable=hidden, unit='image')
    parts = []
    # Decoding small images mostly holds Python's lock: more threads only slow it down.
    threads = min(self._threads, os.cpu_count() or 1)
    with bar, reading_pool(threads) as pool:
      for part in pool.map(self.read, chunks):
        parts.append(part)
        bar.update(len(part['image']))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
