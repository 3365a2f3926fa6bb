"""Opening files that others may have made: regular ones only, of at most the size that they should
have.
"""

import os
import stat
from typing import BinaryIO

JSON_BYTES = 2**24  # of a config or a manifest, at most
LOG_BYTES = 2**28  # of metrics.jsonl or evaluation.jsonl, where it is only looked at

_KINDS = {
  stat.S_IFDIR: 'a folder',
  stat.S_IFIFO: 'a FIFO',
  stat.S_IFSOCK: 'a socket',
  stat.S_IFCHR: 'a device',
  stat.S_IFBLK: 'a device',
}


def open_file(path, limit: int | None = None) -> BinaryIO:
  """Opens a regular file for reading. A FIFO or a device does not make it wait.

  Raises:
    OSError: the file cannot be opened, is not a regular one, or has more than `limit` bytes;
      `strerror` is the reason.
  """
  _check(os.stat(path), path, limit)  # before opening: that alone can set off a device
  file = open(path, 'rb', opener=_without_waiting)
  try:
    _check(os.fstat(file.fileno()), path, limit)  # the path may name another file by now
  except OSError:
    file.close()
    raise
  return file


def read_file(path, limit: int | None) -> bytes:
  """The content of a regular file of at most `limit` bytes; see `open_file`."""
  with open_file(path, limit) as file:
    return file.read()


def _without_waiting(path, flags: int) -> int:
  return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _check(found: os.stat_result, path, limit: int | None) -> None:
  if not stat.S_ISREG(found.st_mode):
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), 'something else')
    raise OSError(0, f'it is {kind}, not a file', str(path))
  if limit is not None and found.st_size > limit:
    raise OSError(0, f'it has {found.st_size:,} bytes, more than {limit:,}', str(path))
