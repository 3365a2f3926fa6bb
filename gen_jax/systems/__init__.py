"""One file per generative system; `config.system` names the file."""

import importlib
import pkgutil
from types import ModuleType

from gen_jax.errors import UserError
from gen_jax.fields import did_you_mean


def names() -> list[str]:
  """Returns the names of all systems, in alphabetical order, without importing them."""
  found = (module.name for module in pkgutil.iter_modules(__path__))
  return sorted(name for name in found if not name.startswith('_'))


def find_system(name: str) -> ModuleType:
  """Imports the module of a system.

  Raises:
    UserError: there is no system of this name.
  """
  known = names()
  if name not in known:
    hint = did_you_mean(str(name), known)
    raise UserError(f'config.system={name!r}: one of {", ".join(known)} is needed{hint}')
  try:
    importlib.import_module('jax')
  except (ValueError, RuntimeError) as error:
    raise UserError(f'JAX cannot start, an environment variable of it is wrong: {error}') from error
  return importlib.import_module(f'{__name__}.{name}')
