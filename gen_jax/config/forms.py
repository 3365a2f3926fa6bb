"""Complete configs as dicts, as JSON and as text, and with other values."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from gen_jax import __version__, systems
from gen_jax.config.tree import flatten, map_leaves, plain, put, short
from gen_jax.errors import UserError
from gen_jax.fields import SHARED


def to_dict(config: Mapping | ConfigDict) -> dict:
  """Returns nested dicts of plain values, sequences as tuples, classes as 'module.Class'."""
  return map_leaves(
    plain(config), lambda v: f'{v.__module__}.{v.__qualname__}' if isinstance(v, type) else v
  )


def leaves(config: Mapping | ConfigDict):
  """Yields (dotted path, value) of every field."""
  return flatten(to_dict(config))


def replace(config: Mapping | ConfigDict, values: Mapping[str, Any]) -> FrozenConfigDict:
  """Returns the config with other values, {dotted path: value}, in place of some."""
  tree = plain(config)
  for path, value in values.items():
    put(tree, path, value)
  return FrozenConfigDict(tree)


def describe(config: Mapping | ConfigDict, origins: Mapping[str, str] | None = None) -> str:
  """Returns one aligned line for each field: path and value in the form that the command line
  takes, where it was set (blank: the default), its meaning, and the values allowed.
  """
  from gen_jax import nets  # imports JAX

  values = dict(sorted(leaves(config), key=lambda field: '.' in field[0]))
  rules = SHARED | systems.find_system(config['system']).FIELDS
  rows = []
  for path, value in values.items():
    if path in rules:
      rule = rules[path]
      about = f'{rule.meaning or path} ({rule})'
      if not rule.matters(path, values.get):
        switch = rule.switch(path)
        about += f'; not used with {switch.rpartition(".")[2]}={values[switch]!r}'
    else:
      net = next(p for p, rule in rules.items() if rule.type == 'net' and path.startswith(f'{p}.'))
      attribute, name = path.removeprefix(f'{net}.'), values[f'{net}.name']
      about = rules[net].meaning if attribute == 'name' else nets.about(name, attribute)
    rows.append((f'config.{path}', repr(value), (origins or {}).get(path, ''), about))
  name, said, origin = (max(len(row[i]) for row in rows) for i in range(3))
  said = min(said, 24)
  return '\n'.join(
    f'{path:{name}} = {value:{said}} {mark:{origin}}  {about}' for path, value, mark, about in rows
  )


def to_json(config: Mapping | ConfigDict) -> str:
  """Returns the config as JSON that `from_json` turns back into an equal config.

  Raises:
    UserError: a field holds an object that JSON cannot represent (a function, an array).
  """
  values = to_dict(config)
  for path, value in flatten(values):
    try:
      json.dumps(value)
    except (TypeError, ValueError) as e:
      raise UserError(
        f'config.{path}={short(value)} cannot be saved: numbers, text, True, False, None and '
        'tuples of them can, and a class by its name'
      ) from e
  return json.dumps({'gen_jax': __version__} | values, indent=2) + '\n'


def from_json(text: str, path: Path | None = None) -> FrozenConfigDict:
  """Returns the config that `to_json` wrote. Nothing is executed.

  Args:
    text: the JSON.
    path: the file that held it, for messages.

  Raises:
    UserError: the text is not JSON, not a config, or that of a version before 0.2.
  """
  place = '' if path is None else f'{path}: '
  try:
    values = json.loads(text)
    if not isinstance(values, dict):
      raise ValueError('a JSON object is needed')
    version = values.pop('gen_jax', None)
    config = FrozenConfigDict(plain(values))
  except (ValueError, KeyError, RecursionError) as e:
    raise UserError(f'{place}not a config as JSON: {e}') from e
  if version is None:
    raise UserError(
      f'{place}a config of a version before 0.2, which gen_jax {__version__} does not read: train '
      'again, or use the version that wrote it'
    )
  return config
