"""Reading, checking, completing, saving and comparing configs.

A config file is a Python file with `get_config() -> ConfigDict`, which holds what an experiment
sets, and `SMOKE`, {dotted path: value}, which shrinks its nets. Rules (`gen_jax.fields`) hold the
default of every other field. They are applied in this order: defaults, the file, `:smoke`, the
command line. JAX is imported only once a file has named its system.

(`ml_collections.config_flags` reports an unknown field by a long traceback and accepts nan.)
"""

import ast
import contextlib
import difflib
import fnmatch
import json
import math
import re
import reprlib
import traceback
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FieldReference, FrozenConfigDict

from gen_jax import __version__, domains, systems
from gen_jax.errors import UserError
from gen_jax.fields import INT32, REQUIRED, SHARED, Field, did_you_mean
from gen_jax.run import imports
from gen_jax.run.files import JSON_BYTES, read_file

# What `:smoke` shrinks is in the rules (`smoke`), except for two-dimensional points.
SMOKE_OF_POINTS = {
  'train.batch_size': 16,
  'sample.num_images': 64,
  'sample.batch_size': 64,
  'eval.num_reference': 500,
}

# A run may be resumed with these fields changed (fnmatch patterns): they say how long it trains,
# what it writes and where it runs.
SAFE_TO_CHANGE = (
  'compilation_cache',
  'profile_steps',
  'train.steps',
  'train.steps_per_call',
  'optim.*decay_steps',  # a longer run needs a longer schedule
  'train.log_steps',
  'train.sample_steps',
  'train.checkpoint_steps',
  'train.keep_checkpoints',
  'train.init_from',  # its checksum is compared instead, see `trained.initial_weights`
  'sample.*',
  'eval.*',
  'net.remat',
  'data.path',
  'data.x.path',
  'data.storage',
  'data.read_threads',
  'data.prefetch',
  'parallel.*',
)


# --- Checking -----------------------------------------------------------------------------------


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
  given = _plain(config)
  if fields is None:
    fields = systems.find_system(given.get('system')).FIELDS
  rules = SHARED | dict(fields)
  present = dict(_fields(given, rules))
  values = {}
  for path, rule in sorted(rules.items(), key=lambda item: item[1].when is not None):
    if rule.strict and not rule.matters(path, values.get):
      values[path] = present.get(path)
      if values[path] is not None:
        switch = rule.switch(path)
        raise UserError(
          f'config.{path}={_short(values[path])}, but config.{switch}={values[switch]!r} does not '
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
    _put(complete, path, values[path])
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
  _merge(tree, _plain(values))
  return check(tree)


def _merge(tree: dict, values: dict):
  for path, value in values.items():
    *groups, key = str(path).split('.')
    group = tree
    for name in groups:
      group = group.setdefault(name, {})
    if isinstance(value, dict) and isinstance(group.setdefault(key, {}), dict):
      _merge(group[key], value)
    else:
      group[key] = value


# --- Files and command lines --------------------------------------------------------------------


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
    tree, smoke, references = _plain(_read_json(path)), {}, {}
    if tree.get('compilation_cache') is not None:
      tree['compilation_cache'] = 'auto'  # programs of a folder that a run names would be executed
  elif path.suffix == '.py':
    tree, smoke, references = _run_file(path)
  else:
    raise UserError(f'{path}: a config file ends in .py (or is the config.json of a run)')
  said, shrunk = dict(overrides), {}
  named = tree.get('system')
  if 'system' in said:
    named = _parse(said['system'], SHARED['system'])
  fields = systems.find_system(named).FIELDS
  rules = SHARED | dict(fields)
  in_file = dict(_fields(tree, rules))
  origins = {name: 'file' for name, _ in _flatten(tree)}
  if arg:
    shrunk = {p: v for p, v in _smoke(in_file, rules, said, smoke).items() if p not in said}
    for name, value in shrunk.items():
      _put(tree, name, value)
    origins |= dict.fromkeys(shrunk, ':smoke')
  for name, text in overrides:
    _override(tree, name, text, rules)
  origins |= dict.fromkeys(said, 'command line')
  _follow(tree, references, {*shrunk, *said})
  values = dict(_fields(tree, rules))
  for name, rule in rules.items():
    # The command line chose another optimiser: the file's settings of the old one are dropped.
    if rule.strict and rule.switch(name) in said and name not in said and name in values:
      if values[name] is None or not rule.matters(name, values.get):
        _drop(tree, name)
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
      raise _unknown(path, rules)
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
  package = Path(__file__).parent
  inside = package / 'configs'
  return inside if inside.is_dir() else package.parent / 'configs'


def default_workdir(spec: str) -> Path:
  """'configs/ddpm_cifar.py:smoke' -> Path('runs/ddpm_cifar_smoke'); a config.json: its folder."""
  path, arg = split_spec(spec)
  if path.suffix == '.json':
    return path.parent
  return Path('runs', f'{path.stem}_{arg}' if arg else path.stem)


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


# --- Other forms: dict, JSON, text --------------------------------------------------------------


def to_dict(config: Mapping | ConfigDict) -> dict:
  """Returns nested dicts of plain values, sequences as tuples, classes as 'module.Class'."""
  return _map_leaves(
    _plain(config), lambda v: f'{v.__module__}.{v.__qualname__}' if isinstance(v, type) else v
  )


def leaves(config: Mapping | ConfigDict):
  """Yields (dotted path, value) of every field."""
  return _flatten(to_dict(config))


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
  for path, value in _flatten(values):
    try:
      json.dumps(value)
    except (TypeError, ValueError) as e:
      raise UserError(
        f'config.{path}={_short(value)} cannot be saved: numbers, text, True, False, None and '
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
    config = FrozenConfigDict(_plain(values))
  except (ValueError, KeyError, RecursionError) as e:
    raise UserError(f'{place}not a config as JSON: {e}') from e
  if version is None:
    raise UserError(
      f'{place}a config of a version before 0.2, which gen_jax {__version__} does not read: train '
      'again, or use the version that wrote it'
    )
  return config


# --- Resuming a run -----------------------------------------------------------------------------


def replace(config: Mapping | ConfigDict, values: Mapping[str, Any]) -> FrozenConfigDict:
  """Returns the config with other values, {dotted path: value}, in place of some."""
  tree = _plain(config)
  for path, value in values.items():
    _put(tree, path, value)
  return FrozenConfigDict(tree)


def difference(old: Mapping, new: Mapping) -> tuple[str, Any, Any] | None:
  """Returns (dotted path, old value, new value) of the first field that differs, or `None`.

  Fields in `SAFE_TO_CHANGE` are ignored. A field that one config lacks is '(absent)' there.
  """
  old, new = dict(leaves(old)), dict(leaves(new))
  for path in [*new, *(p for p in old if p not in new)]:
    a, b = old.get(path, '(absent)'), new.get(path, '(absent)')
    if a != b and not is_safe_to_change(path):
      return path, a, b
  return None


def is_safe_to_change(path: str) -> bool:
  """Whether the field is one of `SAFE_TO_CHANGE`."""
  return any(fnmatch.fnmatchcase(path, pattern) for pattern in SAFE_TO_CHANGE)


def check_resumable(old: Mapping, new: Mapping, workdir: str | Path) -> None:
  """Checks that a run in `workdir`, started with the config `old`, may be resumed with `new`.

  Raises:
    UserError: a field differs that is not safe to change.
  """
  known = {path for path, _ in leaves(old)}
  # A field that is newer than the run has its default there.
  added = {
    path: rule.default
    for path, rule in SHARED.items()
    if path not in known and rule.default is not REQUIRED
  }
  found = difference(replace(old, added), new)
  if found:
    path, a, b = found
    raise UserError(
      f'config.{path}={_short(b)}, but the run in {workdir} was started with {_short(a)}: '
      'set it back, or start a new run with another --workdir'
    )


# --- Helpers ------------------------------------------------------------------------------------


def _plain(value):
  """Nested dicts and tuples; their leaves are unchanged, references are followed."""
  if isinstance(value, FieldReference):
    value = value.get()
  if isinstance(value, ConfigDict | Mapping):
    return {key: _plain(v) for key, v in value.items()}
  return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _map_leaves(value, function):
  if isinstance(value, dict):
    return {key: _map_leaves(v, function) for key, v in value.items()}
  if isinstance(value, tuple):
    return tuple(_map_leaves(v, function) for v in value)
  return function(value)


def _flatten(tree: dict, prefix=''):
  """Yields (dotted path, value) of every leaf; an empty group is a leaf."""
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      yield from _flatten(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def _put(tree: dict, path: str, value):
  *groups, key = path.split('.')
  for group in groups:
    tree = tree.setdefault(group, {})
  tree[key] = value


def _drop(tree: dict, path: str):
  *groups, key = path.split('.')
  for group in groups:
    tree = tree[group]
  del tree[key]


def _groups(paths: Iterable[str]) -> set[str]:
  return {'.'.join(path.split('.')[:i]) for path in paths for i in range(1, path.count('.') + 1)}


def _fields(tree: dict, rules: Mapping[str, Field], prefix=''):
  """Yields (dotted path, value) for each field of the rules; rejects any other."""
  groups = _groups(rules)
  for key, value in tree.items():
    path = f'{prefix}{key}'
    if '.' not in str(key) and path in rules:
      yield path, value
    elif '.' in str(key) or path not in groups:
      nets = [p for p, rule in rules.items() if rule.type == 'net']
      known = (
        [*groups, *nets] if isinstance(value, dict) else [*rules, *(f'{p}.name' for p in nets)]
      )
      raise _unknown(path, known)
    elif isinstance(value, dict):
      yield from _fields(value, rules, f'{path}.')
    else:
      inside = [f'config.{p}' for p in rules if p.startswith(f'{path}.')]
      shown = inside if len(inside) < 5 else [*inside[:3], '...']
      raise UserError(
        f'config.{path}={_short(value)}: it is a group of fields ({", ".join(shown)})'
      )


def _unknown(path: str, known: Iterable[str]) -> UserError:
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
    raise UserError(f'config.{path}={_short(value)}: {why}') from e


def _is_text(value) -> bool:
  return isinstance(value, str)


def _check_net(path: str, net, rule: Field):
  if not isinstance(net, dict):
    raise UserError(f'config.{path}={_short(net)}: {rule} is needed')
  if 'name' not in net:
    raise UserError(f"config.{path}.name is missing: the net's 'module.Class' is needed")
  name = net['name']
  if not isinstance(name, type) and not (
    isinstance(name, str) and '.' in name and all(map(str.isidentifier, name.split('.')))
  ):
    raise UserError(
      f"config.{path}.name={_short(name)}: 'module.Class' of gen_jax.nets, or the dotted path of "
      'an importable Flax module, is needed'
    )
  _check_arguments(path, net)


def _check_arguments(path: str, value, in_tuple=False):
  """Rejects what a FrozenConfigDict cannot hold, and NaN: a config with one never equals itself."""
  if isinstance(value, dict):
    if in_tuple:
      raise UserError(f'config.{path} holds a dict inside a tuple: a group of its own is needed')
    for key, v in value.items():
      if not _is_name(key):
        raise UserError(f'config.{path}: {_short(key)} cannot be the name of an argument')
      _check_arguments(f'{path}.{key}', v)
  elif isinstance(value, tuple):
    for v in value:
      _check_arguments(path, v, in_tuple=True)
  elif isinstance(value, float) and math.isnan(value):
    raise UserError(f'config.{path}=nan: not a number')
  elif isinstance(value, int) and abs(value) > INT32:
    raise UserError(f'config.{path}={_short(value)}: an integer up to {INT32} is needed')
  elif isinstance(value, str) and not value.isprintable():
    raise UserError(f'config.{path}={_short(value)}: text that can be printed is needed')
  else:
    try:
      hash(value)
    except TypeError as e:
      raise UserError(
        f'config.{path}={_short(value)}: numbers, text, True, False, None and tuples of them are '
        'needed'
      ) from e


def _is_name(key) -> bool:
  return isinstance(key, str) and key.isidentifier() and not hasattr(ConfigDict, key)


def _short(value) -> str:
  shortener = reprlib.Repr()
  shortener.maxstring = shortener.maxother = 60
  try:
    return shortener.repr(value)
  except Exception:  # __repr__ may be user code that raises; repr of a very large int raises, too
    return f'({type(value).__name__})'


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
  values = dict(_flatten(tree))
  for path in changed & references.keys():
    references[path].set(values[path], type_safe=False)
  for path in references.keys() - changed:
    try:
      _put(tree, path, _plain(references[path].get()))
    except Exception as e:  # of the expression in the file
      raise UserError(f'config.{path} cannot be computed: {type(e).__name__}: {e}') from e


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
      raise UserError(f'{path}: get_config returned {_short(config)}; a ConfigDict is needed')
    smoke = getattr(module, 'SMOKE', {})
    if not isinstance(smoke, Mapping) or not all(isinstance(name, str) for name in smoke):
      raise UserError(f'{path}: SMOKE={_short(smoke)}; {{dotted path: value}} is needed')
    return _plain(config), _plain(smoke), dict(_references(config))
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


def _override(tree: dict, path: str, text: str, rules: Mapping[str, Field]):
  rule = rules.get(path)
  if rule is not None and rule.type != 'net':
    return _put(tree, path, _parse(text, rule))
  *groups, key = path.split('.')
  in_net = any(r.type == 'net' and path.startswith(f'{p}.') for p, r in rules.items())
  parent = tree
  for group in groups:
    parent = parent.get(group, {}) if isinstance(parent, dict) else None
  if isinstance(parent, dict):
    current = parent.get(key)
    if rule is not None or path in _groups(rules) or isinstance(current, dict):
      inside = [p for p in rules if p.startswith(f'{path}.')]
      inside += [f'{path}.{p}' for p, _ in _flatten(current)] if isinstance(current, dict) else []
      example = f', such as config.{inside[0]}' if inside else ''
      raise UserError(f'config.{path} is a group of fields: set one of them{example}')
    if in_net and all(map(_is_name, [*groups, key])):
      return _put(tree, path, _parse_attribute(path, text, current))
  raise _unknown(path, {*rules, *(p for p, _ in _flatten(tree))})


def _parse(text: str, rule: Field):
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
    raise UserError(f'config.{path}={_short(text)}: a value such as {_short(current)} is needed')
  return value


def _literal(text: str):
  """The Python literal that `text` is (also true, false, nan, inf), or else the text itself."""
  try:
    return _plain(ast.literal_eval(text))
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    pass
  if text.lower() in ('true', 'false'):
    return text.lower() == 'true'
  try:
    return float(text)
  except ValueError:
    return text
