"""Networks: Flax (linen) modules, and the function that turns a config's net into a module.

A config names a net and sets its attributes, `config.generator = dict(name='dcgan.Generator',
features=64)`. The name is looked up in this package; a dotted path to any importable Flax module,
or, in a script, the class itself, works as well, so that a net of your own needs no edit here.
"""

import dataclasses
import difflib
import importlib
import inspect
import pathlib
import pkgutil
import re
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.devices import fsdp
from gen_jax.errors import UserError
from gen_jax.host import imports

# Attributes that systems set on modules that declare them.
OFFERED = ('shape', 'axis_name', 'out_channels', 'drop_labels')


class Net(NamedTuple):
  """A Flax module as a training step uses it: its parameters are float32 and may be sharded over
  devices; `apply` gathers them and casts them to the compute dtype.
  """

  module: nn.Module
  precision: str = 'float32'

  def init(self, *args, **kwargs):
    """`module.init`: parameters in float32."""
    return self.module.init(*args, **kwargs)

  def apply(self, variables, *args, **kwargs):
    """`module.apply`, with parameters and inputs cast to `precision`; outputs are float32. Batch
    statistics are not cast, nor inputs of one number per example, such as times: bfloat16 would
    merge neighbouring ones.
    """
    params = self._in(self.precision, variables['params'])
    args = jax.tree.map(lambda x: self._in(self.precision, x) if jnp.ndim(x) > 1 else x, args)
    made = self.module.apply(fsdp.replicated(dict(variables, params=params)), *args, **kwargs)
    return self._in('float32', made)

  def _in(self, precision, tree):
    if self.precision == 'float32':
      return tree
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: x.astype(precision) if floating(x) else x, tree)


def find(name, field: str = 'config.net') -> type[nn.Module]:
  """Returns the module class that `name` refers to: 'file.Class' of this package, a dotted path,
  or a class.

  Raises:
    UserError: nothing importable has that name, it lies in the folder of a run, or it is not a Flax
      module.
  """
  if isinstance(name, type):
    found = name
  else:
    file, _, attribute = name.rpartition('.')
    home = __name__ if file in _files() else None
    try:
      module = imports.module(f'{home}.{file}' if home else file)
      with imports.guarded():  # a module may import what it is asked for
        found = getattr(module, attribute)
    except UserError as e:
      raise UserError(f'{field}.name={name!r}: {e}') from e
    except (ImportError, AttributeError, TypeError, ValueError) as e:
      near = difflib.get_close_matches(name, known(), n=1)
      hint = (
        f'did you mean {near[0]}?' if near else f'one of {", ".join(known())}, or a dotted path'
      )
      raise UserError(f'{field}.name={name!r} cannot be imported ({e}); {hint}') from e
  if not (isinstance(found, type) and issubclass(found, nn.Module)):
    raise UserError(f'{field}.name={name!r} is not a subclass of flax.linen.Module')
  return found


def make(spec, field: str = 'config.net', *, precision: str = 'float32', **offered) -> Net:
  """Builds the net of `spec`, a mapping with `name` and the module's attributes.

  Args:
    spec: a config's net group.
    field: the group's dotted name, for messages.
    precision: the compute dtype, float32 or bfloat16.
    **offered: the attributes in `OFFERED`, omitted for modules that do not declare them. The spec
      takes precedence.

  Raises:
    UserError: unknown name, unknown attribute, or a value that the module rejects.
  """
  module, names = _find_with_attributes(spec, field)
  attributes = {k: v for k, v in spec.items() if k != 'name'}
  offered = {k: v for k, v in offered.items() if k in names}
  try:
    return Net(module(**(offered | attributes)), precision)
  except TypeError as e:
    raise UserError(f'{field}: {spec["name"]} cannot be built ({e})') from e


def complete(spec, field: str = 'config.net') -> dict:
  """`spec` completed by the module's defaults of its other attributes, so that a saved config
  determines the net. It excludes functions and other values that JSON cannot hold, and the
  attributes that a system sets (`OFFERED`).

  Raises:
    UserError: unknown name or attribute.
  """
  module, names = _find_with_attributes(spec, field)
  defaults = {
    f.name: _as_tuple(f.default)
    for f in dataclasses.fields(module)
    if f.name in names and f.name not in OFFERED and _is_plain(f.default)
  }
  return {'name': spec['name']} | defaults | dict(spec)


def about(name, attribute: str) -> str:
  """The meaning of an attribute in a module's source: the comment on its line, and the type."""
  module = find(name)
  inherited = (c for c in module.__mro__ if attribute in inspect.get_annotations(c))
  declared = rf'^  {re.escape(attribute)}: ([^=#\n]+?)(?: = [^#\n]*?)?(?:  # (.*))?$'
  try:
    found = re.search(declared, inspect.getsource(next(inherited, module)), re.MULTILINE)
  except (OSError, TypeError):  # a class defined in a notebook or at run time
    found = None
  if not found:
    return f'attribute of {name}'
  return f'{found[2] or f"attribute of {name}"} ({found[1]})'


def _find_with_attributes(spec, field):
  """The module of a spec, and the names of its attributes."""
  module = find(spec['name'], field)
  names = [f.name for f in dataclasses.fields(module) if f.name not in ('parent', 'name')]
  for attribute in spec:
    if attribute not in ('name', *names):
      near = difflib.get_close_matches(attribute, names, n=1)
      hint = f'did you mean {field}.{near[0]}?' if near else f'it has {", ".join(names)}'
      raise UserError(f'{field}.{attribute} is not an attribute of {spec["name"]}; {hint}')
  return module, names


def _is_plain(value) -> bool:
  if isinstance(value, list | tuple):
    return all(map(_is_plain, value))
  return value is None or isinstance(value, bool | int | float | str)


def _as_tuple(value):
  return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


def files() -> set[str]:
  """Paths of the source files of this package's nets."""
  return {str(pathlib.Path(__path__[0]) / f'{name}.py') for name in _files()}


def _files() -> list[str]:
  return [m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg]


def known() -> list[str]:
  """The nets of this package, as 'file.Class'."""
  names = []
  for file in _files():
    module = importlib.import_module(f'{__name__}.{file}')
    names += [
      f'{file}.{name}'
      for name, value in vars(module).items()
      if isinstance(value, type)
      and issubclass(value, nn.Module)
      and value.__module__ == module.__name__
    ]
  return names
