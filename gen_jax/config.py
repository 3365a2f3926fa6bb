"""Reading, checking, saving and comparing configs.

A config file is a Python file with `get_config(arg='') -> ConfigDict`. Rules (`Field`) say what its
fields may hold. Those of the groups that every system shares stand here (`SHARED`), a system adds
its own (`FIELDS` in its file), and `check` holds a config against both before any device or data
work. JAX is not imported here, so that a typo is answered at once.

(`ml_collections.config_flags` answers an unknown field by a traceback of 30 lines and accepts nan.)
"""

import ast
import dataclasses
import difflib
import fnmatch
import json
import math
import numbers as abstract_numbers
import re
import reprlib
import traceback
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from gen_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Field:
  """What one field may hold. Made by the functions below, `integer` to `numbers`, and `NET`."""

  type: str  # 'integer', 'number', 'text', 'choice' or 'net'
  many: bool = False  # a non-empty tuple of them
  low: float | None = None  # inclusive, as is `high`
  high: float | None = None
  above: float | None = None  # exclusive, as is `below`
  below: float | None = None
  choices: tuple = ()
  length: tuple[int, ...] = ()  # the lengths allowed for a tuple; empty: any
  optional: bool = False  # None is allowed

  def accept(self, value: Any) -> Any:
    """Returns `value` in the type of the field: a list as a tuple, an int as a float for a number.

    Raises:
      ValueError: the field cannot hold this value.
    """
    if value is None and self.optional:
      return None
    if not self.many:
      return self._accept_one(value)
    if not isinstance(value, list | tuple) or not value:
      raise ValueError
    if self.length and len(value) not in self.length:
      raise ValueError
    return tuple(map(self._accept_one, value))

  def _accept_one(self, value):
    if self.type == 'choice':
      if not any(type(value) is type(c) and value == c for c in self.choices):
        raise ValueError
      return value
    if self.type == 'text':
      if not isinstance(value, str) or not value.strip():
        raise ValueError
      return value
    kind = abstract_numbers.Integral if self.type == 'integer' else abstract_numbers.Real
    if not isinstance(value, kind) or isinstance(value, bool):
      raise ValueError
    try:
      value = int(value) if self.type == 'integer' else float(value)
      finite = math.isfinite(value)
    except OverflowError as e:
      raise ValueError from e
    inside = (
      finite
      and (self.low is None or value >= self.low)
      and (self.high is None or value <= self.high)
      and (self.above is None or value > self.above)
      and (self.below is None or value < self.below)
    )
    if not inside:
      raise ValueError
    return value

  def __str__(self) -> str:
    """The values allowed, in words: 'an integer of at least 1 or None'."""
    low, high, above, below = self.low, self.high, self.above, self.below
    if low is not None and high is not None:
      bounds = f' from {low} to {high}'
    else:
      named = {'of at least': low, 'above': above, 'of at most': high, 'below': below}
      bounds = ' and'.join(f' {word} {v}' for word, v in named.items() if v is not None)
    if self.type == 'choice':
      words = 'a tuple of ' * self.many + ' or '.join(map(repr, self.choices))
    elif self.type == 'net':
      words = "a group such as dict(name='module.Class', ...)"
    elif self.many:
      count = ' or '.join(map(str, self.length)) + ' ' if self.length else ''
      words = f'a tuple of {count}{self.type}s{bounds}'
    else:
      kind = {'integer': 'an integer', 'number': 'a number', 'text': 'a non-empty text'}[self.type]
      words = kind + bounds
    return words + ' or None' * self.optional


def integer(low=None, high=None, optional=False) -> Field:
  """An int in [low, high]."""
  return Field('integer', low=low, high=high, optional=optional)


def number(low=None, high=None, above=None, below=None, optional=False) -> Field:
  """A finite float (or int) in [low, high] and in (above, below)."""
  return Field('number', low=low, high=high, above=above, below=below, optional=optional)


def text(optional=False) -> Field:
  """A non-empty string."""
  return Field('text', optional=optional)


def one_of(*choices, optional=False) -> Field:
  """One of these values, of the same type; `one_of(True, False)` is a switch."""
  return Field('choice', choices=choices, optional=optional)


def some_of(*choices, optional=False) -> Field:
  """A non-empty tuple of these values."""
  return Field('choice', many=True, choices=choices, optional=optional)


def integers(low=1, high=None, length=(), optional=False) -> Field:
  """A non-empty tuple of ints in [low, high]; `length` is the tuple of lengths allowed."""
  return Field('integer', many=True, low=low, high=high, length=length, optional=optional)


def numbers(low=None, high=None, above=None, below=None, length=(), optional=False) -> Field:
  """A non-empty tuple of finite floats, bounded as in `number`, of a length in `length`."""
  return Field(
    'number',
    many=True,
    low=low,
    high=high,
    above=above,
    below=below,
    length=length,
    optional=optional,
  )


# dict(name=..., **kwargs), where name is 'module.Class' in gen_jax.nets, the dotted path of any
# importable Flax module or, in a script, the class itself.
NET = Field('net')

SHARED = {
  'system': text(),
  'seed': integer(0, 2**32 - 1),
  'precision': one_of('float32', 'bfloat16'),  # in which the nets compute
  'compilation_cache': text(optional=True),  # auto, a folder, or None
  'profile_steps': integers(length=(2,), optional=True),  # the first and the last one
  'data.name': text(),
  'data.path': text(optional=True),
  'data.split': text(),
  'data.shape': integers(length=(1, 3)),
  'data.num_classes': integer(1, optional=True),
  'data.flip': number(0, 1),
  'data.dequantize': one_of('none', 'uniform'),
  'data.storage': one_of('auto', 'device', 'stream'),
  'data.bad_files': one_of('error', 'skip'),
  'data.fit': one_of('exact', 'crop'),
  'data.read_threads': integer(1),
  'data.prefetch': integer(1),
  'train.steps': integer(1, 2**31 - 1),  # the step is an int32 on the device
  'train.batch_size': integer(1),
  'train.accumulate': integer(1),
  'train.steps_per_call': integer(1, optional=True),  # None: 1 on CPU, 10 on accelerators
  'train.log_steps': integer(1),
  'train.sample_steps': integer(1),
  'train.checkpoint_steps': integer(1),
  'train.keep_checkpoints': integer(1),
  'sample.num_images': integer(1),
  'sample.batch_size': integer(1),
  'sample.seed': integer(0, 2**32 - 1),
  'eval.network': one_of('auto', 'inception', 'efficientnet_lite0', 'classifier'),
  'eval.weights': text(optional=True),
  'eval.metrics': some_of(
    'frechet',
    'kernel',
    'precision_recall',
    'density_coverage',
    'inception_score',
    'modes',
    optional=True,
  ),
  'eval.split': text(),
  'eval.num_reference': integer(2, optional=True),
  'eval.num_samples': integer(2),
  'eval.seed': integer(0, 2**32 - 1),
  'eval.every_steps': integer(1, optional=True),
  'eval.quick_samples': integer(2),
  'eval.best': one_of(
    'frechet',
    'kernel',
    'precision',
    'recall',
    'density',
    'coverage',
    'inception_score',
    'modes',
  ),
  'parallel.mode': one_of('jit', 'pmap'),
  'parallel.data': integer(1, optional=True),
  'parallel.fsdp': integer(1),
}

# A run may be continued with these fields changed (fnmatch patterns): they say how long it trains,
# what it writes and where it runs.
SAFE_TO_CHANGE = (
  'compilation_cache',
  'profile_steps',
  'train.steps',
  'train.steps_per_call',
  'optim.*decay_steps',  # the schedule of a longer run goes with its train.steps
  'train.log_steps',
  'train.sample_steps',
  'train.checkpoint_steps',
  'train.keep_checkpoints',
  'sample.*',
  'eval.*',
  'net.remat',
  'data.path',
  'data.storage',
  'data.read_threads',
  'data.prefetch',
  'parallel.*',
)

# Fields that came later, with what was done before them: a run of an earlier version goes on.
ADDED = {
  'precision': 'float32',
  'compilation_cache': 'auto',
  'profile_steps': None,
  'parallel.fsdp': 1,
  'train.accumulate': 1,
  'train.steps_per_call': None,
}


# --- Checking -----------------------------------------------------------------------------------


def check(config: Mapping | ConfigDict, fields: Mapping[str, Field]) -> FrozenConfigDict:
  """Returns `config` with every field in its own type, frozen and hashable.

  Args:
    config: the whole config.
    fields: dotted path -> rule, for the groups that are the system's own.

  Raises:
    UserError: a field is unknown, missing, of the wrong type or out of range.
  """
  rules = SHARED | dict(fields)
  given = _plain(config)
  values = dict(_fields(given, rules))
  for path, rule in rules.items():
    if path not in values:
      raise UserError(f'config.{path} is missing: {rule} is needed')
    _put(given, path, _accept(path, values[path], rule))
  if given['data']['name'] == 'folder' and given['data']['path'] is None:
    raise UserError("config.data.path=None: config.data.name='folder' needs the folder of images")
  return FrozenConfigDict(given)


def mesh_shape(config: ConfigDict, devices: int) -> tuple[int, int]:
  """The sizes of the axes `data` and `fsdp` on `devices`, the number of devices of all processes.

  Raises:
    UserError: there are fewer devices than config.parallel asks for, or they do not divide by its
      `fsdp`.
  """
  data, fsdp = config.parallel.data, config.parallel.fsdp
  if (data or 1) * fsdp > devices:
    asked = [f'config.parallel.data={data}'] * (data is not None)
    asked += [f'config.parallel.fsdp={fsdp}'] * (fsdp > 1)
    raise UserError(
      f'{" times ".join(asked)}: there are {devices} devices, and at most that many can be used'
    )
  if data is None and devices % fsdp:
    raise UserError(
      f'config.parallel.fsdp={fsdp} does not divide the {devices} devices: a divisor of '
      f'{devices}, or also a config.parallel.data, is needed'
    )
  return data or devices // fsdp, fsdp


def check_devices(config: ConfigDict, devices: int) -> None:
  """Checks that a batch spreads evenly over `devices`, the number of devices of all processes.

  Raises:
    UserError: it does not, or the part of a device not by config.train.accumulate; config.parallel
      asks for more devices, or for what pmap cannot do.
  """
  used, batch = math.prod(mesh_shape(config, devices)), config.train.batch_size
  if config.parallel.fsdp > 1 and config.parallel.mode == 'pmap':
    raise UserError(
      f"config.parallel.fsdp={config.parallel.fsdp}: config.parallel.mode='pmap' keeps the whole "
      "state on every device; 'jit' is needed"
    )
  if batch % used:
    near = [n for n in (batch - batch % used, batch - batch % used + used) if n]
    raise UserError(
      f'config.train.batch_size={batch} does not divide by the {used} devices that share a batch; '
      f'{" or ".join(map(str, near))} would (or set config.parallel.data)'
    )
  if batch // used % config.train.accumulate:
    raise UserError(
      f'config.train.accumulate={config.train.accumulate} does not divide the {batch // used} '
      f'examples of a device (config.train.batch_size={batch} over {used}): a divisor is needed'
    )


# --- Files and command lines --------------------------------------------------------------------


def load(spec: str, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
  """Reads a config and sets fields of it. What the fields hold is for `check` to judge.

  Args:
    spec: 'configs/ddpm_cifar.py' or, with an argument to get_config, 'configs/ddpm_cifar.py:smoke'.
      A `.json` file is one that `to_json` wrote; nothing in it is executed, and fields that came
      later are as in `ADDED`.
    overrides: (dotted path, value as text), e.g. ('train.steps', '1000'). The text is read in the
      type of the field. A group that names a net takes new keys too: the arguments of the net.

  Raises:
    UserError: no such file, a fault in the file (told with its line), an unknown argument or field,
      or text that the field cannot hold.
  """
  path, arg = split_spec(spec)
  if not path.is_file():
    raise UserError(f'{path}: no such config file{_similar_file(path)}')
  if path.suffix == '.json':
    config = _plain(_read_json(path))
    known = dict(_flatten(config))
    for added, value in ADDED.items():
      if added not in known:
        _put(config, added, value)
  elif path.suffix == '.py':
    config = _run_file(path, arg)
  else:
    raise UserError(f'{path}: a config file ends in .py (or is the config.json of a run)')
  for name, value in overrides:
    _override(config, name, value)
  return ConfigDict(config)


def split_spec(spec: str) -> tuple[Path, str]:
  """'configs/ddpm_cifar.py:smoke' -> (Path('configs/ddpm_cifar.py'), 'smoke'); '' without it."""
  match = re.fullmatch(r'(.*\.(?:py|json)):(.*)', spec)
  return (Path(match[1]), match[2]) if match else (Path(spec), '')


def default_workdir(spec: str) -> Path:
  """'configs/ddpm_cifar.py:smoke' -> Path('runs/ddpm_cifar_smoke'); a config.json: its folder."""
  path, arg = split_spec(spec)
  if path.suffix == '.json':
    return path.parent
  return Path('runs', f'{path.stem}_{arg}' if arg else path.stem)


def split_overrides(argv: Iterable[str]) -> tuple[list[tuple[str, str]], list[str]]:
  """Takes `--config.x.y=value` and `--config.x.y value` out of a command line.

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
  """Returns a line for each config in a folder: file and first line of its docstring. Runs none."""
  lines = []
  for path in sorted(folder.glob('[!_]*.py')):
    try:
      doc = ast.get_docstring(ast.parse(path.read_bytes())) or ''
    except (SyntaxError, ValueError) as e:
      doc = f'(cannot be read: {e})'
    lines.append(f'{folder.name}/{path.name:28} {doc.partition(chr(10))[0]}'.rstrip())
  return '\n'.join(lines)


def did_you_mean(word: str, known: Iterable[str], prefix='', cutoff=0.6) -> str:
  """Returns '; did you mean train?' for 'trian', or '' where nothing known is similar."""
  close = difflib.get_close_matches(word, list(known), 1, cutoff)
  return f'; did you mean {prefix}{close[0]}?' if close else ''


# --- Other forms: dict, JSON, text --------------------------------------------------------------


def to_dict(config: Mapping | ConfigDict) -> dict:
  """Returns nested dicts of plain values, sequences as tuples, classes as 'module.Class'."""
  return _map_leaves(
    _plain(config), lambda v: f'{v.__module__}.{v.__qualname__}' if isinstance(v, type) else v
  )


def leaves(config: Mapping | ConfigDict):
  """Yields (dotted path, value) of every field."""
  return _flatten(to_dict(config))


def describe(config: Mapping | ConfigDict) -> str:
  """Returns one aligned line for each field, in the form that the command line takes."""
  fields = sorted(leaves(config), key=lambda field: '.' in field[0])
  width = max((len(path) for path, _ in fields), default=0)
  return '\n'.join(f'config.{path:{width}} = {value!r}' for path, value in fields)


def to_json(config: Mapping | ConfigDict) -> str:
  """Returns the config as JSON that `from_json` turns back into an equal config.

  Raises:
    UserError: a field holds an object that JSON cannot (a function, an array).
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
  return json.dumps(values, indent=2) + '\n'


def from_json(text: str) -> FrozenConfigDict:
  """Returns the config that `to_json` wrote. Nothing is executed.

  Raises:
    UserError: the text is not JSON, or not a config.
  """
  try:
    values = json.loads(text)
    if not isinstance(values, dict):
      raise ValueError('a JSON object is needed')
    return FrozenConfigDict(_plain(values))
  except (ValueError, KeyError, RecursionError) as e:
    raise UserError(f'not a config as JSON: {e}') from e


# --- Continuing a run ---------------------------------------------------------------------------


def replace(config: Mapping | ConfigDict, values: Mapping[str, Any]) -> FrozenConfigDict:
  """Returns the config with other values, {dotted path: value}, in place of some."""
  tree = _plain(config)
  for path, value in values.items():
    _put(tree, path, value)
  return FrozenConfigDict(tree)


def difference(old: Mapping, new: Mapping) -> tuple[str, Any, Any] | None:
  """Returns (dotted path, old value, new value) of the first field that differs, or `None`.

  Fields in `SAFE_TO_CHANGE` do not count. A field that one config lacks is '(absent)' there, or as
  in `ADDED`.
  """
  old, new = ADDED | dict(leaves(old)), ADDED | dict(leaves(new))
  for path in [*new, *(p for p in old if p not in new)]:
    a, b = old.get(path, '(absent)'), new.get(path, '(absent)')
    if a != b and not is_safe_to_change(path):
      return path, a, b
  return None


def is_safe_to_change(path: str) -> bool:
  """Whether the field is one of `SAFE_TO_CHANGE`."""
  return any(fnmatch.fnmatchcase(path, pattern) for pattern in SAFE_TO_CHANGE)


def check_resumable(old: Mapping, new: Mapping, workdir: str | Path) -> None:
  """Checks that a run in `workdir`, started with the config `old`, may be continued with `new`.

  Raises:
    UserError: a field differs that changes what is learnt.
  """
  found = difference(old, new)
  if found:
    path, a, b = found
    raise UserError(
      f'config.{path}={_short(b)}, but the run in {workdir} was started with {_short(a)}: '
      'set it back, or start a new run with another --workdir'
    )


# --- Helpers ------------------------------------------------------------------------------------


def _plain(value):
  """Nested dicts and tuples; what is in them is left as it is."""
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


def _groups(paths: Iterable[str]) -> set[str]:
  return {'.'.join(path.split('.')[:i]) for path in paths for i in range(1, path.count('.') + 1)}


def _fields(tree: dict, rules: Mapping[str, Field], prefix=''):
  """Yields (dotted path, value) for each field of the rules; refuses any other."""
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
      raise UserError(
        f'config.{path}={_short(value)}: it is a group of fields ({", ".join(inside)})'
      )


def _unknown(path: str, known: Iterable[str]) -> UserError:
  # The right name in the wrong group is likelier meant than a similar name in that group.
  moved = [k for k in known if k.rpartition('.')[2] == path.rpartition('.')[2]]
  hint = did_you_mean(path, moved or known, 'config.', cutoff=0.0 if moved else 0.6)
  return UserError(f'config.{path} is not a field{hint}')


def _accept(path: str, value, rule: Field):
  if rule.type == 'net' and not (value is None and rule.optional):
    _check_net(path, value, rule)
    return value
  try:
    return rule.accept(value)
  except ValueError as e:
    raise UserError(f'config.{path}={_short(value)}: {rule} is needed') from e


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
  """Refuses what a FrozenConfigDict cannot hold, and NaN: a config with one never equals itself."""
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


def _is_name(key) -> bool:
  return isinstance(key, str) and key.isidentifier() and not hasattr(ConfigDict, key)


def _short(value) -> str:
  shortener = reprlib.Repr()
  shortener.maxstring = shortener.maxother = 60
  try:
    return shortener.repr(value)
  except Exception:  # a repr is anybody's code; an int of 5,000 digits has none
    return f'({type(value).__name__})'


def _similar_file(path: Path) -> str:
  folders = (path.parent, path.parent / 'configs', Path('configs'))
  found = {p.stem: p for folder in folders for p in folder.glob('*.py')}
  close = difflib.get_close_matches(path.stem, found, 1)
  return f'; did you mean {found[close[0]]}?' if close else ''


def _read_json(path: Path) -> FrozenConfigDict:
  try:
    return from_json(path.read_text(encoding='utf-8'))
  except (OSError, UnicodeDecodeError, UserError) as e:
    raise UserError(f'{path}: {e}') from e


def _run_file(path: Path, arg: str) -> dict:
  module = types.ModuleType(path.stem)
  module.__file__ = str(path)
  try:
    exec(compile(path.read_bytes(), str(path), 'exec'), module.__dict__)
    if not callable(getattr(module, 'get_config', None)):
      raise UserError(f"{path} has no function get_config(arg='')")
    config = module.get_config(arg) if arg else module.get_config()
    if not isinstance(config, ConfigDict | Mapping):
      raise UserError(f'{path}: get_config returned {_short(config)}; a ConfigDict is needed')
    return _plain(config)
  except UserError:
    raise
  except Exception as e:
    if isinstance(e, ValueError) and arg not in ('', 'smoke'):
      raise UserError(f"{path}:{arg}: {e}; the argument is 'smoke' or left out") from e
    lines = [
      frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == str(path)
    ]
    if isinstance(e, SyntaxError) and e.filename == str(path):
      lines, e = [e.lineno], SyntaxError(e.msg)
    place = f'{path}:{lines[-1]}' if lines else str(path)
    raise UserError(f'{place}: {type(e).__name__}: {e}') from e


def _override(config: dict, path: str, value: str):
  *groups, key = path.split('.')
  parent, in_net = config, False
  for i, group in enumerate(groups):
    parent = parent.get(group, {} if in_net else None)
    if not isinstance(parent, dict):
      break
    # Only the system's rules tell a net from another group with a name: `check` has the last word.
    in_net = in_net or ('name' in parent and '.'.join(groups[: i + 1]) not in _groups(SHARED))
  else:
    if isinstance(parent.get(key), dict):
      inside = next((p for p, _ in _flatten(parent[key])), None)
      example = f', such as config.{path}.{inside}' if inside else ''
      raise UserError(f'config.{path} is a group of fields: set one of them{example}')
    if key in parent or path in SHARED or (in_net and all(map(_is_name, [*groups, key]))):
      rule = SHARED.get(path)
      parsed = _parse(path, value, parent.get(key), rule)
      return _put(config, path, _accept(path, parsed, rule) if rule else parsed)
  raise _unknown(path, {*SHARED, *(p for p, _ in _flatten(config))})


def _parse(path: str, text: str, current, rule: Field | None):
  """Reads `text` in the type of the rule, or else in that of the current value."""
  value = _literal(text)
  if rule and rule.many and rule.type == 'choice' and isinstance(value, str):
    value = tuple(text.split(','))  # a,b
  elif rule.type in ('text', 'choice') and not rule.many if rule else isinstance(current, str):
    if isinstance(value, str) or (value is None and (rule is None or rule.optional)):
      return value
    return text
  # Of None the type is not known here; a field for numbers takes an int, too.
  integral = rule.type == 'integer' if rule else current is None or type(current) is int
  if integral and isinstance(value, float) and value.is_integer():
    value = int(value)  # 1e6
  if isinstance(value, int | float) and (rule.many if rule else isinstance(current, tuple)):
    value = (value,)
  if isinstance(current, bool) and type(value) is int and value in (0, 1):
    value = bool(value)
  bare = isinstance(value, str) and value == text
  if (
    rule is None
    and current is not None
    and (bare or (isinstance(current, bool) and not isinstance(value, bool | None)))
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
