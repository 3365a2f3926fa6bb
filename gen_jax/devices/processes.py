"""Several processes as one run: how they connect and agree.

Every host of a TPU slice or of a cluster runs the same command. JAX sees all their devices; a
collective that one process does not join waits forever (see gen_jax.devices.heartbeat).
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import socket
import sys
import threading
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from gen_jax.devices import sharding
from gen_jax.errors import UserError
from gen_jax.host import console

MEET_SECONDS = 300  # time for all processes to connect
START_SECONDS = 50  # until JAX gives up a process that is lost before the heartbeat begins
first_host: str | None = None  # the host of the first process, where the user names it


# --- Start --------------------------------------------------------------------------------------


def initialize(coordinator: str | None, processes: int | None, process: int | None) -> None:
  """Connects the processes of a run, before anything else uses JAX, and finds their devices.

  Without arguments it does so where JAX finds the others by itself, in a Slurm step of several
  tasks and on a TPU VM; elsewhere this is a run of a single process.

  Args:
    coordinator: host:port of the first process, the same for all.
    processes: number of processes.
    process: number of this one, from 0.

  Raises:
    UserError: only some of the arguments are given, the others cannot be reached, or there are no
      devices.
  """
  _connect(coordinator, processes, process)
  sharding.find_devices()


def _connect(coordinator, processes, process) -> None:
  given = dict(coordinator=coordinator, num_processes=processes, process_id=process)
  missing = [f'--{name}' for name, value in given.items() if value is None]
  if 0 < len(missing) < len(given):
    raise UserError(
      f'{" and ".join(missing)} too: all three are needed to start one of several processes'
    )
  if missing and not _has_a_cluster():
    return
  if coordinator is not None:
    if not coordinator.rpartition(':')[0] or not coordinator.rpartition(':')[2].isdecimal():
      raise UserError(f'--coordinator={coordinator}: HOST:PORT of the first process is needed')
    if not 0 <= process < processes:
      raise UserError(f'--process_id={process}: a number from 0 to {processes - 1} is needed')
    global first_host
    first_host = coordinator.rpartition(':')[0].strip('[]')
    coordinator = coordinator if process == 0 else _relayed(coordinator)
  # JAX's service would handle SIGTERM; we do that ourselves.
  jax.config.update('jax_enable_preemption_service', False)
  where = f'--coordinator={given["coordinator"]}' if coordinator else 'the cluster that JAX found'

  apart = f'{where}: the processes of the run cannot connect'
  # JAX aborts the process, without an exception, at its own timeout.
  timer = threading.Timer(MEET_SECONDS, end, (f'{apart} within {MEET_SECONDS} s', 2))
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
  """Ends the process if it is one of several and has failed, or was stopped: in a normal exit JAX
  would wait minutes for the others.
  """
  if status and jax.distributed.is_initialized():
    console.close_streams()
    os._exit(status)


def end(text: str, status: int) -> None:
  """Ends the process from any thread."""
  console.tell(f'error: {text}')
  os._exit(status)


def _relayed(address: str) -> str:
  """An address in this process that relays everything to `address`, and stays open when that is
  gone.

  JAX aborts a process with a page of text when its connection to the first one breaks. The relay
  keeps the connection open, and `heartbeat.Watch` ends the process with one line.
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
      except OSError:  # not listening yet: JAX tries again
        near.close()
        continue
      for line in ((near, far, True), (far, near, False)):
        threading.Thread(target=pump, args=line, daemon=True).start()

  threading.Thread(target=serve, name='relay', daemon=True).start()
  return f'127.0.0.1:{server.getsockname()[1]}'


def _has_a_cluster() -> bool:
  """Whether `jax.distributed.initialize()` finds the other processes by itself."""
  tasks = os.environ.get('SLURM_STEP_NUM_TASKS', '')  # empty in some shells of an allocation
  slurm = tasks.isdecimal() and int(tasks) > 1
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
  """The result of `make()` in the first process, a JSON value; all processes must call it."""
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
    UserError: in each process where one differs from that of the first process.
  """
  if not several():
    return
  values = json.loads(json.dumps(values, default=str))
  first = from_first(lambda: values)
  for what, value in values.items():
    if value != first.get(what):
      raise UserError(
        f'{what}: {value} in process {jax.process_index()}, {first.get(what)} in process 0; they '
        'must be equal in all processes'
      )


@contextlib.contextmanager
def first_alone():
  """The first process runs the block before the others do, so that they find its results in the
  cache.
  """
  if not is_first():
    from_first(lambda: None)
  yield
  if is_first():
    from_first(lambda: None)


class Requests:
  """A `signals.Stop` that takes effect in all processes at the same step.

  Call `ask()` before a step and `answer()` after it: a request of any process before `ask` is
  returned, as the number of its signal, by `answer` in all of them. Waiting for the answer also
  waits for the step before.
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
    """Starts the exchange; returns the argument of `answer`."""
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
