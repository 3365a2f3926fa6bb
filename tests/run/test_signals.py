"""Real signals to real processes."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from gen_jax.run.signals import Stop

LINE = '{}: saving and stopping; a second signal exits at once\n'

# The bodies run in a fresh process, print 'ready', and may block for a minute.
JAX_STEP = """
  @jax.jit
  def slow(x):
    return jax.lax.fori_loop(0, 10**9, lambda i, x: jnp.sin(x) + i, x)
  slow.lower(jnp.ones(2000)).compile()
"""
BLOCKED = {
  'jax, asked for by wait_ready': JAX_STEP
  + """
  y = slow(jnp.ones(2000))
  print('ready', flush=True)
  assert not stop.wait_ready({'loss': y})
  print('saved', flush=True)
  stop.__exit__()
  os._exit(0)
""",
  'zlib': """
  import zlib
  data = os.urandom(1 << 20) * 40
  print('ready', flush=True)
  start = time.monotonic()
  while stop.requested is None:
    zlib.compress(data, 9)
  print('saved', flush=True)
""",
}


def start(body):
  code = """
  import os, sys, time
  import jax, jax.numpy as jnp
  from gen_jax.run.signals import Stop
  stop = Stop().__enter__()
  """
  code = textwrap.dedent(code) + textwrap.dedent(body)
  env = {**os.environ, 'PYTHONPATH': os.pathsep.join(p or os.getcwd() for p in sys.path)}
  child = subprocess.Popen(
    [sys.executable, '-c', code],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=env,
  )
  assert child.stdout.readline() == 'ready\n', child.stderr.read()
  return child


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize('body', BLOCKED.values(), ids=BLOCKED)
def test_the_first_signal_asks(body, number):
  child = start(body)
  time.sleep(0.2)
  child.send_signal(number)
  out, err = child.communicate(timeout=20)
  assert (child.returncode, out, err) == (0, 'saved\n', LINE.format(number.name))


def test_what_nohup_ignores_is_ignored():
  body = """
  import signal
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
  with Stop() as stop:
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(0.1)
    assert stop.requested is None
  """
  child = start(f"stop.__exit__()\nprint('ready', flush=True)\n{textwrap.dedent(body)}")
  assert child.communicate(timeout=20) == ('', '') and child.returncode == 0


def test_a_reader_that_is_gone_does_not_keep_a_second_signal_from_working():
  child = start("print('ready', flush=True)\ntime.sleep(60)")
  child.stderr.close()
  child.send_signal(signal.SIGTERM)
  time.sleep(0.3)
  child.send_signal(signal.SIGTERM)
  assert child.wait(timeout=5) == 128 + signal.SIGTERM
  child.stdout.close()


# An exit in order, as the program does it: no import of JAX.
ORDER = """
import os, signal, sys, time
sys.path[:0] = {path!r}
from gen_jax.run import signals
signals.ORDER_SECONDS = 1
signals.exit_at_once()
def cut(error=None):
  os.kill(os.getpid(), {number})
  time.sleep(60)
try:
  with signals.exit_in_order():
    {body}
finally:
  print('cleaned up', flush=True)
"""


@pytest.mark.parametrize(
  'body, cleans',
  [
    ('cut()', True),
    # What a library makes of the exception.
    ("try: cut()\n    except BaseException: raise ImportError('numpy') from None", True),
    # Where it is lost.
    ("type('A', (), {'__del__': cut})(); time.sleep(0.1)", True),
    # Where nothing comes of it, as where a thread is waited for.
    ('try: cut()\n    except BaseException: time.sleep(60)', False),
  ],
)
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_an_exit_in_order_ends(body, cleans, number):
  code = ORDER.format(path=sys.path, number=int(number), body=body)
  code = f'try:\n{textwrap.indent(code, " ")}\nexcept KeyboardInterrupt:\n sys.exit(130)\n'
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=10)
  assert done.returncode == 128 + number, done.stderr
  assert done.stdout == 'cleaned up\n' * cleans


def test_the_line_appears_while_the_main_thread_is_blocked_in_a_computation():
  child = start(
    JAX_STEP + "\n  print('ready', flush=True)\n  slow(jnp.ones(2000)).block_until_ready()"
  )
  child.send_signal(signal.SIGTERM)
  begin = time.monotonic()
  assert child.stderr.readline() == LINE.format('SIGTERM')
  assert time.monotonic() - begin < 2
  # ... and the second signal ends it, blocked as it is.
  time.sleep(0.1)
  child.send_signal(signal.SIGINT)
  child.communicate(timeout=5)
  assert child.returncode == 128 + signal.SIGINT


def test_the_same_signal_twice_ends_with_its_status():
  child = start("print('ready', flush=True)\ntime.sleep(60)")
  child.send_signal(signal.SIGTERM)
  assert child.stderr.readline() == LINE.format('SIGTERM')
  time.sleep(0.1)
  child.send_signal(signal.SIGTERM)
  child.communicate(timeout=5)
  assert child.returncode == 128 + signal.SIGTERM


def test_one_request_delivered_twice_is_one_request():
  body = """
  import signal
  print('ready', flush=True)
  for _ in range(3):
    os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(0.5)
  print('saved', flush=True)
  """
  child = start(body)
  out, err = child.communicate(timeout=20)
  assert (child.returncode, out, err) == (0, 'saved\n', LINE.format('SIGTERM'))


def test_handlers_return_and_other_signals_pass():
  before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  alarms = []
  old = signal.signal(signal.SIGALRM, lambda number, frame: alarms.append(number))
  try:
    threads = threading.active_count()
    with Stop() as stop:
      assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] != before
      os.kill(os.getpid(), signal.SIGALRM)
      time.sleep(0.05)
      assert alarms == [signal.SIGALRM] and stop.requested is None
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(1)
  finally:
    signal.signal(signal.SIGALRM, old)


def test_wait_ready_of_finished_arrays():
  with Stop() as stop:
    assert stop.wait_ready({'a': jnp.ones(3), 'b': None, 'c': 1.0})
    x = jax.jit(lambda x: jax.lax.fori_loop(0, 20, lambda i, x: x @ x / 1e3, x))(
      jnp.ones((500, 500))
    )
    assert stop.wait_ready(x) and x.is_ready()


def test_outside_of_the_main_thread_it_never_requests():
  results = []

  def run():
    with Stop() as stop:
      results.append((stop.requested, stop.wait_ready(jnp.ones(3))))

  before = signal.getsignal(signal.SIGTERM)
  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert results == [(None, True)]
  assert signal.getsignal(signal.SIGTERM) is before
