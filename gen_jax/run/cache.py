"""The user's cache of what can be fetched or computed again: weights of feature networks,
classifiers, reference features, compiled programs.
"""

import os
import pathlib

from gen_jax.errors import UserError
from gen_jax.run.paths import local


def cache_folder(*names: str) -> pathlib.Path:
  """`$GEN_JAX_CACHE`, or `gen_jax` in `$XDG_CACHE_HOME` (`~/.cache`), and `names` below it;
  created if it does not exist.

  Raises:
    UserError: it is no path of this machine, or cannot be created.
  """
  home = local(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'XDG_CACHE_HOME')
  root = local(os.environ.get('GEN_JAX_CACHE') or home / 'gen_jax', 'GEN_JAX_CACHE')
  folder = root.joinpath(*names)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'{folder} cannot be created ({error.strerror}): set GEN_JAX_CACHE to a writable folder'
    ) from error
  return folder
