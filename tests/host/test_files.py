"""Opening files of any kind."""

import os
import socket
import time

import pytest

from gen_jax.host import files


def test_a_regular_file_is_read(tmp_path):
  (tmp_path / 'a').write_bytes(b'content')
  (tmp_path / 'link').symlink_to('a')
  for name in ('a', 'link'):
    assert files.read_file(tmp_path / name, 7) == b'content'
    with files.open_file(tmp_path / name) as file:
      assert file.read(3) == b'con'


@pytest.mark.parametrize(
  'kind, says',
  [
    ('pipe', 'it is a FIFO, not a file'),
    ('socket', 'it is a socket, not a file'),
    ('device', 'it is a device, not a file'),
    ('folder', 'it is a folder, not a file'),
    ('sparse', 'it has 5,000,000,000,000 bytes, more than 100'),
    ('nothing', 'No such file or directory'),
    ('loop', 'Too many levels of symbolic links'),
  ],
)
def test_what_is_none_is_said_and_not_waited_for(tmp_path, kind, says):
  path = tmp_path / 'a'
  if kind == 'pipe':
    os.mkfifo(path)
  elif kind == 'socket':
    with socket.socket(socket.AF_UNIX) as server:
      server.bind(str(path))
  elif kind == 'device':
    path.symlink_to('/dev/full')
  elif kind == 'folder':
    path.mkdir()
  elif kind == 'sparse':
    path.touch()
    os.truncate(path, 5 * 10**12)
  elif kind == 'loop':
    path.symlink_to('a')
  started = time.monotonic()
  with pytest.raises(OSError) as error:
    files.read_file(path, 100)
  assert error.value.strerror == says
  assert time.monotonic() - started < 1
