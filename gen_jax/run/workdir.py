"""The folder of one run: its lock, and the paths in it."""

import contextlib
import datetime
import fcntl
import json
import logging
import os
import pathlib
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator

from gen_jax.errors import UserError
from gen_jax.run.paths import local

# A killed process may take a moment to release the lock (device memory is freed first), and the
# winner of a race to write its name, so the lock is tried for a while before the run is rejected.
LOCK_SECONDS = 1.0
# A folder with one of these is that of a run, or of evaluations.
_OURS = ('.lock', 'checkpoints', 'evaluation.jsonl')
# Schedulers write these into the folder of a run before it starts.
_LOGS = ('.log', '.out', '.err', '.txt')
_log = logging.getLogger(__name__)


def sync_directory(path) -> None:
  """Makes renamed and new files in directory `path` durable."""
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)


def parse_json(data: bytes):
  """The value of a JSON text.

  Raises:
    ValueError: it is no JSON in UTF-8, or nested too deeply.
  """
  try:
    return json.loads(data.decode())
  except RecursionError as error:
    raise ValueError('nested too deeply') from error


def write_atomic(path, data: bytes) -> None:
  """Replaces file `path` by `data`; a crash leaves either all old bytes or all new ones."""
  path = pathlib.Path(path)
  temporary = path.with_name(f'.tmp-{path.name}-{os.getpid()}')  # another process may write it, too
  with open(temporary, 'wb') as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
  sync_directory(path.parent)


class Workdir:
  """Where the files of a run are. The constructor does not access the disk.

  Raises:
    UserError: the path is none of this machine.
  """

  def __init__(self, path):
    self.path = local(path, '--workdir')
    self.config = self.path / 'config.json'
    self.checkpoints = self.path / 'checkpoints'
    self.samples = self.path / 'samples'
    self.metrics = self.path / 'metrics.jsonl'
    self.evaluations = self.path / 'evaluation.jsonl'
    self.evaluation = self.path / 'evaluation'  # images, and parts of a stopped evaluation
    self.tensorboard = self.path / 'tensorboard'
    self.lock = self.path / '.lock'

  def image_path(self, step: int, name: str) -> pathlib.Path:
    """The path of the image `name` of `step`."""
    return self.samples / f'{step:07d}_{name.replace("/", "_")}.png'

  def read_config(self) -> str | None:
    """The text of `config.json`; None where it cannot be read or is no JSON object."""
    try:
      data = self.config.read_bytes()
      return data.decode() if isinstance(parse_json(data), dict) else None
    except (OSError, ValueError):
      return None

  def write_config(self, text: str) -> None:
    """Writes the resolved config, as JSON, to `config.json`."""
    write_atomic(self.config, text.encode())


def check_place(path, ours: Iterable[str] = _OURS, name: str = '--workdir') -> None:
  """Checks that a folder is new, empty (but for logs and hidden files) or one of ours.

  Args:
    path: the folder.
    ours: a folder that holds one of these names is ours.
    name: the flag that names the folder, for messages.

  Raises:
    UserError: it holds other things, which ours would mix with or overwrite.
  """
  try:
    found = sorted(os.listdir(path))
  except OSError:  # it does not exist, or cannot be read: whoever writes to it says so
    return
  others = [x for x in found if not x.startswith('.') and pathlib.Path(x).suffix not in _LOGS]
  if others and not set(found) & {*ours}:
    raise UserError(
      f'{name}={path} holds other things ({ascii(others[0])}' + ', ...' * (len(others) > 1) + '): '
      'a new folder, an empty one or that of a run is needed'
    )


@contextlib.contextmanager
def open_workdir(path) -> Iterator[Workdir]:
  """Creates the folder `path` and locks it for this process until the block ends.

  The kernel releases the lock when the process ends, even if it is killed.

  Raises:
    UserError: the folder cannot be created or written, holds other things, or another process
      holds the lock.
  """
  workdir = Workdir(path)
  check_place(workdir.path)
  with contextlib.ExitStack() as stack:
    try:
      workdir.path.mkdir(parents=True, exist_ok=True)
      # An old lock file would open even where no new file can be created.
      tempfile.TemporaryFile(dir=workdir.path).close()
      lock = stack.enter_context(open(workdir.lock, 'a+'))
    except (OSError, ValueError) as error:
      reason = getattr(error, 'strerror', None) or error
      raise UserError(
        f'workdir {str(path)!r} cannot be written: {reason}; choose another --workdir'
      ) from error
    _acquire(lock, path)
    try:
      owner = dict(
        pid=os.getpid(),
        host=socket.gethostname(),
        since=datetime.datetime.now().astimezone().isoformat(' ', 'seconds'),
      )
      _rewrite(lock, json.dumps(owner))
    except OSError as error:
      raise UserError(f'{workdir.lock} cannot be written: {error.strerror}') from error
    try:
      yield workdir
    finally:
      # The next holder must not be reported under the name of this one.
      with contextlib.suppress(OSError):
        _rewrite(lock, '')


def _acquire(lock, path) -> None:
  deadline = time.monotonic() + LOCK_SECONDS
  while True:
    try:
      return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      if time.monotonic() < deadline:
        time.sleep(0.05)
        continue
      raise UserError(
        f'workdir {path} is in use by {_owner(lock)}; stop it or choose another --workdir'
      ) from None
    except OSError as error:
      _log.warning('no lock on workdir %s (%s): let no other run write to it', path, error.strerror)
      return None


def _owner(lock) -> str:
  try:
    lock.seek(0)
    owner = parse_json(lock.read().encode())
    return f'process {owner["pid"]} on host {owner["host"]} since {owner["since"]}'
  except (ValueError, KeyError, TypeError):
    return 'another process'


def _rewrite(file, text: str) -> None:
  file.seek(0)
  file.truncate()
  file.write(text)
  file.flush()
