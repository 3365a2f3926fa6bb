"""Fields of a config from text: `--config.x.y=value`."""

import ast
from collections.abc import Iterable, Mapping

from gen_jax.config.checking import is_name, unknown
from gen_jax.config.tree import flatten, groups_of, plain, put, short
from gen_jax.errors import UserError
from gen_jax.fields import Field


def split_overrides(argv: Iterable[str]) -> tuple[list[tuple[str, str]], list[str]]:
  """Extracts `--config.x.y=value` and `--config.x.y value` from a command line.

  Returns:
    The overrides, as `load` takes them, and the other arguments.

  Raises:
    UserError: the value is missing.
  """
  overrides, others, args = [], [], iter(argv)
  for arg in args:
    if not arg.startswith('--config.'):
      others.append(arg)
      continue
    flag, given, value = arg.partition('=')
    if not given:
      value = next(args, '--')
      if value.startswith('--'):
        raise UserError(f'{flag} needs a value: {flag}=VALUE')
    overrides.append((flag.removeprefix('--config.'), value))
  return overrides, others


def override(tree: dict, path: str, text: str, rules: Mapping[str, Field]):
  rule = rules.get(path)
  if rule is not None and rule.type != 'net':
    return put(tree, path, parse(text, rule))
  *groups, key = path.split('.')
  in_net = any(r.type == 'net' and path.startswith(f'{p}.') for p, r in rules.items())
  parent = tree
  for group in groups:
    parent = parent.get(group, {}) if isinstance(parent, dict) else None
  if isinstance(parent, dict):
    current = parent.get(key)
    if rule is not None or path in groups_of(rules) or isinstance(current, dict):
      inside = [p for p in rules if p.startswith(f'{path}.')]
      inside += [f'{path}.{p}' for p, _ in flatten(current)] if isinstance(current, dict) else []
      example = f', such as config.{inside[0]}' if inside else ''
      raise UserError(f'config.{path} is a group of fields: set one of them{example}')
    if in_net and all(map(is_name, [*groups, key])):
      return put(tree, path, _parse_attribute(path, text, current))
  raise unknown(path, {*rules, *(p for p, _ in flatten(tree))})


def parse(text: str, rule: Field):
  """Parses `text` as the type of the rule."""
  value = _literal(text)
  if rule.many and rule.type == 'choice' and isinstance(value, str):
    return tuple(text.split(','))  # a,b
  if rule.many and rule.type == 'text' and value is not None:
    if isinstance(value, tuple) and all(isinstance(v, str) for v in value):
      return value
    return tuple(part.strip() for part in text.strip('()[] ').split(','))  # a,b or 0,1
  if rule.type in ('text', 'path', 'choice') and not rule.many:
    if value is None and not (rule.optional or rule.strict):
      return text
    if rule.type == 'path' and rule.optional and (value is False or text.lower() == 'none'):
      return value if value is False else None  # no folder of that name
    if rule.type in ('text', 'path') or all(isinstance(choice, str) for choice in rule.choices):
      return value if isinstance(value, str | None) else text
    if rule.choices[0] in (True, False) and isinstance(rule.choices[0], bool):
      return bool(value) if type(value) is int and value in (0, 1) else value
    return value
  if rule.type == 'integer' and isinstance(value, float) and value.is_integer():
    value = int(value)  # 1e6
  if isinstance(value, int | float) and rule.many:
    value = (value,)
  return value


def _parse_attribute(path: str, text: str, current):
  """Parses `text` as the type of the current value of a net's attribute."""
  value = _literal(text)
  if isinstance(current, str):
    return value if isinstance(value, str | None) else text
  # The type behind a None is not known here; a module that expects a float accepts an int, too.
  if (current is None or type(current) is int) and isinstance(value, float) and value.is_integer():
    value = int(value)  # 1e6
  if isinstance(value, int | float) and isinstance(current, tuple):
    value = (value,)
  if isinstance(current, bool) and type(value) is int and value in (0, 1):
    value = bool(value)
  bare = isinstance(value, str) and value == text
  if current is not None and (
    bare or (isinstance(current, bool) and not isinstance(value, bool | None))
  ):
    raise UserError(f'config.{path}={short(text)}: a value such as {short(current)} is needed')
  return value


def _literal(text: str):
  """The Python literal that `text` is (also true, false, nan, inf), or else the text itself."""
  try:
    return plain(ast.literal_eval(text))
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    pass
  if text.lower() in ('true', 'false'):
    return text.lower() == 'true'
  try:
    return float(text)
  except ValueError:
    return text
