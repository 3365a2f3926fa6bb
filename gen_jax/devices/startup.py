"""Settings of the Python process that make training faster, for the first lines of a script."""

import gc
import os
import sys


def prepare(script: str) -> None:
  """Restarts a plain `python script`, with large arrays in huge pages where Linux gives them on
  request, and lets Python's garbage collector run less often.

  A training step on CPU writes hundreds of megabytes that glibc has just allocated from the kernel,
  otherwise in pages of 4 KB, which takes a notable share of the step
  (docs/performance_notebook.md). glibc reads GLIBC_TUNABLES only when a process starts. A script
  under a debugger, a profiler or a notebook is not restarted, and GLIBC_TUNABLES set by the user,
  even if empty, is kept.

  Tracing a step creates hundreds of thousands of long-lived objects. With Python's default
  thresholds the garbage collector visits them all repeatedly, which slows tracing down.
  """
  plain = [os.path.abspath(arg) for arg in sys.orig_argv[1:2]] == [os.path.abspath(script)]
  if plain and sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
    os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
  gc.set_threshold(50_000, 20, 100)
