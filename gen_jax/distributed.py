"""Several processes as one run: how they find one another, agree, and notice that one is gone.

Every host of a TPU slice or of a cluster runs the same command. JAX makes one machine of their
devices; a collective that one of them does not join waits for ever. So the processes keep a line to
the first one, over which each tells every second how far it is (`Watch`).
"""

import contextlib
import importlib.util
import json
import math
import os
import pathlib
import secrets
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
MEET_SECONDS = 300  # for all processes to be there
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
    _first_host = coordinator.rpartition(':')[0].strip('[]')
    coordinator = coordinator if process == 0 else _relayed(coordinator)
  # Ours to answer: JAX's service would take SIGTERM away.
  jax.config.update('jax_enable_preemption_service', False)
  where = f'--coordinator={given["coordinator"]}' if coordinator else 'the cluster that JAX found'
  apart = f'{where}: the processes of the run do not meet'
  # JAX aborts the process, without an exception, when its own time is over.
  timer = threading.Timer(MEET_SECONDS, _exit, (f'{apart} within {MEET_SECONDS} s', 2))
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      coordinator,
      processes,
      process,
      initialization_timeout=MEET_SECONDS + 10,
      heartbeat_timeout_seconds=START_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    raise UserError(f'{apart} ({error})') from error
  finally:
    timer.cancel()
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


def _exit(text: str, status: int) -> None:
  """Ends the process from any thread."""
  print(f'error: {text}', file=sys.stderr, flush=True)
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
        far = socket.create_connection((host.strip('[]'), int(port)))
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


def check_same(values: dict) -> None:
  """Checks that all processes hold the same values, {what they are: value}.

  Raises:
    UserError: in those where one is not that of the first process.
  """
  if not several():
    return
  values = json.loads(json.dumps(values, default=str))
  first = from_first(lambda: values)
  for what, value in values.items():
    if value != first.get(what):
      raise UserError(
        f'{what}: {value} in process {jax.process_index()}, {first.get(what)} in process 0; all '
        'processes need the same'
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
  goes on. From the second one on, a run may stand still for `STUCK_SECONDS`, or for five times its
  longest step, and as long as any process is within `resting()`. Processes that leave it in order
  leave it together. One that leaves it with a UserError ends the others with that.
  """

  def __init__(self):
    self._lock = threading.Lock()
    self._step, self._since, self._longest = 0, None, 0.0  # _since None: at rest
    self._rested = -math.inf  # when last a process was seen at rest
    self._closing, self._last_word = threading.Event(), {}
    self._thread = None

  def __enter__(self) -> 'Watch':
    if not several():
      return self
    if is_first():
      server = _listen()
      port, token = server.getsockname()[1], secrets.token_hex(8)
    host, port, token = from_first(lambda: [_first_host or _own_address(), port, token])
    try:
      if is_first():
        lines = _accept(server, jax.process_count() - 1, token)
      else:
        line = _Line(socket.create_connection((host, port), timeout=CONNECT_SECONDS), 0)
        line.send(dict(process=jax.process_index(), token=token))
        lines = [line]
    except OSError as error:
      raise UserError(
        f'the processes of the run do not meet at {host}:{port}, where process 0 listens: {error}'
      ) from error
    self._thread = threading.Thread(target=self._run, args=(lines,), name='watch', daemon=True)
    self._thread.start()
    return self

  def __exit__(self, kind, error, trace) -> None:
    if self._thread is None:
      return
    if isinstance(error, jax.errors.JaxRuntimeError):
      # A collective has failed: most likely a process has gone, which its line will tell.
      self._thread.join(SILENT_SECONDS + 2)
    if kind is None:
      self._last_word = dict(bye=True)
    elif isinstance(error, UserError):
      self._last_word = dict(end=f'process {jax.process_index()}: {error}', status=2)
    self._closing.set()
    # In order: until all are here, or one is lost.
    self._thread.join(None if kind is None else 5)

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
    try:
      yield
    finally:
      if begun:
        with self._lock:
          self._since = time.monotonic()

  def _word(self) -> dict:
    with self._lock:
      waits = self._closing.is_set()  # for the others to leave
      rests = self._since is None and not waits
      still = 0.0 if rests or waits else time.monotonic() - self._since
      over = self._longest > 0 and still > max(STUCK_SECONDS, 5 * self._longest)
      return dict(step=self._step, still=still, over=over, rests=rests)

  def _run(self, lines) -> None:
    """The thread: of the first process with a line to each other one, of these with one to it."""
    try:
      while not self._closing.wait(1):
        self._look(lines)
        for line in lines:
          line.send(self._word())
      if is_first():
        self._wait_for_bye(lines)
      for line in lines:
        line.send(self._last_word)
      if not is_first():
        self._wait_for_bye(lines)
      for line in lines:
        line.close()
    except Exception as error:  # without a watch, a lost process would leave the others for ever
      _exit(f'the watch of process {jax.process_index()} has failed ({error!r})', LOST)

  def _wait_for_bye(self, lines) -> None:
    if 'bye' not in self._last_word:
      return
    while not all(line.bye for line in lines):
      self._look(lines)
      for line in lines:
        line.send(self._word())
      time.sleep(0.05)

  def _look(self, lines) -> None:
    """Reads what the others say, and ends the process if one of them is lost."""
    faults = [(line, line.read()) for line in lines]
    for line in lines:
      if text := line.word.get('end'):
        self._end(text, line.word['status'], lines)
    for line, fault in faults:
      if fault:
        text = f'process {line.process} {fault}: the run ends here; the same command goes on'
        self._end(text, LOST, lines)
    words = {line.process: line.word for line in lines if line.word and not line.bye}
    if not is_first():
      return
    words[0] = self._word()
    now = time.monotonic()
    if any(word['rests'] for word in words.values()):
      self._rested = now  # who waits for one at rest stands still too, and a moment longer
    over = any(word['over'] for word in words.values())
    if over and now - self._rested > STUCK_SECONDS:
      last = min(words, key=lambda process: words[process]['step'])
      text = (
        f'process {last} has stood at step {words[last]["step"]} for {words[last]["still"]:.0f}'
      )
      self._end(f'{text} s: the run ends here; the same command goes on', LOST, lines)

  def _end(self, text: str, status: int, lines) -> None:
    if is_first():
      for line in lines:
        line.send(dict(end=text, status=status))
    _exit(text, status)


class _Line:
  """A connection on which both sides say something every second, in lines of JSON.

  Attributes:
    process: number of the other side.
    word: the newest word of it; {}: none so far.
    bye: whether it has left in order.
  """

  def __init__(self, connection, process: int):
    self._connection, self.process = connection, process
    self._rest, self._heard = b'', time.monotonic()
    self.word, self.bye = {}, False
    connection.setblocking(False)

  def send(self, word: dict) -> None:
    # What the other side does not take, it will miss: `read` tells.
    with contextlib.suppress(OSError):
      self._connection.sendall(json.dumps(word).encode() + b'\n')

  def close(self) -> None:
    with contextlib.suppress(OSError):
      self._connection.shutdown(socket.SHUT_WR)  # what is sent still arrives
    self._connection.close()

  def read(self) -> str | None:
    """Takes in what the other side has said; returns what is wrong with it."""
    ended = False
    try:
      while not ended and select.select([self._connection], [], [], 0)[0]:
        data = self._connection.recv(4096)
        ended = not data
        self._rest += data
        self._heard = time.monotonic()
    except OSError:
      ended = True
    *lines, self._rest = self._rest.split(b'\n')
    for line in lines:
      word = json.loads(line)
      if 'bye' in word:
        self.bye = True
      else:
        self.word = word
    if self.bye:
      return None
    if ended:
      return 'has ended'
    silent = time.monotonic() - self._heard
    return f'has said nothing for {silent:.0f} s' if silent > SILENT_SECONDS else None


def _listen():
  """A socket on a free port of all addresses of this host."""
  if socket.has_dualstack_ipv6():
    return socket.create_server(('', 0), family=socket.AF_INET6, dualstack_ipv6=True)
  return socket.create_server(('', 0))


def _accept(server, number: int, token: str) -> list[_Line]:
  """The lines of `number` processes that know the token; who does not is sent away.

  Raises:
    OSError: they do not come in time.
  """
  lines, deadline = [], time.monotonic() + CONNECT_SECONDS
  with server:
    while len(lines) < number:
      server.settimeout(max(deadline - time.monotonic(), 0.01))
      connection = server.accept()[0]
      connection.settimeout(2)
      try:
        text = b''
        while not text.endswith(b'\n') and len(text) < 200:
          text += connection.recv(1) or b'\n'
        hello = json.loads(text)
        if not secrets.compare_digest(str(hello['token']), token):
          raise ValueError
        lines.append(_Line(connection, int(hello['process'])))
      except (OSError, ValueError, TypeError, KeyError):
        connection.close()
  return lines


def _own_address() -> str:
  """An address of this host that others reach."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    with contextlib.suppress(OSError):
      probe.connect(('192.0.2.1', 9))  # sends nothing: asks which address would be used
      return probe.getsockname()[0]
  return socket.gethostbyname(socket.gethostname())
