"""What stops a run: a user error, and training that diverges."""

import contextlib
import re
import sys

LONGEST_WORD, LONGEST = 300, 3000  # characters of a message


class Diverged(Exception):
  """Values are not finite; only a smaller learning rate or an older checkpoint helps."""


class UserError(Exception):
  """Something the user can fix: printed as one line, without a traceback, exit status 2.

  The message names the config field or the file, the value found, and what is allowed. Any other
  exception is a bug of ours and keeps its traceback.
  """

  def __init__(self, message: str):
    # The interface promises one line that can be read, whatever it quotes.
    line = printable(' '.join(str(message).split()))
    line = re.sub(rf'\S{{{LONGEST_WORD},}}', lambda word: _shortened(word[0], LONGEST_WORD), line)
    super().__init__(_shortened(line, LONGEST))


def in_one_line() -> None:
  """Makes a script print a `UserError` that ends it in one line, as the launcher does, with exit
  status 1; other exceptions keep their tracebacks.
  """
  before = sys.excepthook

  def hook(kind, error, traceback):
    if issubclass(kind, UserError):
      print(f'error: {error}', file=sys.stderr)
    else:
      before(kind, error, traceback)

  sys.excepthook = hook


def printable(text) -> str:
  """Text in which what no terminal shows is escaped, such as names of files that are not UTF-8."""
  return ''.join(c if c.isprintable() else _escaped(c) for c in str(text))


def _escaped(character: str) -> str:
  code = ord(character) - 0xDC00  # so Python decodes the byte `code` of a file's name
  return f'\\x{code:02x}' if 128 <= code < 256 else ascii(character)[1:-1]


def _shortened(text: str, length: int) -> str:
  return text if len(text) <= length else f'{text[: length - 60]}...{text[-50:]}'


@contextlib.contextmanager
def writing(path, hint: str = ''):
  """Around whatever writes to `path`: what the operating system refuses becomes a `UserError` that
  names the path and the cause, and ends with the hint. Every write of a file goes through here.
  """
  try:
    yield
  except OSError as error:
    cause = error.strerror or error
    raise UserError(f'{path} cannot be written: {cause}{hint}') from error
