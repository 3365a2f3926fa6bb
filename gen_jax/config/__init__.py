"""Reading, checking, completing, saving and comparing configs.

A config file is a Python file with `get_config() -> ConfigDict`, which holds what an experiment
sets, and `SMOKE`, {dotted path: value}, which shrinks its nets. Rules (`gen_jax.fields`) hold the
default of every other field. They are applied in this order: defaults, the file, `:smoke`, the
command line. JAX is imported only once a file has named its system.

    files         config files and `:smoke`; `load` and `resolve`
    command_line  `--config.x.y=value`
    checking      a config against the rules; `check` and `make`
    forms         as a dict, as JSON, as text; `replace`
    resuming      which fields a resumed run may change
    tree          nested dicts and dotted paths, for all of these

(`ml_collections.config_flags` reports an unknown field by a long traceback and accepts nan.)
"""

from gen_jax.config.checking import check, make
from gen_jax.config.command_line import split_overrides
from gen_jax.config.files import (
  Resolved,
  default_workdir,
  load,
  resolve,
  shipped,
  split_spec,
  summaries,
)
from gen_jax.config.forms import describe, from_json, leaves, replace, to_dict, to_json
from gen_jax.config.resuming import (
  SAFE_TO_CHANGE,
  check_resumable,
  difference,
  is_safe_to_change,
)

__all__ = [
  'SAFE_TO_CHANGE',
  'Resolved',
  'check',
  'check_resumable',
  'default_workdir',
  'describe',
  'difference',
  'from_json',
  'is_safe_to_change',
  'leaves',
  'load',
  'make',
  'replace',
  'resolve',
  'shipped',
  'split_overrides',
  'split_spec',
  'summaries',
  'to_dict',
  'to_json',
]
