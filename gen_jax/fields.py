"""What a system declares: the rules of its config fields (type, bounds, default and meaning), and
the meaning of the values that its `evaluate` returns.

The rules of the groups that all systems share are here (`SHARED`); those of a system are in its
file (`FIELDS`), of an optimiser in `gen_jax.state`, of a sampler in `gen_jax.diffusion.samplers`.
"""

import dataclasses
import difflib
import math
import numbers as abstract_numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_NOT_WRITTEN = re.compile('[\x00-\x1f\x7f\ud800-\udfff]')  # no name or path has these
INT32 = 2**31 - 1  # of integers without another bound: steps and sizes are int32 on devices
LARGEST = 1e30  # of numbers, likewise: they are float32
REQUIRED = object()  # marks a field without default


class _Given:
  """Contains all values but None."""

  def __contains__(self, value) -> bool:
    return value is not None


GIVEN = _Given()  # for `Field.when`: any value of the other field but None


@dataclasses.dataclass(frozen=True)
class Field:
  """The rule of one field: allowed values and meaning. The functions `integer` to `net` make it."""

  type: str  # 'integer', 'number', 'text', 'path', 'choice' or 'net'
  many: bool = False  # a non-empty tuple of them
  low: float | None = None  # inclusive, as is `high`
  high: float | None = None
  above: float | None = None  # exclusive, as is `below`
  below: float | None = None
  choices: tuple = ()
  known_as: Mapping[str, str] = dataclasses.field(default_factory=dict)  # other name -> choice
  length: tuple[int, ...] = ()  # the lengths allowed for a tuple; empty: any
  optional: bool = False  # None is allowed
  default: Any = REQUIRED
  meaning: str = ''
  smoke: Any = REQUIRED  # the value under `:smoke`; REQUIRED: unchanged
  # (path, values): the field matters only where the field `path` has one of `values`. A path that
  # begins with a dot names a field of the same group.
  when: tuple[str, Any] | None = None
  same_as: str | None = None  # path of a field whose value this one takes where it is that path
  strict: bool = False  # only None is allowed where the field has no effect
  protocol: bool = True  # for `sample.*`: whether numbers about the samples depend on it

  def switch(self, path: str) -> str | None:
    """The field that decides whether this one, at `path`, has an effect; None without `when`."""
    if self.when is None:
      return None
    other = self.when[0]
    return path.rpartition('.')[0] + other if other.startswith('.') else other

  def matters(self, path: str, get: Callable[[str], Any]) -> bool:
    """Whether this field, at `path`, has an effect, where `get(path)` returns values of fields."""
    return self.when is None or get(self.switch(path)) in self.when[1]

  def accept(self, value: Any) -> Any:
    """Returns `value` as the type of the field: a list as a tuple, an int as a float for a number.

    Raises:
      ValueError: the field cannot hold this value; its text, if any, says why.
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
        if isinstance(value, str) and value.lower() in self.known_as:
          raise ValueError(f'{value!r} is called {self.known_as[value.lower()]!r} here')
        raise ValueError
      return value
    if self.type == 'text':
      if not isinstance(value, str) or not value.strip() or _NOT_WRITTEN.search(value):
        raise ValueError
      return value
    if self.type == 'path':
      return local_path(value)
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
    most = INT32 if self.type == 'integer' else LARGEST
    if self.high is None and abs(value) > most:
      raise ValueError(f'at most {most} is possible')
    return value

  def __str__(self) -> str:
    """The allowed values as text: 'an integer of at least 1 or None'."""
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
      kinds = dict(integer='an integer', number='a number', text='a non-empty text', path='a path')
      words = kinds[self.type] + bounds
    words += f' or {self.same_as!r}' if self.same_as else ''
    return words + ' or None' * self.optional


# Each of the functions takes the other attributes of a `Field` (`default`, `meaning`, ...), too.


def integer(low=None, high=None, optional=False, **about) -> Field:
  """An int in [low, high]."""
  return Field('integer', low=low, high=high, optional=optional, **about)


def number(low=None, high=None, above=None, below=None, optional=False, **about) -> Field:
  """A finite float (or int) in [low, high] and in (above, below)."""
  bounds = dict(low=low, high=high, above=above, below=below)
  return Field('number', optional=optional, **bounds, **about)


def text(optional=False, **about) -> Field:
  """A non-empty string."""
  return Field('text', optional=optional, **about)


def texts(optional=False, **about) -> Field:
  """A non-empty tuple of non-empty strings."""
  return Field('text', many=True, optional=optional, **about)


def path(optional=False, **about) -> Field:
  """A file or folder of this machine; `~` becomes the home folder."""
  return Field('path', optional=optional, **about)


def one_of(*choices, optional=False, **about) -> Field:
  """One of these values, of the same type; `one_of(True, False)` is a switch."""
  return Field('choice', choices=choices, optional=optional, **about)


def some_of(*choices, optional=False, **about) -> Field:
  """A non-empty tuple of these values."""
  return Field('choice', many=True, choices=choices, optional=optional, **about)


def integers(low=1, high=None, length=(), optional=False, **about) -> Field:
  """A non-empty tuple of ints in [low, high]; `length` is the tuple of allowed lengths."""
  return Field('integer', many=True, low=low, high=high, length=length, optional=optional, **about)


def numbers(
  low=None, high=None, above=None, below=None, length=(), optional=False, **about
) -> Field:
  """A non-empty tuple of finite floats, bounded as in `number`, of a length in `length`."""
  bounds = dict(low=low, high=high, above=above, below=below)
  return Field('number', many=True, length=length, optional=optional, **bounds, **about)


def net(**about) -> Field:
  """A group dict(name=..., **attributes), where name is 'module.Class' in gen_jax.nets, the dotted
  path of any importable Flax module or, in a script, the class itself.
  """
  return Field('net', **about)


def local_path(text) -> str:
  """Returns a path of this machine as people write it, with `~` as the home folder.

  Raises:
    ValueError: it cannot be one; the message says why.
  """
  if not isinstance(text, str | os.PathLike) or isinstance(text := os.fspath(text), bytes):
    raise ValueError('a path, as text, is needed')
  if not text.strip():
    raise ValueError('the path is empty (an unset variable?)')
  if re.match(r'[a-zA-Z][\w+.-]+:/', text):
    raise ValueError('a path of this machine is needed, not a URL: mount or copy it first')
  try:
    text.encode()
  except UnicodeEncodeError:
    raise ValueError('the path is not valid UTF-8, which checkpoints need') from None
  if '\0' in text:
    raise ValueError('a path cannot hold a zero byte')
  expanded = os.path.expanduser(text)
  if expanded.startswith('~') and expanded == text:
    name = text.partition('/')[0]
    raise ValueError(f'there is no home folder of {name} (a folder of that name is ./{name})')
  return expanded


def did_you_mean(word: str, known: Iterable[str], prefix='', cutoff=0.6) -> str:
  """Returns '; did you mean train?' for 'trian', or '' where nothing known is similar."""
  close = difflib.get_close_matches(word, list(known), 1, cutoff)
  return f'; did you mean {prefix}{close[0]}?' if close else ''


KINDS = ('exact', 'lower bound', 'upper bound', 'estimate')


@dataclasses.dataclass(frozen=True)
class Measure:
  """What one value of `evaluate` is, for tables and plots."""

  label: str  # name and unit, e.g. 'bits/dim'
  kind: str  # one of KINDS: how the value relates to the quantity that the label names
  how: Callable[[Any], str] | None = None  # config -> settings of the measurement, as text
  index: str = 'index'  # name of the last axis of values [b, k]
  log: bool = False  # plot values [b, k] with two logarithmic axes
  points: bool = False  # values [b, 2] are points in the plane, plotted in the colours of labels

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f'kind={self.kind!r}: one of {KINDS} is needed')


_SEED = 2**32 - 1
METRICS = (
  'frechet',
  'kernel',
  'precision_recall',
  'density_coverage',
  'inception_score',
  'modes',
)
OTHER_NAMES = {
  'fid': 'frechet',
  'fd': 'frechet',
  'kid': 'kernel',
  'mmd': 'kernel',
  'is': 'inception_score',
}

SHARED = {
  'system': text(meaning='a file of gen_jax/systems, or the dotted path of a module'),
  'seed': integer(0, _SEED, default=0, meaning='seed of everything random in the run'),
  'precision': one_of(
    'float32', 'bfloat16', default='float32', meaning='compute dtype; parameters stay float32'
  ),
  'compilation_cache': path(
    optional=True, default='auto', meaning='cache of compiled programs: auto, a folder, or None'
  ),
  'profile_steps': integers(
    length=(2,), optional=True, default=None, meaning='first and last step to trace; None: none'
  ),
  'data.name': text(
    default='digits',
    meaning='digits, shapes, ring, grid, swiss_roll, folder, arrays (an .npz or .npy file), or any '
    'name of TFDS',
  ),
  'data.path': path(
    optional=True,
    default=None,
    meaning='the folder of images, file of arrays, or folder of TFDS (None: its default); {split} '
    'in it stands for the split',
  ),
  'data.split': text(default='train', meaning='part of the data to train on, such as train[:80%]'),
  'data.shape': integers(
    high=2**16, length=(1, 3), meaning='of an example: (height, width, channels) or (n,)'
  ),
  'data.num_classes': integer(
    1,
    1_000_000,
    optional=True,
    default=None,
    meaning='classes of the labels; None leaves labels unused',
  ),
  'data.classes': texts(
    optional=True,
    default=None,
    when=('data.name', ('folder',)),
    meaning='the sub-folders that are classes, by label; None: all, in natural order',
  ),
  'data.flip': number(0, 1, default=0.0, meaning='probability of a horizontal flip'),
  'data.dequantize': one_of(
    'none', 'uniform', default='none', meaning='uniform adds noise of one level to 8-bit values'
  ),
  'data.binarize': one_of(
    'none', 'static', default='none', meaning='static: v becomes 255 with probability v / 255, once'
  ),
  'data.storage': one_of(
    'auto', 'device', 'stream', default='auto', meaning='auto: on the device if the data fit'
  ),
  'data.bad_files': one_of(
    'error', 'skip', default='error', meaning='unreadable files of a folder'
  ),
  'data.fit': one_of(
    'exact', 'crop', default='exact', meaning='folders, arrays and TFDS: crop and resize'
  ),
  'data.background': integers(
    0,
    255,
    length=(1, 3),
    optional=True,
    default=None,
    meaning='colour (or grey) under the alpha of images of folders, arrays and TFDS; None: it is '
    'refused',
  ),
  'data.read_threads': integer(
    1, 1024, default=8, meaning='threads that read ahead when streaming'
  ),
  'data.prefetch': integer(1, 1024, default=8, meaning='batches read ahead when streaming'),
  'train.steps': integer(  # the step is an int32 on the device
    1, 2**31 - 1, default=10_000, smoke=20, meaning='training steps'
  ),
  'train.batch_size': integer(
    1, 2**20, default=64, smoke=8, meaning='examples per minibatch, over all devices'
  ),
  'train.accumulate': integer(
    1, 2**20, default=1, meaning='gradient accumulation: microbatches of a batch'
  ),
  'train.steps_per_call': integer(
    1,
    10_000,
    optional=True,
    default=None,
    meaning='steps in one dispatch; None: 1 on CPU, otherwise 10',
  ),
  'train.log_steps': integer(
    1, default=100, smoke=5, meaning='steps between lines of metrics.jsonl and of the console'
  ),
  'train.sample_steps': integer(1, default=2000, smoke=20, meaning='steps between images'),
  'train.checkpoint_steps': integer(1, default=2000, smoke=10, meaning='steps between checkpoints'),
  'train.keep_checkpoints': integer(1, default=2, meaning='how many of the newest are kept'),
  'train.init_from': path(
    optional=True,
    default=None,
    meaning='folder of a run, or an export, whose weights the run starts from; None: fresh ones',
  ),
  'sample.num_images': integer(
    1, 10_000_000, default=64, smoke=8, meaning='samples in the grid, and of --mode=sample'
  ),
  'sample.batch_size': integer(1, 2**20, default=64, smoke=8, meaning='samples generated at once'),
  'sample.seed': integer(0, _SEED, default=0, meaning='seed of --mode=sample'),
  'eval.network': one_of(
    'auto',
    'inception',
    'efficientnet_lite0',
    'classifier',
    default='auto',
    meaning='feature network; auto: the best available, none for points',
  ),
  'eval.weights': path(
    optional=True, default=None, meaning="file of Inception's weights; None: fetched once"
  ),
  'eval.metrics': some_of(
    *METRICS,
    optional=True,
    default=None,
    meaning='None: all that apply to the data',
    known_as=OTHER_NAMES,
  ),
  'eval.split': text(default='train', meaning='reference set'),
  'eval.num_reference': integer(
    2, optional=True, default=None, meaning='examples of the reference set; None: all'
  ),
  'eval.num_samples': integer(
    2, 10_000_000, default=10_000, smoke=200, meaning='samples generated for --mode=evaluate'
  ),
  'eval.seed': integer(0, _SEED, default=0, meaning='seed of these samples'),
  'eval.held_out_split': text(
    default='test', meaning="part of the data for the values of the system's own `evaluate`"
  ),
  'eval.held_out_examples': integer(
    2, optional=True, default=None, smoke=8, meaning='examples of it; None: not evaluated'
  ),
  'eval.every_steps': integer(
    1, optional=True, default=None, meaning='steps between quick evaluations; None: none'
  ),
  'eval.quick_samples': integer(
    2, 10_000_000, default=500, smoke=200, meaning='samples generated for a quick evaluation'
  ),
  'eval.best': one_of(
    'frechet',
    'kernel',
    'precision',
    'recall',
    'density',
    'coverage',
    'inception_score',
    'modes',
    'good',
    'modes_kl',
    default='frechet',
    known_as=OTHER_NAMES,
    meaning='metric of quick evaluations whose best checkpoint is kept',
  ),
  'parallel.mode': one_of(
    'jit', 'pmap', default='jit', meaning='jit over a mesh of devices, or pmap'
  ),
  'parallel.data': integer(
    1, optional=True, default=None, meaning='devices that share a batch; None: all, or all / fsdp'
  ),
  'parallel.fsdp': integer(
    1, default=1, meaning='devices that parameters, optimiser state and EMA are sharded over'
  ),
}
