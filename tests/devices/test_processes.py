"""Several processes as one run: two with four devices each, and what becomes of them when one is
killed, hangs or is asked to stop.
"""

import contextlib
import functools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from children import QUICK

from gen_jax import config as configs
from gen_jax import contract
from gen_jax.devices import heartbeat, processes
from gen_jax.errors import UserError
from gen_jax.run import checkpoint
from gen_jax.systems import find_system

# The parts of which Gloo makes its lines.
GLOO = re.compile(
  r'\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is :|\d+'
)
ROOT = pathlib.Path(__file__).parent.parent.parent
DEVICES = '--xla_force_host_platform_device_count'
RING = (
  '--config=configs/gan_ring.py:smoke',
  '--config.train.steps=120',
  '--config.train.checkpoint_steps=10',
  '--config.train.keep_checkpoints=100',
  '--config.data.storage=stream',
  '--config.train.steps_per_call=2',
)


def start(workdir, *flags, devices=4, **env):
  return subprocess.Popen(
    [sys.executable, 'launch.py', f'--workdir={workdir}', *flags],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env=os.environ | {'XLA_FLAGS': f'{QUICK} {DEVICES}={devices}'} | env,
  )


@contextlib.contextmanager
def two(workdir, *flags, devices=4):
  """Two processes of one run; killed at the end."""
  with socket.create_server(('127.0.0.1', 0)) as probe:
    port = probe.getsockname()[1]
  shared = (f'--coordinator=127.0.0.1:{port}', '--num_processes=2')
  processes = [
    start(workdir, *flags, *shared, f'--process_id={i}', devices=devices) for i in range(2)
  ]
  try:
    yield processes
  finally:
    for process in processes:
      process.kill()
      process.wait()
      process.stdout.close()


def finish(processes, timeout=120):
  """Their exit statuses and what they said."""
  said = [process.communicate(timeout=timeout)[0] for process in processes]
  return [process.returncode for process in processes], said


def wait_for_step(workdir, step, timeout=120):
  deadline = time.monotonic() + timeout
  while not (workdir / 'checkpoints' / f'{step:010d}').exists():
    assert time.monotonic() < deadline, f'no checkpoint of step {step}'
    time.sleep(0.05)


def metrics(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if k not in ('time', 'rate')} for line in lines
  ]


def final_state(workdir):
  config = configs.load(f'{workdir}/config.json')
  system = find_system(config.system)
  saver = checkpoint.Checkpointer(
    workdir / 'checkpoints', config=configs.to_dict(config), data_fingerprint='', keep=100
  )
  state = saver.restore(saver.latest(), contract.abstract_state(config, system))
  saver.close()
  return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def assert_identical(a, b):
  assert metrics(a) == metrics(b)
  for x, y in zip(final_state(a), final_state(b), strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'two'
  with two(workdir, *RING) as processes:
    statuses, said = finish(processes)
  assert statuses == [0, 0], said
  return workdir, said


@pytest.mark.xdist_group('distributed')
def test_two_processes_train_as_one(uninterrupted, tmp_path):
  workdir, said = uninterrupted
  assert 'step 120/120' in said[0] and 'is finished after 120 steps' in said[0]
  # Gloo's threads write over each other's lines, piece by piece.
  assert GLOO.sub('', said[1]).split() == [], 'only the first one speaks'
  alone = start(tmp_path / 'one', *RING[:-1], devices=1)
  assert finish([alone])[0] == [0]
  for one, both in zip(metrics(tmp_path / 'one'), metrics(workdir), strict=True):
    assert one == pytest.approx(both, rel=1e-4, abs=1e-5)


@pytest.mark.xdist_group('distributed')
@pytest.mark.parametrize('victim', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_run_which_then_resumes(uninterrupted, tmp_path, victim):
  workdir = tmp_path / 'run'
  with two(workdir, *RING) as processes:
    wait_for_step(workdir, 30)
    processes[victim].kill()
    killed = time.monotonic()
    other = processes[1 - victim]
    (status,), (said,) = finish([other], timeout=60)
    assert time.monotonic() - killed < 60
  assert status == heartbeat.LOST, said
  errors = re.findall('^error: .*', said, re.MULTILINE)
  assert errors == [
    f'error: process {victim} has ended: the run ends here; the same command resumes it'
  ]
  assert 'Traceback' not in said
  with two(workdir, *RING) as processes:
    statuses, said = finish(processes)
  assert statuses == [0, 0], said
  assert 'resuming from step' in said[0]
  assert_identical(workdir, uninterrupted[0])


@pytest.mark.xdist_group('distributed')
def test_a_stop_of_one_process_stops_all_at_the_same_step(uninterrupted, tmp_path):
  workdir = tmp_path / 'run'
  with two(workdir, *RING) as processes:
    wait_for_step(workdir, 20)
    processes[1].send_signal(signal.SIGTERM)
    statuses, said = finish(processes, timeout=60)
  assert statuses == [143, 143], said
  assert re.search(r'saved at step \d+ of 120', said[0])
  with two(workdir, *RING) as processes:
    assert finish(processes)[0] == [0, 0]
  assert_identical(workdir, uninterrupted[0])


@pytest.mark.slow
@pytest.mark.xdist_group('distributed')
def test_a_process_that_hangs_ends_the_run(tmp_path):
  with two(tmp_path, *RING) as processes:
    wait_for_step(tmp_path, 20)
    processes[1].send_signal(signal.SIGSTOP)
    (status,), (said,) = finish(processes[:1], timeout=60)
  assert status == heartbeat.LOST
  assert re.search(
    r'^error: process 1 has not answered for \d+ s: the run ends', said, re.MULTILINE
  )


@pytest.mark.slow
@pytest.mark.xdist_group('distributed')
def test_a_state_in_parts_on_several_hosts(tmp_path):
  """Half of it on each: same losses, exact resume, and it samples."""
  both = functools.partial(two, devices=1)  # on two cores, gloo between eight takes seconds a step
  flags = (
    '--config=configs/ddpm_digits.py:smoke',
    '--config.train.checkpoint_steps=5',
    '--config.parallel.fsdp=2',
  )
  with both(tmp_path / 'both', *flags) as processes:
    statuses, said = finish(processes)
  assert statuses == [0, 0], said
  alone = start(tmp_path / 'one', *flags[:-1], devices=1)
  assert finish([alone])[0] == [0]
  for one, found in zip(metrics(tmp_path / 'one'), metrics(tmp_path / 'both'), strict=True):
    assert one == pytest.approx(found, rel=1e-4, abs=1e-5)
  with both(tmp_path / 'killed', *flags) as processes:
    wait_for_step(tmp_path / 'killed', 10)
    processes[1].kill()
    assert finish(processes[:1], timeout=60)[0] == [heartbeat.LOST]
  with both(tmp_path / 'killed', *flags) as processes:
    assert finish(processes)[0] == [0, 0]
  assert_identical(tmp_path / 'killed', tmp_path / 'both')
  with both(tmp_path / 'both', '--mode=sample', '--config.sample.num_images=8') as processes:
    statuses, said = finish(processes)
  assert statuses == [0, 0], said
  assert len(list((tmp_path / 'both' / 'samples').glob('step_*/*.png'))) == 8


# Processes that leave together, stand, are killed or find a mistake: what the others then do.
WATCH = """
import os, sys, time
import jax
from gen_jax.devices import heartbeat, processes
from gen_jax.errors import UserError
case, number, process, port = sys.argv[1], *map(int, sys.argv[2:])
processes.initialize(f'127.0.0.1:{port}', number, process)
heartbeat.STUCK_SECONDS = 3
status = 0
try:
  with heartbeat.Watch() as watch:
    if case != 'starts':
      watch.beat(1)
      watch.beat(2)
    if case == 'leaves' and process == 0:  # writes, while the others have nothing to do
      with watch.resting():
        time.sleep(6)
      print('written', flush=True)
    if case == 'rests' and process == 0:
      with watch.resting():
        time.sleep(8)
    if case == 'stands' and process == 0:
      time.sleep(1)
      watch.beat(3)
    if case == 'starts' and process == 0:  # a long first step
      time.sleep(6)
    if case == 'killed' and process == 2:
      time.sleep(2)
      os._exit(9)
    if case == 'mistake' and process == 1:
      raise UserError('the disk is full')
    if case == 'stands' and process == 1 or case in ('killed', 'mistake'):
      time.sleep(30)
    if case in ('rests', 'stands', 'starts'):
      processes.from_first(lambda: None)
except UserError as error:
  print(f'error: {error}', file=sys.stderr)
  status = 2
processes.leave(status)
"""
LOST_2 = 'error: process 2 has ended: the run ends here; the same command resumes it'
STOOD = LOST_2.replace('2 has ended', '1 has been at step 2 for . s')


@pytest.mark.xdist_group('distributed')
@pytest.mark.parametrize(
  ('case', 'statuses', 'errors'),
  [
    ('leaves', [0, 0], ['', '']),
    ('rests', [0, 0], ['', '']),
    ('starts', [0, 0], ['', '']),
    ('stands', [3, 3], [STOOD, STOOD]),
    ('killed', [3, 3, 9], [LOST_2, LOST_2, '']),
    (
      'mistake',
      [2, 2, 2],
      ['error: process 1: the disk is full', 'error: the disk is full']
      + ['error: process 1: the disk is full'],
    ),
  ],
)
def test_what_the_watch_ends(case, statuses, errors):
  with socket.create_server(('127.0.0.1', 0)) as probe:
    port = probe.getsockname()[1]
  n = len(statuses)
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', WATCH, case, str(n), str(i), str(port)],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(n)
  ]
  try:
    found, said = finish(processes, timeout=60)
  finally:
    for process in processes:
      process.kill()
  assert found == statuses, said
  for text, error in zip(said, errors, strict=True):
    assert re.fullmatch(error, '\n'.join(re.findall('^error: .*', text, re.MULTILINE))), text
  assert ('written' in said[0]) == (case == 'leaves')


@pytest.mark.parametrize('word', [dict(bye=True), dict(end='gone', status=2)])
def test_the_last_word_of_a_line_that_closes_counts(word):
  ours, theirs = socket.socketpair()
  other = heartbeat._Line(theirs, 0)
  other.send(dict(step=1))
  other.send(word)
  other.close()
  line = heartbeat._Line(ours, 1)
  assert line.read() == (None if 'bye' in word else 'has ended')
  assert line.bye == ('bye' in word)
  assert line.word == (dict(step=1) if 'bye' in word else word)
  line.close()


def test_a_stranger_is_sent_away():
  server = heartbeat._listen()
  port = server.getsockname()[1]
  with contextlib.ExitStack() as stack:
    connect = lambda: stack.enter_context(socket.create_connection(('127.0.0.1', port)))
    for text in (b'GET / HTTP/1.1\n', b'{"x": 1}\n', b'{"process": 1, "token": "guess"}\n'):
      connect().sendall(text)
    connect().sendall(b'{"process": 1, "token": "secret"}\n{"step": 4}\n')
    (line,) = heartbeat._accept(server, 1, 'secret')
    assert line.process == 1
    assert line.read() is None and line.word == {'step': 4}
    line.close()


@pytest.mark.xdist_group('distributed')
@pytest.mark.parametrize('field', ['train.steps=200', 'optim.D.lr=1e-5'])
def test_processes_of_different_configs_do_not_start(tmp_path, field):
  with socket.create_server(('127.0.0.1', 0)) as probe:
    port = probe.getsockname()[1]
  flags = (*RING, f'--coordinator=127.0.0.1:{port}', '--num_processes=2')
  processes = [
    start(tmp_path, *flags, '--process_id=0'),
    start(tmp_path, *flags, '--process_id=1', f'--config.{field}'),
  ]
  statuses, said = finish(processes, timeout=60)
  assert statuses == [2, 2], said
  name, value = field.split('=')
  assert f'error: config.{name}: {value} in process 1, ' in said[1].replace('1e-05', '1e-5')
  assert f'error: process 1: config.{name}: ' in said[0]
  assert not list((tmp_path / 'checkpoints').glob('[0-9]*'))


@pytest.mark.slow
@pytest.mark.xdist_group('distributed')
@pytest.mark.parametrize('first', [1, 2])
def test_a_run_goes_on_with_another_number_of_processes(uninterrupted, tmp_path, first):
  def run_with(number, *flags):
    if number == 1:
      processes = [start(tmp_path, *flags, devices=1)]
      return finish(processes)[0]
    with two(tmp_path, *flags) as processes:
      return finish(processes)[0]

  assert set(run_with(first, *RING, '--config.train.steps=60')) == {0}
  assert set(run_with(3 - first, *RING)) == {0}
  for found, wanted in zip(metrics(tmp_path), metrics(uninterrupted[0]), strict=True):
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (('here', 2, 0), '--coordinator=here: HOST:PORT of the first process is needed'),
    (('here:1', 2, 2), '--process_id=2: a number from 0 to 1 is needed'),
  ],
)
def test_wrong_flags_are_answered_in_one_line(flags, message):
  with pytest.raises(UserError) as error:
    processes.initialize(*flags)
  assert str(error.value) == message


def test_some_of_the_flags_are_not_enough():
  with pytest.raises(UserError, match='^--num_processes and --process_id too: '):
    processes.initialize('127.0.0.1:1', None, None)
