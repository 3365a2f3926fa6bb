"""Trains a generative model (or goes on with a stopped run), draws samples, scores them, or
compares runs.

  python launch.py --config=configs/ddpm_digits.py
  python launch.py --config=configs/ddpm_cifar.py:smoke --config.train.steps=100 --workdir=runs/try
  python launch.py --mode=sample --workdir=runs/ddpm_digits
  python launch.py --mode=evaluate --workdir=runs/ddpm_digits
  python launch.py --mode=compare --workdir=runs/ddpm_digits,runs/gan_mnist

Exit status: 0 finished, 1 diverged, 2 a mistake (told in one line), 130 or 143 stopped by Ctrl-C or
SIGTERM, 3 another process of the run has ended or hangs.
"""

import argparse
import gc
import logging
import os
import sys
import time
from pathlib import Path

from gen_jax import config as configs
from gen_jax import systems
from gen_jax.errors import UserError


class Parser(argparse.ArgumentParser):  # its own answer to a mistake is the whole usage
  def error(self, message):
    raise UserError(message)


def parse(argv):
  layout = argparse.RawDescriptionHelpFormatter
  parser = Parser(description=__doc__, formatter_class=layout, allow_abbrev=False)
  add = parser.add_argument
  add('--config', metavar='FILE[:ARG]', help='config file; :smoke is the same, small and quick')
  add('--config.FIELD', metavar='VALUE', help='set one field, e.g. --config.train.steps=1000')
  add('--workdir', metavar='FOLDER', help='of the run (default: runs/CONFIG_ARG)')
  modes = ['train', 'sample', 'evaluate', 'compare']
  add('--mode', choices=modes, default='train', help='default: train')
  add('--step', type=int, help='sample, evaluate: which checkpoint (default: the newest)')
  add('--samples', metavar='PATH', help='evaluate: a folder of images, .npz or .npy, not a run')
  add('--coordinator', metavar='HOST:PORT', help='of several processes, the same for all')
  add('--num_processes', type=int, metavar='N', help='how many (Slurm and TPU VMs need none')
  add('--process_id', type=int, metavar='I', help='of these flags), and which one this is')
  add('--dry_run', action='store_true', help='print config and parameters, and do nothing')
  add('--list', action='store_true', help='list the configs')
  flags, unknown = parser.parse_known_args(argv)
  if unknown:
    known = [f'--{name}' for name in (*vars(flags), *(f'config.{f}' for f in configs.SHARED))]
    hint = configs.did_you_mean(unknown[0].partition('=')[0], known)
    raise UserError(f'unknown argument {unknown[0]}{hint or "; --help names the flags"}')
  return flags


def run(argv):
  started = time.monotonic()
  # Before any library sets up its own form of it.
  logging.basicConfig(format='%(message)s', level=logging.WARNING)
  overrides, argv = configs.split_overrides(argv)
  flags = parse(argv)
  if flags.list:
    print(configs.summaries(Path(__file__).parent / 'configs'))
    return 0
  if flags.step is not None and (flags.mode == 'train' or flags.samples is not None):
    raise UserError('--step is for the checkpoints of --mode=sample and --mode=evaluate')
  if flags.samples is not None and flags.mode != 'evaluate':
    raise UserError('--samples is for --mode=evaluate')
  if flags.samples == '':
    raise UserError('--samples= names nothing; a folder of images, .npz or .npy is needed')
  if flags.mode == 'compare':
    if not flags.workdir or flags.config or overrides or flags.step is not None:
      raise UserError('--mode=compare needs --workdir=FOLDER,FOLDER,... and nothing else')
    from gen_jax import compare

    return compare.run(flags.workdir)
  saved = flags.mode != 'train' and flags.workdir and f'{flags.workdir}/config.json'
  if not (spec := flags.config or saved):
    raise UserError('--config=FILE is needed (--list names the configs)')
  config = configs.load(spec, overrides)
  workdir = Path(flags.workdir or configs.default_workdir(spec))
  config = configs.check(config, systems.find_system(config.get('system')).FIELDS)
  # These import jax: after the quick answers.
  from gen_jax import contract, evaluate, sample, train
  from gen_jax.devices import compilation, processes

  processes.initialize(flags.coordinator, flags.num_processes, flags.process_id)
  if flags.mode == 'evaluate' and processes.several():
    raise UserError('--mode=evaluate is for one process, which uses all devices of its host')
  if flags.dry_run:
    print(configs.describe(config), contract.describe(config), sep='\n\n')
    return 0
  compilation.keep_programs(config)
  if flags.mode == 'sample':
    return sample.run(config, workdir, step=flags.step)
  if flags.mode == 'evaluate':
    return evaluate.run(config, workdir, step=flags.step, samples=flags.samples)
  return train.run(config, workdir, started)


def main(argv=None) -> int:
  """Returns the exit status; `argv` leaves the program's name out (default: the command line)."""
  try:
    return run(sys.argv[1:] if argv is None else argv)
  except UserError as e:
    print(f'error: {e}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    return 130
  except SystemExit as e:  # of --help, or of SIGTERM before there is anything to save
    return e.code or 0


def keep_huge_pages():
  """Starts this process anew, with large arrays in huge pages where Linux gives them on request.

  A training step on CPU writes hundreds of megabytes that glibc has just got from the kernel, page
  by page of 4 KB otherwise: a tenth to a fifth of the step (docs/performance.md). glibc reads this
  when a process starts and never again. Only a plain `python launch.py` does so, not what a
  debugger, a profiler or a notebook runs; the user's own GLIBC_TUNABLES, empty too, stays.
  """
  plain = [os.path.abspath(arg) for arg in sys.orig_argv[1:2]] == [os.path.abspath(__file__)]
  if plain and sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
    os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == '__main__':
  keep_huge_pages()
  # Tracing a step makes hundreds of thousands of objects that stay. By default Python looks through
  # them all over and over, a fifth of the tracing.
  gc.set_threshold(50_000, 20, 100)
  status = main()
  if 'gen_jax.devices.processes' in sys.modules:
    sys.modules['gen_jax.devices.processes'].leave(status)
  sys.exit(status)
