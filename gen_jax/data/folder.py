"""A folder of PNG, JPEG and WebP images; its sub-folders, if they hold any, are the classes.

Every file is decoded once before training starts, so that a truncated file or one of another size
is reported at once and not hours later. This does not detect all damage: a JPEG with one flipped
bit usually decodes without an error. What is no image is left out, and named.
"""

import collections
import contextlib
import hashlib
import io
import logging
import math
import os
import pathlib
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from gen_jax.data.sources import (
  Source,
  check_image_shape,
  content_hash,
  fits_on_device,
  reading_pool,
)
from gen_jax.errors import UserError, printable
from gen_jax.run import console
from gen_jax.run.files import open_file

_log = logging.getLogger(__name__)

SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp')
FORMATS = ('PNG', 'JPEG', 'WEBP')
# A file of a few kilobytes can claim gigabytes of pixels; nobody trains on more than 8192x8192.
MAX_PIXELS = 2**26
# The most bytes of a file: those of its pixels and of what else cameras write. Pillow reads all of
# a WebP file, and of a JPEG up to its first pixel.
_BESIDES, _COMPRESSED = 2**25, 2**26
_SCANNED_FREELY = 2**22  # pixels
_PNG, _JPEG = b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff'
_BAR_FROM = 2_000
_NAMED, _LISTED = 3, 10
_WITH_ALPHA = ' with alpha'
_BROKEN_LINK = 'a link to nothing'
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
_OF_SYSTEMS = ('__MACOSX', '@eaDir', 'lost+found')  # folders that no user made


# --- Decoding -----------------------------------------------------------------------------------


class BadImage(ValueError):
  """Why an image file cannot be used, as the predicate of a sentence about the file."""


class _Budget:
  """Bounds what all threads hold at once: a large image waits until the others are done."""

  def __init__(self, total: int):
    self._total, self._taken, self._changed = total, 0, threading.Condition()

  @contextlib.contextmanager
  def take(self, amount: int) -> Iterator[None]:
    with self._changed:
      self._changed.wait_for(lambda: not self._taken or self._taken + amount <= self._total)
      self._taken += amount
    try:
      yield
    finally:
      with self._changed:
        self._taken -= amount
        self._changed.notify_all()


# Blocks of Pillow's default size, 16 MiB, would stay with the allocator of each thread that has
# decoded a large image; larger ones go back to the operating system.
Image.core.set_block_size(2**26)
_MEMORY = _Budget(4 * MAX_PIXELS)  # bytes: one of the largest images


def fit_image(
  image: Image.Image,
  shape: tuple[int, int, int],
  fit: str,
  background: tuple[int, ...] | None = None,
) -> np.ndarray:
  """Returns a loaded image as uint8 `shape`.

  With `fit='exact'`, size and channels must be those of `shape`. With `'crop'` the largest centred
  crop of the right aspect ratio is resized (bicubic, antialiased); grey is repeated into RGB, and a
  missing alpha is opaque. Where `shape` has no alpha, that of the image is laid over `background`,
  (grey,) or (red, green, blue) in 0 to 255; with None such an image does not fit.

  Raises:
    BadImage: if the image does not fit.
  """
  height, width, channels = shape
  mode = _mode(image, shape, fit, background, [(height, width)])
  if _is_laid_over(image, channels, background):
    image = _lay_over(image, background)
  if image.mode != mode:
    image = image.convert(mode)
  if image.size != (width, height):
    image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
  return np.asarray(image).reshape(shape)


def _mode(image, shape, fit, background, sizes) -> str:
  """The mode in which an image fits `shape`, by its header; `sizes`, (height, width), are those
  that `fit='exact'` allows.

  Raises:
    BadImage: there is none.
  """
  channels = shape[2]
  mode = _MODES.get(image.mode)
  if mode is None:
    raise BadImage(f'has pixels of type {image.mode} (8-bit grey, RGB or RGBA are needed)')
  if image.mode == 'P' and 'transparency' in image.info:
    mode = 'RGBA'
  if _is_laid_over(image, channels, background):
    mode = _mode_over(image, background)
  if fit == 'crop' and _CHANNELS[mode] < channels:
    mode = {3: 'RGB', 4: 'RGBA'}[channels]
  size = (image.height, image.width)
  if _CHANNELS[mode] != channels or (fit == 'exact' and size not in sizes):
    found = 'x'.join(map(str, (*size, _CHANNELS[mode])))
    raise BadImage(f'is {found}' + _WITH_ALPHA * (mode == 'RGBA' and channels != 4))
  return mode


def _is_laid_over(image, channels: int, background) -> bool:
  has_alpha = image.mode in ('LA', 'PA', 'RGBA') or 'transparency' in image.info
  return has_alpha and channels != 4 and background is not None


def _mode_over(image, background) -> str:
  return 'L' if image.mode in ('1', 'L', 'LA') and len(set(background)) == 1 else 'RGB'


def _lay_over(image, background) -> Image.Image:
  mode = _mode_over(image, background)
  colour = background[0] if mode == 'L' else tuple(np.resize(background, 3).tolist())
  if image.mode != 'RGBA':
    image = image.convert('RGBA')
  result = Image.new(mode, image.size, colour)
  result.paste(image, mask=image.getchannel('A'))
  return result


def decode(
  file: bytes | BinaryIO,
  shape: tuple[int, int, int],
  fit: str,
  background: tuple[int, ...] | None = None,
  halves: bool = False,
) -> np.ndarray:
  """Decodes a PNG, JPEG or WebP file to uint8 `shape`, upright by its EXIF data; see `fit_image`.

  With `halves` the file is two images side by side: each is fitted into `shape`, (h, w, c), and
  they are returned side by side, [h, 2 w, c].

  What the header says is checked before pixels are decoded. All threads together decode at most
  `MAX_PIXELS` at once.

  Raises:
    BadImage: if it is damaged, animated or too large, or does not fit.
  """
  if isinstance(file, bytes):
    file = io.BytesIO(file)
  size = _check_bytes(file)
  try:
    with _MEMORY.take(size):
      image = Image.open(file, formats=FORMATS)
    with image:
      pixels = image.width * image.height
      if pixels > MAX_PIXELS:
        raise BadImage(f'is {image.height}x{image.width}, above the limit of {MAX_PIXELS} pixels')
      # MPO: a JPEG with further pictures, such as a preview, behind the first.
      if getattr(image, 'is_animated', False) and image.format != 'MPO':
        raise BadImage('is animated')
      sizes = [shape[:2], shape[1::-1]]  # it may lie on its side
      _mode(image, shape, 'crop' if halves else fit, background, sizes)
      if image.format in ('JPEG', 'MPO') and pixels > _SCANNED_FREELY:
        _check_scans(file, size)
      with _MEMORY.take(4 * pixels):
        image.load()
        _turn_upright(image)
        return (_fit_halves if halves else fit_image)(image, shape, fit, background)
  except BadImage:
    raise
  except Image.UnidentifiedImageError:
    raise BadImage('is not a PNG, JPEG or WebP image') from None
  except Exception as error:  # whatever Pillow raises, the file is the cause
    raise BadImage(f'cannot be decoded ({str(error) or type(error).__name__})') from None


def _fit_halves(image, shape, fit, background) -> np.ndarray:
  """The left and the right half of an image, each fitted into `shape`, side by side."""
  width, height = image.size
  if width % 2:
    raise BadImage(f'is {width} pixels wide: an odd width has no two halves')
  halves = [image.crop((left, 0, left + width // 2, height)) for left in (0, width // 2)]
  try:
    return np.concatenate([fit_image(half, shape, fit, background) for half in halves], axis=1)
  except BadImage as error:
    raise BadImage(f'{error} in each half') from None


def _turn_upright(image) -> None:
  try:
    ImageOps.exif_transpose(image, in_place=True)
  except MemoryError:
    raise
  except Exception:  # EXIF data that cannot be parsed do not say that the image is turned
    _log.debug('unreadable EXIF data', exc_info=True)


def _check_bytes(file: BinaryIO) -> int:
  """Returns the size of a file; rejects one with far more bytes than its pixels need.

  Raises:
    BadImage: it has.
  """
  head = file.read(24)
  size = file.seek(0, io.SEEK_END)
  file.seek(0)
  limit = _COMPRESSED
  if head.startswith(_PNG) and len(head) == 24:
    width, height = struct.unpack('>II', head[16:])
    limit = _BESIDES + 4 * min(width * height, MAX_PIXELS)
  if size > limit:
    raise BadImage(f'has {size:,} bytes, above the limit of {limit:,}')
  return size


def _check_scans(file: BinaryIO, size: int) -> None:
  """Rejects a JPEG of thousands of tiny scans: each of them passes over all pixels.

  Raises:
    BadImage: it is one.
  """
  position = file.tell()
  file.seek(0)
  # The marker may stand by chance in what is behind the image, such as a video.
  scans = sum(piece.count(b'\xff\xda') for piece in iter(lambda: file.read(2**20), b''))
  file.seek(position)
  if scans > 100 + size // 2**13:
    raise BadImage(f'has {scans:,} scans')


def _file_hash(file: BinaryIO) -> str:
  """`content_hash` of the content of a file, read in pieces."""
  digest = hashlib.sha256(file.seek(0, io.SEEK_END).to_bytes(8, 'little'))
  file.seek(0)
  while piece := file.read(2**20):
    digest.update(piece)
  return digest.hexdigest()[:16]


# --- Folders ------------------------------------------------------------------------------------


def natural(name: str) -> list:
  """Sort key that puts `img2` before `img10`."""
  parts = re.split(r'(\d+)', name)
  return [*((int(part), '') if part.isdecimal() else (-1, part) for part in parts), (-1, name)]


def without_ending(path: pathlib.PurePosixPath) -> pathlib.PurePosixPath:
  """The path of an image without one of `SUFFIXES`; without another ending, as of `scan.001`, it is
  the path itself.
  """
  return path.with_suffix('') if path.suffix.lower() in SUFFIXES else path


class Found(NamedTuple):
  """What is below a folder; all paths are relative to it."""

  images: list[pathlib.PurePosixPath]  # in natural order
  folders: list[str]  # its sub-folders, links to missing ones included, in natural order
  left_out: dict[str, list[str]]  # reason -> paths
  unread: list[str]  # folders that cannot be read, with the reason


def find_images(root: pathlib.Path, threads: int = 8) -> Found:
  """Finds the images below `root`: files with one of `SUFFIXES`, and those that begin like a PNG,
  JPEG or WebP file, under any name. Hidden files and folders are left out.

  Raises:
    OSError: `root` cannot be read.
  """
  images, others, folders, unread = [], [], [], []
  left_out = collections.defaultdict(list)
  visited, pending = set(), ['']
  while pending:
    folder = pending.pop()
    try:
      status = os.stat(root / folder)
      if (identity := (status.st_dev, status.st_ino)) in visited:
        left_out['a folder once more'].append(folder)  # a link to a parent would never end
        continue
      visited.add(identity)
      if folder and '/' not in folder:
        folders.append(folder)
      with os.scandir(root / folder) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
      if not folder:
        raise
      unread.append(f'{folder} cannot be read ({error.strerror})')
      continue
    inner = []
    for entry in entries:
      name = f'{folder}/{entry.name}' if folder else entry.name
      if entry.name.startswith('.') or entry.name in _OF_SYSTEMS:
        left_out['hidden'].append(name)
      elif os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():
        inner.append(name)
      else:
        (images if name.lower().endswith(SUFFIXES) else others).append(name)
    pending += reversed(inner)
  with reading_pool(threads) as pool:
    reasons = pool.map(lambda name: _why_no_image(root / name), others)
    for name, reason in zip(others, reasons, strict=True):
      if reason is None:
        images.append(name)
      else:
        left_out[reason].append(name)
      if reason == _BROKEN_LINK and '/' not in name:
        folders.append(name)
  paths = map(pathlib.PurePosixPath, images)
  ordered = sorted(paths, key=lambda path: [natural(part) for part in path.parts])
  return Found(ordered, sorted(folders, key=natural), dict(left_out), unread)


def _why_no_image(path: pathlib.Path) -> str | None:
  """Why a file is left out; None: it begins like an image."""
  try:
    with open_file(path) as file:
      head = file.read(12)
  except OSError as error:
    return _BROKEN_LINK if path.is_symlink() and not os.path.exists(path) else error.strerror
  if head.startswith((_PNG, _JPEG)) or (head[:4], head[8:]) == (b'RIFF', b'WEBP'):
    return None
  return 'not PNG, JPEG or WebP'


def _listed(left_out: dict[str, list[str]]) -> str:
  """'3 left out: a.bmp, a.gif (not PNG, JPEG or WebP); .cache (hidden)'."""
  groups = []
  for reason, names in left_out.items():
    ordered = sorted(names, key=natural)
    more = f' and {len(names) - _LISTED:,} more' * (len(names) > _LISTED)
    groups.append(f'{", ".join(ordered[:_LISTED])}{more} ({reason})')
  return f'{sum(map(len, left_out.values())):,} left out: {"; ".join(groups)}'


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
        f'{where} holds no image (PNG, JPEG or WebP)' + f'; {_listed(left_out)}' * bool(left_out)
      )
    self._decoded = None
    self.paths = self._checked(files, names, found.unread, data)
    labels = {name: label for label, name in enumerate(names)}
    self.classes = tuple(map(printable, names))
    self.num_classes = len(names) or None
    self._labels = np.array([labels[path.parts[0]] for path in self.paths if labels], np.int32)
    told = [_listed(left_out)] if left_out else []
    with_images = {path.parts[0] for path in files}
    if empty := [f'{name} ({i})' for name, i in labels.items() if name not in with_images]:
      told.append(f'classes without images (labels): {", ".join(empty)}')
    if told:
      _log.warning('%s', printable(f'{self.root}: {"; ".join(told)}'))

  def _checked(self, files, classes, unread, data) -> list[pathlib.PurePosixPath]:
    """Decodes every file once and returns the good ones; sets the fingerprint."""
    keep = fits_on_device(len(files) * math.prod(self.shape), data.storage)
    good, bad, digests, decoded = [], [*unread], [], []

    def examine(path):
      try:
        with open_file(self.root / path) as file:
          image = self._decode(file)
          return None, _file_hash(file), image if keep else None
      except OSError as error:
        return f'cannot be read ({error.strerror})', None, None
      except BadImage as error:
        return str(error), None, None

    with warnings.catch_warnings(), reading_pool(data.read_threads) as pool:
      warnings.simplefilter('ignore')  # Pillow's, of files that it reads nevertheless
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
      total = len(files) + len(unread)
      count = f'{len(bad)} of {total} images in config.data.path={data.path!r}'
      more = [f'and {len(bad) - _NAMED} more'] if len(bad) > _NAMED else []
      named = '; '.join(bad[:_NAMED] + more)
      if data.bad_files == 'error' or not good:
        resize = "set config.data.fit='crop' to crop and resize, " if self._fit == 'exact' else ''
        if any(_WITH_ALPHA in text for text in bad):
          resize += 'set config.data.background (such as 255,255,255) to lay alpha over it, '
        raise UserError(
          f'config.data.shape={self._one} with config.data.fit={self._fit!r}'
          + ', two images side by side' * self._halves
          + f', but {count} cannot be used: {named}. Fix them, change the shape, {resize}or set '
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
    with (
      open_file(self.root / self.paths[index]) as file,
      Image.open(file, formats=FORMATS) as image,
    ):
      return _upright_size(image)

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


class Pictures:
  """The images below a folder, in natural order of their names, each in its own size.

  Args:
    config: the whole config; its `data` says what is done with alpha, grey and bad files.
    path: the folder.
    channels: of every image.
    flag: the user's name for `path`, for messages.

  Attributes:
    paths: of the images, relative to the folder.
    names: the same without endings.
    sizes: (height, width) of each.
    content: a hash of their names and contents.

  Raises:
    UserError: there are none, two have one name but for its end, or some cannot be used.
  """

  def __init__(self, config, path: str, channels: int, flag: str):
    data, self.root, self._channels = config.data, pathlib.Path(path), channels
    self._fit, self._background = data.fit, data.get('background')
    where = f'{flag}={path}'
    if not self.root.is_dir():
      raise UserError(f'{where} is not a folder')
    try:
      found = find_images(self.root, data.read_threads)
    except OSError as error:
      raise UserError(f'{where} cannot be read: {error.strerror}') from error
    self.paths, self.sizes, digests, bad = [], [], [], [*found.unread]
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Pillow's, of files that it reads nevertheless
      for name in found.images:
        try:
          with open_file(self.root / name) as file:
            size = self._decode(file).shape[:2]
            digests.append(f'{name} {_file_hash(file)}')
        except (BadImage, OSError) as error:
          bad.append(f'{name} {getattr(error, "strerror", None) or error}')
          continue
        self.paths.append(name)
        self.sizes.append(size)
    left_out = _listed(found.left_out) if found.left_out else ''
    if bad:
      more = f'; and {len(bad) - _NAMED} more' * (len(bad) > _NAMED)
      total = len(found.images) + len(found.unread)
      count = f'{len(bad)} of {total} images in {where} cannot be used'
      named = f'{"; ".join(bad[:_NAMED])}{more}'
      if data.bad_files == 'error':
        needed = f'{channels} channels are needed' if channels > 1 else 'grey is needed'
        grey = "config.data.fit='crop' repeats grey, " if channels > 1 else ''
        raise UserError(
          f'{count}: {named}. {needed}: {grey}config.data.background lays alpha over a colour, '
          "config.data.bad_files='skip' leaves them out"
        )
      _log.warning('%s', printable(f'{count} and are skipped: {named}'))
    if not self.paths:
      none = f'{where} holds no image (PNG, JPEG or WebP) that can be used'
      raise UserError('; '.join(filter(None, (none, left_out))))
    if left_out:
      _log.warning('%s', printable(f'{where}: {left_out}'))
    self.names = [without_ending(path) for path in self.paths]
    for name, count in collections.Counter(self.names).items():
      if count > 1:
        raise UserError(f'{where} holds {count} images named {name}: other names are needed')
    self.content = content_hash(*(line.encode('utf-8', 'surrogateescape') for line in digests))

  def read(self, index: int) -> np.ndarray:
    """An image, uint8 [h, w, channels]."""
    path = self.root / self.paths[index]
    try:
      with open_file(path) as file:
        return self._decode(file)
    except (BadImage, OSError) as error:
      raise UserError(f'{path} was good at first, but now: {error}') from error

  def _decode(self, file: BinaryIO) -> np.ndarray:
    _check_bytes(file)
    try:
      with Image.open(file, formats=FORMATS) as image:
        height, width = _upright_size(image)
    except Exception:
      height = width = 1  # `decode` says what is wrong
    file.seek(0)
    how = self._fit, self._background
    try:
      return decode(file, (height, width, self._channels), *how)
    except BadImage:
      if self._channels != 1:
        raise
      with contextlib.suppress(BadImage):  # grey that was saved in colour, as most drawings are
        file.seek(0)
        image = decode(file, (height, width, 3), *how)
        if (image == image[..., :1]).all():
          return np.ascontiguousarray(image[..., :1])
      raise


def _upright_size(image) -> tuple[int, int]:
  """(height, width) of an image, by its header, as its EXIF data turn it."""
  turned = image.getexif().get(ExifTags.Base.Orientation) in range(5, 9)
  return image.size if turned else image.size[::-1]


def _of_paths(files) -> tuple[str, ...]:
  """The sub-folders that hold images."""
  return tuple(dict.fromkeys(path.parts[0] for path in files if len(path.parts) > 1))


def _classes(found: Found, listed: tuple[str, ...] | None, where: str) -> tuple[str, ...]:
  """The sub-folders that are classes, by label."""
  if listed is not None:
    for name in listed:
      if name not in found.folders:
        there = ', '.join(found.folders[:_LISTED]) or 'none'
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
  folders = [name for name in found.folders if name not in left_out.get(_BROKEN_LINK, ())]
  if not classes:
    files, reason, others = found.images, 'no image in this folder', folders
  else:
    files = [path for path in found.images if len(path.parts) > 1 and path.parts[0] in classes]
    reason, others = 'not in config.data.classes', [f for f in folders if f not in classes]
    others += [str(path) for path in found.images if len(path.parts) == 1]
  return files, left_out | ({reason: others} if others else {})
