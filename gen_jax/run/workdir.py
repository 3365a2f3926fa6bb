"""The folder of one run: its lock, and the paths in it."""

import contextlib
import datetime
import fcntl
import hashlib
import json
import logging
import os
import pathlib
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping

from gen_jax.errors import UserError, writing
from gen_jax.host.files import JSON_BYTES, read_file
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


def checksum_line(manifest: bytes) -> bytes:
  """The content of `manifest.sha256` for that of `manifest.json`, as `sha256sum -c` reads it."""
  return f'{hashlib.sha256(manifest).hexdigest()}  manifest.json\n'.encode()


# --- Writes ---------------------------------------------------------------------------------------


def write_atomic(path, data: bytes) -> None:
  """Replaces file `path` by `data`; a crash leaves either all old bytes or all new ones.

  Raises:
    UserError: it cannot be written; the old bytes are kept.
  """
  write_together({path: data})


def write_together(files: Mapping[os.PathLike, bytes]) -> None:
  """`write_atomic` of several files, in this order, once the bytes of all are on disk: if one
  cannot be written, all are as before.
  """
  staged = {}
  try:
    for path, data in files.items():
      path = pathlib.Path(path)
      staged[path] = path.with_name(f'.tmp-{path.name}-{os.getpid()}')  # others may write it, too
      with writing(path), open(staged[path], 'wb', buffering=0) as file:
        _write(file, data)
        os.fsync(file.fileno())
    for path, temporary in staged.items():
      with writing(path):
        os.replace(temporary, path)
        sync_directory(path.parent)
  finally:
    for temporary in staged.values():
      with contextlib.suppress(OSError):
        temporary.unlink()


@contextlib.contextmanager
def new_folder(path) -> Iterator[pathlib.Path]:
  """A folder that replaces `path` when the block ends. If it cannot be written, all is as before.

  Raises:
    UserError: it cannot be written.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'.tmp-{path.name}-{os.getpid()}')
  try:
    with writing(path):
      temporary.mkdir(parents=True)
      yield temporary
      if path.exists():
        shutil.rmtree(path)
      os.rename(temporary, path)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def append(path, data: bytes) -> None:
  """Appends `data` to a file, new or not, all or nothing.

  Raises:
    UserError: it cannot be written.
  """
  with writing(path), open(path, 'ab', buffering=0) as file:
    size = os.fstat(file.fileno()).st_size
    try:
      _write(file, data)
    except OSError:
      with contextlib.suppress(OSError):
        file.truncate(size)
      raise


def _write(file, data: bytes) -> None:
  """Writes to a file without a buffer: that would be flushed, and fail, again at the end."""
  rest = memoryview(data)
  while rest:
    rest = rest[file.write(rest) :]


def make_folder(path: pathlib.Path) -> pathlib.Path:
  """Makes a folder of a run, new or removed since; that of the run itself must exist."""
  with writing(path), contextlib.suppress(FileExistsError):  # whoever writes to it says what it is
    path.mkdir()
  return path


def check_folder(path) -> None:
  """Raises the `UserError` that writing into a folder would raise. One that does not exist is not
  created: the one above it is tried.
  """
  path = pathlib.Path(path)
  while not os.path.lexists(path):  # a link without a target can be no folder
    path = path.parent
  with writing(path):
    _try_folder(path)


def _try_folder(path) -> None:
  with tempfile.TemporaryFile(dir=path, buffering=0) as file:
    _write(file, bytes(4096))  # a full disk may still have room for a name


def check_file(path) -> None:
  """Raises the `UserError` that appending to a file would raise; it need not exist."""
  with writing(path):
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
      raise OSError(0, 'it is not a regular file')  # a pipe would block
    if os.path.lexists(path):
      open(path, 'ab').close()


# --- The folder of a run --------------------------------------------------------------------------


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
    self.curves = self.path / 'curves.png'
    self.lock = self.path / '.lock'

  def image_path(self, step: int, name: str) -> pathlib.Path:
    """The path of the image `name` of `step`."""
    return self.samples / f'{step:07d}_{name.replace("/", "_")}.png'

  def images(self, name: str) -> list[pathlib.Path]:
    """The images `name` of all steps, in their order."""
    found = self.samples.glob(f'[0-9]*_{name}.png')
    steps = {path: path.name.removesuffix(f'_{name}.png') for path in found}
    mine = [path for path, step in steps.items() if step.isdecimal()]
    return sorted(mine, key=lambda path: int(steps[path]))

  def in_use(self) -> bool:
    """Whether a process holds the lock of the folder, as far as this one can tell."""
    if not self.lock.is_file():
      return False
    try:
      with open(self.lock, 'rb') as lock:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released when the file is closed
        return False
    except BlockingIOError:
      return True
    except OSError:
      return False

  def read_config(self) -> str | None:
    """The text of `config.json`; None where it cannot be read or is no JSON object."""
    try:
      data = read_file(self.config, JSON_BYTES)
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
    UserError: the folder, or what a run writes in it, cannot be written; it holds other things; or
      another process holds the lock.
  """
  workdir = Workdir(path)
  check_place(workdir.path)
  with contextlib.ExitStack() as stack:
    with writing(f'workdir {str(path)!r}', '; choose another --workdir'):
      workdir.path.mkdir(parents=True, exist_ok=True)
      # An old lock file would open even where no new file can be created.
      _try_folder(workdir.path)
      lock = stack.enter_context(open(workdir.lock, 'a+b', buffering=0))
    _acquire(lock, path)
    owner = dict(
      pid=os.getpid(),
      host=socket.gethostname(),
      since=datetime.datetime.now().astimezone().isoformat(' ', 'seconds'),
    )
    with writing(workdir.lock):
      _rewrite(lock, json.dumps(owner).encode())
    for folder in (workdir.checkpoints, workdir.samples, workdir.tensorboard):
      check_folder(folder)
    for file in (workdir.config, workdir.metrics, workdir.evaluations):
      check_file(file)
    try:
      yield workdir
    finally:
      # The next holder must not be reported under the name of this one.
      with contextlib.suppress(OSError):
        _rewrite(lock, b'')


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
    owner = parse_json(lock.read())
    return f'process {owner["pid"]} on host {owner["host"]} since {owner["since"]}'
  except (ValueError, KeyError, TypeError):
    return 'another process'


def _rewrite(file, text: bytes) -> None:
  file.seek(0)
  file.truncate()
  file.write(text)
