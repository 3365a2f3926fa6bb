"""One file per generative system; `config.system` names the file, or another module by its dotted
path.
"""

import importlib
import pkgutil
import reprlib
from types import ModuleType

from gen_jax.errors import UserError
from gen_jax.fields import did_you_mean
from gen_jax.host import imports

NEEDED = ('FIELDS', 'init_state', 'train_step')  # of the contract (gen_jax.contract)


def names() -> list[str]:
  """Returns the names of all systems, in alphabetical order, without importing them."""
  found = (module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
  return sorted(name for name in found if not name.startswith('_'))


def find_system(name: str) -> ModuleType:
  """Imports the module of a system: one of `names()`, or any by its dotted path.

  Raises:
    UserError: there is no system of this name.
  """
  known = names()
  if name in known or '.' in str(name):
    try:
      importlib.import_module('jax')
    except (ValueError, RuntimeError) as error:
      raise UserError(
        f'JAX cannot start, an environment variable of it is wrong: {error}'
      ) from error
  if name in known:
    return importlib.import_module(f'{__name__}.{name}')
  field = f'config.system={reprlib.repr(name)}'
  try:
    if not all(map(str.isidentifier, str(name).split('.'))):
      raise ModuleNotFoundError
    found = imports.module(str(name))
  except UserError as e:
    raise UserError(f'{field}: {e}') from e
  except ImportError as e:
    if isinstance(e, ModuleNotFoundError) and str(name).startswith(e.name or ''):
      hint = did_you_mean(str(name), known)
      raise UserError(
        f'{field}: one of {", ".join(known)}, or the dotted path of a module, is needed{hint}'
      ) from None
    raise UserError(f'{field} cannot be imported ({e})') from e
  if missing := [part for part in NEEDED if part not in vars(found)]:
    raise UserError(f'{field} is no system: it has no {" and no ".join(missing)}')
  return found
