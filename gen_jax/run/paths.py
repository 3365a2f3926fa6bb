"""Paths as people write them."""

import pathlib

from gen_jax.errors import UserError
from gen_jax.fields import local_path


def local(text, name: str) -> pathlib.Path:
  """A path of this machine, with `~` as the home folder.

  Args:
    text: the path as the user gave it.
    name: the flag or argument that holds it, for messages.

  Raises:
    UserError: it is empty, a URL or not valid UTF-8.
  """
  try:
    return pathlib.Path(local_path(text))
  except ValueError as error:
    raise UserError(f'{name}={ascii(text)}: {error}') from None
