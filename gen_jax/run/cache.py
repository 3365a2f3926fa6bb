"""The user's cache of what can be fetched or computed again: weights of feature networks,
classifiers, reference features, compiled programs.
"""

import os
import pathlib

from gen_jax.errors import UserError


def cache_folder(*names: str) -> pathlib.Path:
  """`$GEN_JAX_CACHE`, or `gen_jax` in `$XDG_CACHE_HOME` (`~/.cache`), and `names` below it;
  created if it does not exist.

  Raises:
    UserError: it cannot be created.
  """
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path('~/.cache').expanduser()
  root = os.environ.get('GEN_JAX_CACHE') or pathlib.Path(home) / 'gen_jax'
  folder = pathlib.Path(root).joinpath(*names)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'{folder} cannot be created ({error.strerror}): set GEN_JAX_CACHE to a writable folder'
    ) from error
  return folder
