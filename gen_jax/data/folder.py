"""A folder of images as a source; its sub-folders, if they hold any, are the classes.

Every file is decoded once before training starts, so that a truncated file or one of another size
is reported at once and not hours later. This does not detect all damage: a JPEG with one flipped
bit usually decodes without an error. What is no image is left out, and named.
"""

import logging
import math
import os
import pathlib
import warnings
from typing import BinaryIO

import numpy as np

from gen_jax.data.decoding import BadImage, decode, upright_size
from gen_jax.data.finding import BROKEN_LINK, LISTED, Found, find_images, left_out_text, some
from gen_jax.data.sources import (
  Source,
  check_image_shape,
  content_hash,
  file_hash,
  fits_on_device,
  reading_pool,
)
from gen_jax.errors import UserError, printable
from gen_jax.host import console
from gen_jax.host.files import open_file

_log = logging.getLogger(__name__)

_BAR_FROM = 2_000  # images, from which the check has a progress bar


class FolderSource(Source):
  """The images below `config.data.path`, in natural order of their names.

  The classes are the sub-folders that `config.data.classes` lists, by default all of them in
  natural order; index = label. One without images keeps its label. A flat folder has no classes.

  Args:
    config: the whole config.
    split: the name of the split that the folder is, for the fingerprint.
    halves: whether each file is two images side by side, of `config.data.shape` each; those of the
      source are twice as wide.

  Attributes:
    root: the folder.
    paths: of the images, relative to it.

  Raises:
    UserError: for a folder without images, one with images both in it and in sub-folders, a listed
      class that it does not have, and, if `config.data.bad_files='error'`, for bad files.
  """

  name = 'folder'

  def __init__(self, config, split: str = 'train', halves: bool = False):
    data = config.data
    where = f'config.data.path={data.path!r}'
    if data.path is None:
      raise UserError(f'{where}, but folder needs a folder of images')
    self.root = pathlib.Path(data.path)
    if not os.path.isdir(self.root):
      raise UserError(f'{where} is not a folder')
    check_image_shape(tuple(data.shape), data.get('background'))
    height, width, channels = self._one = tuple(data.shape)
    self.shape = (height, width * (1 + halves), channels)
    self._split, self._halves = split, halves
    self._fit, self._background = data.fit, data.get('background')
    try:
      found = find_images(self.root, data.read_threads)
    except OSError as error:
      raise UserError(f'{where} cannot be read: {error.strerror}') from error
    names = _classes(found, data.get('classes'), where)
    files, left_out = _chosen(found, names)
    if not files and not found.unread:
      raise UserError(
        f'{where} holds no image (PNG, JPEG or WebP)'
        + f'; {left_out_text(left_out)}' * bool(left_out)
      )
    self._decoded = None
    self.paths = self._checked(files, names, found.unread, data)
    labels = {name: label for label, name in enumerate(names)}
    self.classes = tuple(map(printable, names))
    self.num_classes = len(names) or None
    self._labels = np.array([labels[path.parts[0]] for path in self.paths if labels], np.int32)
    told = [left_out_text(left_out)] if left_out else []
    with_images = {path.parts[0] for path in files}
    if empty := [f'{name} ({i})' for name, i in labels.items() if name not in with_images]:
      told.append(f'classes without images (labels): {", ".join(empty)}')
    if told:
      _log.warning('%s', printable(f'{self.root}: {"; ".join(told)}'))

  def _checked(self, files, classes, unread, data) -> list[pathlib.PurePosixPath]:
    """Decodes every file once and returns the good ones; sets the fingerprint."""
    keep = fits_on_device(len(files) * math.prod(self.shape), data.storage)
    good, bad, digests, decoded, cures = [], [*unread], [], [], {}

    def examine(path):
      try:
        with open_file(self.root / path) as file:
          image = self._decode(file)
          return None, (), file_hash(file), image if keep else None
      except OSError as error:
        return f'cannot be read ({error.strerror})', (), None, None
      except BadImage as error:  # not kept: its traceback would keep the pixels
        return str(error), error.cures, None, None

    with warnings.catch_warnings(), reading_pool(data.read_threads) as pool:
      warnings.simplefilter('ignore')  # Pillow's, of files that it reads nevertheless
      results = pool.map(examine, files)
      hidden = True if len(files) < _BAR_FROM else None  # None: hidden unless on a terminal
      bar = console.bar(results, 'Checking images', len(files), disable=hidden, unit='image')
      for path, (problem, helps, digest, image) in zip(files, bar, strict=True):
        if problem:
          bad.append(f'{path} {problem}')
          cures |= dict.fromkeys(helps)
        else:
          good.append(path)
          digests.append(digest)
          decoded.append(image)
    if bad:
      total = len(files) + len(unread)
      count = f'{len(bad)} of {total} images in config.data.path={data.path!r}'
      named = some(bad)
      if data.bad_files == 'error' or not good:
        helps = ''.join(f'{cure}, ' for cure in cures)
        raise UserError(
          f'config.data.shape={self._one} with config.data.fit={self._fit!r}'
          + ', two images side by side' * self._halves
          + f', but {count} cannot be used: {named}. Fix them, change the shape, {helps}or set '
          "config.data.bad_files='skip'"
        )
      _log.warning('%s', printable(f'{count} are skipped: {named}'))
    if keep:
      self._decoded = np.stack(decoded)
    lines = [f'{path} {digest}' for path, digest in zip(good, digests, strict=True)]
    # What the paths do not say.
    if data.num_classes is not None and classes != _of_paths(files):
      lines.append(f'classes {classes}')
    if self._halves:
      lines.append('halves')
    if self._background is not None:
      lines.append(f'background {self._background}')
    content = content_hash(*(line.encode('utf-8', 'surrogateescape') for line in lines))
    self.fingerprint = f'{self.name}/{self._split}/{len(good)}/{content}'
    return good

  def __len__(self):
    return len(self.paths)

  def size(self, index: int) -> tuple[int, int]:
    """(height, width) of an image as it is in its file, upright."""
    with open_file(self.root / self.paths[index]) as file:
      return upright_size(file)

  def _decode(self, file: BinaryIO) -> np.ndarray:
    return decode(file, self._one, self._fit, self._background, self._halves)

  def _image(self, index: int) -> np.ndarray:
    path = self.root / self.paths[index]
    try:
      with open_file(path) as file:
        return self._decode(file)
    except (BadImage, OSError) as error:
      raise UserError(f'{path} was good when the run started, but now: {error}') from error

  def read(self, indices):
    indices = np.asarray(indices)
    if self._decoded is None:
      batch = {'image': np.stack([self._image(i) for i in indices])}
    else:
      batch = {'image': self._decoded[indices]}
    return batch | ({'label': self._labels[indices]} if self.classes else {})

  def arrays(self):
    if self._decoded is None:
      return super().arrays()
    return {'image': self._decoded} | ({'label': self._labels} if self.classes else {})


def _of_paths(files) -> tuple[str, ...]:
  """The sub-folders that hold images."""
  return tuple(dict.fromkeys(path.parts[0] for path in files if len(path.parts) > 1))


def _classes(found: Found, listed: tuple[str, ...] | None, where: str) -> tuple[str, ...]:
  """The sub-folders that are classes, by label."""
  if listed is not None:
    for name in listed:
      if name not in found.folders:
        there = ', '.join(found.folders[:LISTED]) or 'none'
        raise UserError(f'config.data.classes holds {name!r}, but {where} has the folders {there}')
      if listed.count(name) > 1:
        raise UserError(f'config.data.classes names {name!r} twice')
    return tuple(listed)
  flat = [path for path in found.images if len(path.parts) == 1]
  if flat and len(flat) < len(found.images):
    raise UserError(
      f'{where} holds images both directly (such as {flat[0]}) and in sub-folders; sub-folders '
      'are classes: put every image into one, or none, or list the classes in config.data.classes'
    )
  return () if flat else tuple(found.folders)


def _chosen(found: Found, classes) -> tuple[list[pathlib.PurePosixPath], dict[str, list[str]]]:
  """The images that are used, and what is left out: {reason: paths}."""
  left_out = dict(found.left_out)
  folders = [name for name in found.folders if name not in left_out.get(BROKEN_LINK, ())]
  if not classes:
    files, reason, others = found.images, 'no image in this folder', folders
  else:
    files = [path for path in found.images if len(path.parts) > 1 and path.parts[0] in classes]
    reason, others = 'not in config.data.classes', [f for f in folders if f not in classes]
    others += [str(path) for path in found.images if len(path.parts) == 1]
  return files, left_out | ({reason: others} if others else {})
