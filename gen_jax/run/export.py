"""The verb of `--mode=export`: the weights of a run as files that `gen_jax.load` reads."""

import sys

from gen_jax.devices import processes
from gen_jax.errors import UserError
from gen_jax.host import console
from gen_jax.run import signals, trained


@signals.exit_in_order()
def run(config, workdir, step=None, weights=None, player=None, dtype=None, out=None) -> int:
  """Writes an export of the run in `workdir` (`trained.Run.export`) and prints its folder.

  Args:
    config: checked config.
    workdir: folder of the run.
    step: which checkpoint; None: the newest that is intact.
    weights: 'ema' or 'raw'; None: what the run samples with.
    player: the only network to write; None: all.
    dtype: 'float32' (also None) or 'float16'.
    out: the new folder; None: `export` in that of the run.

  Returns:
    The exit status, 0.

  Raises:
    UserError: as `trained.load` and `trained.Run.export`.
  """
  if processes.several():
    raise UserError('--mode=export is for one process')
  opened = trained.open_run(config, workdir, step, weights)
  console.tell(opened.export(out, player, dtype or 'float32'), sys.stdout)
  return 0
