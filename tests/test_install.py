"""`pip install .` gives the command `gen_jax` and its configs, for use outside of a clone."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """A folder that holds what pip installs, without what it depends on."""
  source = tmp_path_factory.mktemp('source')
  for name in ('gen_jax', 'configs'):
    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
  for name in ('pyproject.toml', 'README.md', 'LICENSE', 'requirements.txt', 'launch.py'):
    shutil.copy(ROOT / name, source)
  target = tmp_path_factory.mktemp('target')
  pip = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', f'--target={target}', source]
  done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
  if done.returncode and 'No matching distribution found for setuptools' in done.stderr:
    pytest.skip('the build needs setuptools, which cannot be fetched here')
  assert done.returncode == 0, done.stderr
  return target


def call(installed, cwd, *argv):
  """Calls the command as a shell would; returns the finished process."""
  env = os.environ | {'PYTHONPATH': str(installed)}
  command = [installed / 'bin/gen_jax', *argv]
  return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_every_file_is_installed(installed):
  def files(folder):
    return {path.relative_to(folder) for path in folder.rglob('*.py')}

  assert files(installed / 'gen_jax') == files(ROOT / 'gen_jax') | {
    pathlib.Path('configs', path.name) for path in (ROOT / 'configs').glob('*.py')
  }


@pytest.mark.slow
def test_the_command_works_outside_of_a_clone(installed, tmp_path):
  listed = call(installed, tmp_path, '--list')
  assert (listed.returncode, listed.stderr) == (0, '')
  names = [line.split()[0] for line in listed.stdout.splitlines()]
  assert names == sorted(f'configs/{path.name}' for path in (ROOT / 'configs').glob('*.py'))
  trained = call(installed, tmp_path, '--config=configs/gan_ring.py:smoke')
  assert trained.returncode == 0, trained.stderr
  assert (tmp_path / 'runs/gan_ring_smoke/samples/0000020_samples.png').exists()
  again = call(installed, tmp_path, '--config=gan_ring:smoke', '--workdir=runs/gan_ring_smoke')
  assert again.returncode == 0 and 'is finished: step 20 of 20' in again.stdout
  helped = call(installed, tmp_path, '--help')
  assert 'usage: gen_jax ' in helped.stdout and '  gen_jax --mode=sample ' in helped.stdout
  wrong = call(installed, tmp_path, '--config=gan_rin')
  assert (wrong.returncode, wrong.stdout) == (2, '')
  message = 'error: gan_rin: no such config file; did you mean configs/gan_ring.py?\n'
  assert wrong.stderr == message


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='huge pages on request are Linux')
def test_the_command_restarts_with_large_arrays_in_huge_pages(installed, tmp_path, monkeypatch):
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
  probe = tmp_path / 'probe.py'
  probe.write_text('import os\nprint([os.environ.get("GLIBC_TUNABLES")])\nraise SystemExit(4)\n')
  done = call(installed, tmp_path, f'--config={probe}')
  assert (done.stdout, done.returncode) == ("['glibc.malloc.hugetlb=1']\n", 4)


@pytest.mark.slow
def test_a_signal_while_the_command_imports_is_quiet(installed, tmp_path):
  env = os.environ | {'PYTHONPATH': str(installed)}
  for i in range(12):
    number = (signal.SIGINT, signal.SIGTERM)[i % 2]
    command = [installed / 'bin/gen_jax', '--config=gan_ring:smoke', '--dry_run']
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen(command, cwd=tmp_path, env=env, **pipes)
    time.sleep(0.1 + 0.08 * i)  # Python itself takes less to start, the imports more
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:  # the signal came too late: a fast machine
      assert i >= 6 and not err, (i, err)
      break
    assert (process.returncode, out, err) == (128 + number, b'', b''), i
