"""Settings of the Python process that make training faster; a script's first lines ask for them."""

import gc
import os
import sys


def prepare(script: str) -> None:
  """Restarts a plain `python script`, with large arrays in huge pages where Linux gives them on
  request, and lets Python's garbage collector run less often.

  A training step on CPU writes hundreds of megabytes that glibc has just got from the kernel, page
  by page of 4 KB otherwise: a tenth to a fifth of the step (docs/performance_notebook.md). glibc
  reads GLIBC_TUNABLES when a process starts and never again. What a debugger, a profiler or a
  notebook runs is not restarted, and the user's own GLIBC_TUNABLES, even if empty, stays.

  Tracing a step makes hundreds of thousands of objects that stay. Python's default thresholds visit
  them all again and again, a fifth of the time of tracing.
  """
  plain = [os.path.abspath(arg) for arg in sys.orig_argv[1:2]] == [os.path.abspath(script)]
  if plain and sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
    os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
  gc.set_threshold(50_000, 20, 100)
