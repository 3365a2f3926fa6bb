"""Configs as nested dicts of plain values, and their fields by dotted paths."""

import reprlib
from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict, FieldReference


def plain(value):
  """Nested dicts and tuples; their leaves are unchanged, references are followed."""
  if isinstance(value, FieldReference):
    value = value.get()
  if isinstance(value, ConfigDict | Mapping):
    return {key: plain(v) for key, v in value.items()}
  return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def map_leaves(value, function):
  """A tree with function(leaf) in place of each leaf."""
  if isinstance(value, dict):
    return {key: map_leaves(v, function) for key, v in value.items()}
  if isinstance(value, tuple):
    return tuple(map_leaves(v, function) for v in value)
  return function(value)


def flatten(tree: dict, prefix=''):
  """Yields (dotted path, value) of every leaf; an empty group is a leaf."""
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      yield from flatten(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def put(tree: dict, path: str, value):
  """Sets a field; makes the groups that it is in."""
  *groups, key = path.split('.')
  for group in groups:
    tree = tree.setdefault(group, {})
  tree[key] = value


def drop(tree: dict, path: str):
  """Removes a field."""
  *groups, key = path.split('.')
  for group in groups:
    tree = tree[group]
  del tree[key]


def merge(tree: dict, values: dict):
  """Sets fields, which `values` has in groups, by dotted paths, or both."""
  for path, value in values.items():
    *groups, key = str(path).split('.')
    group = tree
    for name in groups:
      group = group.setdefault(name, {})
    if isinstance(value, dict) and isinstance(group.setdefault(key, {}), dict):
      merge(group[key], value)
    else:
      group[key] = value


def groups_of(paths: Iterable[str]) -> set[str]:
  """The groups that fields of these paths are in."""
  return {'.'.join(path.split('.')[:i]) for path in paths for i in range(1, path.count('.') + 1)}


def short(value) -> str:
  """A value as text for a message, however long it is."""
  shortener = reprlib.Repr()
  shortener.maxstring = shortener.maxother = 60
  try:
    return shortener.repr(value)
  except Exception:  # __repr__ may be user code that raises; repr of a very large int raises, too
    return f'({type(value).__name__})'
