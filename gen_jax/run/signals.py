"""Signals that stop a process: SIGTERM, Ctrl-C, and the SIGHUP of a terminal that closes.

exit_at_once   the program, from its first line on: nothing is lost
exit_in_order  raises, so that child processes are ended and temporary files are removed
Stop           in training, the first one requests a stop, so that the run saves
"""

import contextlib
import os
import signal
import sys
import threading
import time

from gen_jax.host import console

# GNU `timeout` and some launchers send the same signal to the process and to its group, so it
# arrives twice at once. No person is that fast.
SAME_REQUEST_SECONDS = 0.02
ORDER_SECONDS = 3.0  # time for an exit in order, after which the process ends at once
_QUIT = b'\0'
_in_program = False  # the process is ours to end


def stopping() -> tuple[signal.Signals, ...]:
  """The signals that stop this process: not SIGHUP where it is ignored, as by `nohup`."""
  hung_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
  return (signal.SIGTERM, signal.SIGINT) + (signal.SIGHUP,) * hung_up


class _Listener:
  """Context manager that calls `heard(number)` for every stopping signal in a daemon thread, woken
  by the C-level handler: Python's own `handler` runs only when the main thread returns to the
  interpreter, e.g. from a compiled step.

  Python installs signal handlers in the main thread only. In any other thread, e.g. of a notebook,
  it has no effect.
  """

  def __init__(self, heard, handler=lambda number, frame: None):
    self._heard, self._handler, self._previous = heard, handler, None

  def __enter__(self):
    if threading.current_thread() is not threading.main_thread():
      return self
    self._read, self._write = os.pipe()
    os.set_blocking(self._write, False)
    self._numbers = stopping()
    self._thread = threading.Thread(target=self._listen, name='signals', daemon=True)
    self._thread.start()
    self._previous_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
    # Without a handler there is no wake-up.
    self._previous = {s: signal.signal(s, self._handler) for s in self._numbers}
    return self

  def __exit__(self, *error) -> None:
    if self._previous is None:
      return
    for number, handler in self._previous.items():
      # None: a handler that was installed from C, which Python cannot restore.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    signal.set_wakeup_fd(self._previous_fd)
    os.write(self._write, _QUIT)
    self._thread.join()
    os.close(self._read)
    os.close(self._write)
    self._previous = None

  def _listen(self) -> None:
    while data := os.read(self._read, 64):
      # Those of the last instant arrive in one piece with the end.
      for number in filter(self._numbers.__contains__, data):
        self._heard(number)
      if _QUIT in data:
        return


# --- The program ----------------------------------------------------------------------------------


def exit_at_once() -> None:
  """From now on a signal ends the process with status 128 + its number, without an exception: one
  that strikes inside of the initialiser of an extension module comes out as anything, or not at
  all.
  """
  global _in_program
  _in_program = True
  _Listener(lambda number: os._exit(128 + number), _exit).__enter__()


def _exit(number, frame) -> None:
  os._exit(128 + number)


@contextlib.contextmanager
def exit_in_order():
  """For code with nothing to save: SIGTERM and SIGHUP raise SystemExit(128 + number), as Ctrl-C
  raises KeyboardInterrupt, so that child processes and threads are ended before the exit.

  In the program, after `exit_at_once`, the process ends at once at a second signal or after
  `ORDER_SECONDS`: a thread may be blocked.
  """
  heard, since = None, 0.0

  def hear(number):
    nonlocal heard, since
    now = time.monotonic()
    if heard is None:
      heard, since = number, now
      if _in_program:
        timer = threading.Timer(ORDER_SECONDS, os._exit, (128 + number,))
        timer.daemon = True
        timer.start()
    elif _in_program and now - since > SAME_REQUEST_SECONDS:
      os._exit(128 + number)

  try:
    with _Listener(hear, _raise):
      yield
  except Exception:  # what a library has made of ours, perhaps
    if heard is None:
      raise
  if heard is not None:  # or a callback has lost it
    _raise(heard, None)


def _raise(number, frame) -> None:
  if number == signal.SIGINT:
    raise KeyboardInterrupt
  sys.exit(128 + number)


# --- Training -------------------------------------------------------------------------------------


class Stop(_Listener):
  """Context manager that turns the first signal into a request to stop.

  `requested` is None until then, and afterwards its number. A second signal ends the process at
  once with status 128 + its number.
  """

  def __init__(self):
    super().__init__(self._ask)
    self.requested: int | None = None
    self._event = threading.Event()
    self._since = 0.0

  def wait_ready(self, arrays) -> bool:
    """Waits for a pytree of arrays. True: they are ready. False: a stop was requested first."""
    import jax  # the rest of this file is used before there is time for it

    leaves = [x for x in jax.tree.leaves(arrays) if isinstance(x, jax.Array)]
    start = time.monotonic()
    while self.requested is None:
      if all(x.is_ready() for x in leaves):
        return True
      # At most 5 % of the time waited so far, so that short steps are not slowed down.
      self._event.wait(min(0.02, max(0.0002, (time.monotonic() - start) / 20)))
    return False

  def _ask(self, number: int) -> None:
    now = time.monotonic()
    if self.requested is None:
      self.requested, self._since = number, now
      self._event.set()
      name = signal.Signals(number).name
      console.tell(f'{name}: saving and stopping; a second signal exits at once')
    elif now - self._since > SAME_REQUEST_SECONDS:
      os._exit(128 + number)
