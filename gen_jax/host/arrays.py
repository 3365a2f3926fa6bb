"""Reads .npy and .npz files. The kind, shape, dtype and size of an array are checked before memory
is allocated for it or anything is decompressed: a small file can claim terabytes.
"""

import contextlib
import functools
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

import numpy as np

from gen_jax.host.files import open_file

_KINDS = 'biufcU'  # of dtypes: numbers and text, no objects
_HEADER = 10_000  # bytes; NumPy's own limit, which it applies after it has read the header
_DIRECTORY = 2**22  # bytes; of a zip archive, some 60,000 files
# Zeros are compressed a thousandfold; no images, features or weights are.
_FREELY, _COMPRESSION = 2**26, 100


class BadArrays(ValueError):
  """Why a file of arrays cannot be read, as a sentence about 'it'."""


class Stored(NamedTuple):
  """An array in an open file."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]  # raises BadArrays

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


def read_arrays(path, limit: int) -> dict[str, np.ndarray]:
  """All arrays of an .npz file, by name, or of an .npy file, under the name ''.

  Raises:
    OSError: the file cannot be opened, or has more than `limit` bytes.
    BadArrays: it is not one of NumPy, or its arrays have more than `limit` bytes.
  """
  with open_file(path, limit) as file:
    return read_all(file, limit)


def read_all(file: BinaryIO, limit: int) -> dict[str, np.ndarray]:
  """`read_arrays` of an open file."""
  found = stored(file)
  total = sum(array.nbytes for array in found.values())
  if total > limit:
    raise BadArrays(f'it holds arrays of {total:,} bytes, more than {limit:,}')
  return {name: array.read() for name, array in found.items()}


def stored(file: BinaryIO) -> dict[str, Stored]:
  """The arrays of an open .npy file, under the name '', or .npz file, by name and without those of
  objects.

  Raises:
    BadArrays: the file is not one of NumPy, or an array claims more than the file has.
  """
  with _damage_named():
    start, size = file.read(2), file.seek(0, io.SEEK_END)
    file.seek(0)
    if start != b'PK':
      array = _stored(lambda: contextlib.nullcontext(file), size)
      if array is None:
        raise BadArrays('it holds no numbers')
      return {'': array}
    archive, found = open_zip(file), {}
    for info in archive.infolist():
      name = info.filename.removesuffix('.npy')
      if name == info.filename:
        continue
      if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadArrays(f'{name} is compressed in a way that NumPy does not use')
      if info.file_size > max(_FREELY, _COMPRESSION * info.compress_size):
        ratio = info.file_size // max(info.compress_size, 1)
        raise BadArrays(f'{name} has {info.file_size:,} bytes, compressed {ratio:,} times')
      array = _stored(functools.partial(archive.open, info), info.file_size)
      if array is not None:
        found[name] = array
    return found


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
  """Opens a zip archive, unless its directory is too long: `zipfile` makes an object of each entry.

  Raises:
    ValueError, OSError, zipfile.BadZipFile: it is too long, or the file is not an archive.
  """
  end = file.seek(0, io.SEEK_END)
  file.seek(max(0, end - 2**16 - 22))  # the last record and the longest comment
  tail = file.read()
  at = tail.rfind(b'PK\5\6')
  size = int.from_bytes(tail[at + 12 : at + 16], 'little')
  if size == 2**32 - 1:  # it is in a record for larger numbers
    large = tail.rfind(b'PK\6\6', 0, at) + 40
    size = int.from_bytes(tail[large : large + 8], 'little')
  if at >= 0 and size > _DIRECTORY:
    raise BadArrays(f'it is an archive of too many files: their list has {size:,} bytes')
  return zipfile.ZipFile(file)


def _stored(opened: Callable, size: int) -> Stored | None:
  """An array of `size` bytes with its header; None: it holds no numbers."""
  with opened() as file:
    file.seek(0)
    head = file.read(12)
    major = head[6]
    length = int.from_bytes(head[8:10] if major == 1 else head[8:12], 'little')
    if length > _HEADER:
      raise ValueError('the header is too long')
    header = io.BytesIO(head + file.read(length))
  layout = np.lib.format
  layout.read_magic(header)
  read = layout.read_array_header_1_0 if major == 1 else layout.read_array_header_2_0
  shape, _, dtype = read(header)
  if dtype.kind not in _KINDS or not dtype.itemsize:
    return None
  if min(shape, default=0) < 0:
    raise ValueError('a size is negative')

  def load():
    with _damage_named(), opened() as file:
      file.seek(0)
      return np.lib.format.read_array(file, allow_pickle=False)

  array = Stored(shape, dtype, load)
  if array.nbytes > size - header.tell():
    raise BadArrays(
      f'it claims an array {shape} of {dtype}, {array.nbytes:,} bytes, and has '
      f'{size - header.tell():,}'
    )
  return array


@contextlib.contextmanager
def _damage_named():
  """Translates what NumPy and zipfile raise on damaged files."""
  try:
    yield
  except BadArrays:
    raise
  except (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    raise BadArrays('it is not a file of NumPy arrays') from error
