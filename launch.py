"""Trains, samples, evaluates, compares, lists and exports: `python launch.py --help`.

The command `gen_jax`, which `pip install .` gives, is the same program (gen_jax/run/launcher.py).
"""

import _signal  # what `signal` is made of: importing that takes milliseconds
import os

if __name__ == '__main__':  # from the first line on; `startup.prepare` does the rest
  for number in (_signal.SIGINT, _signal.SIGTERM):
    _signal.signal(number, lambda number, frame: os._exit(128 + number))

from gen_jax.run.launcher import command, main

__all__ = ['command', 'main']

if __name__ == '__main__':
  command()
