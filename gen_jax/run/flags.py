"""The flags of the command line, and which verb takes which."""

import argparse
import itertools

from gen_jax.errors import UserError
from gen_jax.fields import SHARED, did_you_mean
from gen_jax.run.paths import local
from gen_jax.run.workdir import Workdir

# The verbs, and the flags that each takes besides --config and --workdir.
MODES = dict(
  train=(),
  sample=('step', 'input'),
  evaluate=('step', 'samples'),
  compare=(),
  list=(),
  export=('step', 'weights', 'player', 'dtype', 'out'),
  **{'import': ('from_',)},
)

PATHS = ('config', 'workdir', 'samples', 'input', 'out', 'from_')


class _Parser(argparse.ArgumentParser):  # argparse would answer a user error with the usage text
  def error(self, message):
    raise UserError(message)


def parse(argv: list[str], description: str) -> argparse.Namespace:
  """Parses the flags that are not `--config.FIELD=VALUE`.

  Raises:
    UserError: an unknown flag, a wrong value, or a flag that the mode does not take.
    SystemExit: after `--help`.
  """
  layout = argparse.RawDescriptionHelpFormatter
  parser = _Parser(description=description, formatter_class=layout, allow_abbrev=False)
  add = parser.add_argument
  add('--config', metavar='FILE[:ARG]', help='config file; :smoke makes it small and quick')
  add('--config.FIELD', metavar='VALUE', help='set one field, e.g. --config.train.steps=1000')
  add(
    '--workdir',
    metavar='FOLDER',
    help='folder of the run (default: runs/CONFIG_ARG); compare, list: folders',
  )
  add('--mode', choices=MODES, default='train', help='default: train')
  add('--step', type=int, help='not train: which checkpoint (default: the newest)')
  add('--input', metavar='FOLDER', help='sample: translate the images of a folder')
  add('--samples', metavar='PATH', help='evaluate: a folder of images, .npz or .npy, not a run')
  add('--weights', help='export: ema or raw (default: what the run samples with)')
  add('--player', metavar='NAME', help='export: one network, e.g. G (default: all)')
  add('--dtype', help='export: float32 (default) or float16')
  add('--out', metavar='FOLDER', help='export: target folder (default: export in the workdir)')
  add('--from', dest='from_', metavar='FOLDER', help='import: published weights (docs/sampling.md)')
  add('--coordinator', metavar='HOST:PORT', help='several processes: address of the first')
  add('--num_processes', type=int, metavar='N', help='several processes: how many there are')
  add('--process_id', type=int, metavar='I', help='number of this one (Slurm, TPU: omit all 3)')
  add('--dry_run', action='store_true', help='print config and parameter counts, then exit')
  add('--list', action='store_true', help='list the configs')
  flags, unknown = parser.parse_known_args(argv)
  if unknown:
    known = [f'--{name}' for name in (*vars(flags), *(f'config.{f}' for f in SHARED))]
    hint = did_you_mean(unknown[0].partition('=')[0], known)
    raise UserError(f'unknown argument {unknown[0]}{hint or "; --help names the flags"}')
  for name in itertools.chain(*MODES.values()):
    if getattr(flags, name) is not None and name not in MODES[flags.mode]:
      takers = ' and '.join(f'--mode={mode}' for mode, own in MODES.items() if name in own)
      raise UserError(f'--{name.rstrip("_")} is for {takers}')
  if flags.step is not None and flags.samples is not None:
    raise UserError('--step is for checkpoints of a run, not for --samples')
  for name in PATHS:
    if (text := getattr(flags, name)) is not None:
      several = name == 'workdir' and flags.mode in ('compare', 'list')
      texts = [part for part in text.split(',') if part] if several and text else [text]
      found = ','.join(str(local(text, f'--{name.rstrip("_")}')) for text in texts)
      setattr(flags, name, found)
  return flags


def config_file(flags: argparse.Namespace) -> str:
  """The config file that the flags name, or that of the run in their workdir.

  Raises:
    UserError: neither is there.
  """
  if flags.config:
    return flags.config
  if flags.mode == 'train':
    raise UserError('--config=FILE is needed (--list names the configs)')
  if not flags.workdir:
    raise UserError(f'--mode={flags.mode} needs --workdir=FOLDER, the folder of a run')
  file = Workdir(flags.workdir).config
  if not file.is_file():
    raise UserError(f'no run in {flags.workdir}: {file} is missing')
  return str(file)


def of_the_mode(flags: argparse.Namespace) -> dict:
  """The arguments that the verb takes besides config and workdir."""
  return {name: getattr(flags, name) for name in MODES[flags.mode]}
