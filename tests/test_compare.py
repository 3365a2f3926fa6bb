"""The table of runs: what it reads, what it says of what is missing or does not compare."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

import launch
from gen_jax import compare, evaluate, train
from gen_jax import config as configs
from gen_jax.run import records
from gen_jax.run.workdir import Workdir

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A GAN on the ring, evaluated; and the same without an evaluation."""
  folder = tmp_path_factory.mktemp('runs')
  metrics = [('eval.metrics', 'frechet,modes')]
  config = configs.load(str(ROOT / 'configs/gan_ring.py:smoke'), metrics)
  assert train.run(config, folder / 'a') == 0
  shutil.copytree(folder / 'a', folder / 'b')
  assert evaluate.run(config, folder / 'a') == 0
  return folder


@pytest.fixture
def copies(runs, tmp_path):
  shutil.copytree(runs, tmp_path / 'runs')
  return tmp_path / 'runs'


def write_metrics(folder, points):
  lines = (json.dumps({'step': step, 'time': time}) for step, time in points)
  (folder / 'metrics.jsonl').write_text(''.join(f'{line}\n' for line in lines))


def test_the_table_of_two_runs(copies, capsys):
  # 2 steps a second, a stop of an hour in between.
  write_metrics(copies / 'a', [(5, 0.0), (10, 2.5), (15, 3605.0), (20, 3607.5)])
  assert launch.main(['--mode=compare', f'--workdir={copies}/a,{copies}/b']) == 0
  text, (_, err) = (copies / 'comparison.md').read_text(), capsys.readouterr()
  assert err == ''
  head, rule, a, b = (line.strip('| ').split('|') for line in text.splitlines()[:4])
  cells = dict(zip([x.strip() for x in head], [x.strip() for x in a], strict=True))
  rows = {row['metric']: row for row in records.read(Workdir(copies / 'a'))}
  assert cells['run'] == f'{copies}/a' and cells['system'] == 'gan'
  assert cells['parameters'] == 'G 82, D 65'  # 2 * 16 + 16 + 16 * 2 + 2; 2 * 16 + 16 + 16 + 1
  assert cells['training, examples/s'] == '32'  # 16 a step
  assert cells['time to train'] == '0.2 min'  # 20 steps, half a second each
  assert cells['evaluations per sample'] == '1'
  assert cells['FD-points'] == f'{rows["frechet"]["value"]:.4g}'
  assert cells['modes of 8'] == f'{rows["modes"]["value"]:.4g}'
  assert cells['samples'] == '![samples](a/evaluation/0000020_samples.png)'
  other = dict(zip([x.strip() for x in head], [x.strip() for x in b], strict=True))
  assert other['FD-points'] == other['samples'] == other['sampling, examples/s'] == '-'
  assert f'- {copies}/b is not evaluated: python launch.py --mode=evaluate --workdir=' in text
  with Image.open(copies / 'comparison.png') as picture:
    pixels = np.asarray(picture.convert('RGB'))
  assert pixels.shape[1] > 1000 and (pixels < 128).any()


def change(folder, **fields):
  path = folder / 'evaluation.jsonl'
  lines = [json.loads(line) | fields for line in path.read_text().splitlines()]
  path.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))


def test_what_does_not_compare_is_told(copies):
  shutil.rmtree(copies / 'b')
  shutil.copytree(copies / 'a', copies / 'b')
  a, b = (compare.read_run(copies / name) for name in 'ab')
  assert not any('comparable' in line for line in compare.notes([a, b]))
  change(copies / 'b', reference='ring train, 100', step=10)
  told = compare.notes([a, compare.read_run(copies / 'b')])
  assert f'{copies}/b: evaluated at step 10, trained to 20' in told
  assert (
    'not comparable (Frechet distance, modes), for their reference: '
    f'ring train, 500: {copies}/a; ring train, 100: {copies}/b'
  ) in told
  change(copies / 'b', reference='ring train, 500', data='of others', step=20)
  told = compare.notes([a, compare.read_run(copies / 'b')])
  assert any(
    'for their data: ring/train/' in line and f'of others: {copies}/b' in line for line in told
  )


def test_the_newest_full_evaluation_of_the_latest_step_counts(copies):
  folder = Workdir(copies / 'a')
  records.append(folder, 20, [records.Row('frechet', 'FD-points', 7.0)])
  records.append(folder, 10, [records.Row('frechet', 'FD-points', 6.0)])
  records.append(folder, 20, [records.Row('frechet', 'FD-points', 9.0, version='quick')])
  records.append(folder, None, [records.Row('frechet', 'FD-points', 8.0, samples='5 of x')])
  found = compare.read_run(copies / 'a')
  assert found.rows['frechet']['value'] == 7.0 and found.evaluated_step == 20
  assert found.rows['modes']['label'] == 'modes of 8'  # of the evaluation before


def test_a_run_of_one_line_has_no_rate(copies):
  write_metrics(copies / 'a', [(20, 1.0)])
  assert compare.training_time(Workdir(copies / 'a')) == (None, None)
  line = compare.table([compare.read_run(copies / 'a')], copies)[1]
  assert line[3:5] == ['-', '-']


def test_refusals(copies, tmp_path, capsys):
  shutil.rmtree(copies / 'b/checkpoints')
  assert launch.main(['--mode=compare', f'--workdir={copies}/b']) == 2
  wanted = '/b/checkpoints; train first, or give another --workdir\n'
  assert capsys.readouterr().err.endswith(wanted)
  assert launch.main(['--mode=compare', f'--workdir={tmp_path}']) == 2
  assert 'error: --workdir: no run in' in capsys.readouterr().err
  assert launch.main(['--mode=compare', '--workdir=,']) == 2
  assert capsys.readouterr().err == "error: --workdir=',' names no folder\n"
  assert launch.main(['--mode=compare', f'--workdir={copies}/a', '--step=20']) == 2
  assert 'error: --step is for --mode=sample' in capsys.readouterr().err
