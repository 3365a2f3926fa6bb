"""Reads named arrays from files of weights: npz, safetensors, and PyTorch's own formats.

No code in a file is executed. A PyTorch file is a pickle, that is, a program; this module
interprets only the instructions that dictionaries of tensors need, and rejects all others.
"""

import functools
import hashlib
import io
import math
import pathlib
import pickletools
import struct
import zipfile
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load as load_safetensors

from gen_jax.errors import UserError
from gen_jax.host.arrays import open_zip, read_all
from gen_jax.host.files import read_file

LARGEST = 2**27  # bytes, of a file and of its arrays; Inception's have 95 MB
_LONGEST_INDEX = 2**20  # bytes, of the list of a file's arrays; Inception's has 40 kB
_MOST_AXES = 8

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a torch.save file before 1.6
_LEGACY_PROTOCOL = 1001
_DTYPES = {
  'FloatStorage': np.float32,
  'DoubleStorage': np.float64,
  'HalfStorage': np.float16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}


class Weights(NamedTuple):
  arrays: dict[str, np.ndarray]
  sha256: str  # checksum of the file, hexadecimal digits


def sha256(content: bytes) -> str:
  """Checksum in hexadecimal digits."""
  return hashlib.sha256(content).hexdigest()


def read_weights(path) -> Weights:
  """The named arrays of a file, `.npz`, `.safetensors`, or a state dict by torch.save, and the
  checksum of the bytes that were read.

  Raises:
    UserError: there is no such file, or it holds something else.
  """
  path = pathlib.Path(path)
  try:
    content = read_file(path, LARGEST)
  except OSError as error:
    raise UserError(f'{path}: no weights can be read ({error.strerror})') from error
  try:
    return Weights(_parse(content, path.suffix), sha256(content))
  except Exception as error:  # the parsers of three formats raise many types
    why = ' '.join(str(error).split())[:150]
    raise UserError(
      f'{path} is not a file of weights (npz, safetensors, or a state dict by torch.save): {why}'
    ) from error


def _parse(content, suffix):
  if suffix == '.npz':
    return read_all(io.BytesIO(content), LARGEST)
  if suffix == '.safetensors':
    if int.from_bytes(content[:8], 'little') > _LONGEST_INDEX:
      raise ValueError('its header is too long')
    return load_safetensors(content)
  read = _read_zip if zipfile.is_zipfile(io.BytesIO(content)) else _read_legacy
  return read(content)


class StateDict:
  """The arrays of a PyTorch network, each taken once, in Flax's layout and as float32.

  Error messages call them `what`, e.g. 'the Inception weights'.
  """

  def __init__(self, arrays: dict, what: str):
    self._arrays, self._what, self._taken = arrays, what, set()

  def take(self, name: str, shape) -> np.ndarray:
    """The array of this name, float64.

    Raises:
      UserError: it is missing, or its shape differs.
    """
    self._taken.add(name)
    if name not in self._arrays:
      raise UserError(f'{self._what} lack {name}')
    array = self._arrays[name]
    if array.shape != tuple(shape):
      raise UserError(f'{self._what} have {name} {array.shape}, {tuple(shape)} is needed')
    return np.asarray(array, np.float64)

  def conv(self, conv: str, norm: str, shape, epsilon: float) -> dict:
    """Kernel of `shape` [h, w, in, out] and bias of a convolution with its batch norm folded in."""
    h, w, i, o = shape
    weight = self.take(f'{conv}.weight', (o, i, h, w))
    scale, shift, mean, variance = (
      self.take(f'{norm}.{part}', (o,))
      for part in ('weight', 'bias', 'running_mean', 'running_var')
    )
    factor = scale / np.sqrt(variance + epsilon)
    kernel = (weight * factor[:, None, None, None]).transpose(2, 3, 1, 0)
    return {'kernel': np.float32(kernel), 'bias': np.float32(shift - mean * factor)}

  def finish(self, *ignored: str) -> None:
    """Checks that every array was taken, except for `ignored` and the counters of batch norm.

    Raises:
      UserError: one was not.
    """
    for name in self._arrays:
      if name not in {*self._taken, *ignored} and not name.endswith('num_batches_tracked'):
        raise UserError(f'{self._what} have {name}, which the network does not')


class _Symbol(NamedTuple):
  """A name that a pickle asks to import; it is never imported."""

  module: str
  name: str


class _Storage(NamedTuple):
  key: str
  dtype: type
  size: int


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple
  strides: tuple


def _read_zip(content):
  """torch.save since 1.6: a zip archive with `*/data.pkl` and one file for each storage."""
  with open_zip(io.BytesIO(content)) as archive:
    if any(file.compress_type != zipfile.ZIP_STORED for file in archive.infolist()):
      raise ValueError('it is compressed, which torch.save does not do')
    (index,) = (name for name in archive.namelist() if name.endswith('/data.pkl'))
    folder = index.removesuffix('data.pkl')
    state = _follow(io.BytesIO(archive.read(index)))
    return _arrays(state, lambda key: archive.read(f'{folder}data/{key}'))


def _read_legacy(content):
  """torch.save before 1.6: five pickles (magic number, protocol, system, state, keys of storages),
  then for each key the number of entries and the entries.
  """
  file = io.BytesIO(content)
  if _follow(file) != _LEGACY_MAGIC or _follow(file) != _LEGACY_PROTOCOL:
    raise ValueError('its first bytes are not those of one')
  if not _follow(file)['little_endian']:
    raise ValueError('its numbers are big-endian')
  state, keys = _follow(file), _follow(file)
  if not isinstance(state, dict) or not all(isinstance(key, str) for key in keys):
    raise ValueError('it holds no dict of tensors')
  dtypes = {t.storage.key: t.storage.dtype for t in state.values() if isinstance(t, _Tensor)}
  raw = {}
  for key in keys:
    (size,) = struct.unpack('<q', file.read(8))
    raw[key] = file.read(size * np.dtype(dtypes[key]).itemsize)
  return _arrays(state, raw.__getitem__)


def _arrays(state, read_bytes):
  """The arrays of a state dict's tensors; `read_bytes` maps the key of a storage to its bytes."""
  if not isinstance(state, dict):
    raise ValueError(f'it holds a {type(state).__name__}, not a dict of tensors')
  read_bytes = functools.cache(read_bytes)  # tensors may share a storage
  arrays = {}
  for name, tensor in state.items():
    if not isinstance(tensor, _Tensor):
      raise ValueError(f'its entry {name!r} is not a tensor')
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    if not all(type(number) is int and number >= 0 for number in numbers):
      raise ValueError(f'tensor {name!r} has a negative size or stride')
    if not len(tensor.shape) == len(tensor.strides) <= _MOST_AXES:
      raise ValueError(f'tensor {name!r} has {len(tensor.shape)} axes')
    entries = np.frombuffer(read_bytes(tensor.storage.key), tensor.storage.dtype)
    size = math.prod(tensor.shape)
    last = tensor.offset + sum(
      (n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    if size and last >= len(entries):
      raise ValueError(f'tensor {name!r} reaches beyond its storage')
    if size > len(entries):  # with a stride of 0: a few bytes would become any number of them
      raise ValueError(f'tensor {name!r} has more entries than its storage')
    # Not copied: whoever uses an array converts it, one at a time.
    arrays[name] = np.lib.stride_tricks.as_strided(
      entries[tensor.offset :],
      tensor.shape,
      [stride * entries.itemsize for stride in tensor.strides],
    )
  return arrays


# Objects of a pickle are not hashed or printed, except for text: a small file can describe one for
# which that takes hours or overflows the stack.


def _call(function, arguments):
  """Emulates the few functions that a state dict needs."""
  if not isinstance(function, _Symbol) or not isinstance(arguments, tuple):
    raise ValueError('it calls something that is not a function')
  match function:
    case ('collections', 'OrderedDict') if not arguments:
      return {}
    case ('torch._utils', '_rebuild_tensor_v2'):
      storage, offset, shape, strides, *_ = arguments
      if not isinstance(storage, _Storage) or not (type(shape) is type(strides) is tuple):
        raise ValueError('one of its tensors has no storage')
      return _Tensor(storage, offset, shape, strides)
    case ('torch._utils', '_rebuild_parameter'):
      return arguments[0]
  raise ValueError(f'it calls {function.module}.{function.name}, which is not allowed')


def _persistent(pid):
  """A storage from its persistent id (..., class, key, device, size[, view])."""
  kind, symbol, key, _, size, *view = pid
  if kind != 'storage' or not isinstance(symbol, _Symbol) or symbol.name not in _DTYPES:
    raise ValueError('one of its storages is of an unknown type')
  if not isinstance(key, str) or type(size) is not int or any(item is not None for item in view):
    raise ValueError('one of its storages is malformed')
  return _Storage(key, _DTYPES[symbol.name], size)


def _symbol(module, name):
  if not isinstance(module, str) or not isinstance(name, str):
    raise ValueError('it names a function by something other than text')
  return _Symbol(module, name)


def _set(target, keys, values):
  if not isinstance(target, dict) or not all(isinstance(key, str) for key in keys):
    raise ValueError('it holds a dict whose keys are not names')
  target.update(zip(keys, values, strict=True))


def _follow(file):
  """Interprets the pickle at the file's position, up to its end; returns the object."""
  stack, marks, memo = [], [], {}

  def since_mark():
    start = marks.pop()
    items = stack[start:]
    del stack[start:]
    return items

  start = file.tell()
  for opcode, value, position in pickletools.genops(file):
    if position - start > _LONGEST_INDEX:
      raise ValueError('it describes more than a state dict')
    match opcode.name:
      case 'PROTO' | 'FRAME':
        pass
      case 'STOP':
        return stack.pop()
      case 'MARK':
        marks.append(len(stack))
      case 'NONE' | 'NEWTRUE' | 'NEWFALSE':
        stack.append({'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}[opcode.name])
      case (
        'BININT' | 'BININT1' | 'BININT2' | 'LONG1' | 'BINFLOAT' | 'BINUNICODE' | 'SHORT_BINUNICODE'
      ):
        stack.append(value)
      case 'EMPTY_DICT' | 'EMPTY_LIST' | 'EMPTY_TUPLE':
        stack.append({'EMPTY_DICT': {}, 'EMPTY_LIST': [], 'EMPTY_TUPLE': ()}[opcode.name])
      case 'TUPLE':
        stack.append(tuple(since_mark()))
      case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
        n = int(opcode.name[-1])
        stack[-n:] = [tuple(stack[-n:])]
      case 'BINPUT' | 'LONG_BINPUT':
        memo[value] = stack[-1]
      case 'MEMOIZE':
        memo[len(memo)] = stack[-1]
      case 'BINGET' | 'LONG_BINGET':
        stack.append(memo[value])
      case 'GLOBAL':
        stack.append(_symbol(*value.split(' ')))
      case 'STACK_GLOBAL':
        stack[-2:] = [_symbol(*stack[-2:])]
      case 'BINPERSID':
        stack.append(_persistent(stack.pop()))
      case 'REDUCE':
        stack[-2:] = [_call(*stack[-2:])]
      case 'SETITEM':
        key, item = stack.pop(-2), stack.pop()
        _set(stack[-1], [key], [item])
      case 'SETITEMS':
        items = since_mark()
        _set(stack[-1], items[::2], items[1::2])
      case 'APPEND':
        item = stack.pop()
        stack[-1].append(item)
      case 'APPENDS':
        items = since_mark()
        stack[-1].extend(items)
      case 'BUILD':
        stack.pop()  # attributes of a dict, such as the versions of PyTorch's modules
      case other:
        raise ValueError(f'its instruction {other} is not allowed')
  raise ValueError('it is truncated')
