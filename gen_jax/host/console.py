"""Text for the person at the console. It is a courtesy: text that cannot be written, because the
reader is gone, the disk is full or the encoding lacks a character, never ends a run.
"""

import contextlib
import os
import select
import sys

PATIENCE = 5.0  # seconds for a reader of stderr that does not read, then lines are dropped


def tell(line, file=None) -> None:
  """Prints a line, or several, to stderr by default. It never raises, and on stderr never waits for
  long.
  """
  if file is None or file is sys.stderr:
    STDERR.write(f'{line}\n')
  elif cause := _write(file, f'{line}\n'):
    tell(f'the output cannot be written: {cause}')


def bar(*args, **kwargs):
  """A progress bar on stderr: `tqdm.tqdm` with these arguments."""
  import tqdm

  return tqdm.tqdm(*args, file=STDERR, dynamic_ncols=True, **kwargs)


class _Stderr:
  """What `sys.stderr` is at the time, as a file for others' text (logging, bars), too."""

  def __init__(self):
    self._waits = True

  def write(self, text: str) -> int:
    if sys.stderr is not None and self._has_room():
      _write(sys.stderr, text)
    return len(text)

  def flush(self) -> None:
    pass  # `write` flushes

  def _has_room(self) -> bool:
    """Whether a line can be written now, or within `PATIENCE` where the reader reads at all."""
    try:
      room = bool(select.select([], [sys.stderr], [], PATIENCE if self._waits else 0)[1])
    except (OSError, ValueError):  # not a file of the operating system
      return True
    self._waits = room
    return room

  def __getattr__(self, name):
    return getattr(sys.stderr, name)


STDERR = _Stderr()


def _write(file, text: str) -> str | None:
  """Writes and flushes; returns why that failed, unless the reader is gone or never was."""
  try:
    try:
      file.write(text)
    except UnicodeEncodeError:
      encoding = file.encoding or 'ascii'
      file.write(text.encode(encoding, 'backslashreplace').decode(encoding))
    file.flush()
  except (BrokenPipeError, AttributeError, ValueError):  # ValueError: closed
    return None
  except OSError as error:
    return error.strerror or str(error)
  return None


def open_streams() -> None:
  """Opens what was closed when the process started, as by `2>&-`: another file would get its number
  and the text of libraries.
  """
  for number, name, mode in ((0, 'stdin', 'r'), (1, 'stdout', 'w'), (2, 'stderr', 'w')):
    try:
      os.fstat(number)
    except OSError:
      nothing = os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
      os.set_inheritable(nothing, True)
    if getattr(sys, name) is None:
      setattr(sys, name, open(number, mode, encoding='utf-8', closefd=False))
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(AttributeError):  # not a text file of Python's own
      stream.reconfigure(errors='backslashreplace')


def close_streams() -> None:
  """Flushes stdout and stderr, and drops what they do not take: at its exit Python would report
  that, and change the exit status.
  """
  close_stream(sys.stdout)
  close_stream(sys.stderr)


def close_stream(stream) -> None:
  """Flushes a stream, and drops what it does not take."""
  try:
    stream.flush()
  except (OSError, ValueError, AttributeError):
    with contextlib.suppress(OSError, ValueError, AttributeError):
      os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
