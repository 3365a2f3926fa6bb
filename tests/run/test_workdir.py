"""One run per workdir, with real processes."""

import contextlib
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from gen_jax.errors import UserError
from gen_jax.run.workdir import (
  Workdir,
  append,
  make_folder,
  new_folder,
  open_workdir,
  write_atomic,
  write_together,
)

HOLDER = """
import sys, time
from gen_jax.errors import UserError
from gen_jax.run.workdir import open_workdir
try:
  with open_workdir(sys.argv[1]):
    print('won', flush=True)
    sys.stdin.read()
except UserError as error:
  print(error, flush=True)
  sys.exit(2)
"""


def start(path):
  env = {**os.environ, 'PYTHONPATH': os.pathsep.join(p or os.getcwd() for p in sys.path)}
  return subprocess.Popen(
    [sys.executable, '-c', HOLDER, str(path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env=env,
  )


def test_paths(tmp_path):
  with open_workdir(tmp_path / 'runs' / 'x') as workdir:
    assert workdir.path.is_dir()
    names = ['config', 'checkpoints', 'samples', 'metrics', 'tensorboard']
    assert [getattr(workdir, name).relative_to(workdir.path).as_posix() for name in names] == [
      'config.json',
      'checkpoints',
      'samples',
      'metrics.jsonl',
      'tensorboard',
    ]
    assert workdir.read_config() is None
    workdir.write_config('{"system": "ddpm"}')
    workdir.write_config('{"system": "gan"}')
    assert workdir.read_config() == '{"system": "gan"}'
    workdir.config.write_text('damaged')
    assert workdir.read_config() is None
    assert sorted(os.listdir(workdir.path)) == ['.lock', 'config.json']
  Workdir(tmp_path / 'other')
  assert not (tmp_path / 'other').exists()


def test_write_atomic_keeps_the_old_bytes_when_it_fails(tmp_path):
  path = tmp_path / 'config.json'
  write_atomic(path, b'old')
  with pytest.raises(TypeError):
    write_atomic(path, 'text')
  assert path.read_bytes() == b'old'


def test_the_second_run_is_refused_and_the_third_is_not(tmp_path):
  with open_workdir(tmp_path):
    begin = time.monotonic()
    child = start(tmp_path)
    out, _ = child.communicate(timeout=10)
    assert time.monotonic() - begin < 5
    assert child.returncode == 2
    assert re.fullmatch(
      rf'workdir {re.escape(str(tmp_path))} is in use by process {os.getpid()} '
      rf'on host {re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\S*; '
      'stop it or choose another --workdir\n',
      out,
    ), out
  with open_workdir(tmp_path):
    pass


def test_sigkill_frees_the_workdir(tmp_path):
  with start(tmp_path) as child:
    assert child.stdout.readline() == 'won\n'
    with pytest.raises(UserError, match=f'process {child.pid} '):
      with open_workdir(tmp_path):
        pass
    child.send_signal(signal.SIGKILL)
    with open_workdir(tmp_path):
      pass


def test_an_exception_frees_the_workdir(tmp_path):
  with pytest.raises(ZeroDivisionError):
    with open_workdir(tmp_path):
      raise ZeroDivisionError
  with open_workdir(tmp_path):
    pass


def test_ten_starters_have_one_winner(tmp_path):
  children = [start(tmp_path / 'x') for _ in range(10)]
  lines = [child.stdout.readline() for child in children]
  assert lines.count('won\n') == 1
  winner = children[lines.index('won\n')]
  for child, line in zip(children, lines, strict=True):
    child.communicate(timeout=10)
    assert child.returncode == (0 if child is winner else 2)
    assert child is winner or f'process {winner.pid} ' in line


def test_unwritable_is_one_line(tmp_path):
  (tmp_path / 'file').write_text('')
  for path, why in (
    (tmp_path / 'file', 'File exists'),
    (tmp_path / 'file' / 'x', 'Not a directory'),
    ('/proc/x', 'No such file'),
    (tmp_path / ('x' * 300), 'File name too long'),
    ('a\0b', 'zero byte'),
  ):
    with pytest.raises(UserError, match=why) as error:
      with open_workdir(path):
        pass
    assert '--workdir' in str(error.value)


def test_a_folder_without_permission_is_one_line():
  # Not below `tmp_path`, which only its owner may enter; and root may write everywhere.
  folder = tempfile.mkdtemp()
  user = os.geteuid()
  try:
    with open_workdir(folder) as workdir:
      pass
    # A lock that may be opened says nothing about new files.
    workdir.lock.chmod(0o666)
    os.chmod(folder, 0o555)
    if user == 0:
      os.seteuid(65534)
    with pytest.raises(UserError, match='Permission denied'):
      with open_workdir(folder):
        pass
  finally:
    os.seteuid(user)
    os.chmod(folder, 0o755)
    shutil.rmtree(folder)


def test_a_folder_that_holds_other_things_is_no_workdir(tmp_path):
  pics, project = tmp_path / 'pics', tmp_path / 'project'
  for folder, names in ((pics, ['1.png', '2.png']), (project, ['config.json', 'train.py'])):
    folder.mkdir()
    for name in names:
      (folder / name).write_text('')
  with pytest.raises(UserError, match=r"pics holds other things \('1.png', ...\): a new folder"):
    with open_workdir(pics):
      pass
  with pytest.raises(UserError, match=r"project holds other things \('config.json', ...\)"):
    with open_workdir(project):
      pass
  assert sorted(p.name for p in pics.iterdir()) == ['1.png', '2.png']


def test_logs_of_a_scheduler_and_hidden_files_may_lie_in_a_new_workdir(tmp_path):
  for name in ('slurm-17.out', 'nohup.out', 'train.log', '.DS_Store', '.gitignore'):
    (tmp_path / name).write_text('')
  with open_workdir(tmp_path) as workdir:
    (workdir.path / 'anything').write_text('')
  with open_workdir(tmp_path):  # ours by now
    pass


def test_a_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  with open_workdir('~/runs/x') as workdir:
    assert workdir.path == tmp_path / 'runs' / 'x' and workdir.path.is_dir()


@contextlib.contextmanager
def files_up_to(size):
  """A disk on which every file becomes full."""
  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


def pipe(path):
  os.mkfifo(path)


@pytest.mark.parametrize(
  'name, make, why',
  [
    ('samples', pathlib.Path.touch, 'Not a directory'),
    ('tensorboard', pathlib.Path.touch, 'Not a directory'),
    ('checkpoints', pipe, 'Not a directory'),
    ('samples', lambda path: path.symlink_to('/nowhere/x'), 'No such file or directory'),
    ('metrics.jsonl', pathlib.Path.mkdir, 'Is a directory'),
    ('metrics.jsonl', lambda path: path.symlink_to('/dev/full'), 'it is not a regular file'),
    ('metrics.jsonl', lambda path: path.symlink_to('/nowhere/x'), 'No such file or directory'),
    ('evaluation.jsonl', pipe, 'it is not a regular file'),
    ('config.json', pathlib.Path.mkdir, 'Is a directory'),
  ],
)
def test_what_cannot_be_written_is_found_first(tmp_path, name, make, why):
  (tmp_path / '.lock').touch()  # the folder of a run
  make(tmp_path / name)
  with pytest.raises(UserError) as error:
    with open_workdir(tmp_path):
      pass
  assert str(error.value) == f'{tmp_path / name} cannot be written: {why}'
  assert sorted(os.listdir(tmp_path)) == ['.lock', name]


def test_a_full_disk_is_found_first(tmp_path):
  with files_up_to(4000), pytest.raises(UserError, match='cannot be written: File too large'):
    with open_workdir(tmp_path):
      pass


def test_a_folder_removed_during_a_run_is_made_again_but_not_that_of_the_run(tmp_path):
  run = tmp_path / 'run'
  run.mkdir()
  for _ in range(2):
    write_atomic(make_folder(run / 'samples') / 'a.png', b'a')
    shutil.rmtree(run / 'samples')
  shutil.rmtree(run)
  for write in (
    lambda: make_folder(run / 'samples'),
    lambda: write_atomic(run / 'config.json', b'{}'),
    lambda: append(run / 'metrics.jsonl', b'{}'),
  ):
    with pytest.raises(UserError, match=f'{run}/.* cannot be written: No such file or directory'):
      write()
  assert os.listdir(tmp_path) == []


def test_nothing_half_written_is_left(tmp_path):
  log, old, new = tmp_path / 'log', tmp_path / 'old', tmp_path / 'new'
  append(log, b'one\n')
  write_atomic(old, b'old')
  with files_up_to(4000):
    for write in (
      lambda: append(log, b'2' * 5000),
      lambda: write_atomic(old, b'3' * 5000),
      lambda: write_together({old: b'4', new: b'5' * 5000}),
    ):
      with pytest.raises(UserError, match='cannot be written: File too large'):
        write()
    with pytest.raises(UserError, match=f'{new} cannot be written: File too large'):
      with new_folder(new) as folder:
        (folder / 'a').write_bytes(b'6')
        (folder / 'b').write_bytes(b'7' * 5000)
  assert sorted(os.listdir(tmp_path)) == ['log', 'old']
  assert (log.read_bytes(), old.read_bytes()) == (b'one\n', b'old')


def test_a_new_folder_replaces_the_old_one(tmp_path):
  for name in ('a', 'b'):
    with new_folder(tmp_path / 'x' / 'set') as folder:
      (folder / name).touch()
  assert os.listdir(tmp_path / 'x') == ['set'] and os.listdir(tmp_path / 'x' / 'set') == ['b']
