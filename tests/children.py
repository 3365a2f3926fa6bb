"""Child processes for tests: a fresh Python, as a user starts it."""

import os
import subprocess
import sys
from importlib.metadata import version

# Tests run tiny nets a few times, so most of their time is compilation: the least of it.
QUICK = '--xla_backend_optimization_level=0'
if version('jax').startswith('0.10.'):  # a third less; later versions do not know the flag
  QUICK += ' --xla_cpu_use_fusion_emitters=false'


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
