"""How the processes of a run notice that one of them is dead, is stuck or has a user error.

Every process keeps a connection to the first one, over which both report their progress every
second.
"""

import contextlib
import json
import math
import secrets
import select
import socket
import threading
import time

import jax

from gen_jax.devices import processes
from gen_jax.errors import UserError

LOST = 3  # exit status: another process of the run is dead or stuck
# Together they bound the time from the fault to the end of every process to a minute.
SILENT_SECONDS = 20.0  # without a message from a process
STUCK_SECONDS = 40.0  # without a finished step while steps are running
CONNECT_SECONDS = 30.0


class Watch:
  """Ends this process when another one of the run is dead or stuck: one line, status `LOST`.

  A context manager; a single process watches nothing. `beat(step)` after every step reports that it
  is alive. From the second step on, a run may make no progress for `STUCK_SECONDS`, or for five
  times its longest step, and as long as any process is within `resting()`. Processes that exit the
  block normally exit it together. One that exits it with a UserError ends the others with the same
  error.
  """

  def __init__(self):
    self._lock = threading.Lock()
    self._step, self._since, self._longest = 0, None, 0.0  # _since None: resting
    self._rested = -math.inf  # when a process was last seen resting
    self._closing, self._last_word = threading.Event(), {}
    self._thread = None

  def __enter__(self) -> 'Watch':
    if not processes.several():
      return self
    if processes.is_first():
      server = _listen()
      port, token = server.getsockname()[1], secrets.token_hex(8)
    host, port, token = processes.from_first(
      lambda: [processes.first_host or _own_address(), port, token]
    )
    try:
      if processes.is_first():
        lines = _accept(server, jax.process_count() - 1, token)
      else:
        line = _Line(socket.create_connection((host, port), timeout=CONNECT_SECONDS), 0)
        line.send(dict(process=jax.process_index(), token=token))
        lines = [line]
    except OSError as error:
      raise UserError(
        f'the processes of the run cannot connect to process 0 at {host}:{port}: {error}'
      ) from error
    self._thread = threading.Thread(target=self._run, args=(lines,), name='watch', daemon=True)
    self._thread.start()
    return self

  def __exit__(self, kind, error, trace) -> None:
    if self._thread is None:
      return
    if isinstance(error, jax.errors.JaxRuntimeError):
      # A collective has failed: most likely a process has ended, as its connection will show.
      self._thread.join(SILENT_SECONDS + 2)
    if kind is None:
      self._last_word = dict(bye=True)
    elif isinstance(error, UserError):
      self._last_word = dict(end=f'process {jax.process_index()}: {error}', status=2)
    self._closing.set()
    # A normal exit: wait until all processes are here, or one is lost.
    self._thread.join(None if kind is None else 5)

  def beat(self, step: int) -> None:
    """Reports that `step` is done."""
    with self._lock:
      now = time.monotonic()
      if self._since is not None:
        self._longest = max(self._longest, now - self._since)
      self._step, self._since = step, now

  @contextlib.contextmanager
  def resting(self):
    """Wraps what may take long, such as sampling: no step is expected meanwhile."""
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
      waits = self._closing.is_set()  # for the others to exit
      rests = self._since is None and not waits
      still = 0.0 if rests or waits else time.monotonic() - self._since
      over = self._longest > 0 and still > max(STUCK_SECONDS, 5 * self._longest)
      return dict(step=self._step, still=still, over=over, rests=rests)

  def _run(self, lines) -> None:
    """The thread: the first process has a connection to each other one, these have one to it."""
    try:
      while not self._closing.wait(1):
        self._look(lines)
        for line in lines:
          line.send(self._word())
      if processes.is_first():
        self._wait_for_bye(lines)
      for line in lines:
        line.send(self._last_word)
      if not processes.is_first():
        self._wait_for_bye(lines)
      for line in lines:
        line.close()
    except Exception as error:  # without a watch, the others would wait for a lost process forever
      processes.end(f'the watch of process {jax.process_index()} has failed ({error!r})', LOST)

  def _wait_for_bye(self, lines) -> None:
    if 'bye' not in self._last_word:
      return
    while not all(line.bye for line in lines):
      self._look(lines)
      for line in lines:
        line.send(self._word())
      time.sleep(0.05)

  def _look(self, lines) -> None:
    """Reads the messages of the others, and ends the process if one of them is lost."""
    faults = [(line, line.read()) for line in lines]
    for line in lines:
      if text := line.word.get('end'):
        self._end(text, line.word['status'], lines)
    for line, fault in faults:
      if fault:
        text = f'process {line.process} {fault}: the run ends here; the same command resumes it'
        self._end(text, LOST, lines)
    words = {line.process: line.word for line in lines if line.word and not line.bye}
    if not processes.is_first():
      return
    words[0] = self._word()
    now = time.monotonic()
    if any(word['rests'] for word in words.values()):
      self._rested = now  # processes waiting for a resting one are idle, too, and slightly longer
    over = any(word['over'] for word in words.values())
    if over and now - self._rested > STUCK_SECONDS:
      last = min(words, key=lambda process: words[process]['step'])
      text = f'process {last} has been at step {words[last]["step"]} for {words[last]["still"]:.0f}'
      self._end(f'{text} s: the run ends here; the same command resumes it', LOST, lines)

  def _end(self, text: str, status: int, lines) -> None:
    if processes.is_first():
      for line in lines:
        line.send(dict(end=text, status=status))
    processes.end(text, status)


class _Line:
  """A connection on which both sides send a message every second, a line of JSON.

  Attributes:
    process: number of the other side.
    word: its latest message; {}: none so far.
    bye: whether it has exited normally.
  """

  def __init__(self, connection, process: int):
    self._connection, self.process = connection, process
    self._rest, self._heard = b'', time.monotonic()
    self.word, self.bye = {}, False
    connection.setblocking(False)

  def send(self, word: dict) -> None:
    # A failed send is ignored: `read` reports the broken connection.
    with contextlib.suppress(OSError):
      self._connection.sendall(json.dumps(word).encode() + b'\n')

  def close(self) -> None:
    with contextlib.suppress(OSError):
      self._connection.shutdown(socket.SHUT_WR)  # data already sent still arrive
    self._connection.close()

  def read(self) -> str | None:
    """Reads the messages of the other side; returns what is wrong with it, if anything."""
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
    return f'has not answered for {silent:.0f} s' if silent > SILENT_SECONDS else None


def _listen():
  """A socket on a free port of all addresses of this host."""
  if socket.has_dualstack_ipv6():
    return socket.create_server(('', 0), family=socket.AF_INET6, dualstack_ipv6=True)
  return socket.create_server(('', 0))


def _accept(server, number: int, token: str) -> list[_Line]:
  """The connections of `number` processes that know the token; others are rejected.

  Raises:
    OSError: they do not connect in time.
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
  """An address of this host that others can reach."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    with contextlib.suppress(OSError):
      probe.connect(('192.0.2.1', 9))  # sends nothing: asks which address would be used
      return probe.getsockname()[0]
  return socket.gethostbyname(socket.gethostname())
