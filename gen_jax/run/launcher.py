"""Trains a generative model (or resumes a stopped run), generates samples, scores them, lists and
compares runs, or exports their weights.

  python launch.py --config=configs/ddpm_digits.py
  python launch.py --config=configs/ddpm_cifar.py:smoke --config.train.steps=100 --workdir=runs/try
  python launch.py --mode=sample --workdir=runs/ddpm_digits
  python launch.py --mode=sample --workdir=runs/pix2pix_emoji --input=FOLDER
  python launch.py --mode=evaluate --workdir=runs/ddpm_digits
  python launch.py --mode=list --workdir=runs
  python launch.py --mode=compare --workdir=runs/ddpm_digits,runs/gan_mnist
  python launch.py --mode=export --workdir=runs/ddpm_digits
  python launch.py --mode=import --from=ddpm-cifar10-32 --workdir=runs/published

Exit status: 0 finished, 1 diverged, 2 a user error (one line on stderr), 130, 143 or 129 stopped by
Ctrl-C, SIGTERM or SIGHUP, 3 another process of the run has ended or hangs.
"""

import logging
import sys
import time
from pathlib import Path

from gen_jax import config as configs
from gen_jax.errors import UserError
from gen_jax.host import console, imports
from gen_jax.run import flags as command_line


def run(argv):
  started = time.monotonic()
  # Before any library configures logging.
  logging.basicConfig(format='%(message)s', level=logging.WARNING, stream=console.STDERR)
  overrides, argv = configs.split_overrides(argv)
  flags = command_line.parse(argv, description=_usage())
  if flags.list:
    console.tell(configs.summaries(configs.shipped()), sys.stdout)
    return 0
  if flags.mode == 'compare':
    if not flags.workdir or flags.config or overrides:
      raise UserError('--mode=compare needs --workdir=FOLDER,FOLDER,... and nothing else')
    from gen_jax import compare

    return compare.run(flags.workdir)
  if flags.mode == 'list':
    if flags.config or overrides:
      raise UserError('--mode=list takes --workdir=FOLDER,FOLDER,... and nothing else')
    from gen_jax.run import listing

    return listing.run(flags.workdir)
  if flags.mode == 'import':
    from gen_jax.run import published

    return published.run(flags.from_, flags.workdir, overrides)
  spec = command_line.config_file(flags)
  config, origins = configs.resolve(spec, overrides)
  workdir = Path(flags.workdir or configs.default_workdir(spec))
  # These import jax, which takes seconds; --help and --list do not need it.
  from gen_jax import contract, evaluate, sample, train
  from gen_jax.devices import compilation, processes
  from gen_jax.run import export

  processes.initialize(flags.coordinator, flags.num_processes, flags.process_id)
  if flags.dry_run:
    text = f'{configs.describe(config, origins)}\n\n{contract.describe(config)}'
    console.tell(text, sys.stdout)
    return 0
  compilation.keep_programs(config)
  if flags.mode == 'train':
    return train.run(config, workdir, started)
  verb = dict(sample=sample, evaluate=evaluate, export=export)[flags.mode]
  return verb.run(config, workdir, **command_line.of_the_mode(flags))


def main(argv=None) -> int:
  """Returns the exit status; `argv` excludes the program's name (default: the command line)."""
  try:
    with imports.guarded():
      return run(sys.argv[1:] if argv is None else argv)
  except UserError as error:
    console.tell(f'error: {error}')
    return 2
  except KeyboardInterrupt:
    return 130
  except SystemExit as error:  # of --help, or of SIGTERM before there is anything to save
    return error.code or 0


def _usage() -> str:
  """The text above, in the words of the installed command where that was called."""
  installed = Path(sys.argv[0]).stem == 'gen_jax'
  return __doc__.replace('python launch.py', 'gen_jax') if installed else __doc__
