"""The first and the last lines of the program: the settings of its process, and its exit."""

import atexit
import gc
import os
import signal
import sys

from gen_jax.host import console
from gen_jax.run import signals


def prepare(script: str) -> None:
  """Makes the process ours, before anything else is imported: a signal ends it quietly
  (`signals.exit_at_once`), and text that nobody reads does not (`console`). Restarts a plain
  `python script`, with large arrays in huge pages where Linux gives them on request, and lets
  Python's garbage collector run less often.

  A training step on CPU writes hundreds of megabytes that glibc has just allocated from the kernel,
  otherwise in pages of 4 KB, which takes a notable share of the step
  (docs/performance_notebook.md). glibc reads GLIBC_TUNABLES only when a process starts. A script
  under a debugger, a profiler or a notebook is not restarted, and GLIBC_TUNABLES set by the user,
  even if empty, is kept.

  Tracing a step creates hundreds of thousands of long-lived objects. With Python's default
  thresholds the garbage collector visits them all repeatedly, which slows tracing down.
  """
  console.open_streams()
  plain = [os.path.abspath(arg) for arg in sys.orig_argv[1:2]] == [os.path.abspath(script)]
  if plain and sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
    os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
    # What arrives meanwhile stays pending, until the new process has handlers.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.stopping())
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
  if sys.gettrace() is None and sys.getprofile() is None:  # a debugger has handlers of its own
    signals.exit_at_once()
    atexit.register(_end)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.stopping())
  gc.set_threshold(50_000, 20, 100)


def leave(status: int) -> None:
  """Ends the process. Text that is not written yet does not change its exit status."""
  console.close_streams()
  if status >= 128:  # a signal: threads that are still busy are not waited for
    os._exit(status)
  if processes := sys.modules.get('gen_jax.devices.processes'):  # not every mode imports it
    processes.leave(status)
  # What Python does after the last of its exit functions, the first to be registered, takes a
  # second with JAX, and a signal would end it with a status of its own.
  _at_exit.append(status)
  sys.exit(status)


_at_exit: list[int] = []


def _end() -> None:
  if _at_exit:
    console.close_streams()
    os._exit(_at_exit[0])
