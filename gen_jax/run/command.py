"""The program of `python launch.py` and of the command `gen_jax`, which alone import this file: a
signal ends the process quietly from then on.
"""

import _signal  # what `signal` is made of: importing that takes milliseconds
import os
import sys

for number in (_signal.SIGINT, _signal.SIGTERM):  # `startup.prepare` does the rest
  _signal.signal(number, lambda number, frame: os._exit(128 + number))


def run() -> None:
  """Runs the launcher with the command line, and exits."""
  from gen_jax.devices import startup

  startup.prepare(sys.argv[0])
  from gen_jax.run import launcher

  startup.leave(launcher.main())
