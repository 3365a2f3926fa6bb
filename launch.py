"""Trains, samples, evaluates, compares, lists and exports: `python launch.py --help`.

The command `gen_jax`, which `pip install .` gives, is the same program (gen_jax/run/launcher.py).
"""

if __name__ == '__main__':
  from gen_jax.run import command

  command.run()
else:
  from gen_jax.run.launcher import main

  __all__ = ['main']
