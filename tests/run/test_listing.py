"""The table of runs: what it says of each kind of folder, and that it is quick."""

import json
import os
import pathlib
import shutil
import time

import pytest
from children import run_python

import launch
from gen_jax import config as configs
from gen_jax import train
from gen_jax.run import records
from gen_jax.run.workdir import Workdir, open_workdir

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A finished run of 20 steps with two quick evaluations and two checkpoints."""
  folder = tmp_path_factory.mktemp('trained') / 'ring'
  fields = [('eval.metrics', 'frechet,modes'), ('eval.every_steps', '10')]
  config = configs.load(str(ROOT / 'configs/gan_ring.py:smoke'), fields)
  assert train.run(config, folder) == 0
  return folder


@pytest.fixture
def runs(trained, tmp_path, monkeypatch):
  """The folder `runs`, beside which the process is, with the run in it."""
  monkeypatch.chdir(tmp_path)
  shutil.copytree(trained, 'runs/ring')
  return pathlib.Path('runs')


def rows(capsys, *argv):
  """The lines of the table, {name: {column: cell}}."""
  assert launch.main(['--mode=list', *argv]) == 0
  out, err = capsys.readouterr()
  assert err == ''
  head, _, *lines = ([c.strip() for c in line[1:-1].split('|')] for line in out.splitlines())
  return {line[0]: dict(zip(head, line, strict=True)) for line in lines}


def set_steps(folder, steps):
  config = json.loads((folder / 'config.json').read_text())
  config['train']['steps'] = steps
  (folder / 'config.json').write_text(json.dumps(config))


def test_every_state(runs, capsys):
  for name in ('stopped', 'fresh', 'newest', 'broken', 'config', 'running'):
    shutil.copytree(runs / 'ring', runs / name)
    set_steps(runs / name, 1000)
  shutil.rmtree(runs / 'fresh/checkpoints')
  with open(runs / 'newest/checkpoints/0000000020/manifest.json', 'ab') as file:
    file.write(b' ')
  for path in (runs / 'broken/checkpoints').rglob('config.json'):
    path.write_bytes(path.read_bytes()[:-1])
  (runs / 'config/config.json').write_text('{')
  (runs / 'data').mkdir()
  (runs / 'data/.lock').touch()  # as a start leaves it whose data was wrong
  with open_workdir(runs / 'running') as folder:
    with open(folder.metrics, 'a') as file:
      file.write('{"step": 700, "time": 1.0}\n{"step": 70')  # the last line is being written
    found = rows(capsys)
  assert {row['run']: (row['step'], row['state']) for row in found.values()} == {
    'runs/ring': ('20 of 20', 'finished'),
    'runs/stopped': ('20 of 1,000', 'stopped'),
    'runs/fresh': ('- of 1,000', 'no checkpoint'),
    'runs/newest': ('10 of 1,000', 'stopped, step 20 is damaged'),
    'runs/broken': ('- of 1,000', 'damaged: checkpoints'),
    'runs/config': ('20', 'damaged: config.json'),
    'runs/data': ('-', 'not started'),
    'runs/running': ('700 of 1,000', 'running'),
  }
  quick = records.read(Workdir(runs / 'ring'))
  best = records.best_step(quick, 'frechet')
  value = next(r['value'] for r in quick if (r['step'], r['metric']) == (best, 'frechet'))
  assert found['runs/ring']['best value'] == f'FD-points {value:.4g}, quick, at step {best}'
  assert found['runs/ring']['system'] == 'gan' and found['runs/config']['system'] == '-'
  changed = time.mktime(time.strptime(found['runs/running']['last change'], '%Y-%m-%d %H:%M'))
  assert time.time() - 120 < changed <= time.time()
  assert rows(capsys)['runs/running']['state'] == 'stopped'  # the lock is free


def test_exports_and_the_zoo(runs, capsys):
  shutil.copytree(ROOT / 'zoo/gan_ring', 'zoo/gan_ring')
  shutil.copytree(ROOT / 'zoo/gan_ring', runs / 'ring/export')
  (runs / 'ring/export/metrics.json').unlink()
  found = rows(capsys)
  assert list(found) == ['runs/ring', 'runs/ring/export', 'zoo/gan_ring']
  number = json.loads((ROOT / 'zoo/gan_ring/metrics.json').read_text())['evaluation'][0]
  entry = found['zoo/gan_ring']
  assert (entry['step'], entry['state']) == ('8,000', 'export')
  assert entry['best value'] == f'FD-points {number["value"]:.4g}'
  assert found['runs/ring/export']['best value'] == '-'


def test_folders_and_patterns(runs, capsys):
  for name in ('seed_2', 'seed_10', 'seed_1', 'deep/er/run'):
    shutil.copytree(runs / 'ring', runs / name)
  (runs / 'pictures').mkdir()
  (runs / 'pictures/config.json').write_text('{"model": "of others"}')
  seeds = [f'runs/seed_{i}' for i in (1, 2, 10)]
  assert list(rows(capsys)) == ['runs/deep/er/run', 'runs/ring', *seeds]
  assert list(rows(capsys, '--workdir=runs/seed_*')) == seeds
  assert list(rows(capsys, '--workdir=runs/ring,runs/seed_1*')) == [
    'runs/ring',
    'runs/seed_1',
    'runs/seed_10',
  ]
  assert list(rows(capsys, '--workdir=runs/**/run')) == ['runs/deep/er/run']


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--workdir=none'], "--workdir='none': no such folder"),
    (['--workdir=none*'], "--workdir='none*' matches no folder"),
    (['--workdir=,'], "--workdir='' names no folder"),
    (['--workdir='], "--workdir='': "),
    (['--workdir=gs://bucket/runs'], "--workdir='gs://bucket/runs': "),
    (['--workdir=empty'], '--workdir: no run in empty'),
    ([], '--workdir: no run in runs and zoo'),
    (['--config=x.py'], '--mode=list takes --workdir=FOLDER,FOLDER,... and nothing else'),
    (['--config.seed=1'], '--mode=list takes --workdir=FOLDER,FOLDER,... and nothing else'),
  ],
)
def test_refusals(tmp_path, monkeypatch, capsys, argv, message):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('empty').mkdir()
  assert launch.main(['--mode=list', *argv]) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.count('\n') == 1 and err.startswith(f'error: {message}')


@pytest.mark.parametrize(
  'text', ['', '[]', '3', '{"gen_jax": 1}', '{"gen_jax": 1, "system": 2, "train": [], "eval": 0}']
)
def test_what_is_not_a_run_leaves_the_others(runs, capsys, text):
  shutil.copytree(runs / 'ring', runs / 'odd')
  for name in ('config.json', 'manifest.json', 'metrics.json', 'metrics.jsonl'):
    (runs / 'odd' / name).write_text(text)
  (runs / 'odd/checkpoints/0000000020/manifest.json').write_text(text)
  found = rows(capsys)
  assert found['runs/ring']['state'] == 'finished' and 'runs/odd' in found


def test_files_that_are_none_are_not_waited_for(runs, capsys):
  odd = runs / 'odd'
  shutil.copytree(runs / 'ring', odd)
  for path in (odd / 'config.json', odd / 'metrics.jsonl'):
    path.unlink()
    os.mkfifo(path)
  for manifest in odd.glob('checkpoints/*/manifest.json'):
    os.truncate(manifest, 20 * 10**9)
  found = rows(capsys)
  assert found['runs/ring']['state'] == 'finished' and 'runs/odd' in found


def test_a_hundred_runs_take_a_second_and_no_jax(runs):
  for i in range(99):
    shutil.copytree(runs / 'ring', runs / f'ring_{i}')
  code = (
    'import sys\n'
    'import launch\n'
    'assert launch.main(["--mode=list"]) == 0\n'
    'assert not {"jax", "numpy", "matplotlib"} & set(sys.modules)'
  )
  started = time.monotonic()
  done = run_python('-c', code, cwd=runs.parent, PYTHONPATH=str(ROOT))
  assert (done.returncode, done.stderr) == (0, '')
  assert len(done.stdout.splitlines()) == 102
  assert time.monotonic() - started < 5  # 0.4 s where nothing else runs
