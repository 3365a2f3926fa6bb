"""A trained run as an object, exports, and runs that start from another one."""

import hashlib
import json
import pathlib
import shutil
import signal
import threading
import types

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from children import run_python
from forged import replace_file
from PIL import Image
from untrained import load_config, save_untrained

import gen_jax
import launch
from gen_jax import config as configs
from gen_jax import contract, sampling, train
from gen_jax.data import binarize as binarized
from gen_jax.data import open_source as find_source
from gen_jax.devices import sharding
from gen_jax.errors import UserError
from gen_jax.run import (
  checkpoint,
  export_format,
  history,
  launcher,
  records,
  restoring,
  starting,
  trained,
)
from gen_jax.run.workdir import Workdir
from gen_jax.state import Frozen
from gen_jax.systems import find_system

ROOT = pathlib.Path(__file__).parent.parent.parent
FEW_POINTS = {'train.steps': '2', 'sample.batch_size': '16', 'eval.num_reference': '300'}


@pytest.fixture(scope='module')
def points(tmp_path_factory):
  """A trained run of two-dimensional points; two players, no moving average."""
  folder = tmp_path_factory.mktemp('runs') / 'ring'
  assert train.run(load_config('gan_ring', **FEW_POINTS), folder) == 0
  return folder


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
  """A run of labelled images with a moving average."""
  return save_untrained(
    tmp_path_factory.mktemp('runs') / 'digits', 'ddpm_digits', **{'net.multipliers': '(1,)'}
  )


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """A run with batch statistics."""
  return save_untrained(tmp_path_factory.mktemp('runs') / 'dcgan', 'dcgan_fashion_mnist')


@pytest.fixture(scope='module')
def run(digits):
  return gen_jax.load(digits)


@pytest.fixture
def copy(tmp_path):
  """Copies a run, so that a test may write into its folder."""
  return lambda folder: pathlib.Path(shutil.copytree(folder, tmp_path / folder.name))


def one_line(error) -> str:
  assert '\n' not in str(error.value)
  return str(error.value)


# --- The object ---------------------------------------------------------------------------------


def test_importing_the_package_takes_no_jax():
  code = (
    'import sys, gen_jax; gen_jax.load; print([m for m in ("jax", "numpy") if m in sys.modules])'
  )
  assert run_python('-c', code, cwd=ROOT).stdout == '[]\n'


def test_it_says_what_it_is(run, points):
  assert (run.step, run.weights, run.config.system) == (7, 'ema', 'ddpm')
  assert run.manifest.data_fingerprint == 'data/7' and 'step 7, ema weights' in repr(run)
  assert (gen_jax.load(points).step, gen_jax.load(points).weights) == (2, 'raw')


@pytest.mark.parametrize('seed', [0, 3])
def test_its_images_are_those_of_the_verb(run, copy, digits, seed):
  folder = copy(digits)
  argv = ['--mode=sample', f'--workdir={folder}', f'--config.sample.seed={seed}']
  assert launch.main([*argv, '--config.sample.num_images=11']) == 0
  files = sorted((folder / f'samples/step_0000007_seed_{seed}_num_images=11').glob('*.png'))
  drawn = np.stack([np.asarray(Image.open(file)) for file in files])[..., None]
  made = run.sample(11, seed=seed)
  assert made.dtype == np.uint8 and made.shape == (11, 8, 8, 1) and made.std() > 1
  np.testing.assert_array_equal(made, drawn)
  np.testing.assert_array_equal(run.sample(5, seed=seed), made[:5])


def test_points_are_those_of_the_verb(points, copy):
  folder = copy(points)
  assert launch.main(['--mode=sample', f'--workdir={folder}']) == 0
  made = gen_jax.load(points).sample(64)
  assert made.dtype == np.float32 and made.shape == (64, 2)
  np.testing.assert_array_equal(made, np.load(folder / 'samples/step_0000002_seed_0/points.npy'))


def test_labels_are_the_classes_in_turn_or_those_given(run):
  plain = run.sample(10)
  np.testing.assert_array_equal(run.sample(10, labels=list(range(10))), plain)
  threes = run.sample(10, labels=3)
  np.testing.assert_array_equal(threes[3], plain[3])
  assert not np.array_equal(np.delete(threes, 3, 0), np.delete(plain, 3, 0))
  np.testing.assert_array_equal(run.sample(10, labels=np.full(10, 3)), threes)


def test_any_field_of_sampling_is_a_keyword(run, digits):
  made = run.sample(4, steps=2, eta=0.5)
  assert not np.array_equal(made, run.sample(4))
  config = configs.replace(run.config, {'sample.steps': 2, 'sample.eta': 0.5})
  key = jax.random.fold_in(jax.random.key(0), sampling.SAMPLE_MODE)
  draw = sampling.make_sampler(config, find_system('ddpm'))
  _, state = restoring.restore(config, find_system('ddpm'), digits)
  np.testing.assert_array_equal(made, draw(state, key, 4)['image'])


def test_one_program_serves_all_seeds_and_numbers(run, monkeypatch):
  run.sample(4)
  monkeypatch.setattr(sampling, 'make_sampler', None)
  assert not np.array_equal(run.sample(4, seed=8), run.sample(4, seed=9))


def test_the_weights_are_chosen(digits, run):
  raw = gen_jax.load(digits, weights='raw')
  assert (raw.weights, raw.config.sample.weights) == ('raw', 'raw')
  assert raw.params('net') is raw.state.net.params and run.params() is run.state.net.ema
  kernels = [r.params()['conv_in']['kernel'] for r in (raw, run)]
  assert not np.array_equal(*kernels)
  assert not np.array_equal(raw.sample(4), run.sample(4))


def test_the_state_leaves_optimisers_out_and_lies_on_all_devices(run, digits, points):
  assert run.state.net.opt_state is None and int(run.state.step) == 7
  for leaf in jax.tree.leaves(run.state):
    assert len(leaf.sharding.device_set) == jax.device_count() == 2
  config = run.config
  saver = checkpoint.Checkpointer(digits / 'checkpoints', config={}, data_fingerprint='', keep=1)
  whole = saver.restore(saver.latest(), contract.abstract_state(config, find_system('ddpm')))
  saver.close()
  for part in ('params', 'ema'):
    assert_equal(getattr(run.state.net, part), getattr(whole.net, part))
  assert set(restoring.players(gen_jax.load(points).state)) == {'G', 'D'}


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_evaluate_gives_the_rows_of_the_verb(points, copy, tmp_path):
  folder = copy(points)
  settings = {'metrics': ('frechet', 'kernel'), 'num_samples': 48}
  made = gen_jax.load(folder).evaluate(**settings, batch_size=48)
  argv = ['--mode=evaluate', f'--workdir={folder}', '--config.eval.metrics=frechet,kernel']
  argv += ['--config.eval.num_samples=48', '--config.sample.batch_size=48']
  assert launch.main(argv) == 0
  mine, its = records.read(Workdir(folder))[: len(made)], records.read(Workdir(folder))[len(made) :]
  assert len(made) == len(mine) == len(its) > 2
  for row, a, b in zip(made, mine, its, strict=True):
    assert row.metric == a['metric'] == b['metric']
    if row.metric != 'samples_per_second':
      assert row.value == a['value'] == b['value'], row
  assert made[0].samples == '48'
  tried = gen_jax.load(folder).evaluate(tmp_path / 'tried', **settings, batch_size=48)
  assert [row.value for row in tried[:2]] == [row.value for row in made[:2]]
  assert len(records.read(Workdir(tmp_path / 'tried'))) == len(made)
  assert len(records.read(Workdir(folder))) == 2 * len(made)


def test_a_notebook_keeps_its_signal_handlers(points):
  before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
  made = []
  thread = threading.Thread(target=lambda: made.append(gen_jax.load(points).sample(3)))
  thread.start()
  thread.join()
  assert made[0].shape == (3, 2)
  assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize('binarize', ['none', 'static'])
def test_encode_gives_latents_and_reconstructions(tmp_path, binarize):
  run = gen_jax.load(save_untrained(tmp_path / 'vae', 'vae_digits', **{'data.binarize': binarize}))
  images = np.random.RandomState(0).randint(0, 256, (11, 8, 8, 1), dtype=np.uint8)
  made = run.encode(images)
  assert made['z'].shape == (11, 8) and made['reconstruction'].shape == images.shape
  assert made['reconstruction'].dtype == np.uint8
  x = images / np.float32(127.5) - 1
  if binarize == 'static':
    levels = binarized.binarize(images)
    assert set(np.unique(levels)) == {0, 255}
    x = np.where(levels == 255, 1, -1).astype(np.float32)
  wanted = find_system('vae').encode(run.state, {'image': x}, None, config=run.config)
  np.testing.assert_allclose(made['z'], wanted['z'], atol=1e-4)
  levels = (np.asarray(wanted['reconstruction']) + 1) * 127.5
  np.testing.assert_allclose(made['reconstruction'], levels, atol=0.6)
  np.testing.assert_allclose(run.encode(x)['z'], made['z'], atol=1e-5)
  again = run.decode(made['z'])
  assert again.dtype == np.uint8 and again.shape == images.shape
  np.testing.assert_allclose(np.int32(again), made['reconstruction'], atol=1)


def test_latents_of_a_gan(images):
  """Seeds give other draws, and the images of latents are those of G."""
  run = gen_jax.load(images)
  z = run.latents(5, seed=1)
  assert z.shape == (5, run.config.latent.dim) and z.dtype == np.float32
  np.testing.assert_array_equal(z, run.latents(5, seed=1))
  assert np.abs(z - run.latents(5)).max() > 0.1
  again = run.decode(z)
  assert again.dtype == np.uint8 and again.shape == (5, 28, 28, 1) and not run.conditional
  wanted = find_system('gan').decode(run.state, jnp.asarray(z), {}, config=run.config)['image']
  np.testing.assert_allclose(np.int32(again), (np.asarray(wanted) + 1) * 127.5, atol=1)


@pytest.mark.parametrize('by', ['pixels', 'features'])
def test_the_nearest_training_examples(run, by):
  """A training example is its own neighbour, also where noise is added."""
  digits = find_source(run.config)
  rows = [5, 500, 1200]
  images = digits.read(rows)['image']
  noisy = np.uint8(np.clip(images + np.random.RandomState(0).randint(-9, 10, images.shape), 0, 255))
  found = run.nearest(images, k=3, by=by)
  assert found.index.shape == (3, 3) and found.index[:, 0].tolist() == rows
  np.testing.assert_array_equal(found.image[:, 0], images)
  assert found.image.shape == (3, 3, 8, 8, 1) and (np.diff(found.distance) >= 0).all()
  assert np.allclose(found.distance[:, 0], 0, atol=1e-3 * found.distance[:, 1].max())
  assert run.nearest(noisy, by=by).index[:, 0].tolist() == rows
  if by == 'pixels':
    other = (np.float32(images[0]) - digits.read([found.index[0, 2]])['image'][0]) / 255
    np.testing.assert_allclose(found.distance[0, 2], np.sqrt((other**2).mean()), rtol=1e-4)


def test_encodings_of_a_conditional_net(tmp_path):
  run = gen_jax.load(save_untrained(tmp_path / 'flow', 'flow_digits'))
  images = np.random.RandomState(0).randint(0, 256, (5, 8, 8, 1), dtype=np.uint8)
  labels = [3, 1, 4, 1, 5]
  found = run.encode(images, labels, sampler='ddim', steps=4)
  z, again = found['z'], found['reconstruction']
  assert run.conditional
  assert z.shape == images.shape and z.dtype == np.float32 and again.dtype == np.uint8
  decoded = run.decode(z, labels, sampler='ddim', steps=4)
  np.testing.assert_allclose(np.int32(decoded), again, atol=1)
  other = run.encode(images, 0, sampler='ddim', steps=4)['z']
  assert np.abs(other[0] - z[0]).max() > 1e-4
  # Each image has its own label: row 3 has that of row 1.
  same = run.encode(images[[1, 1]], 1, sampler='ddim', steps=4)['z']
  np.testing.assert_allclose(same, z[[1, 1]], atol=1e-4)
  for call, message in (
    (lambda: run.encode(images), 'labels=None: samples of '),
    (lambda: run.decode(z), 'labels=None: samples of '),
    (lambda: run.encode(images, [1, 2]), 'labels are int64 (2,): an integer, or 5 of them'),
    (lambda: run.encode(images, 0, sampler='ancestral'), "config.sample.sampler='ancestral' can"),
    (lambda: run.encode(images, 0, stpes=3), 'stpes=3: config.sample has no such field; did you'),
    (lambda: run.decode(z[:, :4], labels), 'z is (8, 4, 8, 1): ('),
    (lambda: run.decode(z[0, 0, 0, 0], 0), 'decode: z is float32 (); numbers [n, ...] are needed'),
  ):
    with pytest.raises(UserError) as error:
      call()
    assert one_line(error).startswith(message)


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda run: run.sample(0), 'sample(n=0): an integer from 1 to 10000000 is needed'),
    (lambda run: run.sample(10**12), 'sample(n=1000000000000): an integer from 1 to'),
    (lambda run: run.sample(2.0), 'sample(n=2.0): an integer'),
    (lambda run: run.sample(2, step=5), 'step=5: config.sample has no such field; did you mean s'),
    (lambda run: run.sample(2, sampler='dimm'), "config.sample.sampler='dimm': 'ancestral' or"),
    (lambda run: run.sample(2, steps=50000), 'config.sample.steps=50000: at most'),
    (lambda run: run.sample(2, labels=[0, 10]), 'labels hold 10: classes from 0 to 9 are needed'),
    (lambda run: run.sample(2, labels=[-1, 0]), 'labels hold -1: classes from 0 to 9 are needed'),
    (
      lambda run: run.sample(2, labels=[1, 2, 3]),
      'labels are int64 (3,): an integer, or 2 of them',
    ),
    (lambda run: run.sample(2, labels=[0.5, 1]), 'labels are float64 (2,): an integer, or 2 of'),
    (lambda run: run.evaluate(num_smaples=3), 'num_smaples=3: config.sample has no such field'),
    (lambda run: run.params('G'), "player='G': "),
    (lambda run: run.export(player='D'), "player='D': "),
    (lambda run: run.export(dtype='int8'), "dtype='int8': float32 or float16 is needed"),
    (lambda run: run.encode(np.zeros((2, 8, 8, 1))), 'encode: images are float64 (2, 8, 8, 1); '),
    (lambda run: run.decode(np.zeros(3)), 'decode: z is float64 (3,); numbers [n, ...] are needed'),
    (lambda run: run.latents(0), 'latents(n=0): at least 1 is needed'),
    (lambda run: run.nearest(np.zeros((2, 8, 8, 1))), 'images are float64 (2, 8, 8, 1): uint8'),
    (lambda run: run.nearest(np.zeros((2, 8, 8, 1), np.uint8), k=0), 'k=0: 1 to 1438, the number'),
    (lambda run: run.nearest(np.zeros((2, 8, 8, 1), np.uint8), by='x'), "by='x': 'pixels' or"),
  ],
)
def test_a_user_error_is_one_line(run, call, message):
  with pytest.raises(UserError) as error:
    call(run)
  assert one_line(error).startswith(message)


def test_errors_of_loading_are_one_line(digits, points, tmp_path, copy):
  def said(*args, **how):
    with pytest.raises(UserError) as error:
      gen_jax.load(*args, **how)
    return one_line(error)

  assert said(tmp_path / 'none') == (
    f'no run in {tmp_path}/none: {tmp_path}/none/config.json is missing'
  )
  assert said(digits, weights='emma') == "weights='emma': 'ema', 'raw' or None is needed"
  assert said(points, weights='ema').startswith(f"weights='ema': {points} keeps no moving average")
  assert f'no checkpoint of step 3 in {digits}/checkpoints; steps: [7]' == said(digits, 3)
  with pytest.raises(UserError, match='labels=0: samples of .* do not depend on labels'):
    gen_jax.load(points).sample(2, labels=0)
  with pytest.raises(UserError, match="encode: system 'gan' of .* has no encoder"):
    gen_jax.load(points).encode(np.zeros((2, 2), np.float32))
  broken = copy(digits)
  file = next((broken / 'checkpoints').glob('*/manifest.json'))
  file.write_bytes(file.read_bytes().replace(b'"step": 7', b'"step": 8'))
  assert 'none is intact' in said(broken)
  shutil.rmtree(broken / 'checkpoints')
  assert said(broken).startswith(f'no checkpoint in {broken}/checkpoints; train first')


# --- Exports ------------------------------------------------------------------------------------


def test_an_export_draws_the_same_images_and_points(run, points, images, tmp_path):
  for source in (run, gen_jax.load(points), gen_jax.load(images)):
    out = source.export(tmp_path / source.config.system)
    again = gen_jax.load(out)
    assert (again.step, again.weights) == (source.step, source.weights)
    assert again.manifest.source == source.manifest.sha256
    assert again.manifest.data_fingerprint == source.manifest.data_fingerprint
    for name, player in restoring.players(source.state).items():
      assert_equal(again.params(name), source.params(name))
      assert_equal(restoring.players(again.state)[name].stats, player.stats)
    np.testing.assert_array_equal(again.sample(9, seed=1), source.sample(9, seed=1))
    shutil.rmtree(out)


def test_the_files_are_plain(run, tmp_path):
  out = run.export(tmp_path / 'out', dtype='float16')
  assert sorted(p.name for p in out.iterdir()) == [
    'config.json',
    'manifest.json',
    export_format.WEIGHTS,
  ]
  arrays = safetensors.numpy.load_file(out / export_format.WEIGHTS)
  assert arrays['net/params/conv_in/kernel'].dtype == np.float16 and arrays['step'] == 7
  assert {name.split('/')[1] for name in arrays if '/' in name} == {'params'}
  manifest = json.loads((out / 'manifest.json').read_text())
  weights = (out / export_format.WEIGHTS).read_bytes()
  assert manifest['files'][export_format.WEIGHTS]['sha256'] == hashlib.sha256(weights).hexdigest()
  assert manifest['gen_jax'] == gen_jax.__version__
  kept = gen_jax.load(out).params()['conv_in']['kernel']
  assert kept.dtype == np.float32
  np.testing.assert_allclose(kept, run.params()['conv_in']['kernel'], rtol=2**-11)


def test_the_verb_exports_and_the_others_read_it(digits, copy, tmp_path, capsys):
  folder, out = copy(digits), tmp_path / 'out'
  assert launch.main(['--mode=export', f'--workdir={folder}']) == 0
  assert capsys.readouterr().out == f'{folder}/export\n'
  argv = ['--mode=export', f'--workdir={folder}', '--step=7', '--weights=raw', f'--out={out}']
  assert launch.main([*argv, '--player=net', '--dtype=float16']) == 0
  assert export_format.open_export(folder / 'export').weights == 'ema'
  manifest = export_format.open_export(out)
  assert (manifest.weights, manifest.dtype, manifest.players) == ('raw', 'float16', ('net',))
  capsys.readouterr()
  assert launch.main(['--mode=sample', f'--workdir={folder}/export']) == 0
  assert (folder / 'export/samples/step_0000007_seed_0/00000_class0.png').exists()


def test_an_export_is_evaluated_and_compared_like_a_run(points, tmp_path, capsys):
  out = gen_jax.load(points).export(tmp_path / 'out')
  argv = ['--mode=evaluate', f'--workdir={out}', '--config.eval.metrics=frechet']
  assert launch.main([*argv, '--config.eval.num_samples=48']) == 0
  assert capsys.readouterr().out.startswith(f'{out}, step 2:\n')
  assert launch.main(['--mode=compare', f'--workdir={out}']) == 0
  count = sum(leaf.size for leaf in jax.tree.leaves(gen_jax.load(points).params('G')))
  assert f'G {count:,}' in capsys.readouterr().out


def test_an_export_is_not_replaced_by_another(run, digits, tmp_path):
  out = run.export(tmp_path / 'out')
  before = {path.name: path.read_bytes() for path in out.iterdir()}
  run.export(out)  # the same again
  others = [
    (gen_jax.load(digits, weights='raw').export, {}, 'raw weights of net in float32'),
    (run.export, {'dtype': 'float16'}, 'ema weights of net in float16'),
  ]
  for export, how, what in others:
    with pytest.raises(UserError) as error:
      export(out, **how)
    assert one_line(error) == (
      f'--out={out} holds the export of step 7, ema weights of net in float32: for step 7, {what}, '
      'another folder is needed'
    )
  assert {path.name: path.read_bytes() for path in out.iterdir()} == before
  (out / 'manifest.json').write_text('[]')  # of another program
  with pytest.raises(UserError, match='holds a manifest.json that is none of an export'):
    run.export(out)


def test_one_player_is_enough_for_sampling(points, tmp_path):
  run = gen_jax.load(points)
  again = gen_jax.load(run.export(tmp_path / 'out', player='G'))
  assert again.state.D is None and set(restoring.players(again.state)) == {'G'}
  np.testing.assert_array_equal(again.sample(5), run.sample(5))


def test_what_does_not_fit_an_export_is_one_line(run, digits, copy, tmp_path):
  out = run.export(tmp_path / 'out')

  def said(f, *args, **how):
    with pytest.raises(UserError) as error:
      f(*args, **how)
    return one_line(error)

  assert said(gen_jax.load, out, weights='raw') == (
    f"{out} is an export of ema weights and has no raw ones: 'ema' is needed"
  )
  assert said(gen_jax.load, out, 3) == f'no step 3 in {out}: it is an export of step 7'
  assert said(run.export, copy(digits)).endswith('another folder is needed for its export')
  config = configs.load(f'{out}/config.json')
  assert said(train.run, config, out).startswith(f'{out} is an export, which cannot be resumed')
  weights = out / export_format.WEIGHTS
  data = weights.read_bytes()
  weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
  assert said(gen_jax.load, out) == (
    f'the export {out} is damaged: the checksum of {export_format.WEIGHTS} is wrong'
  )
  weights.unlink()
  assert said(gen_jax.load, out).startswith(f'the export {out} cannot be read')
  (out / 'manifest.json').write_text('{')
  assert said(gen_jax.load, out).startswith(f'the export {out} is damaged: manifest.json')
  assert said(launcher.run, ['--mode=export', f'--workdir={digits}', '--player=G', f'--out={out}'])


def test_json_of_the_wrong_shape_is_a_damaged_export(points, tmp_path):
  out = gen_jax.load(points).export(tmp_path / 'out')
  good = json.loads((out / 'manifest.json').read_text())
  edits = [good | {name: value} for name in good for value in (None, 5, 'x', [], [5], {'x': 5})]
  edits += [{name: good[name] for name in good if name != missing} for missing in good]
  edits += [None, 5, 'x', [], {}]
  fine = 0
  for edit in edits:
    (out / 'manifest.json').write_text(json.dumps(edit))
    try:
      export_format.open_export(out)
      fine += 1
    except UserError as error:
      assert str(error).startswith((f'the export {out} is ', f'{out} is an export of format'))
      assert len(str(error)) < 300
  # Any text is a source, a version and a fingerprint; a list of no players, no runs.
  assert fine < 9
  for content in (b'null', b'[]', b'5', b'{}', b'\xff', b'{', b'[' * 2000):
    (out / 'manifest.json').write_text(json.dumps(good))
    replace_file(out, 'config.json', content)
    for read in (export_format.open_export, gen_jax.load, history.read_run):
      with pytest.raises(UserError):
        read(out)


def test_weights_that_are_not_those_of_the_manifest(points, tmp_path):
  out = gen_jax.load(points).export(tmp_path / 'out')
  arrays = safetensors.numpy.load_file(out / export_format.WEIGHTS)
  name = 'G/params/Dense_0/kernel'
  others = {key: x for key, x in arrays.items() if key != name}
  for changed in (arrays | {name: np.zeros((3, 3), np.float32)}, others):
    replace_file(out, export_format.WEIGHTS, safetensors.numpy.save(changed))
    with pytest.raises(UserError, match=f'is not what manifest.json says: .*{name}'):
      gen_jax.load(out)
  replace_file(out, export_format.WEIGHTS, b'junk')
  with pytest.raises(UserError, match='is not what manifest.json says'):
    gen_jax.load(out)


def test_a_config_of_the_wrong_shape_is_one_line(points, copy, capsys):
  folder = copy(points)
  deep = b'{"gen_jax": "0.2.0", "data": ' + b'{"a":' * 2000 + b'1' + b'}' * 2001
  no_system = json.loads((folder / 'config.json').read_text())
  del no_system['system']
  for content in (b'null', b'[]', b'{}', b'5', b'\xff', deep, json.dumps(no_system).encode()):
    (folder / 'config.json').write_bytes(content)
    for mode in ('sample', 'evaluate', 'export', 'compare'):
      assert launch.main([f'--mode={mode}', f'--workdir={folder}']) == 2
    assert launch.main([f'--config={folder}/config.json', '--dry_run']) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 and all(len(line) < 300 for line in lines)
    # Training reads that of the checkpoint.
    config = load_config('gan_ring', **FEW_POINTS)
    if content not in (deep, b'{}') and b'gen_jax' not in content:
      assert train.run(config, folder) == 0


def write_array(folder, array, dtype):
  protocol = dict(step=0, config='{"gen_jax": "0"}', data_fingerprint='', environment={}, source='')
  return export_format.write(folder, {'a': array}, weights='raw', dtype=dtype, **protocol)


def test_arrays_are_written_in_their_own_order(tmp_path):
  array = np.arange(6, dtype=np.float32).reshape(2, 3).T
  manifest = write_array(tmp_path, array, 'float16')
  spec = {('a',): jax.ShapeDtypeStruct((3, 2), np.float32)}
  np.testing.assert_array_equal(export_format.read(manifest, spec)['a',], array)


def test_numbers_too_large_for_float16_are_refused(tmp_path):
  with pytest.raises(UserError, match='a holds numbers that are not finite in float16'):
    write_array(tmp_path, np.float32([7e4]), 'float16')


# --- Runs that start from another one, or need one to sample ------------------------------------


def start(folder, source, **overrides):
  """A run of one step that begins from the weights of `source`, which it leaves as they are."""
  still = {'train.steps': '1', 'optim.G.lr': '1e-30', 'optim.D.lr': '1e-30'}
  source = {} if source is None else {'train.init_from': str(source)}
  return train.run(load_config('gan_ring', **(FEW_POINTS | still | source | overrides)), folder)


def test_a_run_starts_from_an_export_and_says_so(points, tmp_path, capsys):
  source = gen_jax.load(points)
  out, folder = source.export(tmp_path / 'out'), tmp_path / 'run'
  assert start(folder, out) == 0
  run = gen_jax.load(folder)
  assert run.step == 1
  for name in 'GD':
    assert_equal(run.params(name), source.params(name))
  told = {'path': str(out), 'sha256': gen_jax.load(out).manifest.sha256}
  assert run.manifest.runs == {'train.init_from': told}

  # Another path is fine, another checksum is not; the weights are in the checkpoint now.
  moved = out.rename(tmp_path / 'moved')
  assert start(folder, out, **{'train.steps': '2'}) == 0
  assert start(folder, moved, **{'train.steps': '3'}) == 0
  assert gen_jax.load(folder).manifest.runs['train.init_from']['sha256'] == told['sha256']
  other = source.export(tmp_path / 'other', dtype='float16')
  for wrong, message in (
    (other, f"config.train.init_from='{other}' has the checksum "),
    (None, f'config.train.init_from=None, but the run in {folder} began from {moved}'),
    (tmp_path / 'none', 'no checkpoint in '),
  ):
    with pytest.raises(UserError) as error:
      start(folder, wrong, **{'train.steps': '4'})
    assert one_line(error).startswith(message)


def test_a_run_starts_from_a_run(points, tmp_path):
  assert start(tmp_path / 'run', points) == 0
  assert_equal(gen_jax.load(tmp_path / 'run').params('D'), gen_jax.load(points).params('D'))


def test_parameters_and_average_are_what_the_other_run_samples_with(run, digits, images):
  for folder, name in ((digits, 'ddpm_digits'), (images, 'dcgan_fashion_mnist')):
    source = gen_jax.load(folder)
    system = find_system(source.config.system)
    fresh = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), contract.abstract_state(source.config, system)
    )
    state = starting.start_from(folder, fresh)
    assert int(state.step) == 0, name
    for player, wanted in restoring.players(source.state).items():
      found = restoring.players(state)[player]
      assert_equal(found.params, source.params(player))
      assert_equal(found.stats, wanted.stats)
      assert_equal(found.opt_state, restoring.players(fresh)[player].opt_state)
      if found.ema is not None:
        assert_equal(found.ema, found.params)
        pairs = zip(jax.tree.leaves(found.ema), jax.tree.leaves(found.params), strict=True)
        assert all(a is not b for a, b in pairs), 'the step donates each of them'


def test_weights_that_do_not_fit_name_the_parameter(points, digits, tmp_path):
  with pytest.raises(UserError) as error:
    start(tmp_path / 'run', points, **{'generator.features': '(8,)'})
  assert one_line(error).startswith(f"config.train.init_from='{points}': G/params/")
  assert ' is float32[' in one_line(error) and one_line(error).endswith(' in this model')
  with pytest.raises(UserError) as error:
    start(tmp_path / 'run', digits)
  assert one_line(error) == (
    f"config.train.init_from='{digits}' has no player G or D to start from"
  )


@flax.struct.dataclass
class Guided:
  step: jax.Array
  judge: Frozen | None = None


def test_a_system_may_need_a_finished_run_to_sample(run, digits, points):
  def system(where):
    return types.SimpleNamespace(runs=lambda config: {'judge': where})

  state = Guided(
    step=sharding.put(jnp.int32(3), sharding.replicated(sharding.mesh_of_all(run.config)))
  )
  found, checksums = trained.attach(state, run.config, system(str(digits)))
  assert checksums == {'judge': run.manifest.sha256} and int(found.step) == 3
  assert_equal(found.judge.params, run.params())
  assert found.judge.config == run.config and found.judge.variables()['batch_stats'] == {}
  assert jax.jit(lambda s: s.judge.params['conv_in']['bias'])(found).shape == (8,)
  found, _ = trained.attach(state, run.config, system((str(points), 'D')))
  assert_equal(found.judge.params, gen_jax.load(points).params('D'))
  with pytest.raises(UserError, match='player=None: .* has G, D'):
    trained.attach(state, run.config, system(str(points)))
  assert trained.attach(state, run.config, types.SimpleNamespace()) == (state, {})
  assert trained.attach(state, run.config, types.SimpleNamespace(runs=lambda c: {}))[1] == {}
