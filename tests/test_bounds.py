"""Values without measure: each is refused in one line, or accepted, at once."""

import pathlib
import time

import jax
import numpy as np
import pytest

import launch
from gen_jax import config as configs
from gen_jax import contract, train
from gen_jax.devices import memory
from gen_jax.errors import UserError
from gen_jax.fields import SHARED
from gen_jax.nets import unet
from gen_jax.systems import find_system, names

ROOT = pathlib.Path(__file__).parent.parent
EXTREMES = (2**31 - 1, 2**31, 2**63, 10**20, 1e20, 1e308, -1, -(2**63), float('inf'), 1e-320)


def load(name, **fields):
  said = {path.replace('__', '.'): repr(value) for path, value in fields.items()}
  return configs.load(f'{ROOT}/configs/{name}.py:smoke', said.items())


def refusal(function, *args, **how) -> str:
  with pytest.raises(UserError) as error:
    function(*args, **how)
  assert len(str(error.value)) < 400
  return str(error.value)


@pytest.mark.parametrize('system', [None, *names()])
def test_every_rule_answers_every_number(system):
  rules = SHARED if system is None else find_system(system).FIELDS
  for path, rule in rules.items():
    for value in EXTREMES if rule.type != 'net' else ():
      try:
        accepted = rule.accept((value,) * (rule.length or (1,))[0] if rule.many else value)
      except ValueError:
        continue
      assert rule.type in ('integer', 'number'), path
      for one in accepted if rule.many else [accepted]:
        assert abs(one) < 2**32 or (rule.type == 'number' and abs(one) <= 1e30), path


# What took all memory or all time.
@pytest.mark.parametrize(
  'config, path, value, told',
  [
    ('gan_ring', 'sample.batch_size', 99999999999, 'an integer from 1 to 1048576 is needed'),
    ('gan_ring', 'latent.dim', 10**20, 'an integer from 1 to 1048576'),
    ('gan_ring', 'optim.G.warmup_steps', 2147483648, 'at most 2147483647 is possible'),
    ('gan_ring', 'generator.features', (2147483648,), 'an integer up to 2147483647 is needed'),
    ('gan_ring', 'data.prefetch', 4294967296, 'an integer from 1 to 1024'),
    ('gan_ring', 'data.read_threads', 10**6, 'an integer from 1 to 1024'),
    ('gan_ring', 'loss.d_steps', 100000000000, 'an integer from 1 to 10000'),
    ('gan_ring', 'train.steps_per_call', 10**9, 'an integer from 1 to 10000 or None'),
    ('gan_ring', 'optim.G.lr', 1e308, 'at most 1e+30 is possible'),
    ('wgan_mnist', 'loss.n_critic_start', 10**9, 'an integer from 1 to 10000'),
    ('wgan_gp_ring', 'loss.g_batch', 10**9, 'an integer from 1 to 10000'),
    ('vae_digits', 'sample.interpolation', 10**9, 'an integer from 0 to 1000'),
    ('ddpm_digits', 'diffusion.steps', 10**9, 'an integer from 2 to 100000'),
  ],
)
def test_bounds_are_in_the_rules(config, path, value, told):
  text = refusal(load, config, **{path.replace('.', '__'): value})
  assert text.startswith(f'config.{path}=') and told in text


LARGE = {'data__shape': (2**12, 2**12, 1)}


@pytest.mark.parametrize(
  'config, fields, told',
  [
    (
      'gan_ring',
      {'generator__features': (2**31 - 1,)},
      'config.generator and config',
    ),
    ('gan_ring', {'discriminator__features': (2**30, 2**30)}, 'parameters need '),
    ('gan_ring', {'latent__dim': 2**20, 'generator__features': (2**26,)}, 'parameters need '),
    ('ddpm_digits', {'net__features': 2**24, 'net__groups': 4}, 'config.net: '),
    (
      'ddpm_digits',
      {'sample__num_images': 10**7, 'data__shape': (2**12, 2**12, 1)},
      'sample.num_im',
    ),
    (
      'ddpm_digits',
      {'sample__batch_size': 2**20, 'data__shape': (2**12, 2**12, 1)},
      'batch_size=10',
    ),
  ],
)
def test_more_than_the_memory_there_is(config, fields, told):
  started = time.monotonic()
  config = load(config, **fields)
  text = refusal(contract.check, config)
  assert told in text and 'of memory' in text and text.endswith('are free')
  contract.check_fields(config)
  assert time.monotonic() - started < 20


def test_training_needs_more_memory_than_samples(monkeypatch):
  config = load('ddpm_digits', train__batch_size=2**20)
  system = contract.check(config)
  state = contract.abstract_state(config, system)
  size = contract._bytes(state)
  monkeypatch.setattr(memory, 'of_a_device', lambda: size + 2**26)
  assert contract.check(config) is system
  told = refusal(contract.check_training, config)
  assert told.startswith('config.train.batch_size=1048576: examples of config.data.shape=(8, 8, 1)')
  assert f'besides {memory.text(size)} of the nets' in told
  monkeypatch.setattr(memory, 'of_a_device', lambda: size - 1)
  assert refusal(contract.check_training, config).startswith('config.net: ')
  # Unknown memory refuses nothing.
  monkeypatch.setattr(memory, 'of_a_device', lambda: None)
  contract.check_training(config)


def test_the_memory_there_is(tmp_path):
  free = memory.of_the_host()
  assert 2**26 < free < 2**50
  assert memory.of_a_device() == pytest.approx(free, rel=0.5)  # both of this CPU
  (tmp_path / 'memory.max').write_text('1000\n')
  (tmp_path / 'memory.current').write_text('700\n')
  (tmp_path / 'memory.stat').write_text('anon 300\ninactive_file 200\n')
  assert memory._left_in(tmp_path) == 500
  (tmp_path / 'memory.max').write_text('max\n')
  assert memory._left_in(tmp_path) is memory._left_in(tmp_path / 'none') is None
  sizes = (0, 1023, 1024, 1.5 * 2**30, 2**60)
  assert [memory.text(size) for size in sizes] == [
    '0.0 bytes',
    '1,023.0 bytes',
    '1.0 KiB',
    '1.5 GiB',
    '1,048,576.0 TiB',
  ]


def test_a_dry_run_shows_nets_of_any_size(capsys):
  argv = [f'--config={ROOT}/configs/gan_ring.py:smoke', '--config.generator.features=(10000000,)']
  assert launch.main([*argv, '--dry_run']) == 0
  assert 'parameters' in capsys.readouterr().out


@pytest.mark.parametrize('net', [unet.UNet, unet.Classifier])
def test_attention_where_no_level_has_it(net):
  x, t = jax.ShapeDtypeStruct((2, 8, 8, 1), np.float32), jax.ShapeDtypeStruct((2,), np.int32)
  sizes = dict(features=8, groups=4, blocks=1, multipliers=(1, 2))
  more = dict(num_classes=3, head_channels=8) if net is unet.Classifier else {}

  def make(**fields):
    module = net(**(sizes | more | fields))
    label = (jax.numpy.zeros(2, int),) if net is unet.UNet else ()
    key = jax.random.key(0)
    return jax.eval_shape(lambda x, t: module.init(key, x, t, *label, train=False), x, t)

  for attention in ((5,), (8, 16), (2,)):
    told = f'config.net.attention={attention}: sizes of levels, of 8, 4, are needed'
    assert refusal(make, attention=attention) == told
  for attention in ((), (4,), (8, 4), net.attention):
    make(attention=attention)
  assert refusal(make, blocks=10**9).startswith('config.net.blocks=1000000000: an integer from 0')


# --- Files --------------------------------------------------------------------------------------

FILE = """
import numpy as np
from ml_collections import ConfigDict, config_dict

def get_config():
  config = ConfigDict()
  config.system = 'gan'
  config.data = dict(name='ring', shape=(2,))
  config.train = dict(steps=100, batch_size=16)
  config.generator = dict(name='mlp.Generator', features=(8,))
  config.discriminator = dict(name='mlp.Discriminator', features=(8,))
  config.optim = dict(G=dict(lr=1e-3, schedule='linear'), D=dict(lr=1e-3))
  steps = config.train.get_ref('steps')
  {line}
  return config
"""


def in_file(folder, line, **said):
  path = folder / 'mine.py'
  path.write_text(FILE.replace('{line}', line))
  said = {path.replace('__', '.'): value for path, value in said.items()}
  return configs.load(str(path), said.items())


@pytest.mark.parametrize(
  'line, told',
  [
    (
      'config = config.to_dict(); config["data"]["shape"] = {2}',
      'config.data.shape={2}: a tuple of 1 or 3',
    ),
    (
      'config = config.to_dict(); config["data"]["shape"] = np.array([2])',
      'config.data.shape=array([2]): a tuple',
    ),
    (
      'config = config.to_dict(); config["generator"]["features"] = {8}',
      'config.generator.features={8}: numbers, text, True',
    ),
    (
      'config = config.to_dict(); config["generator"]["features"] = np.array([8])',
      'config.generator.features=array([8]): numbers',
    ),
    ('config.generator.features = (np.array([8]),)', 'config.generator.features=array([8]): num'),
    ('config.generator.features = (8, 2**31)', 'config.generator.features=2147483648: an int'),
    ('config.optim.G.decay_steps = np.array([3])', 'config.optim.G.decay_steps=array([3]): an'),
    ('return {1: 2}', 'config.'),
    ("return {'system': 'gan', 'data': {1: 2}}", 'config.data.1 is not a field'),
    ("return {'system': 'gan', 'generator': {'name': 'mlp.Generator', 1: 2}}", 'config.'),
    ('config.compilation_cache = False', 'config.compilation_cache=False: '),
    ('config.train.batch_size = config_dict.required_placeholder(int)', '{path}:'),
    ('config.train.batch_size = config_dict.placeholder(int)', 'config.train.batch_size=None: an'),
  ],
)
def test_what_a_file_cannot_hold(tmp_path, line, told):
  assert refusal(in_file, tmp_path, line).startswith(told.replace('{path}', f'{tmp_path}/mine.py'))


def test_what_cannot_be_saved_is_told_before_training(tmp_path):
  config = in_file(
    tmp_path, 'config = config.to_dict(); config["generator"]["squash"] = frozenset({1})'
  )
  told = refusal(train.run, config, tmp_path / 'run')
  assert told.startswith('config.generator.squash=') and 'cannot be' in told
  assert not (tmp_path / 'run').exists()


def test_references_are_followed(tmp_path):
  line = 'config.optim.G.decay_steps = steps; config.train.sample_steps = steps // 4'
  config = in_file(tmp_path, line)
  assert (config.optim.G.decay_steps, config.train.sample_steps) == (100, 25)
  config = in_file(tmp_path, line, train__steps='1000')
  assert (config.train.steps, config.optim.G.decay_steps, config.train.sample_steps) == (
    1000,
    1000,
    250,
  )
  config = in_file(tmp_path, line, train__steps='1000', optim__G__decay_steps='2000')
  assert (config.train.steps, config.optim.G.decay_steps) == (1000, 2000)
  config = in_file(tmp_path, line, train__sample_steps='7')
  assert (config.train.steps, config.train.sample_steps) == (100, 7)
  small = configs.load(f'{tmp_path}/mine.py:smoke')
  assert (small.train.steps, small.optim.G.decay_steps) == (20, 20)
  told = refusal(in_file, tmp_path, 'config.train.sample_steps = steps // 4', train__steps='x')
  assert told.startswith(('config.train.sample_steps cannot be computed: ', 'config.train.steps='))


@pytest.mark.parametrize('text', ['False', 'false'])
def test_no_folder_is_called_false(tmp_path, text):
  told = refusal(in_file, tmp_path, 'pass', compilation_cache=text)
  assert told.startswith('config.compilation_cache=False: ')
  assert in_file(tmp_path, 'pass', compilation_cache='none').compilation_cache is None
  assert in_file(tmp_path, 'pass', compilation_cache="'False'").compilation_cache == 'False'
