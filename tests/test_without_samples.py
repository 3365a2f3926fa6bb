"""A system without `sample`, through every verb, on images and on points."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import launch
from gen_jax import config as configs
from gen_jax import contract, data, evaluate, sample, sampling, systems, train
from gen_jax.errors import UserError
from gen_jax.metrics import networks
from gen_jax.metrics import scorer as scores
from gen_jax.run import records, restoring
from gen_jax.run.workdir import Workdir
from gen_jax.systems import find_system

HERE = pathlib.Path(__file__).parent


@pytest.fixture(autouse=True)
def more_systems(monkeypatch):
  """As if `more_systems/logistic.py` lay in gen_jax/systems."""
  monkeypatch.setattr(systems, '__path__', [*systems.__path__, str(HERE / 'more_systems')])


def make(name, classes, **values):
  """A config of the system on digits, or on points."""
  values = {
    'data.name': name,
    'data.shape': (8, 8, 1) if name == 'digits' else (2,),
    'data.num_classes': classes,
    'net': {'name': 'more_systems.logistic.Net', 'classes': classes},
    'optim.lr': 0.01,
    'train': {'steps': 20, 'batch_size': 16, 'log_steps': 5, 'checkpoint_steps': 10},
    'eval': {'held_out_split': 'train', 'held_out_examples': 100},
  } | values
  return configs.make('logistic', values)


@pytest.fixture
def nothing_is_drawn(monkeypatch):
  for module, name in (
    (scores, 'open_scorer'),
    (networks, 'open_network'),
    (sampling, 'make_sampler'),
  ):
    monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail('samples were drawn or scored'))


@pytest.mark.parametrize('name, classes', [('digits', 10), ('ring', 8)])
def test_it_is_trained_and_evaluated(name, classes, tmp_path, nothing_is_drawn, capsys):
  config, folder = make(name, classes), Workdir(tmp_path)
  assert train.run(configs.replace(config, {'train.steps': 10}), tmp_path) == 0
  assert train.run(config, tmp_path) == 0
  out = capsys.readouterr().out
  assert f'{tmp_path} is finished after 20 steps\n' in out and 'pictures' not in out
  assert train.run(config, tmp_path) == 0
  assert 'pictures' not in capsys.readouterr().out
  assert not folder.samples.exists()

  assert evaluate.run(config, tmp_path) == 0
  accuracy, nats = records.read(folder)
  assert [accuracy['metric'], nats['metric']] == ['accuracy', 'nats']
  assert accuracy['label'] == 'accuracy' and accuracy['kind'] == 'exact'
  assert accuracy['sampler'] == 'without noise' and nats['sampler'] is None
  assert accuracy['reference'] == f'{name} {config.data.split}, 100'
  table = capsys.readouterr().out
  assert 'accuracy' in table and 'cross-entropy, nats' in table and '| exact' in table

  # The same numbers from the checkpoint, with examples preprocessed as in training.
  _, state = restoring.restore(config, contract.check(config), tmp_path)
  source = data.open_source(config)
  raw = source.read(scores.chosen(len(source), 100))
  device_data = {'image': jnp.asarray(raw['image']), 'label': jnp.asarray(raw['label'])}
  batch = data.preprocess(device_data, {'index': jnp.arange(100)}, jax.random.key(0), config=config)
  x = np.asarray(batch['image'], np.float64).reshape(100, -1)
  dense = jax.device_get(state.net.params)['Dense_0']
  logits = x @ dense['kernel'] + dense['bias']
  right = logits.argmax(1) == raw['label']
  assert accuracy['value'] == right.mean()
  assert accuracy['spread'] == pytest.approx(right.std(ddof=1) / 10, rel=1e-6)
  likelihood = np.log(np.exp(logits).sum(1)) - logits[np.arange(100), raw['label']]
  assert nats['value'] == pytest.approx(likelihood.mean(), rel=1e-4)

  files = {path.name for path in folder.evaluation.iterdir()}
  assert files == {'0000020.json', '0000020_by_noise.npz', '0000020_by_noise.png'}
  with np.load(folder.evaluation / '0000020_by_noise.npz') as file:
    assert file['by_noise'].shape == (100, 3)
    np.testing.assert_array_equal(file['by_noise'][:, 0], right)
  with Image.open(folder.evaluation / '0000020_by_noise.png') as plot:
    assert plot.size == (800, 500)


def test_a_comparison_has_its_first_value(tmp_path, capsys):
  for name in 'ab':
    assert train.run(make('ring', 8), tmp_path / name) == 0
  assert evaluate.run(make('ring', 8), tmp_path / 'a') == 0
  assert evaluate.run(make('ring', 8, **{'eval.held_out_examples': 50}), tmp_path / 'b') == 0
  assert launch.main(['--mode=compare', f'--workdir={tmp_path}/a,{tmp_path}/b']) == 0
  head, _, a = (tmp_path / 'comparison.md').read_text().splitlines()[:3]
  cells = dict(zip(map(str.strip, head.split('|')), map(str.strip, a.split('|')), strict=True))
  rows = {row['metric']: row for row in records.read(Workdir(tmp_path / 'a'))}
  assert cells['accuracy'].startswith(f'{rows["accuracy"]["value"]:.4g} ± ')
  assert 'cross-entropy, nats' not in cells and cells['sampling, examples/s'] == '-'
  assert 'not comparable (accuracy), for their reference: ring train, 100: ' in (
    capsys.readouterr().out
  )


def test_what_needs_samples_is_refused_in_one_line(tmp_path, nothing_is_drawn):
  config = make('ring', 8)
  assert train.run(config, tmp_path) == 0
  with pytest.raises(UserError, match="^config.system='logistic' generates no samples"):
    sample.run(config, tmp_path)
  none = make('ring', 8, **{'eval.held_out_examples': None})
  with pytest.raises(UserError, match='with config.eval.held_out_examples=None there is noth'):
    evaluate.run(none, tmp_path)
  quick = make('ring', 8, **{'eval.every_steps': 5})
  with pytest.raises(UserError, match='config.eval.every_steps=5: quick evaluations are of sample'):
    train.run(quick, tmp_path / 'other')
  assert not (tmp_path / 'other').exists()


def test_the_step_is_checked_in_place_of_a_sampler(monkeypatch):
  def refuse(state, batch, rng, *, config, axis_name=None):
    assert state.net.params['Dense_0']['kernel'].shape == (2, 8) and batch['label'].shape == (16,)
    raise UserError('config.net: refused')

  config = make('ring', 8)
  contract.check(config)
  monkeypatch.setattr(find_system('logistic'), 'train_step', refuse)
  with pytest.raises(UserError, match='config.net: refused'):
    contract.check(config)
