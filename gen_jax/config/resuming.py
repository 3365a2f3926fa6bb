"""Whether a run that began with one config may be resumed with another."""

import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gen_jax.config.forms import leaves, replace
from gen_jax.config.tree import short
from gen_jax.errors import UserError
from gen_jax.fields import REQUIRED, SHARED

# A run may be resumed with these fields changed (fnmatch patterns): they say how long it trains,
# what it writes and where it runs.
SAFE_TO_CHANGE = (
  'compilation_cache',
  'profile_steps',
  'train.steps',
  'train.steps_per_call',
  'optim.*decay_steps',  # a longer run needs a longer schedule
  'train.log_steps',
  'train.sample_steps',
  'train.checkpoint_steps',
  'train.keep_checkpoints',
  'train.init_from',  # its checksum is compared instead, see `starting.initial_weights`
  'sample.*',
  'eval.*',
  'net.remat',
  'data.path',
  'data.x.path',
  'data.storage',
  'data.read_threads',
  'data.prefetch',
  'parallel.*',
)


def difference(old: Mapping, new: Mapping) -> tuple[str, Any, Any] | None:
  """Returns (dotted path, old value, new value) of the first field that differs, or `None`.

  Fields in `SAFE_TO_CHANGE` are ignored. A field that one config lacks is '(absent)' there.
  """
  old, new = dict(leaves(old)), dict(leaves(new))
  for path in [*new, *(p for p in old if p not in new)]:
    a, b = old.get(path, '(absent)'), new.get(path, '(absent)')
    if a != b and not is_safe_to_change(path):
      return path, a, b
  return None


def is_safe_to_change(path: str) -> bool:
  """Whether the field is one of `SAFE_TO_CHANGE`."""
  return any(fnmatch.fnmatchcase(path, pattern) for pattern in SAFE_TO_CHANGE)


def check_resumable(old: Mapping, new: Mapping, workdir: str | Path) -> None:
  """Checks that a run in `workdir`, started with the config `old`, may be resumed with `new`.

  Raises:
    UserError: a field differs that is not safe to change.
  """
  known = {path for path, _ in leaves(old)}
  # A field that is newer than the run has its default there.
  added = {
    path: rule.default
    for path, rule in SHARED.items()
    if path not in known and rule.default is not REQUIRED
  }
  found = difference(replace(old, added), new)
  if found:
    path, a, b = found
    raise UserError(
      f'config.{path}={short(b)}, but the run in {workdir} was started with {short(a)}: '
      'set it back, or start a new run with another --workdir'
    )
