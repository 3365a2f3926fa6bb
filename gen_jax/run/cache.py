"""The folder of the user where things are kept that can be made again: weights, classifiers,
reference features; and that of compiled programs.
"""

import os
import pathlib

import jax

from gen_jax.errors import UserError


def cache_folder(*names: str) -> pathlib.Path:
  """`$GEN_JAX_CACHE`, or `gen_jax` in `$XDG_CACHE_HOME` (`~/.cache`), and `names` below it; made if
  need be.

  Raises:
    UserError: it cannot be made.
  """
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path('~/.cache').expanduser()
  root = os.environ.get('GEN_JAX_CACHE') or pathlib.Path(home) / 'gen_jax'
  folder = pathlib.Path(root).joinpath(*names)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'{folder} cannot be made ({error.strerror}): set GEN_JAX_CACHE to a folder that can'
    ) from error
  return folder


def programs_folder() -> str | None:
  """Where JAX keeps compiled programs in this process, a folder or a bucket; None: nowhere."""
  return jax.config.jax_compilation_cache_dir if jax.config.jax_enable_compilation_cache else None
