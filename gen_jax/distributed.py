"""Several processes as one run: how they find one another, agree, and notice that one is gone.

Every host of a TPU slice or of a cluster runs the same command. JAX makes one machine of their
devices; a collective that one of them does not join waits for ever. So the processes keep a line to
the first one, over which each tells every second how far it is (`Watch`).
"""

import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import select
import socket
import sys
import threading
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from gen_jax.errors import UserError

LOST = 3  # exit status: another process of the run is dead or stuck
# Together at most a minute from the fault to the end of every process.
SILENT_SECONDS = 20.0  # without a word from a process
STUCK_SECONDS = 40.0  # without a finished step, where steps are finished one after the other
CONNECT_SECONDS = 30.0
START_SECONDS = 50  # until JAX itself gives up a process that is lost before `Watch` begins
_first_host: str | None = None  # where the user says that the first process is


# --- Start --------------------------------------------------------------------------------------


def initialize(coordinator: str | None, processes: int | None, process: int | None) -> None:
  """Joins the processes of a run, before anything else uses JAX.

  Without arguments it does so where JAX finds the others by itself, in a Slurm step of several
  tasks and on a TPU VM; elsewhere this process stays alone.

  Args:
    coordinator: host:port of the first process, the same for all.
    processes: how many there are.
    process: which one this is, from 0.

  Raises:
    UserError: only some of the arguments are given, or the others cannot be reached.
  """
  given = dict(coordinator=coordinator, num_processes=processes, process_id=process)
  missing = [f'--{name}' for name, value in given.items() if value is None]
  if 0 < len(missing) < len(given):
    raise UserError(
      f'{" and ".join(missing)} too: the three of them start one of several processes'
    )
  if missing and not _has_a_cluster():
    return
  if coordinator is not None:
    if not coordinator.rpartition(':')[0] or not coordinator.rpartition(':')[2].isdecimal():
      raise UserError(f'--coordinator={coordinator}: HOST:PORT of the first process is needed')
    if not 0 <= process < processes:
      raise UserError(f'--process_id={process}: a number from 0 to {processes - 1} is needed')
    global _first_host
    _first_host = coordinator.rpartition(':')[0]
    coordinator = coordinator if process == 0 else _relayed(coordinator)
  try:
    jax.distributed.initialize(
      coordinator, processes, process, heartbeat_timeout_seconds=START_SECONDS
    )
  except (RuntimeError, ValueError) as error:
    where = f'--coordinator={given["coordinator"]}' if coordinator else 'the cluster that JAX found'
    raise UserError(f'{where}: the processes of the run do not meet ({error})') from error
  shown = sys.excepthook

  def show_and_leave(*error):
    shown(*error)
    leave(1)

  sys.excepthook = show_and_leave


def leave(status: int) -> None:
  """Ends the process if it is one of several and has failed, or was stopped: at its exit JAX would
  wait minutes for the others.
  """
  if status and jax.distributed.is_initialized():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _relayed(address: str) -> str:
  """An address in this process that passes all on to `address`, and stays there when that is gone.

  JAX aborts a process with a page of text when its connection to the first one breaks. So it does
  not break, and `Watch` ends the process with a line.
  """
  host, _, port = address.rpartition(':')
  server = socket.create_server(('127.0.0.1', 0))

  def pump(source, sink, last):
    with contextlib.suppress(OSError):
      while data := source.recv(2**16):
        sink.sendall(data)
    if last:
      sink.close()

  def serve():
    while True:
      near, _ = server.accept()
      try:
        far = socket.create_connection((host, int(port)))
      except OSError:  # not there yet: JAX tries again
        near.close()
        continue
      for line in ((near, far, True), (far, near, False)):
        threading.Thread(target=pump, args=line, daemon=True).start()

  threading.Thread(target=serve, name='relay', daemon=True).start()
  return f'127.0.0.1:{server.getsockname()[1]}'


def _has_a_cluster() -> bool:
  """Whether `jax.distributed.initialize()` finds the other processes by itself."""
  slurm = int(os.environ.get('SLURM_STEP_NUM_TASKS', 1)) > 1
  chips = any(pathlib.Path(path).exists() for path in ('/dev/accel0', '/dev/vfio/0'))
  return slurm or (chips and importlib.util.find_spec('libtpu') is not None)


def several() -> bool:
  """Whether this process is one of several."""
  return jax.process_count() > 1


def is_first() -> bool:
  """Whether this process is the one that writes."""
  return jax.process_index() == 0


# --- Agreement ----------------------------------------------------------------------------------


def from_first(make: Callable[[], object]):
  """What `make()` gives in the first process, a value that JSON has; all processes must call it."""
  if not several():
    return make()
  text = json.dumps(make()).encode() if is_first() else b''
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  buffer = np.zeros(size, np.uint8)
  buffer[: len(text)] = np.frombuffer(text, np.uint8)
  return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer), np.uint8)))


def check_same(what: str, value: str) -> None:
  """Checks that all processes hold the same text.

  Raises:
    UserError: in those whose text is not that of the first process.
  """
  first = from_first(lambda: value)
  if value != first:
    raise UserError(
      f'{what}: {value} in process {jax.process_index()}, {first} in process 0; all processes need '
      'the same, on a file system that they share'
    )


@contextlib.contextmanager
def first_alone():
  """The first process runs the block before the others do, so that what it leaves in a cache is
  there for them.
  """
  if not is_first():
    from_first(lambda: None)
  yield
  if is_first():
    from_first(lambda: None)


class Requests:
  """A `signals.Stop` of which all processes learn at the same step.

  `ask()` before a step and `answer()` after it: a request of any process before `ask` is answered,
  with the number of its signal, in all of them. Waiting for the answer is waiting for the step
  before.
  """

  def __init__(self, stop, mesh):
    self._stop = stop
    if several():
      self._sharding = jax.sharding.NamedSharding(mesh, jax.P(mesh.axis_names))
      self._shape = (mesh.size,)
      self._largest = jax.jit(
        lambda x: x.max(), out_shardings=jax.sharding.NamedSharding(mesh, jax.P())
      )

  def ask(self):
    """What `answer` needs."""
    if not several():
      return None
    mine = np.int32(self._stop.requested or 0)
    flags = jax.make_array_from_callback(
      self._shape, self._sharding, lambda index: np.full(np.empty(self._shape)[index].shape, mine)
    )
    return self._largest(flags)

  def answer(self, asked) -> int | None:
    """The number of the signal, or None."""
    return self._stop.requested if asked is None else int(asked) or None


# --- Watching -----------------------------------------------------------------------------------


class Watch:
  """Ends this process when another one of the run is dead or stuck: one line, status `LOST`.

  A context manager; alone, a process watches nothing. `beat(step)` after every step says that it
  goes on. Between `beat`s a run may stand still for `STUCK_SECONDS`, or for five times its longest
  step, and within `resting()` as long as it likes.
  """

  def __init__(self):
    self._lock = threading.Lock()
    self._step, self._since, self._longest = 0, None, 0.0  # _since None: at rest
    self._closing, self._in_order = threading.Event(), False
    self._thread = None

  def __enter__(self) -> 'Watch':
    if not several():
      return self
    if is_first():
      server = socket.create_server(('', 0), backlog=jax.process_count())
      port = server.getsockname()[1]
    address = from_first(lambda: [_first_host or _own_address(), port])
    if is_first():
      lines = _accept(server, jax.process_count() - 1)
      work = functools.partial(self._lead, lines)
    else:
      line = socket.create_connection(address, timeout=CONNECT_SECONDS)
      work = functools.partial(self._follow, _Line(line, 0))
      work.args[0].send(dict(process=jax.process_index()))
    self._thread = threading.Thread(target=work, name='watch', daemon=True)
    self._thread.start()
    return self

  def __exit__(self, kind, error, trace) -> None:
    if self._thread is None:
      return
    if isinstance(error, jax.errors.JaxRuntimeError):
      # A collective has failed: most likely a process has gone, which its line will tell.
      self._thread.join(SILENT_SECONDS + 2)
    self._in_order = kind is None
    self._closing.set()
    self._thread.join(5)

  def beat(self, step: int) -> None:
    """Says that `step` is done."""
    with self._lock:
      now = time.monotonic()
      if self._since is not None:
        self._longest = max(self._longest, now - self._since)
      self._step, self._since = step, now

  @contextlib.contextmanager
  def resting(self):
    """Around what may take long, such as a picture; after the first `beat` it ends with another one
    of the same step.
    """
    with self._lock:
      begun, self._since = self._since is not None, None
    yield
    if begun:
      with self._lock:
        self._since = time.monotonic()

  def _word(self) -> dict:
    with self._lock:
      still = 0.0 if self._since is None else time.monotonic() - self._since
      over = still > max(STUCK_SECONDS, 5 * self._longest)
      return dict(step=self._step, still=still, over=over)

  def _lead(self, lines) -> None:
    """The thread of the first process."""
    words: dict[int, dict] = {}
    while not self._closing.wait(1):
      for line in lines:
        fault = line.read(words)
        if fault and not self._closing.is_set():
          self._end(f'process {line.process} {fault}', lines)
      words[0] = self._word()
      if any(word['over'] for word in words.values()):
        last = min(words, key=lambda process: words[process]['step'])
        text = f'process {last} has stood at step {words[last]["step"]} for '
        self._end(f'{text}{words[last]["still"]:.0f} s', lines)
      for line in lines:
        line.send({})
    self._leave(lines)

  def _follow(self, line) -> None:
    """The thread of any other process."""
    words: dict[int, dict] = {}
    while not self._closing.wait(1):
      fault = line.read(words)
      if fault and not self._closing.is_set():
        self._end(f'process 0 {fault}', [])
      if text := words.get(0, {}).get('end'):
        self._end(text, [])
      line.send(self._word())
    self._leave([line])

  def _leave(self, lines) -> None:
    for line in lines:
      if self._in_order:  # otherwise the others shall end too
        line.send(dict(bye=True))
      line.close()

  def _end(self, text: str, lines) -> None:
    for line in lines:
      line.send(dict(end=text))
    print(
      f'error: {text}: the run ends here; the same command goes on', file=sys.stderr, flush=True
    )
    os._exit(LOST)


class _Line:
  """A connection on which both sides say something every second, in lines of JSON."""

  def __init__(self, connection, process: int | None):
    self._connection, self.process = connection, process
    self._rest, self._heard, self._gone = b'', time.monotonic(), False
    connection.setblocking(False)

  def send(self, word: dict) -> None:
    # What the other side does not take, it will miss: `read` tells.
    with contextlib.suppress(OSError):
      self._connection.sendall(json.dumps(word).encode() + b'\n')

  def close(self) -> None:
    self._connection.close()

  def read(self, words: dict) -> str | None:
    """Keeps the newest word of the other side under its number; returns what is wrong with it."""
    if self._gone:
      return None
    try:
      while select.select([self._connection], [], [], 0)[0]:
        data = self._connection.recv(4096)
        if not data:
          return 'has ended'
        self._rest += data
        self._heard = time.monotonic()
    except OSError:
      return 'has ended'
    *lines, self._rest = self._rest.split(b'\n')
    for line in lines:
      word = json.loads(line)
      if 'process' in word:
        self.process = word['process']
      elif 'bye' in word:
        self._gone = True
        words.pop(self.process, None)
      elif word:
        words[self.process] = word
    silent = time.monotonic() - self._heard
    return f'has said nothing for {silent:.0f} s' if silent > SILENT_SECONDS else None


def _accept(server, number: int) -> list[_Line]:
  server.settimeout(CONNECT_SECONDS)
  try:
    with server:
      return [_Line(server.accept()[0], None) for _ in range(number)]
  except OSError as error:
    raise UserError(f'the processes of the run do not meet ({error})') from error


def _own_address() -> str:
  """An address of this host that others reach."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    with contextlib.suppress(OSError):
      probe.connect(('192.0.2.1', 9))  # sends nothing: asks which address would be used
      return probe.getsockname()[0]
  return socket.gethostbyname(socket.gethostname())
