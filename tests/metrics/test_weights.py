"""Files of weights as PyTorch, NumPy and safetensors write them, and files that want to do more."""

import collections
import hashlib
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from gen_jax.errors import UserError
from gen_jax.metrics.weights import read_weights

STATE = {
  'conv.weight': np.arange(24, dtype=np.float32).reshape(2, 3, 4),
  'bn.num_batches_tracked': np.array(7, np.int64),
  'transposed': np.arange(6, dtype=np.float64).reshape(2, 3).T,
}


class Storage:
  """Pickles as torch.save pickles a storage: by a persistent id."""

  def __init__(self, key, array, legacy):
    name = {np.float32: 'Float', np.int64: 'Long', np.float64: 'Double'}[array.dtype.type]
    self.id = ('storage', Class(f'torch.{name}Storage'), key, 'cpu', array.size)
    self.id += (None,) if legacy else ()


class Class:
  """Pickles as a reference to a class or function that need not be importable."""

  def __init__(self, path):
    self.path = path


class Tensor:
  def __init__(self, *arguments):
    self.arguments = arguments


def dump(value, protocol=2) -> bytes:
  """The instructions that PyTorch's pickler writes, protocol 2, for the few types above."""
  if isinstance(value, Class):
    module, _, name = value.path.rpartition('.')
    return b'c' + f'{module}\n{name}\n'.encode()
  if isinstance(value, Storage):
    return dump(value.id) + b'Q'
  if isinstance(value, Tensor):
    hooks = dump(Class('collections.OrderedDict')) + b')R'
    body = b'(' + b''.join(map(dump, value.arguments)) + dump(False) + hooks + b't'
    return dump(Class('torch._utils._rebuild_tensor_v2')) + body + b'R'
  if isinstance(value, tuple):
    return b'(' + b''.join(map(dump, value)) + b't'
  if isinstance(value, dict):
    body = b''.join(dump(k) + dump(v) for k, v in value.items())
    return dump(Class('collections.OrderedDict')) + b')R' + b'(' + body + b'u'
  return pickle.dumps(value, protocol)[2:-1]  # without its first and last instruction


def whole(value):
  return b'\x80\x02' + dump(value) + b'.'


def state_dict(legacy):
  tensors = {}
  for i, (name, array) in enumerate(STATE.items()):
    base = array.T if name == 'transposed' else array
    strides = tuple(s // array.itemsize for s in array.strides)
    tensors[name] = Tensor(Storage(str(i), base, legacy), 0, array.shape, strides)
  return tensors


def raw(array):
  return (array.T if array.ndim == 2 else array).tobytes()


def write_zip(path, content=None, storages=STATE):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', content or whole(state_dict(legacy=False)))
    for i, array in enumerate(storages.values()):
      archive.writestr(f'archive/data/{i}', raw(array))


def write_legacy(path):
  parts = [0x1950A86A20F9469CFC6C, 1001, {'protocol_version': 1001, 'little_endian': True}]
  content = b''.join(pickle.dumps(part, 2) for part in parts) + whole(state_dict(legacy=True))
  content += pickle.dumps([str(i) for i in range(len(STATE))], 2)
  for array in STATE.values():
    content += struct.pack('<q', array.size) + raw(array)
  path.write_bytes(content)


@pytest.mark.parametrize('kind', ['zip', 'legacy', 'npz', 'safetensors'])
def test_every_format_gives_the_same_arrays(tmp_path, kind):
  path = tmp_path / f'weights.{kind if kind in ("npz", "safetensors") else "pth"}'
  {
    'zip': write_zip,
    'legacy': write_legacy,
    'npz': lambda path: np.savez(path, **STATE),
    'safetensors': lambda path: save_file(
      {name: np.ascontiguousarray(array) for name, array in STATE.items()}, path
    ),
  }[kind](path)
  found, checksum = read_weights(path)
  assert checksum == hashlib.sha256(path.read_bytes()).hexdigest()
  assert set(found) == set(STATE)
  for name, array in STATE.items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert found[name].dtype == array.dtype


class Run:
  """A pickle that runs a command when it is loaded."""

  def __init__(self, command):
    self.command = command

  def __reduce__(self):
    return os.system, (self.command,)


def test_a_pickle_that_runs_a_command_is_refused(tmp_path):
  path, mark = tmp_path / 'weights.pth', tmp_path / 'mark'
  evil = pickle.dumps(collections.OrderedDict(a=Run(f'touch {mark}')), 2)
  pickle.loads(evil)
  assert mark.exists()  # it does run where pickle is used
  mark.unlink()
  write_zip(path, evil)
  with pytest.raises(UserError, match='calls .*system, which is not allowed'):
    read_weights(path)
  assert not mark.exists()


@pytest.mark.parametrize(
  'offset, shape, strides, says',
  [
    (0, (2, 3), (3, 1), 'reaches beyond its storage'),
    (3, (2,), (1,), 'reaches beyond its storage'),
    (0, (2, 2), (100, -100), 'negative'),  # its last entry lies within
    (-1, (2,), (1,), 'negative'),
    (0, (-2,), (1,), 'negative'),
    (0, (10**12,), (0,), 'more entries than its storage'),  # terabytes of the same number
    (0, (5, 1), (0, 0), 'more entries than its storage'),
    (0, (1,) * 40, (1,) * 40, 'has 40 axes'),
  ],
)
def test_a_tensor_outside_of_its_storage_is_refused(tmp_path, offset, shape, strides, says):
  path = tmp_path / 'weights.pth'
  storage = Storage('0', np.zeros(4, np.float32), legacy=False)
  content = whole({'a': Tensor(storage, offset, shape, strides)})
  write_zip(path, content, {'a': np.zeros(4, np.float32)})
  with pytest.raises(UserError, match=f"tensor 'a' .*{says}"):
    read_weights(path)


def sparse(path):
  with open(path, 'wb') as file:
    file.truncate(20 * 10**9)


def many_opcodes(path):
  write_zip(path, b'\x80\x02' + b'(' * 2**22)


def long_header(path):
  path.write_bytes(struct.pack('<Q', 2**26) + b'{' + b' ' * (2**26 - 2) + b'}')


def compressed(path):
  np.savez_compressed(path, a=np.zeros(2**25, np.float32))


@pytest.mark.parametrize(
  'name, write, says',
  [
    ('a.pth', sparse, 'it has 20,000,000,000 bytes, more than 134,217,728'),
    ('a.npz', sparse, 'it has 20,000,000,000 bytes, more than 134,217,728'),
    ('a.safetensors', sparse, 'it has 20,000,000,000 bytes, more than 134,217,728'),
    ('a.pth', os.mkfifo, 'it is a FIFO, not a file'),
    ('a.safetensors', os.mkfifo, 'it is a FIFO, not a file'),
    ('a.pth', os.mkdir, 'it is a folder, not a file'),
    ('a.pth', lambda path: path.symlink_to('/dev/zero'), 'it is a device, not a file'),
    ('a.pth', many_opcodes, 'describes more than a state dict'),
    ('a.safetensors', long_header, 'its header is too long'),
    ('a.npz', compressed, 'a has 134,217,[0-9]+ bytes, compressed 1,0'),
  ],
)
def test_what_no_file_of_weights_can_be_is_refused_in_little_memory(
  tmp_path, memory, name, write, says
):
  write(tmp_path / name)
  errors = []

  def refuse():
    with pytest.raises(UserError, match=says) as error:
      read_weights(tmp_path / name)
    errors.append(error)

  assert memory(refuse) < 200 * 2**20


def test_tensors_may_share_a_storage(tmp_path):
  storage = Storage('0', np.arange(4, dtype=np.float32), legacy=False)
  names = [f'{i}' for i in range(1000)]
  state = {name: Tensor(storage, 1, (3,), (1,)) for name in names}
  write_zip(tmp_path / 'a.pth', whole(state), {'a': np.arange(4, dtype=np.float32)})
  found = read_weights(tmp_path / 'a.pth').arrays
  assert list(found) == names
  np.testing.assert_array_equal(found['999'], [1, 2, 3])


DOUBLED = b'\x80\x02K\x00' + b''.join(b'q%ch%c\x86' % (i, i) for i in range(45))


@pytest.mark.parametrize(
  'content',
  [
    b'\x80\x02}K\x00'
    + b'\x85' * 200_000
    + b'K\x01s.',  # a key of nested tuples: hash would overflow
    b'\x80\x02}' + DOUBLED[2:] + b'K\x01s.',  # one of 2**45 entries
    DOUBLED + b')R.',  # called
    DOUBLED + b'Q.',  # as a storage
    DOUBLED + b'.',
  ],
)
def test_a_small_file_of_a_huge_object_is_refused_at_once(tmp_path, content):
  path = tmp_path / 'weights.pth'
  write_zip(path, content)
  with pytest.raises(UserError, match='is not a file of weights') as error:
    read_weights(path)
  assert len(str(error.value)) < 500


@pytest.mark.parametrize('name', ['weights.pth', 'weights.npz', 'weights.safetensors'])
@pytest.mark.parametrize('content', [b'', b'<html>not found</html>', b'\x80\x02]q\x00.'])
def test_what_is_no_file_of_weights(tmp_path, name, content):
  path = tmp_path / name
  with pytest.raises(UserError, match='no weights can be read'):
    read_weights(path)
  path.write_bytes(content)
  with pytest.raises(UserError, match='is not a file of weights') as error:
    read_weights(path)
  assert '\n' not in str(error.value)
