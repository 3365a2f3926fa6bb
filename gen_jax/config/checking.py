"""Checks a config by the rules of its fields (`gen_jax.fields`), and completes it."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from gen_jax import systems
from gen_jax.config.tree import groups_of, merge, plain, put, short
from gen_jax.errors import UserError
from gen_jax.fields import INT32, REQUIRED, SHARED, Field, did_you_mean


def check(
  config: Mapping | ConfigDict, fields: Mapping[str, Field] | None = None
) -> FrozenConfigDict:
  """Returns the complete config: every field in its own type and, where `config` lacks it, with its
  default; frozen and hashable.

  Args:
    config: the complete config, or at least all fields that have no default.
    fields: dotted path -> rule, for the system's own groups; None: the `FIELDS` of
      config.system.

  Raises:
    UserError: a field is unknown, missing, of the wrong type or out of range, or a net has no such
      name or attribute.
  """
  given = plain(config)
  if fields is None:
    fields = systems.find_system(given.get('system')).FIELDS
  rules = SHARED | dict(fields)
  present = dict(fields_of(given, rules))
  values = {}
  for path, rule in sorted(rules.items(), key=lambda item: item[1].when is not None):
    if rule.strict and not rule.matters(path, values.get):
      values[path] = present.get(path)
      if values[path] is not None:
        switch = rule.switch(path)
        raise UserError(
          f'config.{path}={short(values[path])}, but config.{switch}={values[switch]!r} does not '
          'use it: None is needed'
        )
      continue
    value = present.get(path, rule.default)
    if value is REQUIRED:
      raise UserError(f'config.{path} is missing: {rule} is needed')
    if rule.same_as is not None and isinstance(value, str) and value == rule.same_as:
      value = values[rule.same_as]
    values[path] = _accept(path, value, rule)
  needed = {'folder': 'the folder of images', 'arrays': 'the file of arrays'}
  if (name := values['data.name']) in needed and values['data.path'] is None:
    raise UserError(f'config.data.path=None: config.data.name={name!r} needs {needed[name]}')
  complete = {}
  for path in rules:
    put(complete, path, values[path])
  return FrozenConfigDict(complete)


def make(system: str, values: Mapping[str, Any]) -> FrozenConfigDict:
  """Returns a checked config without a file, as in `make('gan', {'data.shape': (2,), ...})`.

  Args:
    system: a file of gen_jax/systems.
    values: nested groups or dotted paths; what is left out has its default.

  Raises:
    UserError: as `check`.
  """
  tree = {'system': system}
  merge(tree, plain(values))
  return check(tree)


def fields_of(tree: dict, rules: Mapping[str, Field], prefix=''):
  """Yields (dotted path, value) for each field of the rules; rejects any other."""
  groups = groups_of(rules)
  for key, value in tree.items():
    path = f'{prefix}{key}'
    if '.' not in str(key) and path in rules:
      yield path, value
    elif '.' in str(key) or path not in groups:
      nets = [p for p, rule in rules.items() if rule.type == 'net']
      known = (
        [*groups, *nets] if isinstance(value, dict) else [*rules, *(f'{p}.name' for p in nets)]
      )
      raise unknown(path, known)
    elif isinstance(value, dict):
      yield from fields_of(value, rules, f'{path}.')
    else:
      inside = [f'config.{p}' for p in rules if p.startswith(f'{path}.')]
      shown = inside if len(inside) < 5 else [*inside[:3], '...']
      raise UserError(f'config.{path}={short(value)}: it is a group of fields ({", ".join(shown)})')


def unknown(path: str, known: Iterable[str]) -> UserError:
  # The same name in another group is a better guess than a similar name in this group.
  moved = [k for k in known if k.rpartition('.')[2] == path.rpartition('.')[2]]
  hint = did_you_mean(path, moved or known, 'config.', cutoff=0.0 if moved else 0.6)
  return UserError(f'config.{path} is not a field{hint}')


def _accept(path: str, value, rule: Field):
  if rule.type == 'net' and not (value is None and rule.optional):
    _check_net(path, value, rule)
    from gen_jax import nets  # imports JAX

    return nets.complete(value, f'config.{path}')
  try:
    return rule.accept(value)
  except ValueError as e:
    why = str(e) or f'{rule} is needed'
    if rule.type == 'choice' and isinstance(value, str):
      why += did_you_mean(value.lower(), filter(_is_text, rule.choices))
    raise UserError(f'config.{path}={short(value)}: {why}') from e


def _is_text(value) -> bool:
  return isinstance(value, str)


def _check_net(path: str, net, rule: Field):
  if not isinstance(net, dict):
    raise UserError(f'config.{path}={short(net)}: {rule} is needed')
  if 'name' not in net:
    raise UserError(f"config.{path}.name is missing: the net's 'module.Class' is needed")
  name = net['name']
  if not isinstance(name, type) and not (
    isinstance(name, str) and '.' in name and all(map(str.isidentifier, name.split('.')))
  ):
    raise UserError(
      f"config.{path}.name={short(name)}: 'module.Class' of gen_jax.nets, or the dotted path of "
      'an importable Flax module, is needed'
    )
  _check_arguments(path, net)


def _check_arguments(path: str, value, in_tuple=False):
  """Rejects what a FrozenConfigDict cannot hold, and NaN: a config with one never equals itself."""
  if isinstance(value, dict):
    if in_tuple:
      raise UserError(f'config.{path} holds a dict inside a tuple: a group of its own is needed')
    for key, v in value.items():
      if not is_name(key):
        raise UserError(f'config.{path}: {short(key)} cannot be the name of an argument')
      _check_arguments(f'{path}.{key}', v)
  elif isinstance(value, tuple):
    for v in value:
      _check_arguments(path, v, in_tuple=True)
  elif isinstance(value, float) and math.isnan(value):
    raise UserError(f'config.{path}=nan: not a number')
  elif isinstance(value, int) and abs(value) > INT32:
    raise UserError(f'config.{path}={short(value)}: an integer up to {INT32} is needed')
  elif isinstance(value, str) and not value.isprintable():
    raise UserError(f'config.{path}={short(value)}: text that can be printed is needed')
  else:
    try:
      hash(value)
    except TypeError as e:
      raise UserError(
        f'config.{path}={short(value)}: numbers, text, True, False, None and tuples of them are '
        'needed'
      ) from e


def is_name(key) -> bool:
  return isinstance(key, str) and key.isidentifier() and not hasattr(ConfigDict, key)
