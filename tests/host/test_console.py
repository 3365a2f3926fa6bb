"""Text that nobody reads: what `tell`, bars and logging do with streams that fail."""

import os
import sys
import time

import pytest
from children import run_python

from gen_jax.errors import UserError, writing
from gen_jax.host import console


@pytest.fixture
def stderr_is(monkeypatch):
  opened = []

  def use(path, mode='w', **options):
    opened.append(open(path, mode, **options))
    monkeypatch.setattr(sys, 'stderr', opened[-1])
    return opened[-1]

  yield use
  for file in opened:
    console.close_stream(file)
    file.close()


def gone():
  """The writing end of a pipe whose reader is gone."""
  read, write = os.pipe()
  os.close(read)
  return write


def test_tell_ends_nothing(stderr_is, monkeypatch):
  for path in (gone(), '/dev/full'):
    stderr_is(path)
    for _ in range(1000):  # more than a buffer holds
      console.tell('step 1/2  100 img/s')
  stderr_is('/dev/null').close()
  console.tell('closed')
  monkeypatch.setattr(sys, 'stderr', None)
  console.tell('nothing')


def test_what_the_encoding_lacks_is_escaped(stderr_is, tmp_path):
  stderr_is(tmp_path / 'log', encoding='ascii')
  console.tell('rün x is finished')
  with open(tmp_path / 'out', 'w', encoding='utf-8') as out:
    console.tell(f'caf{os.fsdecode(bytes([0xE9]))}', file=out)
  assert (tmp_path / 'log').read_text() == 'r\\xfcn x is finished\n'
  assert (tmp_path / 'out').read_text() == 'caf\\udce9\n'


def test_a_reader_that_does_not_read_stops_nothing(stderr_is, monkeypatch):
  read, write = os.pipe()
  stderr_is(write)
  monkeypatch.setattr(console, 'PATIENCE', 0.2)
  begin = time.monotonic()
  for _ in range(1000):
    console.tell('x' * 200)
  assert 0.2 < time.monotonic() - begin < 2
  while len(os.read(read, 2**16)) == 2**16:
    pass
  console.tell('again')
  assert os.read(read, 2**16).endswith(b'again\n')
  os.close(read)


def test_results_that_cannot_be_written_are_told(capsys):
  with open('/dev/full', 'w') as full:
    console.tell('a table', file=full)
    console.close_stream(full)
  with open(gone(), 'w') as pipe:  # as by `| head -1`, which has what it wants
    console.tell('a table', file=pipe)
    console.close_stream(pipe)
  assert capsys.readouterr().err == 'the output cannot be written: No space left on device\n'


def test_bars_and_logging_go_the_same_way(stderr_is):
  code = """
import logging, os, sys
from gen_jax.host import console
logging.basicConfig(stream=console.STDERR)
os.dup2(os.open('/dev/full', os.O_WRONLY), 2)
for step in console.bar(range(1000), mininterval=0):
  logging.warning('step %d of rün', step)
console.close_streams()
print('done')
"""
  done = run_python('-c', code, cwd=os.getcwd(), PYTHONIOENCODING='ascii')
  assert (done.returncode, done.stdout, done.stderr) == (0, 'done\n', '')


def test_writing_translates_what_the_system_refuses(tmp_path):
  with pytest.raises(UserError) as error:
    with writing('a.png'):
      open(tmp_path / 'none' / 'a.png', 'w')
  assert str(error.value) == 'a.png cannot be written: No such file or directory'
  with pytest.raises(ZeroDivisionError), writing('a.png'):
    1 / 0  # noqa: B018
