"""The table of runs: what it reads, what it says of what is missing or does not compare."""

import json
import pathlib
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import launch
from gen_jax import compare, evaluate, train
from gen_jax import config as configs
from gen_jax.run import history, records
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
  assert other['FD-points'] == other['sampling, examples/s'] == '-'
  assert other['samples'] == '![samples](b/samples/0000020_samples.png)'  # of the training
  assert f'- {copies}/b is not evaluated: --mode=evaluate --workdir={copies}/b' in text
  with Image.open(copies / 'comparison.png') as picture:
    pixels = np.asarray(picture.convert('RGB'))
  assert pixels.shape[1] > 1000 and (pixels < 128).any()


def test_entries_of_the_zoo_bring_their_numbers(tmp_path, capsys):
  for name in ('gan_ring', 'wgan_gp_ring'):
    shutil.copytree(ROOT / 'zoo' / name, tmp_path / 'zoo' / name)
  folder = tmp_path / 'zoo'
  assert launch.main(['--mode=compare', f'--workdir={folder}/gan_ring,{folder}/wgan_gp_ring']) == 0
  text = (folder / 'comparison.md').read_text()
  assert 'not evaluated' not in text
  assert f'{folder}/gan_ring has no picture: --mode=sample --workdir={folder}/gan_ring' in text
  head, _, *lines = (line.strip('| ').split('|') for line in text.splitlines()[:4])
  for name, line in zip(('gan_ring', 'wgan_gp_ring'), lines, strict=True):
    cells = dict(zip([x.strip() for x in head], [x.strip() for x in line], strict=True))
    for row in json.loads((ROOT / 'zoo' / name / 'metrics.json').read_text())['evaluation']:
      if row['label'] in ('FD-points', 'modes of 8'):
        assert cells[row['label']] == f'{row["value"]:.4g}'


def test_the_picture_of_an_export_is_that_of_sampling(tmp_path, capsys):
  shutil.copytree(ROOT / 'zoo/gan_ring', tmp_path / 'gan_ring')
  assert launch.main(['--mode=sample', f'--workdir={tmp_path}/gan_ring']) == 0
  assert launch.main(['--mode=compare', f'--workdir={tmp_path}/gan_ring,{tmp_path}/gan_ring']) == 0
  text = (tmp_path / 'comparison.md').read_text()
  assert '![samples](gan_ring/samples/step_0008000_seed_0_plot.png)' in text
  assert 'no picture' not in text


def test_a_bar_in_a_cell_starts_no_other():
  table = records.markdown([['metric', 'value'], ['-E log p(x|z), nats', '1']])
  assert [re.split(r'(?<!\\)\|', line)[1:-1] for line in table.splitlines()[2:]] == [
    [r' -E log p(x\|z), nats ', ' 1     ']
  ]


def change(folder, **fields):
  path = folder / 'evaluation.jsonl'
  lines = [json.loads(line) | fields for line in path.read_text().splitlines()]
  path.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))


def test_what_does_not_compare_is_told(copies):
  shutil.rmtree(copies / 'b')
  shutil.copytree(copies / 'a', copies / 'b')
  a, b = (history.read_run(copies / name) for name in 'ab')
  assert not any('comparable' in line for line in compare.notes([a, b]))
  change(copies / 'b', reference='ring train, 100', step=10)
  told = compare.notes([a, history.read_run(copies / 'b')])
  assert f'{copies}/b: evaluated at step 10, trained to 20' in told
  assert (
    'not comparable (Frechet distance, modes), for their reference: '
    f'ring train, 500: {copies}/a; ring train, 100: {copies}/b'
  ) in told
  change(copies / 'b', reference='ring train, 500', data='of others', step=20)
  told = compare.notes([a, history.read_run(copies / 'b')])
  assert any(
    'for their data: ring/train/' in line and f'of others: {copies}/b' in line for line in told
  )


def test_the_newest_full_evaluation_of_the_latest_step_counts(copies):
  folder = Workdir(copies / 'a')
  records.append(folder, 20, [records.Row('frechet', 'FD-points', 7.0)])
  records.append(folder, 10, [records.Row('frechet', 'FD-points', 6.0)])
  records.append(folder, 20, [records.Row('frechet', 'FD-points', 9.0, version='quick')])
  records.append(folder, None, [records.Row('frechet', 'FD-points', 8.0, samples='5 of x')])
  found = history.read_run(copies / 'a')
  assert found.rows['frechet']['value'] == 7.0 and found.evaluated_step == 20
  assert found.rows['modes']['label'] == 'modes of 8'  # of the evaluation before


def test_a_run_of_one_line_has_no_rate(copies):
  write_metrics(copies / 'a', [(20, 1.0)])
  run = history.read_run(copies / 'a')
  assert run.seconds is run.examples_per_second is None
  assert compare.table(compare.grouped([run]), copies)[1][3:5] == ['-', '-']


def test_lines_of_metrics_that_are_none_are_skipped(copies):
  write_metrics(copies / 'a', [(5, 0.0), (10, 2.5), (15, 5.0)])
  right = records.read_metrics(Workdir(copies / 'a'))
  with open(copies / 'a/metrics.jsonl', 'a') as file:
    file.write('null\n{}\n5\n{"step": "x", "time": 1}\n' + '[' * 9000 + '\n{"step": 20, "ti')
  assert records.read_metrics(Workdir(copies / 'a')) == right and len(right) == 3
  (copies / 'a/metrics.jsonl').write_bytes(b'\xff\n')
  assert history.read_run(copies / 'a').losses == {}


@pytest.mark.parametrize('kind', ['bomb', 'damaged'])
def test_a_picture_that_is_none_is_named(copies, capsys, kind):
  picture = copies / 'a/evaluation/0000020_samples.png'
  content = bytearray(picture.read_bytes())
  if kind == 'bomb':
    content[16:24] = struct.pack('>II', 60_000, 60_000)
    content[29:33] = struct.pack('>I', zlib.crc32(content[12:29]))
  else:
    content = content[:50]
  picture.write_bytes(content)
  assert launch.main(['--mode=compare', f'--workdir={copies}/a,{copies}/b']) == 2
  err = capsys.readouterr().err
  assert err.startswith(f'error: {picture} cannot be read: '), err


def test_refusals(copies, tmp_path, capsys):
  shutil.rmtree(copies / 'b/checkpoints')
  assert launch.main(['--mode=compare', f'--workdir={copies}/b']) == 2
  wanted = '/b/checkpoints; train first, or give another --workdir\n'
  assert capsys.readouterr().err.endswith(wanted)
  assert launch.main(['--mode=compare', f'--workdir={tmp_path}']) == 2
  assert 'error: --workdir: no run in' in capsys.readouterr().err
  assert launch.main(['--mode=compare', f'--workdir={tmp_path}/none*']) == 2
  assert capsys.readouterr().err == f"error: --workdir='{tmp_path}/none*' matches no run\n"
  assert launch.main(['--mode=compare', f'--workdir={copies}/a', '--step=20']) == 2
  assert 'error: --step is for --mode=sample' in capsys.readouterr().err


# --- Several seeds, and quick evaluations -------------------------------------------------------


@pytest.fixture(scope='module')
def seeds(tmp_path_factory):
  """Three seeds of one config, two of them evaluated; another learning rate; what is no run."""
  folder = tmp_path_factory.mktemp('seeds')
  fields = [('eval.metrics', 'frechet,modes'), ('eval.every_steps', '10')]
  for seed in ('2', '1', '10'):
    config = configs.load(str(ROOT / 'configs/gan_ring.py:smoke'), [*fields, ('seed', seed)])
    assert train.run(config, folder / f'ring_{seed}') == 0
    if seed != '10':
      assert evaluate.run(config, folder / f'ring_{seed}') == 0
  faster = Workdir(shutil.copytree(folder / 'ring_10', folder / 'faster'))
  changes = {'seed': 0, 'optim.G.lr': 0.01, 'optim.D.lr': 0.01}
  faster.write_config(configs.to_json(configs.replace(config, changes)))
  (folder / 'pictures').mkdir()
  (folder / 'empty').mkdir()
  shutil.copy(folder / 'faster/config.json', folder / 'empty')
  return folder


def sections(text):
  """The tables and lists of a comparison, {title: lines of cells or texts}."""
  found = {}
  for part in text.replace('\n\n|', '\n|').replace('\n\n-', '\n-').split('\n\n'):
    lines = part.splitlines()
    title = '' if lines[0].startswith('|') else lines.pop(0)
    if lines[0].startswith('|'):
      head, _, *lines = ([c.strip() for c in line[1:-1].split('|')] for line in lines)
      lines = [dict(zip(head, line, strict=True)) for line in lines]
    found[title] = lines
  return found


def value(folder, metric, version):
  lines = records.read(Workdir(folder))
  return [r for r in lines if (r['metric'], r['version']) == (metric, version)][-1]['value']


def test_seeds_of_one_config_are_one_row(seeds, capsys):
  assert launch.main(['--mode=compare', f'--workdir={seeds}/ring_*,{seeds}/faster']) == 0
  assert capsys.readouterr().err == ''
  found = sections((seeds / 'comparison.md').read_text())
  name = f'{seeds}/ring_{{1,2,10}}'
  group, faster = found['']
  assert (group['run'], faster['run']) == (name, f'{seeds}/faster')
  full = [value(seeds / f'ring_{i}', 'frechet', 'full') for i in (1, 2)]
  deviation = np.std(full, ddof=1)
  assert group['FD-points'] == f'{np.mean(full):.4g} ± {deviation:.2g} (2 of 3)'
  rates = [history.read_run(seeds / f'ring_{i}').examples_per_second for i in (1, 2, 10)]
  shown = float(group['training, examples/s'].replace(',', ''))
  assert shown == pytest.approx(np.mean(rates), rel=0.01)
  quick = value(seeds / 'faster', 'frechet', 'quick')
  assert faster['FD-points'] == f'{quick:.4g} (quick)'
  each = {row['run']: row for row in found['Each seed:']}
  assert list(each) == [f'{seeds}/ring_{i}' for i in (1, 2, 10)]
  assert each[f'{seeds}/ring_1']['FD-points'] == f'{full[0]:.4g}'
  quick = value(seeds / 'ring_10', 'frechet', 'quick')
  assert each[f'{seeds}/ring_10']['FD-points'] == f'{quick:.4g} (quick)'
  assert found['Fields that differ:'] == [
    f'- seed: 1, 2, 10 in {name}; 0 in {seeds}/faster',
    f'- optim.D.lr: 0.0002 in {name}; 0.01 in {seeds}/faster',
    f'- optim.G.lr: 0.0002 in {name}; 0.01 in {seeds}/faster',
  ]
  told = '\n'.join(found['Notes:'])
  assert f'- {seeds}/ring_10: only a quick evaluation in training, of step 20' in told
  assert '± of several seeds is their standard deviation' in told


def test_seeds_with_quick_evaluations_only(seeds, tmp_path):
  names = [f'ring_{i}' for i in (1, 2, 10)]
  for name in names:
    folder = Workdir(shutil.copytree(seeds / name, tmp_path / name))
    lines = [json.dumps(line) for line in records.read(folder) if line['version'] == 'quick']
    folder.evaluations.write_text(''.join(f'{line}\n' for line in lines))
  (group,) = compare.grouped([history.read_run(tmp_path / name) for name in names])
  head, line = compare.table([group], tmp_path)
  quick = [value(seeds / name, 'frechet', 'quick') for name in names]
  shown = f'{np.mean(quick):.4g} ± {np.std(quick, ddof=1):.2g} (quick)'
  assert line[head.index('FD-points')] == shown


def test_seeds_at_different_steps_are_told(seeds, tmp_path, capsys):
  for name in ('ring_1', 'ring_2'):
    shutil.copytree(seeds / name, tmp_path / name)
  change(tmp_path / 'ring_1', step=10)
  assert launch.main(['--mode=compare', f'--workdir={tmp_path}/*']) == 0
  line = f'- seeds of {tmp_path}/ring_{{1,2}} are evaluated at different steps: [10, 20]\n'
  assert line in capsys.readouterr().out


def test_two_runs_of_one_seed_are_two_rows(seeds, tmp_path):
  shutil.copytree(seeds / 'ring_1', tmp_path / 'again')
  folders = (seeds / 'ring_1', seeds / 'ring_2', tmp_path / 'again')
  groups = compare.grouped([history.read_run(folder) for folder in folders])
  names = [[pathlib.Path(run.name).name for run in group.runs] for group in groups]
  assert names == [['ring_1', 'ring_2'], ['again']]


def test_a_pattern_leaves_out_what_has_no_checkpoint(seeds, capsys):
  assert launch.main(['--mode=compare', f'--workdir={seeds}/*']) == 0
  found = sections((seeds / 'comparison.md').read_text())
  assert [row['run'] for row in found['']] == [f'{seeds}/faster', f'{seeds}/ring_{{1,2,10}}']
  assert found['Notes:'][0].startswith(f'- {seeds}/empty is left out: no checkpoint in ')
  assert not any('pictures' in line for line in found['Notes:'])
  assert launch.main(['--mode=compare', f'--workdir={seeds}/empty']) == 2
  assert launch.main(['--mode=compare', f'--workdir={seeds}/emp*']) == 2
  assert f'{seeds}/empty is left out: no checkpoint in' in capsys.readouterr().err


def test_curves_are_drawn_beside_one_another(seeds):
  groups = compare.grouped([history.read_run(seeds / n) for n in ('ring_1', 'ring_2', 'faster')])
  drawn = compare.panels(groups)
  assert list(drawn) == ['d/loss', 'g/loss', 'Frechet distance, quick', 'modes, quick']
  lines = [json.loads(line) for line in (seeds / 'ring_2/metrics.jsonl').read_text().splitlines()]
  steps, values = drawn['g/loss'][0]
  assert steps == [line['step'] for line in lines] == [5, 10, 15, 20]
  assert values.shape == (2, 4) and values[1].tolist() == [line['g/loss'] for line in lines]
  assert drawn['Frechet distance, quick'][1][0] == [10, 20]
  out = seeds / 'curves.png'
  compare.draw(compare.table(groups, seeds), groups, out)
  with Image.open(out) as picture:
    with_curves, pixels = picture.size, np.asarray(picture.convert('RGB')).astype(int)
  orange = np.abs(pixels - (255, 127, 14)).sum(-1) < 40  # the second run's curves, below the table
  assert orange[-200:].any() and orange[:, -300:].any()
  bare = [run.__class__(**(vars(run) | dict(losses={}, evaluations={}))) for run in groups[0].runs]
  groups = [compare.Group('a', bare[:1]), compare.Group('b', bare[1:])]
  compare.draw(compare.table(groups, seeds), groups, out)
  with Image.open(out) as picture:
    assert picture.size[1] < with_curves[1]
