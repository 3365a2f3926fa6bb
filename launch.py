"""Trains, samples, evaluates, compares, lists and exports: `python launch.py --help`.

The command `gen_jax`, which `pip install .` gives, is the same program (gen_jax/run/launcher.py).
"""

from gen_jax.run.launcher import command, main

__all__ = ['command', 'main']

if __name__ == '__main__':
  command()
