"""Evaluation as its users meet it: a run, pictures made elsewhere, a stop, training; refusals."""

import functools
import json
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from children import QUICK
from PIL import Image
from tensorboardX.proto import event_pb2
from untrained import save_untrained

import launch
from gen_jax import config as configs
from gen_jax import contract, data, evaluate, metrics, sampling, train
from gen_jax.data import toys
from gen_jax.data.sources import ArraySource, digits
from gen_jax.errors import UserError
from gen_jax.fields import METRICS, SHARED, Measure
from gen_jax.metrics import classifier, from_elsewhere, networks
from gen_jax.metrics import scorer as scores
from gen_jax.run import records
from gen_jax.run.history import read_run
from gen_jax.run.restoring import restore
from gen_jax.run.trained import load as load_run
from gen_jax.run.workdir import Workdir
from gen_jax.systems import find_system

ROOT = pathlib.Path(__file__).parent.parent
RING = 'configs/gan_ring.py:smoke'
DIGITS = 'configs/ddpm_digits.py:smoke'


# Few steps, few examples: here it matters what is done with them.
SMALLER = {
  RING: {'eval.num_reference': 500},
  DIGITS: {'eval.num_reference': 500, 'net.multipliers': (1,), 'diffusion.steps': 40},
}


def load(spec, **fields):
  config = configs.load(str(ROOT / spec))
  system = find_system(config.system)
  return configs.check(configs.replace(config, SMALLER[spec] | fields)), system


@pytest.fixture(scope='module', autouse=True)
def quick_classifier():
  """A classifier of few steps: here it matters what is done with its features."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(classifier, 'LEAST_STEPS', 60)
    patch.setattr(classifier, 'EPOCHS', 1)
    patch.setattr(classifier, 'RECIPE', 'test')
    yield


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    folder = tmp_path_factory.mktemp('cache')
    patch.setenv('GEN_JAX_CACHE', str(folder))
    yield folder


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Folders with 20 steps of the ring and of the digits."""
  folders = {}
  for name, spec in (('ring', RING), ('digits', DIGITS)):
    folders[name] = tmp_path_factory.mktemp(name) / 'run'
    assert train.run(load(spec)[0], folders[name]) == 0
  return folders


@pytest.fixture
def run_of(trained, tmp_path):
  """run_of('ring'): a copy of a trained run, for a test to write to."""
  return lambda name: pathlib.Path(shutil.copytree(trained[name], tmp_path / name))


def rows_of(folder):
  return {row['metric']: row for row in records.read(Workdir(folder))}


def points(folder, tag):
  """(step, value) of a scalar in TensorBoard's files."""
  found = []
  for path in sorted(folder.glob('events*')):
    data = path.read_bytes()
    while data:
      (size,) = struct.unpack('<Q', data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      found += [(event.step, v.simple_value) for v in event.summary.value if v.tag == tag]
      data = data[16 + size :]
  return found


# --- A run --------------------------------------------------------------------------------------


def test_every_number_says_what_it_is(run_of, capsys):
  folder = run_of('digits')
  config, system = load(DIGITS)
  assert evaluate.run(config, folder) == 0
  rows = rows_of(folder)
  assert set(rows) == {
    *('frechet', 'kernel', 'precision', 'recall', 'density', 'coverage', 'inception_score'),
    *('classes', 'classes_kl', 'class_accuracy', 'class_accuracy_lowest'),
    *('samples_per_second', 'bits_per_dim', 'L_0', 'L_t', 'L_T'),
  }
  described = scores.MEANINGS | contract.measures(system)
  assert set(rows) - {'samples_per_second'} <= set(described)
  first = rows['frechet']
  assert first['label'] == 'FD-classifier' and first['step'] == 20 and first['version'] == 'full'
  assert first['reference'] == 'digits train[:80%], 500' and first['samples'] == '200'
  assert re.fullmatch(r'classifier of digits/train\[:80%\].*, sha256 \w{16}', first['features'])
  assert re.fullmatch(r'held-out accuracy 0\.\d{4}, chosen by auto', first['note'])
  assert (first['weights'], first['evaluations'], first['seed']) == ('ema', 5, 0)
  sampler = contract.sampling(config, system).text
  assert first['sampler'] == sampler
  for setting in ('sampler ddim', 'steps 5', 'spacing auto', 'eta 1', 'clip None'):
    assert setting in sampler.split(', ')
  assert rows['kernel']['spread'] > 0 and first['spread'] is None
  bound = rows['bits_per_dim']
  assert bound['reference'] == 'digits train[80%:], 8' and bound['label'] == 'bits/dim'
  assert bound['sampler'] == 'variational bound, 40 steps, variance large, given the label'
  assert (bound['kind'], bound['weights'], bound['seed']) == ('upper bound', 'ema', 0)
  assert rows['L_t']['label'] == 'sum of L_1 to L_{T-1}, bits/dim'
  assert rows['L_T']['kind'] == 'exact' and first['kind'] is None
  total = sum(rows[name]['value'] for name in ('L_0', 'L_t', 'L_T'))
  assert total == pytest.approx(rows['bits_per_dim']['value'], rel=1e-5) and total > 1
  assert rows['samples_per_second']['value'] > 0 and 'core' in rows['samples_per_second']['machine']

  out = capsys.readouterr().out.splitlines()
  assert out[0] == f'{folder}, step 20:' and max(map(len, out)) <= 120
  paragraphs = [' '.join(part.split()) for part in '\n'.join(out[1:]).split('\n\n')]
  said, tables = paragraphs[0::2], paragraphs[1::2]
  assert len(said) == len(tables) == 3  # each protocol once: of samples, of their rate, held-out
  assert re.fullmatch(
    r'reference digits train\[:80%\], 500; samples 200; features classifier \w{8} \(held-out '
    r'accuracy 0\.\d{4}, chosen by auto\); resize none; weights ema; ' + re.escape(sampler),
    said[0],
  )
  assert said[1].startswith('samples batches of 8; weights ema; sampler ddim, ')
  assert said[2] == f'reference digits train[80%:], 8; weights ema; sampler {bound["sampler"]}'
  assert '| FD-classifier |' in tables[0] and '| samples per second |' in tables[1]
  assert '| bits/dim |' in tables[2] and '| upper bound |' in tables[2]
  assert all(sum(row['label'] in text for text in tables) for row in rows.values())
  ((step, value),) = points(folder / 'tensorboard/evaluation', 'evaluation/frechet')
  assert step == 20 and value == pytest.approx(first['value'], rel=1e-6)
  names = sorted(path.name for path in (folder / 'evaluation').iterdir())
  assert names == [
    '0000020.json',
    '0000020_samples.png',
    '0000020_terms.npz',
    '0000020_terms.png',
  ]
  with np.load(folder / 'evaluation/0000020_terms.npz') as file:
    terms = file['terms'].astype(np.float64)
  assert terms.shape == (8, 41)
  assert bound['value'] == pytest.approx(terms.sum(1).mean(), rel=1e-6)
  assert bound['spread'] == pytest.approx(terms.sum(1).std(ddof=1) / np.sqrt(8), rel=1e-5)
  assert rows['L_t']['value'] == pytest.approx(terms[:, 1:-1].sum(1).mean(), rel=1e-6)

  # The same distance from pictures drawn and seen here.
  _, state = restore(config, system, folder)
  key = jax.random.fold_in(jax.random.key(0), evaluate.SAMPLES)
  draw = jax.jit(functools.partial(system.sample, config=config))
  made = [
    draw(state, contract.conditions(config, 8, 8 * i), jax.random.fold_in(key, i))
    for i in range(25)
  ]
  pictures = data.to_pixels(np.concatenate([m['image'] for m in made]), 'none')
  source = data.open_source(config)
  network = networks.open_network('classifier', source=source)
  reference = source.read(scores.chosen(len(source), 500))['image']
  seen = [network.apply(x)[0] for x in (reference, pictures)]
  assert metrics.frechet_distance(*seen) == pytest.approx(first['value'], rel=1e-3)


def test_points_are_their_own_features(run_of):
  folder = run_of('ring')
  config, _ = load(RING)
  assert evaluate.run(config, folder, step=10) == 0
  rows = rows_of(folder)
  assert rows['frechet']['label'] == 'FD-points' and rows['frechet']['features'] == 'none'
  assert {row['step'] for row in rows.values()} == {10}
  assert rows['modes']['label'] == 'modes of 8' and 0 <= rows['modes']['value'] <= 8
  assert 'inception_score' not in rows and 'bits_per_dim' not in rows
  assert rows['frechet']['sampler'] == 'one pass' and rows['frechet']['weights'] == 'raw'
  assert (folder / 'evaluation/0000010_samples.png').exists()


def test_only_the_metrics_that_are_asked_for(run_of):
  folder = run_of('digits')
  fields = {'eval.metrics': ('kernel', 'modes'), 'eval.held_out_examples': None}
  assert evaluate.run(load(DIGITS, **fields)[0], folder) == 0
  classes = {'classes', 'classes_kl', 'class_accuracy', 'class_accuracy_lowest'}
  assert set(rows_of(folder)) == {'kernel', *classes, 'samples_per_second'}


def test_the_class_that_was_asked_for_counts_only_where_one_was(tmp_path):
  fields = {'net.multipliers': '(1,)', 'net.num_classes': 'None', 'diffusion.steps': '40'}
  fields |= {'eval.num_reference': '500', 'eval.held_out_examples': 'None'}
  folder = save_untrained(tmp_path / 'run', 'ddpm_digits', **fields)
  rows = load_run(folder).evaluate(metrics=('modes',))
  assert {row.metric for row in rows} == {'classes', 'classes_kl', 'samples_per_second'}
  with Image.open(folder / 'evaluation/0000007_samples.png') as grid:
    assert grid.size == (152, 152)  # 8 images, without captions


def test_files_of_an_evaluation_are_kept_by_one_with_other_settings(run_of):
  folder = run_of('ring')
  flags = ['--mode=evaluate', f'--workdir={folder}', '--config.eval.metrics=modes']
  flags += ['--config.eval.num_reference=500']

  def files():
    assert launch.main(flags) == 0
    picture = read_run(folder).picture
    found = (path for path in (folder / 'evaluation').iterdir() if path.is_file())
    return {path.name: path.read_bytes() for path in found}, picture.name

  first, shown = files()
  assert set(first) == {'0000020.json', '0000020_samples.png'} and shown in first
  flags.append('--config.eval.seed=1')
  second, shown = files()
  assert second.items() > first.items()
  added = {name: data for name, data in second.items() if name not in first}
  assert set(added) == {'0000020_eval.seed=1.json', '0000020_eval.seed=1_samples.png'}
  assert shown in added and added[shown] != first['0000020_samples.png']
  del flags[-1]
  flags.append('--config.sample.batch_size=16')
  assert len(files()[0]) == 6


def test_conditional_samples_have_all_classes_alike(monkeypatch):
  config, system = load(DIGITS, **{'sample.batch_size': 7})
  monkeypatch.setattr(
    sampling,
    'compile_sampler',
    lambda *a: lambda state, batch, rng: {'image': data.from_pixels(batch['label'], 'none')},
  )
  labels = sampling.make_sampler(config, system)(None, jax.random.key(0), 200)['image']
  assert (np.bincount(labels) == 20).all()


@pytest.mark.parametrize('dequantize', ['none', 'uniform'])
def test_a_generator_of_the_training_data_loses_no_level(dequantize):
  config, _ = load(DIGITS, **{'data.dequantize': dequantize, 'sample.batch_size': 8})
  arrays = data.open_source(config).arrays()

  def sample_data(state, batch, rng, *, config):
    found = data.preprocess(state, {'index': batch['index']}, rng, config=config)['image']
    return {'image': found, 'trajectory': jnp.stack([found, found], axis=1)}

  system = types.SimpleNamespace(sample=sample_data)
  made = sampling.make_sampler(config, system)(jax.device_put(arrays), jax.random.key(0), 200)
  np.testing.assert_array_equal(made['image'], arrays['image'][:200])
  np.testing.assert_array_equal(made['trajectory'][:, 1], arrays['image'][:200])


@pytest.mark.parametrize('dequantize', ['none', 'uniform'])
def test_held_out_examples_are_the_centres_of_their_bins(dequantize, tmp_path):
  changes = {'data.dequantize': dequantize, 'eval.held_out_examples': 20}
  config, _ = load(DIGITS, **changes)
  source = data.open_source(config)

  def corners(state, batch, rng, *, config):
    x = batch['image'].reshape(len(batch['image']), -1)
    return {'brightest': x.max(1), 'all': x}

  about = {'brightest': Measure('brightest', 'exact'), 'all': Measure('all', 'exact')}
  system = types.SimpleNamespace(FIELDS={}, evaluate=corners, MEASURES=about)
  state = jax.device_put({'step': jnp.zeros(())})
  (row,), found = evaluate.measured(config, system, state, source, tmp_path, None)
  levels = source.read(scores.chosen(len(source), 20))['image'].reshape(20, -1)
  wanted = levels / 127.5 - 1 if dequantize == 'none' else (2.0 * levels + 1) / 256 - 1
  np.testing.assert_allclose(found['all'], wanted, atol=1e-7)
  assert row.value == pytest.approx(wanted.max(1).mean(), rel=1e-6)


# --- Stopping -----------------------------------------------------------------------------------


class StopAfter:
  """A `signals.Stop` that is requested after some batches."""

  def __init__(self, batches):
    self.left, self.requested = batches, None

  def wait_ready(self, arrays):
    self.left -= 1
    if self.left < 0:
      self.requested = signal.SIGTERM
    return self.requested is None


def drawn(config, folder, stop=None):
  system = find_system(config.system)
  _, state = restore(config, system, folder)
  network = networks.open_network('auto', source=data.open_source(config))
  draw = evaluate.batches(config, system, state)
  return evaluate.drawn_features(config, draw, network, 200, folder / 'parts', stop)


def test_a_stopped_evaluation_goes_on_to_the_same_features(run_of, monkeypatch):
  folder, (config, _) = run_of('digits'), load(DIGITS)
  assert drawn(config, folder, StopAfter(9)) is None
  before = {path: path.stat().st_mtime_ns for path in (folder / 'parts').glob('0*.npz')}
  assert len(before) == 9
  (folder / 'parts/00003.npz').write_bytes(b'cut off')
  found = drawn(config, folder)
  changed = [path.name for path, at in before.items() if path.stat().st_mtime_ns != at]
  assert changed == ['00003.npz']
  shutil.rmtree(folder / 'parts')
  whole = drawn(config, folder)
  for a, b in zip(found.seen, whole.seen, strict=True):
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(found.pictures, whole.pictures)
  assert whole.seen.features.shape == (200, classifier.FEATURES)
  (folder / 'parts/first.npz').unlink()
  np.testing.assert_array_equal(drawn(config, folder).pictures, whole.pictures)


def test_a_signal_stops_the_process_and_the_same_command_goes_on(run_of):
  folder = run_of('ring')
  command = [
    sys.executable,
    str(ROOT / 'launch.py'),
    f'--config={ROOT / RING}',
    '--mode=evaluate',
    f'--workdir={folder}',
    '--config.eval.num_samples=120000',
    '--config.eval.num_reference=500',
    '--config.eval.metrics=frechet,modes',
  ]
  env = os.environ | {'XLA_FLAGS': QUICK}
  process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
  deadline = time.monotonic() + 120
  while not list(folder.glob('evaluation/parts_*/samples/00020.npz')):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 128 + signal.SIGTERM
  again = 'the same command resumes, with --step=20 if training has continued'
  assert err.splitlines()[-1] == f'{folder}: stopped; {again}'
  assert not records.read(Workdir(folder))
  again = subprocess.run(command, capture_output=True, text=True, env=env, timeout=240)
  assert again.returncode == 0, again.stderr
  rows = rows_of(folder)
  assert rows['frechet']['samples'] == '120,000'
  assert not list(folder.glob('evaluation/parts_*'))


def test_a_signal_while_a_classifier_is_trained_ends_the_process(run_of):
  code = f"""
  import os, signal, sys, time
  import launch
  from gen_jax.metrics import networks
  def train(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
  networks.open_network = train
  sys.exit(launch.main(['--config={ROOT / RING}', '--mode=evaluate', '--workdir={run_of('ring')}']))
  """
  env = os.environ | {'XLA_FLAGS': QUICK, 'PYTHONPATH': str(ROOT)}
  code = textwrap.dedent(code)
  child = subprocess.run([sys.executable, '-c', code], capture_output=True, env=env, timeout=50)
  assert child.returncode == 128 + signal.SIGTERM and not child.stdout
  assert b'Traceback' not in child.stderr and b'saving' not in child.stderr


def test_reference_features_are_cached_under_all_that_they_depend_on(cache, monkeypatch):
  source = digits()
  network = networks.open_network('classifier', source=source)
  apply, calls = network.apply, []
  counting = network._replace(apply=lambda x: calls.append(len(x)) or apply(x))
  first = scores.reference_features(source, counting, 300)
  assert len(calls) == 2
  again = scores.reference_features(source, counting, 300)
  assert len(calls) == 2
  np.testing.assert_array_equal(first.features, again.features)
  rows = scores.chosen(len(source), 300)
  np.testing.assert_allclose(
    first.features, apply(source.read(rows)['image'])[0], rtol=1e-4, atol=1e-4
  )

  other = ArraySource('digits', source.arrays(), 10, 'digits/train/1797/other')
  rebuilt = digits()
  rebuilt.content = 'other'
  for changed in (
    (other, counting, 300),
    (source, counting, 301),
    (source, counting._replace(checksum='other'), 300),
    (source, counting._replace(resize='other'), 300),
    (rebuilt, counting, 300),
  ):
    calls.clear()
    scores.reference_features(*changed)
    assert len(calls) == 2
  newest = max(cache.glob('references/*.npz'), key=os.path.getmtime)
  newest.write_bytes(newest.read_bytes()[:1000])
  calls.clear()
  scores.reference_features(*changed)
  assert len(calls) == 2


# --- Pictures made elsewhere --------------------------------------------------------------------


def write_pictures(folder, pictures):
  folder.mkdir()
  for i, picture in enumerate(pictures):
    Image.fromarray(picture[:, :, 0]).save(folder / f'{i}.png')


def test_pictures_made_elsewhere(tmp_path, capsys):
  config, _ = load(DIGITS)
  real = data.open_source(config).arrays()['image']
  write_pictures(tmp_path / 'png', real[:300])
  np.savez(tmp_path / 'same.npz', real[scores.chosen(len(real), 500)])
  noise = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), np.uint8)
  np.savez(
    tmp_path / 'noise.npz', names=np.array(['a', None]), labels=noise[:, 0, 0, 0], images=noise
  )
  found = {}
  for name in ('png', 'same.npz', 'noise.npz'):
    folder = tmp_path / f'run_{name}'
    assert evaluate.run(config, folder, samples=str(tmp_path / name)) == 0
    found[name] = rows_of(folder)
  same = {name: row['value'] for name, row in found['same.npz'].items()}
  assert abs(same['frechet']) < 1e-3 and same['precision'] == same['recall'] == 1
  assert same['coverage'] == 1 and same['classes'] == 10 and abs(same['classes_kl']) < 1e-6
  assert found['png']['frechet']['samples'] == f'300 of {tmp_path / "png"}'
  assert found['png']['frechet']['step'] is None
  assert found['png']['frechet']['value'] < 0.2 * found['noise.npz']['frechet']['value']
  assert found['noise.npz']['coverage']['value'] < 0.2 < 0.5 < found['png']['coverage']['value']
  assert 'FD-classifier' in capsys.readouterr().out


def test_points_made_elsewhere(tmp_path):
  config, _ = load(RING)
  points = data.open_source(config).arrays()['image'][:400]
  folder = tmp_path / 'made'
  folder.mkdir()
  np.save(folder / 'points.npy', points)
  assert evaluate.run(config, tmp_path / 'run', samples=str(folder)) == 0
  assert rows_of(tmp_path / 'run')['modes']['value'] == 8
  points[7, 1] = np.nan
  np.save(tmp_path / 'broken.npy', points)
  with pytest.raises(UserError, match='broken.npy: the points are not finite'):
    evaluate.run(config, tmp_path / 'run', samples=str(tmp_path / 'broken.npy'))


def test_against_a_folder(tmp_path):
  real = digits().arrays()['image']
  write_pictures(tmp_path / 'a', real[:40])
  np.savez(tmp_path / 'b.npz', real[40:60])
  fields = {
    'data.name': 'folder',
    'data.path': str(tmp_path / 'a'),
    'data.num_classes': None,
    'data.split': 'train',
    'net.num_classes': None,
    'eval.split': 'train[:30]',
    'eval.metrics': ('kernel', 'precision_recall'),
    'eval.network': 'efficientnet_lite0',
    'eval.num_reference': 20,
  }
  config, _ = load(DIGITS, **fields)
  assert evaluate.run(config, tmp_path / 'run', samples=str(tmp_path / 'b.npz')) == 0
  rows = rows_of(tmp_path / 'run')
  assert rows['kernel']['label'] == 'KD-EfficientNet-Lite0'
  assert rows['kernel']['reference'] == 'folder train[:30], 20'
  assert rows['precision']['value'] > 0.5


# --- In training --------------------------------------------------------------------------------


def quick_lines(folder):
  return [line | {'time': None} for line in records.read(Workdir(folder))]


def test_training_keeps_the_best_checkpoint_and_goes_on_exactly(tmp_path, capsys):
  fields = {
    'eval.every_steps': 5,
    'eval.quick_samples': 100,
    'eval.num_reference': 500,
    'train.steps': 30,
    'train.checkpoint_steps': 10,
    'train.keep_checkpoints': 1,
    'eval.best': 'kernel',
  }
  straight, broken = tmp_path / 'straight', tmp_path / 'broken'
  assert train.run(load(RING, **fields)[0], straight) == 0
  out, err = capsys.readouterr()
  lines = quick_lines(straight)
  assert {line['version'] for line in lines} == {'quick'}
  assert [line['step'] for line in lines if line['metric'] == 'kernel'] == [5, 10, 15, 20, 25, 30]
  assert {line['samples'] for line in lines} == {'100'}
  values = {line['step']: line['value'] for line in lines if line['metric'] == 'kernel'}
  best = min(values, key=values.get)
  assert out.splitlines()[-1] == f'best by kernel of the quick evaluations: --step={best}'
  assert 'step 15  quick evaluation  frechet ' in err
  kept = sorted(int(path.name) for path in (straight / 'checkpoints').iterdir())
  assert kept == sorted({best, 30})
  assert [step for step, _ in points(straight / 'tensorboard', 'quick/kernel')] == [*values]

  assert train.run(load(RING, **fields | {'train.steps': 20})[0], broken) == 0
  # What a killed run has measured after its last checkpoint is measured again.
  late = [line for line in lines if line['step'] == 25]
  with open(broken / 'evaluation.jsonl', 'a') as file:
    file.write(''.join(f'{json.dumps(line | {"value": -9.0})}\n' for line in late) + '{"torn')
  assert train.run(load(RING, **fields)[0], broken) == 0
  assert quick_lines(broken) == lines
  assert sorted(int(path.name) for path in (broken / 'checkpoints').iterdir()) == kept


def test_toys_keep_the_checkpoint_that_is_best_by_their_modes(tmp_path, capsys):
  fields = {
    'data.name': 'grid',
    'eval.every_steps': 5,
    'eval.quick_samples': 2000,
    'eval.metrics': ('modes',),
    'eval.best': 'modes_kl',
  }
  config, _ = load(RING, **fields)
  assert train.run(config, tmp_path) == 0
  lines = quick_lines(tmp_path)
  found = {}
  for name, better in (('modes', max), ('good', max), ('modes_kl', min)):
    values = {line['step']: line['value'] for line in lines if line['metric'] == name}
    assert len(set(values.values())) > 1 and None not in values.values()
    found[name] = better(values, key=values.get)
    assert records.best_step(lines, name) == found[name]
  step = found['modes_kl']
  assert f'best by modes_kl of the quick evaluations: --step={step}' in capsys.readouterr().out
  assert f'{step:010d}' in os.listdir(tmp_path / 'checkpoints')


def test_every_value_of_best_is_one_that_some_metric_gives():
  choices = SHARED['eval.best'].choices
  assert {scores.metric_of(best) for best in choices} == set(METRICS)


def test_an_evaluation_that_a_kill_prevented_is_made_up_for(tmp_path):
  fields = {'eval.every_steps': 20, 'eval.quick_samples': 100, 'eval.num_reference': 500}
  config, _ = load(RING, **fields)
  assert train.run(config, tmp_path) == 0
  lines = quick_lines(tmp_path)
  (tmp_path / 'evaluation.jsonl').unlink()
  files = sorted((tmp_path / 'checkpoints').rglob('*'))
  before = [(path, path.stat().st_mtime_ns) for path in files]
  assert train.run(config, tmp_path) == 0
  assert quick_lines(tmp_path) == lines
  files = sorted((tmp_path / 'checkpoints').rglob('*'))
  assert [(path, path.stat().st_mtime_ns) for path in files] == before


def test_quick_evaluations_of_a_diffusion_model_take_few_steps():
  changes = {
    'sample.sampler': 'ancestral',
    'sample.steps': 'diffusion.steps',
    'eval.quick.steps': 7,
  }
  config, system = load(DIGITS, **changes)
  assert contract.sampling(config, system).evaluations == 40
  quick = contract.quick(config)
  assert contract.sampling(quick, system).evaluations == 7
  assert contract.sampling(quick, system).text.startswith('sampler ddim, steps 7, ')


def test_the_first_of_equally_good_steps_is_the_best():
  def line(step, value, metric='recall', version='quick'):
    return dict(step=step, value=value, metric=metric, version=version)

  lines = [line(5, 0.2), line(10, 0.7), line(15, 0.7), line(20, 0.9, version='full')]
  assert records.best_step(lines, 'recall') == 10
  assert records.best_step([line(5, 3.0, 'frechet'), line(9, 2.0, 'frechet')], 'frechet') == 9
  assert records.best_step([line(5, None)], 'recall') is None
  # The divergence of no good samples is infinite, and null in the file.
  lines = [line(step, value, 'modes_kl') for step, value in ((5, None), (9, 0.5), (12, 0.1))]
  assert records.best_step(lines, 'modes_kl') == 12
  assert records.best_step([line(5, 0.2, 'good'), line(9, 0.1, 'good')], 'good') == 5
  assert records.best_step([], 'frechet') is None


def test_another_protocol_begins_a_new_search_for_the_best_step():
  def line(step, value, samples):
    fields = dict(step=step, value=value, samples=samples, metric='kernel', version='quick')
    return dict.fromkeys(records.COMPARED) | fields

  few = [line(5, 0.1, '100'), line(10, 0.2, '100')]
  assert records.best_step(few, 'kernel') == 5
  assert records.best_step([*few, line(15, 0.4, '500'), line(20, 0.3, '500')], 'kernel') == 20


def test_a_line_that_a_kill_has_torn_costs_only_itself(tmp_path):
  folder = Workdir(tmp_path)
  records.append(folder, 1, [records.Row('frechet', 'FD', 1.0)])
  with open(folder.evaluations, 'a') as file:
    file.write('{"step": 2, "val')
  records.append(folder, 3, [records.Row('frechet', 'FD', 3.0)])
  assert [line['step'] for line in records.read(folder)] == [1, 3]


# --- Refusals -----------------------------------------------------------------------------------


@pytest.fixture
def nothing_is_drawn(monkeypatch):
  monkeypatch.setattr(evaluate, 'drawn_features', lambda *a: pytest.fail('samples were drawn'))


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--config.eval.num_samples=100'], 'config.eval.num_samples=100, but frechet needs at least '),
    (['--config.eval.num_reference=50'], "config.eval.split='train[:80%]' with config.eval.num_r"),
    (['--config.eval.split=tset'], "config.eval.split='tset', but digits has only one split"),
    (['--config.eval.network=inceptoin'], "config.eval.network='inceptoin': 'auto' or 'inception'"),
    (
      ['--config.eval.metrics=modes', '--config.eval.network=efficientnet_lite0'],
      "config.eval.metrics=('modes',): modes is for toys with known modes, and for classes",
    ),
    (
      ['--config.eval.metrics=frechet,fid'],
      "config.eval.metrics=('frechet', 'fid'): 'fid' is called 'frechet' here",
    ),
    (['--config.eval.held_out_split=test'], "config.eval.held_out_split='test', but digits"),
    (
      ['--config.eval.network=inception', '--config.eval.weights=x.npz'],
      'x.npz: no weights can be',
    ),
    (['--step=7'], 'no checkpoint of step 7 in '),
    (['--config.net.features=16'], 'config.net.features=16, but the run in '),
    (['--samples=none'], "--samples='none' is not a folder"),
    (['--samples=none.npz'], '--samples=none.npz cannot be read: No such file'),
  ],
)
def test_a_mistake_is_one_line_before_anything_is_drawn(
  run_of, nothing_is_drawn, monkeypatch, capsys, argv, message
):
  folder = run_of('digits')
  monkeypatch.chdir(ROOT)
  smaller = [f'--config.{path}={value}' for path, value in SMALLER[DIGITS].items()]
  command = [f'--config={DIGITS}', '--mode=evaluate', f'--workdir={folder}', *smaller, *argv]
  assert launch.main(command) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.startswith(f'error: {message}'), err
  assert len([line for line in err.splitlines() if line.startswith('error')]) == 1
  assert not (folder / 'evaluation.jsonl').exists()


def test_a_workdir_without_a_checkpoint(tmp_path, nothing_is_drawn):
  with pytest.raises(UserError, match='no checkpoint in .*; train first'):
    evaluate.run(load(DIGITS)[0], tmp_path)


def test_pictures_that_are_not_like_the_data(tmp_path):
  config, _ = load(DIGITS)
  write_pictures(tmp_path / 'png', np.zeros((3, 9, 8, 1), np.uint8))
  np.savez(tmp_path / 'floats.npz', np.zeros((300, 8, 8, 1)))
  np.savez(tmp_path / 'empty.npz')
  np.savez(tmp_path / 'few.npz', labels=np.zeros(20), images=np.zeros((20, 8, 8, 1), np.uint8))
  (tmp_path / 'text.npz').write_text('no array')
  config = configs.replace(config, {'data.fit': 'crop', 'data.bad_files': 'skip'})
  for name, words in (
    ('png', r"--samples='.*png' cannot be used: 0.png is 9x8x1; .*\.$"),
    ('few.npz', r'--samples=.*few.npz with 20 examples, but frechet needs at least 129'),
    ('text.npz', 'cannot be read: it is not a file of NumPy arrays'),
    ('floats.npz', r'arr_0 is float64 \(300, 8, 8, 1\), but uint8'),
    ('empty.npz', 'holds no array'),
  ):
    with pytest.raises(UserError, match=words):
      evaluate.run(config, tmp_path / 'run', samples=str(tmp_path / name))


def test_a_folder_of_pictures_with_other_things_in_it(tmp_path, caplog):
  config, _ = load(DIGITS)
  config = configs.replace(config, {'data.classes': ('cat', 'dog'), 'data.num_classes': 2})
  write_pictures(folder := tmp_path / 'made', np.zeros((3, 8, 8, 1), np.uint8))
  odd = os.fsencode(folder) + b'/caf\xe9.'
  os.rename(folder / '0.png', odd + b'png')
  with open(odd + b'txt', 'w') as file:
    file.write('notes')
  source = from_elsewhere.open_pictures(config, str(folder))
  assert len(source) == 3
  assert caplog.messages == [f'{folder}: 1 left out: caf\\xe9.txt (not PNG, JPEG or WebP)']
  with open(odd + b'png', 'w') as file:
    file.write('no image')
  with pytest.raises(UserError, match=r'--samples=.* cannot be used: caf\\xe9.png is not a PNG'):
    from_elsewhere.open_pictures(config, str(folder))


def test_quick_evaluations_refuse_before_training(tmp_path, capsys):
  few = {'eval.every_steps': 5, 'eval.quick_samples': 2, 'eval.num_reference': 500}
  with pytest.raises(UserError, match='config.eval.quick_samples=2, but kernel needs at least 4'):
    train.run(load(RING, **few)[0], tmp_path)
  other = few | {'eval.quick_samples': 50, 'eval.metrics': ('kernel',)}
  with pytest.raises(
    UserError, match="config.eval.best='frechet' needs 'frechet' among config.eval.metrics"
  ):
    train.run(load(RING, **other)[0], tmp_path)
  score = few | {'eval.quick_samples': 50, 'eval.best': 'inception_score'}
  with pytest.raises(UserError, match="config.eval.best='inception_score' needs"):
    train.run(load(RING, **score | {'eval.metrics': ('kernel',)})[0], tmp_path)
  with pytest.raises(UserError, match="config.eval.best='inception_score' is for images"):
    train.run(load(RING, **score)[0], tmp_path)
  for best in ('modes', 'good', 'modes_kl'):
    kl = few | {'eval.quick_samples': 50, 'eval.best': best}
    with pytest.raises(UserError, match=f"config.eval.best='{best}' needs 'modes' among"):
      train.run(load(RING, **kl | {'eval.metrics': ('kernel',)})[0], tmp_path)
    with pytest.raises(UserError, match=f"^config.eval.best='{best}' is for toys with known modes"):
      train.run(load(RING, **kl | {'data.name': 'swiss_roll'})[0], tmp_path)
  good = '--config.eval.best=goood'
  assert launch.main([f'--config={ROOT / RING}', f'--workdir={tmp_path}', good]) == 2
  err = capsys.readouterr().err
  assert err.startswith("error: config.eval.best='goood': 'frechet' or 'kernel'"), err
  assert err.count('error') == 1


def test_what_a_refusal_recommends_is_possible(run_of, nothing_is_drawn):
  folder = run_of('ring')
  with pytest.raises(UserError, match='eval.num_samples=2, but') as refused:
    evaluate.run(load(RING, **{'eval.num_samples': 2})[0], folder)
  names = re.search('--config.eval.metrics=([a-z_,]+)', str(refused.value))[1].split(',')
  assert 'inception_score' not in names
  config, _ = load(RING, **{'eval.num_samples': 50, 'eval.metrics': tuple(names)})
  with pytest.raises(pytest.fail.Exception, match='samples were drawn'):
    evaluate.run(config, folder)


def test_what_cannot_be_written_is_told_before_anything_is_drawn(run_of, nothing_is_drawn):
  folder = run_of('ring')
  (folder / 'evaluation.jsonl').mkdir()
  with pytest.raises(UserError, match='cannot be written: Is a directory'):
    evaluate.run(load(RING)[0], folder)


def test_pictures_that_are_not_finite_end_with_status_1(run_of, monkeypatch, capsys):
  folder = run_of('ring')
  config, system = load(RING)
  monkeypatch.setattr(
    system, 'sample', lambda state, batch, rng, config: {'image': np.full((64, 2), np.nan)}
  )
  assert evaluate.run(config, folder) == 1
  assert 'samples are not finite' in capsys.readouterr().err
  assert not records.read(Workdir(folder))


def test_modes_are_those_of_the_toys():
  assert {name for name in toys.NAMES if toys.modes(name)} == {'ring', 'grid'}
