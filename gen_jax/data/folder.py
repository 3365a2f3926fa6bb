"""A folder of PNG, JPEG and WebP images; its sub-folders, if it has any, are the classes.

Every file is decoded once before training starts, so that a truncated file or one of another size
is reported at once and not hours later. This does not detect all damage: a JPEG with one flipped
bit usually decodes without an error.
"""

import io
import logging
import math
import os
import pathlib
import re

import numpy as np
from PIL import Image, ImageOps

from gen_jax.data.sources import (
  Source,
  check_image_shape,
  content_hash,
  fits_on_device,
  reading_pool,
)
from gen_jax.errors import UserError
from gen_jax.run import console

_log = logging.getLogger(__name__)

SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp')
FORMATS = ('PNG', 'JPEG', 'WEBP')
# A file of a few kilobytes can claim gigabytes of pixels; nobody trains on more than 8192x8192.
MAX_PIXELS = 2**26
_BAR_FROM = 2_000
_NAMED = 3
# Lossless conversions. Others (CMYK, 16-bit grey, float) are left to the user.
_MODES = {
  '1': 'L',
  'L': 'L',
  'P': 'RGB',
  'RGB': 'RGB',
  'LA': 'RGBA',
  'PA': 'RGBA',
  'RGBA': 'RGBA',
}
_CHANNELS = {'L': 1, 'RGB': 3, 'RGBA': 4}


class BadImage(ValueError):
  """Why an image file cannot be used, as the predicate of a sentence about the file."""


def fit_image(image: Image.Image, shape: tuple[int, int, int], fit: str) -> np.ndarray:
  """Returns a loaded image as uint8 `shape`.

  With `fit='exact'`, size and channels must be those of `shape`. With `'crop'` the largest centred
  crop of the right aspect ratio is resized (bicubic, antialiased); grey is repeated into RGB, and a
  missing alpha is opaque.

  Raises:
    BadImage: if the image does not fit.
  """
  height, width, channels = shape
  mode = _MODES.get(image.mode)
  if mode is None:
    raise BadImage(f'has pixels of type {image.mode} (8-bit grey, RGB or RGBA are needed)')
  if image.mode == 'P' and 'transparency' in image.info:
    mode = 'RGBA'
  if fit == 'crop' and _CHANNELS[mode] < channels:
    mode = {3: 'RGB', 4: 'RGBA'}[channels]
  found = (image.height, image.width, _CHANNELS[mode])
  if found[2] != channels or (fit == 'exact' and found != shape):
    raise BadImage('is ' + 'x'.join(map(str, found)))
  if image.mode != mode:
    image = image.convert(mode)
  if image.size != (width, height):
    image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
  return np.asarray(image).reshape(shape)


def decode(data: bytes, shape: tuple[int, int, int], fit: str) -> np.ndarray:
  """Decodes a PNG, JPEG or WebP file to uint8 `shape`, upright by its EXIF data; see `fit_image`.

  Raises:
    BadImage: if it is damaged, animated or too large, or does not fit.
  """
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      if image.width * image.height > MAX_PIXELS:
        raise BadImage(f'is {image.height}x{image.width}, above the limit of {MAX_PIXELS} pixels')
      if getattr(image, 'is_animated', False):
        raise BadImage('is animated')
      image.load()
      ImageOps.exif_transpose(image, in_place=True)
      return fit_image(image, shape, fit)
  except BadImage:
    raise
  except Image.UnidentifiedImageError:
    raise BadImage('is not a PNG, JPEG or WebP image') from None
  # Pillow raises all of these on damaged input (SyntaxError: a broken PNG chunk).
  except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
    raise BadImage(f'cannot be decoded ({error})') from None


def natural(name: str) -> list:
  """Sort key that puts `img2` before `img10`."""
  parts = re.split(r'(\d+)', name)
  return [*((int(part), '') if part.isdecimal() else (-1, part) for part in parts), (-1, name)]


def find_images(root: pathlib.Path) -> list[pathlib.PurePosixPath]:
  """Returns the image files below `root`, relative to it, in natural order, without hidden ones."""
  found, visited = [], set()
  for folder, folders, files in os.walk(root, followlinks=True):
    real = os.path.realpath(folder)
    if real in visited:  # A link to a parent folder would never end.
      folders.clear()
      continue
    visited.add(real)
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    relative = pathlib.Path(folder).relative_to(root)
    for name in files:
      if not name.startswith('.') and name.lower().endswith(SUFFIXES):
        found.append(pathlib.PurePosixPath((relative / name).as_posix()))
  return sorted(found, key=lambda path: [natural(part) for part in path.parts])


class FolderSource(Source):
  """The images below `config.data.path`, in natural order of their names.

  Attributes:
    classes: names of the sub-folders in natural order, index = label; empty for a flat folder.

  Raises:
    UserError: for a folder without images, one with images both in it and in sub-folders, and, if
      `config.data.bad_files='error'`, for bad files.
  """

  name = 'folder'

  def __init__(self, config):
    data = config.data
    where = f'config.data.path={data.path!r}'
    if data.path is None:
      raise UserError(f'{where}, but folder needs a folder of images')
    self._root = pathlib.Path(data.path).expanduser()
    if not self._root.is_dir():
      raise UserError(f'{where} is not a folder')
    self.shape = tuple(data.shape)
    check_image_shape(self.shape)
    self._fit = data.fit
    files = find_images(self._root)
    if not files:
      raise UserError(f'{where} holds no image, that is, no file *{" *".join(SUFFIXES)}')
    flat = [path for path in files if len(path.parts) == 1]
    if flat and len(flat) < len(files):
      raise UserError(
        f'{where} holds images both directly (such as {flat[0]}) and in sub-folders; sub-folders '
        'are classes: put every image into one, or none'
      )
    self._decoded = None
    self._files = self._checked(files, data)
    # From all files, skipped ones included: a class without a good file keeps its number.
    self.classes = () if flat else tuple(dict.fromkeys(path.parts[0] for path in files))
    classes = [] if flat else [path.parts[0] for path in self._files]
    self.num_classes = len(self.classes) or None
    self._labels = np.array([self.classes.index(name) for name in classes], np.int32)

  def _checked(self, files, data) -> list[pathlib.PurePosixPath]:
    """Decodes every file once and returns the good ones; sets the fingerprint."""
    keep = fits_on_device(len(files) * math.prod(self.shape), data.storage)
    good, bad, digests, decoded = [], [], [], []

    def examine(path):
      try:
        content = (self._root / path).read_bytes()
        image = decode(content, self.shape, self._fit)
      except OSError as error:
        return f'cannot be read ({error.strerror})', None, None
      except BadImage as error:
        return str(error), None, None
      return None, content_hash(content), image if keep else None

    with reading_pool(data.read_threads) as pool:
      results = pool.map(examine, files)
      hidden = True if len(files) < _BAR_FROM else None  # None: hidden unless on a terminal
      bar = console.bar(results, 'Checking images', len(files), disable=hidden, unit='image')
      for path, (problem, digest, image) in zip(files, bar, strict=True):
        if problem:
          bad.append(f'{path} {problem}')
        else:
          good.append(path)
          digests.append(digest)
          decoded.append(image)
    if bad:
      count = f'{len(bad)} of {len(files)} images in config.data.path={data.path!r}'
      more = [f'and {len(bad) - _NAMED} more'] if len(bad) > _NAMED else []
      named = '; '.join(bad[:_NAMED] + more)
      if data.bad_files == 'error' or not good:
        resize = "set config.data.fit='crop' to crop and resize, " if self._fit == 'exact' else ''
        raise UserError(
          f'config.data.shape={self.shape} with config.data.fit={self._fit!r}, but {count} cannot '
          f'be used: {named}. Fix them, change the shape, {resize}or set '
          "config.data.bad_files='skip'"
        )
      _log.warning('%s are skipped: %s', count, named)
    if keep:
      self._decoded = np.stack(decoded)
    lines = zip(good, digests, strict=True)
    content = content_hash(*(f'{path} {digest}'.encode() for path, digest in lines))
    self.fingerprint = f'{self.name}/train/{len(good)}/{content}'
    return good

  def __len__(self):
    return len(self._files)

  def _image(self, index: int) -> np.ndarray:
    path = self._root / self._files[index]
    try:
      return decode(path.read_bytes(), self.shape, self._fit)
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
