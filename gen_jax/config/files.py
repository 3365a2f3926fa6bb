"""Config files, the shipped ones by their names too, and `:smoke` of each."""

import ast
import contextlib
import difflib
import re
import traceback
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FieldReference, FrozenConfigDict

from gen_jax import domains, systems
from gen_jax.config.checking import check, fields_of, unknown
from gen_jax.config.command_line import override, parse
from gen_jax.config.forms import from_json
from gen_jax.config.tree import drop, flatten, plain, put, short
from gen_jax.errors import UserError
from gen_jax.fields import REQUIRED, SHARED
from gen_jax.host import imports
from gen_jax.host.files import JSON_BYTES, read_file

# What `:smoke` shrinks is in the rules (`smoke`), except for two-dimensional points.
SMOKE_OF_POINTS = {
  'train.batch_size': 16,
  'sample.num_images': 64,
  'sample.batch_size': 64,
  'eval.num_reference': 500,
}


class Resolved(NamedTuple):
  """A complete config, and where its fields were set."""

  config: FrozenConfigDict
  origins: dict[str, str]  # dotted path -> 'file', ':smoke' or 'command line'; absent: the default


def load(spec: str, overrides: Iterable[tuple[str, str]] = ()) -> FrozenConfigDict:
  """Reads, completes and checks a config: `resolve` without the origins of the fields."""
  return resolve(spec, overrides).config


def resolve(spec: str, overrides: Iterable[tuple[str, str]] = ()) -> Resolved:
  """Reads a config, sets fields of it, completes it by the defaults, and checks it.

  Args:
    spec: 'configs/ddpm_cifar.py', or 'configs/ddpm_cifar.py:smoke' for a small and quick version.
      A `.json` file is one that `to_json` wrote; nothing in it is executed. Where there is no such
      file, it names one of configs/, or else of those that gen_jax ships: 'ddpm_cifar', with or
      without 'configs/' and '.py'.
    overrides: (dotted path, value as text), e.g. ('train.steps', '1000'). The text is parsed as
      the type of the field. A net takes any of its attributes. `:smoke` does not override them.

  Raises:
    UserError: no such file, an error in the file (reported with its line), an unknown argument or
      field, text that the field cannot hold, or a config that `check` rejects.
  """
  path, arg = split_spec(spec)
  foreign = path.suffix == '.json'  # a run's: what it names may come from somebody else
  with imports.guarded(path.parent) if foreign else contextlib.nullcontext():
    return _resolve(path, arg, list(overrides))


def _resolve(path: Path, arg: str, overrides: list[tuple[str, str]]) -> Resolved:
  if path.is_dir():
    raise UserError(f'{path} is a folder: a config file in it is needed')
  if not path.is_file():
    path = _named_file(path)
  if arg not in ('', 'smoke') or (arg and path.suffix == '.json'):
    allowed = "is 'smoke' or left out" if path.suffix == '.py' else 'is for .py files'
    raise UserError(f'{path}:{arg}: unknown argument {arg!r}; the argument {allowed}')
  if path.suffix == '.json':
    tree, smoke, references = plain(_read_json(path)), {}, {}
    if tree.get('compilation_cache') is not None:
      tree['compilation_cache'] = 'auto'  # programs of a folder that a run names would be executed
  elif path.suffix == '.py':
    tree, smoke, references = _run_file(path)
  else:
    raise UserError(f'{path}: a config file ends in .py (or is the config.json of a run)')
  said, shrunk = dict(overrides), {}
  named = tree.get('system')
  if 'system' in said:
    named = parse(said['system'], SHARED['system'])
  fields = systems.find_system(named).FIELDS
  rules = SHARED | dict(fields)
  in_file = dict(fields_of(tree, rules))
  origins = {name: 'file' for name, _ in flatten(tree)}
  if arg:
    shrunk = {p: v for p, v in _smoke(in_file, rules, said, smoke).items() if p not in said}
    for name, value in shrunk.items():
      put(tree, name, value)
    origins |= dict.fromkeys(shrunk, ':smoke')
  for name, text in overrides:
    override(tree, name, text, rules)
  origins |= dict.fromkeys(said, 'command line')
  _follow(tree, references, {*shrunk, *said})
  values = dict(fields_of(tree, rules))
  for name, rule in rules.items():
    # The command line chose another optimiser: the file's settings of the old one are dropped.
    if rule.strict and rule.switch(name) in said and name not in said and name in values:
      if values[name] is None or not rule.matters(name, values.get):
        drop(tree, name)
        origins.pop(name, None)
  return Resolved(check(tree, fields), origins)


def _smoke(values, rules, said, own) -> dict[str, Any]:
  """The fields that `:smoke` sets: {dotted path: value}; `own` are those that the file names."""
  shrunk = {
    path: rule.smoke
    for path, rule in rules.items()
    if rule.smoke is not REQUIRED and values.get(path, rule.default) is not None  # None stays
  }
  if len(values.get('data.shape') or ()) == 1:
    shrunk |= SMOKE_OF_POINTS
  elif values.get('data.name') not in ('digits', 'shapes') and not {'data.name', 'data.path'} & {
    *said
  }:
    # Synthetic images need no download; they have one split.
    shrunk |= {'data.name': 'shapes', 'eval.network': 'classifier'}
    shrunk |= {path: 'train' for path in rules if path.endswith('split')}
    if values.get('data.x_from') in domains.FILES:
      shrunk |= {'data.x_from': 'small', 'data.x.shape': None, 'data.x.factor': 2}
  default = rules['data.x_from'].default if 'data.x_from' in rules else None
  if values.get('data.x_from', default) == 'domain' and not {'data.x.name', 'data.x.path'} & {
    *said
  }:
    if values.get('data.x.name') not in ('digits', 'shapes'):
      shrunk |= {'data.x.name': 'shapes', 'data.x.split': 'train', 'data.x.held_out_split': 'train'}
  nets = [path for path, rule in rules.items() if rule.type == 'net']
  for path in own:
    if path not in rules and not any(path.startswith(f'{net}.') for net in nets):
      raise unknown(path, rules)
  return shrunk | own


def split_spec(spec: str) -> tuple[Path, str]:
  """'configs/ddpm_cifar.py:smoke' -> (Path('configs/ddpm_cifar.py'), 'smoke'); '' without it. A
  name alone may have an argument, too: 'ddpm_cifar:smoke'.
  """
  match = re.fullmatch(r'(.*\.(?:py|json)|[\w/-]+):(.*)', spec)
  return (Path(match[1]), match[2]) if match else (Path(spec), '')


def shipped() -> Path:
  """The folder of the configs that gen_jax ships: in the package where it is installed, beside it
  in a clone.
  """
  package = Path(__file__).parents[1]
  inside = package / 'configs'
  return inside if inside.is_dir() else package.parent / 'configs'


def default_workdir(spec: str) -> Path:
  """'configs/ddpm_cifar.py:smoke' -> Path('runs/ddpm_cifar_smoke'); a config.json: its folder."""
  path, arg = split_spec(spec)
  if path.suffix == '.json':
    return path.parent
  return Path('runs', f'{path.stem}_{arg}' if arg else path.stem)


def summaries(folder: Path) -> str:
  """Returns a line for each config in a folder: file and first line of its docstring. No config is
  executed.
  """
  lines = []
  for path in sorted(folder.glob('[!_]*.py')):
    try:
      doc = ast.get_docstring(ast.parse(path.read_bytes())) or ''
    except (SyntaxError, ValueError) as e:
      doc = f'(cannot be read: {e})'
    lines.append(f'{folder.name}/{path.name:28} {doc.partition(chr(10))[0]}'.rstrip())
  return '\n'.join(lines)


def _named_file(path: Path) -> Path:
  """The config in configs/ here, or else the one that gen_jax ships, for a path that is no file:
  'x', 'x.py', 'configs/x' or 'configs/x.py'.

  Raises:
    UserError: there is none.
  """
  if path.parent in (Path(), Path('configs')) and path.suffix in ('', '.py'):
    for folder in (Path('configs'), shipped()):
      if (found := folder / f'{path.stem}.py').is_file():
        return found
  raise UserError(f'{path}: no such config file{_similar_file(path)}')


def _similar_file(path: Path) -> str:
  found = {p.stem: Path('configs', p.name) for p in shipped().glob('*.py')}
  folders = (path.parent, path.parent / 'configs', Path('configs'))
  found |= {p.stem: p for folder in folders for p in folder.glob('*.py') if p.is_file()}
  close = difflib.get_close_matches(path.stem, found, 1)
  return f'; did you mean {found[close[0]]}?' if close else ''


def _read_json(path: Path) -> FrozenConfigDict:
  try:
    text = read_file(path, JSON_BYTES).decode()
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f'{path}: {getattr(e, "strerror", None) or e}') from e
  return from_json(text, path)


def _run_file(path: Path) -> tuple[dict, dict, dict[str, FieldReference]]:
  """What `get_config` of a file returns, its `SMOKE`, and the references in the config."""
  module = types.ModuleType(path.stem)
  module.__file__ = str(path)
  try:
    exec(compile(path.read_bytes(), str(path), 'exec'), module.__dict__)
    if not callable(getattr(module, 'get_config', None)):
      raise UserError(f'{path} has no function get_config()')
    config = module.get_config()
    if not isinstance(config, ConfigDict | Mapping):
      raise UserError(f'{path}: get_config returned {short(config)}; a ConfigDict is needed')
    smoke = getattr(module, 'SMOKE', {})
    if not isinstance(smoke, Mapping) or not all(isinstance(name, str) for name in smoke):
      raise UserError(f'{path}: SMOKE={short(smoke)}; {{dotted path: value}} is needed')
    return plain(config), plain(smoke), dict(_references(config))
  except UserError:
    raise
  except Exception as e:
    lines = [
      frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == str(path)
    ]
    if isinstance(e, SyntaxError) and e.filename == str(path):
      lines, e = [e.lineno], SyntaxError(e.msg)
    place = f'{path}:{lines[-1]}' if lines else str(path)
    raise UserError(f'{place}: {type(e).__name__}: {e}') from e


def _references(config, prefix=''):
  """Yields (dotted path, reference) of the fields that ml_collections computes from others, and of
  those others.
  """
  kept = {'preserve_field_references': True} if isinstance(config, ConfigDict) else {}
  for key, value in config.items(**kept):
    if isinstance(value, FieldReference):
      yield f'{prefix}{key}', value
    elif isinstance(value, ConfigDict | Mapping):
      yield from _references(value, f'{prefix}{key}.')


def _follow(tree: dict, references: Mapping[str, FieldReference], changed: set[str]):
  """Recomputes the fields that refer to changed ones."""
  values = dict(flatten(tree))
  for path in changed & references.keys():
    references[path].set(values[path], type_safe=False)
  for path in references.keys() - changed:
    try:
      put(tree, path, plain(references[path].get()))
    except Exception as e:  # of the expression in the file
      raise UserError(f'config.{path} cannot be computed: {type(e).__name__}: {e}') from e
