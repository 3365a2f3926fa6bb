"""What is shown of the progress of training."""

import os
import pty
import re
import subprocess
import sys
import termios

import pytest

from gen_jax.run import progress
from gen_jax.run.progress import Progress


@pytest.fixture
def clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
  return now


def test_plain_lines_without_a_terminal(clock, capsys):
  shown = Progress(0, 2000, 8)
  for step, seconds in ((1, 30.0), (11, 5.0), (21, 2.5)):
    clock[0] += seconds
    shown.show(step, {'g/loss': 0.1234567, 'd/loss': 2, 'accuracy': 0.5})
  shown.close()
  assert capsys.readouterr().err.splitlines() == [
    'step 1/2000  g/loss 0.1235  d/loss 2',  # compiles: no rate follows from its time
    # 8 images * 10 steps in 5 s; 0.5 s for each of 1989 steps.
    'step 11/2000  16.0 img/s  g/loss 0.1235  d/loss 2  left 00:16:34',
    # 8 images * 10 steps in 2.5 s; 20 steps took 7.5 s since the first, 1979 are left.
    'step 21/2000  32.0 img/s  g/loss 0.1235  d/loss 2  left 00:12:22',
  ]


def test_the_rate_is_that_of_training_and_the_time_left_includes_events(clock, capsys):
  left = dict(save=lambda step: (100 - step) // 10, draw=lambda step: (100 - step) // 50)
  shown = Progress(0, 100, 4, unit='points', to_come=lambda name, step: left[name](step))
  clock[0] += 9.0
  shown.show(1, {})
  clock[0] += 10.0  # ten steps of a second each
  shown.show(11, {})
  with shown.aside('save'):
    clock[0] += 3.0
  clock[0] += 10.0
  with shown.aside('save'):
    clock[0] += 5.0
  shown.show(21, {})
  assert shown.rate(21) is None
  # 79 steps of a second and 7 saves, each of 4 s on average.
  assert capsys.readouterr().err.splitlines()[1:] == [
    'step 11/100  4.0 points/s  left 00:01:29',
    f'step 21/100  4.0 points/s  left 00:01:{79 + 7 * 4 - 60}',
  ]


def test_a_bar_on_a_terminal():
  code = """
import sys
from gen_jax.run.progress import Progress
shown = Progress(4, 20, 8)
shown.show(5, {'loss': 0.25})
shown.tell('a line above')
shown.show(12, {'loss': 0.125})
shown.close()
assert 'tensorflow' not in sys.modules
assert 'matplotlib' not in sys.modules
"""
  parent, child = pty.openpty()
  termios.tcsetwinsize(child, (24, 90))
  env = {**os.environ, 'PYTHONPATH': os.pathsep.join(p or os.getcwd() for p in sys.path)}
  process = subprocess.Popen([sys.executable, '-c', code], stderr=child, env=env)
  os.close(child)
  shown = b''
  try:
    while more := os.read(parent, 4096):
      shown += more
  except OSError:  # How Linux says that the other end is closed.
    pass
  os.close(parent)
  assert process.wait() == 0, shown
  assert b'a line above' in shown
  last = shown.decode().rstrip().split('\r')[-1]
  assert re.search(r'12/20 \|.*\| .*img/s  loss 0.125  left 00:00:0\d', last), shown
