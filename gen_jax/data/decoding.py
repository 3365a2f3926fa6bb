"""One image file, PNG, JPEG or WebP, as an array of a given shape.

Whatever a file holds or claims to hold, it costs bounded memory and time, and what is wrong with it
is a `BadImage`.
"""

import contextlib
import io
import logging
import struct
import threading
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageOps

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
CROP = "set config.data.fit='crop' to crop and resize"
ADD = "set config.data.fit='crop' to add the missing channels"
LAY_OVER = 'set config.data.background (such as 255,255,255) to lay alpha over it'
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
  """Why an image file cannot be used, as the predicate of a sentence about the file.

  Attributes:
    cures: what else than another file would help: `CROP`, `ADD` and `LAY_OVER`.
  """

  def __init__(self, why: str, cures: tuple[str, ...] = ()):
    super().__init__(why)
    self.cures = cures


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
  (grey,) or (red, green, blue) in 0 to 255; with None such an image does not fit. Grey that was
  saved in colour, as most drawings are, is grey.

  Raises:
    BadImage: if the image does not fit.
  """
  height, width, channels = shape
  mode = _mode(image, shape, fit, background, [(height, width)])
  if _is_laid_over(image, channels, background):
    image = _lay_over(image, background)
  if image.mode != mode:
    image = image.convert(mode)
  if channels == 1 and mode == 'RGB':
    image = _grey_of(image)
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
  alpha = mode == 'RGBA' and channels != 4
  other_size = fit == 'exact' and size not in sizes
  perhaps_grey = channels == 1 and mode == 'RGB'  # its pixels say it
  if other_size or (_CHANNELS[mode] != channels and not perhaps_grey):
    helps = {CROP: other_size, ADD: _CHANNELS[mode] < channels and not other_size}
    helps[LAY_OVER] = alpha
    cures = tuple(cure for cure, does in helps.items() if does)
    raise BadImage(f'is {_text(image, mode)}' + ' with alpha' * alpha, cures)
  return mode


def _text(image, mode: str) -> str:
  return f'{image.height}x{image.width}x{_CHANNELS[mode]}'


def _grey_of(image: Image.Image) -> Image.Image:
  """The grey of an RGB image without colour.

  Raises:
    BadImage: it has colours.
  """
  red = image.getchannel('R')
  for other in ('G', 'B'):
    if ImageChops.difference(red, image.getchannel(other)).getbbox():
      raise BadImage(f'is {_text(image, "RGB")}')
  return red


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


def upright_size(file: BinaryIO) -> tuple[int, int]:
  """(height, width) of an image file, by its header, as its EXIF data turn it.

  Raises:
    Exception: BadImage, or whatever Pillow raises; `decode` says what is wrong.
  """
  _check_bytes(file)
  with Image.open(file, formats=FORMATS) as image:
    turned = image.getexif().get(ExifTags.Base.Orientation) in range(5, 9)
    return image.size if turned else image.size[::-1]


def begins_like_image(head: bytes) -> bool:
  """Whether the first 12 bytes of a file are those of a PNG, JPEG or WebP file."""
  return head.startswith((_PNG, _JPEG)) or (head[:4], head[8:]) == (b'RIFF', b'WEBP')


def _fit_halves(image, shape, fit, background) -> np.ndarray:
  """The left and the right half of an image, each fitted into `shape`, side by side."""
  width, height = image.size
  if width % 2:
    raise BadImage(f'is {width} pixels wide: an odd width has no two halves')
  halves = [image.crop((left, 0, left + width // 2, height)) for left in (0, width // 2)]
  try:
    return np.concatenate([fit_image(half, shape, fit, background) for half in halves], axis=1)
  except BadImage as error:
    raise BadImage(f'{error} in each half', error.cures) from None


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
