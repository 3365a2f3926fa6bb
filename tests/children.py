"""Child processes for tests: a fresh Python, as a user starts it."""

import os
import subprocess
import sys

# Tests run tiny nets a few times, so most of their time is compilation: the least of it.
QUICK = '--xla_backend_optimization_level=0'


def run_python(*args, cwd, timeout=300, **env):
  """Runs Python in a child process with one device, as a user would;
  returns the finished process.
  """
  return subprocess.run(
    [sys.executable, *map(str, args)],
    cwd=cwd,
    timeout=timeout,
    capture_output=True,
    text=True,
    env=os.environ | {'XLA_FLAGS': QUICK} | env,
  )
