"""Files of NumPy arrays: honest ones, and those that claim more than they hold."""

import io
import os
import re
import struct
import zipfile

import numpy as np
import pytest

from gen_jax import config as configs
from gen_jax.errors import UserError
from gen_jax.host.arrays import BadArrays, read_arrays, stored
from gen_jax.metrics import from_elsewhere
from gen_jax.metrics.scorer import read_part

HONEST = {
  'images': np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8, 1),
  'features': np.linspace(0, 1, 12, dtype='<f8').reshape(4, 3).T,
  'where': np.array('a machine'),
  'one': np.float32(3),
}


def header(shape, dtype='|u1') -> bytes:
  """The beginning of an .npy file."""
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    file, dict(shape=shape, fortran_order=False, descr=np.dtype(dtype).str)
  )
  return file.getvalue()


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_arrays_are_those_that_were_saved(tmp_path, save):
  save(tmp_path / 'a.npz', objects=np.array(['a', None]), **HONEST)
  with zipfile.ZipFile(tmp_path / 'a.npz', 'a') as archive:
    archive.writestr('notes.txt', 'no array')
  found = read_arrays(tmp_path / 'a.npz', 2**20)
  assert list(found) == list(HONEST)
  for name, array in HONEST.items():
    np.testing.assert_array_equal(found[name], array)
    assert found[name].dtype == array.dtype
  np.save(tmp_path / 'a.npy', HONEST['features'])
  np.testing.assert_array_equal(read_arrays(tmp_path / 'a.npy', 2**20)[''], HONEST['features'])


def test_nothing_is_read_before_it_is_asked_for(tmp_path, memory):
  zeros = np.zeros((2**19, 8, 8, 1), np.uint8)
  np.savez_compressed(tmp_path / 'a.npz', small=zeros[:3], large=zeros)
  with open(tmp_path / 'a.npz', 'rb') as file:
    large = []
    assert memory(lambda: large.append(stored(file)['large'])) < 2**20
    assert large[0].shape == zeros.shape and large[0].nbytes == zeros.nbytes
    assert (large[0].read() == 0).all()
  with pytest.raises(BadArrays, match='arrays of 33,554,624 bytes, more than 33,554,432'):
    read_arrays(tmp_path / 'a.npz', 2**25)


def bad_file(path, kind):
  """Writes a file that cannot be read."""
  name = 'a.npy'
  if kind == 'pipe':
    return os.mkfifo(path)
  if kind == 'terabytes.npy':
    return path.write_bytes(header((6 * 10**12,)) + bytes(100))
  if kind == 'images.npy':
    return path.write_bytes(header((10**11, 8, 8, 1)) + bytes(100))
  if kind == 'overflow.npy':
    return path.write_bytes(header((2**40, 2**40, 2**40)) + bytes(100))
  if kind == 'negative.npy':
    return path.write_bytes(header((-1, 8)) + bytes(100))
  if kind == 'empty type.npy':
    return path.write_bytes(header((10**12,), '|V0') + bytes(100))
  if kind == 'long header.npy':
    path.write_bytes(b'\x93NUMPY\2\0' + struct.pack('<I', 2**27))
    return os.truncate(path, 2**27 + 12)
  if kind == 'cut off.npy':
    return path.write_bytes(header((3, 8, 8, 1))[:50])
  if kind == 'sparse.npy':
    path.write_bytes(header((10**13, 8, 8, 1)))
    return os.truncate(path, 6 * 10**12)
  if kind == 'larger than memory.npy':
    path.write_bytes(header((10**11, 8, 8, 1)))
    return os.truncate(path, 7 * 10**12)
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    if kind == 'terabytes.npz':
      archive.writestr(name, header((6 * 10**12,)) + bytes(100))
    elif kind == 'bomb.npz':
      with archive.open(name, 'w') as file:
        file.write(header((100 * 2**14, 8, 8, 1)))
        for _ in range(100):
          file.write(bytes(2**20))
    elif kind == 'long header.npz':
      archive.writestr(name, b'\x93NUMPY\2\0' + struct.pack('<I', 2**28) + bytes(2**20))
    elif kind == 'many.npz':
      for i in range(100, 200):
        archive.writestr(f'{i}' * 20_000, b'')
    elif kind == 'lzma.npz':
      archive.writestr(name, header((2, 8, 8, 1)) + bytes(128), zipfile.ZIP_LZMA)


@pytest.mark.parametrize(
  'kind, says',
  [
    ('pipe', 'it is a FIFO, not a file'),
    ('terabytes.npy', r'it claims an array \(6000000000000,\) of uint8, 6,000,000,000,000 bytes'),
    ('images.npy', 'it claims an array .* 6,400,000,000,000 bytes, and has 100'),
    ('overflow.npy', 'it claims an array'),
    ('negative.npy', 'it is not a file of NumPy arrays'),
    ('empty type.npy', 'it holds no numbers'),
    ('long header.npy', 'it is not a file of NumPy arrays'),
    ('cut off.npy', 'it is not a file of NumPy arrays'),
    ('sparse.npy', 'it claims an array'),
    ('larger than memory.npy', 'it needs 5.8 TiB of memory, .* are free'),
    ('terabytes.npz', 'it claims an array'),
    ('bomb.npz', 'a has 104,857,[0-9]+ bytes, compressed [0-9,]+ times'),
    ('long header.npz', 'it is not a file of NumPy arrays'),
    ('many.npz', 'an archive of too many files'),
    ('lzma.npz', 'a is compressed in a way that NumPy does not use'),
  ],
)
def test_what_a_file_cannot_hold_is_refused_in_little_memory(tmp_path, memory, kind, says):
  path = tmp_path / kind
  bad_file(path, kind)
  if path.suffix not in ('.npy', '.npz'):
    path = path.rename(tmp_path / 'pipe.npz')
  config = configs.load('configs/ddpm_digits.py:smoke')
  errors = []

  def refuse():
    with pytest.raises(UserError) as error:
      from_elsewhere.open_pictures(config, str(path))
    errors.append(str(error.value))
    assert read_part(path) is None  # as a damaged part of an evaluation

  assert memory(refuse) < 20 * 2**20
  assert errors[0].startswith(f'--samples={path} cannot be read: ')
  assert re.search(says, errors[0]), errors[0]
