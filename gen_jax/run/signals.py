"""Stopping on SIGTERM and Ctrl-C: in training the first one requests a stop, the second exits."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time

import jax

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# GNU `timeout` and some launchers send the same signal to the process and to its group, so it
# arrives twice at once. No person is that fast.
SAME_REQUEST_SECONDS = 0.02
_QUIT = b'\0'


@contextlib.contextmanager
def exit_in_order():
  """For code with nothing to save: SIGTERM raises SystemExit(143), as Ctrl-C raises
  KeyboardInterrupt, so that child processes and threads are ended before the exit.

  Like `Stop`, it has no effect outside of the main thread.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)


class Stop:
  """Context manager that turns SIGTERM and SIGINT into a request to stop.

  `requested` is None until the first signal, then its number. A second signal ends the process at
  once with status 128 + its number. A daemon thread does the work, woken by the C-level handler:
  Python's own handlers run only when the main thread returns from the compiled step.

  Python installs signal handlers in the main thread only. In any other thread, e.g. of a notebook,
  a `Stop` has no effect.
  """

  def __init__(self):
    self.requested: int | None = None
    self._event = threading.Event()
    self._previous = None

  def __enter__(self) -> 'Stop':
    if threading.current_thread() is not threading.main_thread():
      return self
    self._read, self._write = socket.socketpair()
    self._write.setblocking(False)
    self._thread = threading.Thread(target=self._watch, name='signals', daemon=True)
    self._thread.start()
    self._previous_fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
    # The handler itself does nothing, but without one there is no wake-up.
    self._previous = {s: signal.signal(s, lambda number, frame: None) for s in SIGNALS}
    return self

  def __exit__(self, *error) -> None:
    if self._previous is None:
      return
    for number, handler in self._previous.items():
      # None: a handler that was installed from C, which Python cannot restore.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    signal.set_wakeup_fd(self._previous_fd)
    self._write.send(_QUIT)
    self._thread.join()
    self._read.close()
    self._write.close()
    self._previous = None

  def wait_ready(self, arrays) -> bool:
    """Waits for a pytree of arrays. True: they are ready. False: a stop was requested first."""
    leaves = [x for x in jax.tree.leaves(arrays) if isinstance(x, jax.Array)]
    start = time.monotonic()
    while self.requested is None:
      if all(x.is_ready() for x in leaves):
        return True
      # At most 5 % of the time waited so far, so that short steps are not slowed down.
      self._event.wait(min(0.02, max(0.0002, (time.monotonic() - start) / 20)))
    return False

  def _watch(self) -> None:
    seen = 0.0
    while data := self._read.recv(64):
      if _QUIT in data:
        return
      for number in filter(SIGNALS.__contains__, data):
        now = time.monotonic()
        if self.requested is None:
          self.requested, seen = number, now
          self._event.set()
          line = (
            f'{signal.Signals(number).name}: saving and stopping; a second signal exits at once'
          )
          # A closed terminal must not prevent the second signal from working.
          with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)
        elif now - seen > SAME_REQUEST_SECONDS:
          os._exit(128 + number)
