"""A system of two domains through the verbs."""

import functools
import pathlib

import jax
import numpy as np
import pytest
from test_contract import equal, given_of, make_batch

from gen_jax import config as configs
from gen_jax import contract, data, domains, evaluate, sampling, systems, train
from gen_jax.errors import UserError
from gen_jax.run import restoring
from gen_jax.systems import find_system

HERE = pathlib.Path(__file__).parent


@pytest.fixture(autouse=True)
def more_systems(monkeypatch):
  """As if `more_systems/translator.py` lay in gen_jax/systems."""
  monkeypatch.setattr(systems, '__path__', [*systems.__path__, str(HERE / 'more_systems')])


BASE = {
  'data.name': 'digits',
  'data.shape': (8, 8, 1),
  'data.split': 'train[:80%]',
  'data.num_classes': 10,
  'net': {'name': 'more_systems.translator.Net'},
  'optim.lr': 0.01,
  'train': dict(steps=6, batch_size=16, log_steps=2, checkpoint_steps=3, sample_steps=6),
  'sample': dict(num_images=8, batch_size=8),
  'eval': dict(held_out_split='train[80%:]', held_out_examples=50, num_samples=50),
}
PAIRS = {'data.x_from': 'mask', 'data.paired': True, 'data.flip': 0.5, 'data.load_size': 10}
UNPAIRED = {
  'data.x.name': 'shapes',
  'data.x.shape': (12, 10, 3),
  'data.x.split': 'train[:80%]',
  'data.num_classes': None,
  'data.flip': 0.5,
}


def make(**values):
  return configs.make('translator', BASE | values)


def final(folder, config, step=None):
  return restoring.restore(config, contract.check(config), folder, step)[1]


@pytest.mark.parametrize('fields', [PAIRS, UNPAIRED], ids=['pairs', 'unpaired'])
def test_a_run_is_the_same_streamed_stopped_and_resumed(fields, tmp_path):
  config = make(**fields)
  assert train.run(config, tmp_path / 'whole') == 0
  stopped = configs.replace(config, {'train.steps': 3})
  assert train.run(stopped, tmp_path / 'two') == 0
  assert train.run(configs.replace(config, {'data.storage': 'stream'}), tmp_path / 'two') == 0
  whole, two = (final(tmp_path / name, config) for name in ('whole', 'two'))
  assert equal(whole, two) and not equal(whole, final(tmp_path / 'two', stopped, 3))
  assert {'0000006_samples.png', '0000006_source.png', '0000006_target.png'} <= {
    path.name for path in (tmp_path / 'whole').glob('**/*.png')
  }


def test_held_out_pairs_are_translated_and_measured(tmp_path):
  config = make(**PAIRS)
  train.run(config, tmp_path)
  state = final(tmp_path, config)
  both = data.held_out(config)
  conditions = sampling.held_out_conditions(config, find_system('translator'))
  given = conditions(8, 4)
  rows = both.read(range(4, 12))
  for name in 'xy':
    np.testing.assert_array_equal(data.to_pixels(given[name], 'none'), rows[name])
  system = find_system('translator')
  made = sampling.make_sampler(config, system)(state, jax.random.key(0), 8)
  np.testing.assert_array_equal(made['target'], both.read(range(8))['y'])
  np.testing.assert_array_equal(made['source'], both.read(range(8))['x'])

  found, _ = evaluate.measured(config, system, state, both, tmp_path / 'parts', None)
  assert [row.metric for row in found] == ['l1', 'x_label']
  source = both.arrays()
  assert abs(found[1].value - source['x_label'].mean()) < 1.5
  assert 0 < found[0].value < 2
  # Translations are scored against held-out images of y, from held-out images of x.
  draw = evaluate.batches(config, system, state)
  np.testing.assert_array_equal(
    sampling.as_data(draw(1)['source'], config), both.read(range(8, 16))['x']
  )


def test_the_batch_has_the_leaves_that_the_system_names():
  config, system = make(**UNPAIRED), find_system('translator')
  batch = contract.abstract_batch(config, system)
  assert {name: leaf.shape for name, leaf in batch.items()} == {
    'x': (16, 12, 10, 3),
    'y': (16, 8, 8, 1),
  }
  config = make(**PAIRS)
  labelled = contract.abstract_batch(config, system)
  assert labelled['x_label'].shape == (16,) and labelled['x_label'].dtype == np.int32
  state = system.init_state(jax.random.key(0), make_batch(config, system), config=config)
  made = jax.jit(functools.partial(system.sample, config=config))(
    state, given_of(config, system, 4), jax.random.key(0)
  )
  assert made['image'].shape == (4, 8, 8, 1)
  wrong = make_batch(make(**UNPAIRED), system)
  with pytest.raises(UserError, match=r"batch\['x'\] is \[16, 12, 10, 3\].*config.data.x.shape"):
    system.init_state(
      jax.random.key(0), wrong | {'y': make_batch(config, system)['y']}, config=config
    )


def test_fields_are_checked_before_anything_is_compiled(tmp_path):
  for fields, words in (
    ({'data.x_from': 'grey'}, 'are grey already'),
    (PAIRS | {'data.load_size': 4}, 'config.data.load_size=4'),
    (UNPAIRED | {'data.x.name': 'digits'}, 'config.data.x.shape'),
    (UNPAIRED | {'data.x.name': 'folder', 'data.x.path': 'nowhere'}, "x.path='nowhere'"),
  ):
    with pytest.raises(UserError, match=words):
      train.run(make(**fields), tmp_path)
  assert not list(tmp_path.glob('checkpoints/*'))


CONFIG = """
from ml_collections import ConfigDict
def get_config():
  c = ConfigDict()
  c.system = 'translator'
  c.net = dict(name='more_systems.translator.Net')
  c.optim = dict(lr=0.1)
  c.data = dict(name={name!r}, path={path!r}, shape=(16, 16, 3), x_from={x_from!r}, x={x!r})
  return c
"""


@pytest.mark.parametrize(
  ('fields', 'found'),
  [
    (dict(x_from='right'), dict(name='shapes', x_from='small', x_shape=(16, 16, 3))),
    (dict(x_from='names', x=dict(path='a')), dict(x_from='small', x_shape=(16, 16, 3))),
    (dict(x_from='edges'), dict(name='shapes', x_from='edges', x_shape=(16, 16, 1))),
    (dict(x_from='domain', x=dict(name='mnist')), dict(x_from='domain', x_name='shapes')),
    (
      dict(name='digits', path=None, x_from='domain', x=dict(path='a', shape=(8, 8, 1))),
      dict(name='digits', x_name='shapes', x_shape=(8, 8, 1)),
    ),
  ],
)
def test_smoke_needs_no_data(tmp_path, fields, found):
  values = dict(name='folder', path='p', x={}) | fields
  (tmp_path / 'c.py').write_text(CONFIG.format(**values))
  config = configs.load(f'{tmp_path}/c.py:smoke')
  x = config.data.x
  got = dict(
    name=config.data.name, x_from=config.data.x_from, x_name=x.name, x_shape=domains.x_shape(config)
  )
  assert {key: got[key] for key in found} == found
  if config.data.name == 'shapes':
    assert len(data.open_training(config)) == 1024
