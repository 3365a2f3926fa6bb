"""A run that somebody sends is safe to open: nothing in the folder of a run is ever imported."""

import importlib
import json
import pathlib
import site
import sys
import zipfile

import flax.linen as nn
import pytest
from forged import replace_file
from test_trained import save_untrained

import gen_jax
import launch
from gen_jax import config as configs
from gen_jax import data, nets, train
from gen_jax.errors import UserError
from gen_jax.run import restoring, trained
from gen_jax.systems import find_system

ROOT = pathlib.Path(__file__).parent.parent.parent
PLAIN = {
  'data.name': 'ring',
  'data.shape': (2,),
  'generator': {'name': 'mlp.Generator', 'features': (8,)},
  'discriminator': {'name': 'mlp.Discriminator', 'features': (8,)},
  'optim.G.lr': 1e-3,
  'optim.D.lr': 1e-3,
}
NET = """
import flax.linen as nn

class Net(nn.Module):
  width: int = 8

  @nn.compact
  def __call__(self, z, *, train):
    return nn.Dense(2)(nn.relu(nn.Dense(self.width)(z)))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
  """The folder of a user, on the path and the current one; modules are forgotten afterwards."""
  monkeypatch.setattr(sys, 'path', ['', *sys.path])
  monkeypatch.chdir(tmp_path)
  before = set(sys.modules)
  yield tmp_path
  for name in set(sys.modules) - before:
    about = vars(sys.modules[name])
    if str(tmp_path) in f'{about.get("__path__")} {about.get("__file__")}':
      del sys.modules[name]
  importlib.invalidate_caches()


@pytest.fixture
def executed(place):
  """Whether code in a run was executed."""
  return (place / 'executed').exists


def payload(place) -> str:
  return f'import pathlib\npathlib.Path({str(place / "executed")!r}).touch()\n{NET}'


def write_config(folder, **fields):
  config = json.loads(configs.to_json(configs.make('gan', PLAIN)))
  for path, value in fields.items():
    if path == 'generator__name':
      config['generator'] = {'name': value}
    else:
      config[path] = value
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config))
  (folder / 'checkpoints').mkdir(exist_ok=True)


def send(place, name='payload.Net', folder='runs/x', **fields):
  """A run in which a net is named; beside it lies the code."""
  run = place / folder
  write_config(run, generator__name=name, **fields)
  for path in ('payload.py', 'samples/payload.py'):
    (run / path).parent.mkdir(exist_ok=True)
    (run / path).write_text(payload(place))
  return run


def through_the_current_folder(place):
  return send(place, 'runs.x.payload.Net')


def deeper(place):
  return send(place, 'runs.x.samples.payload.Net')


def through_a_package_around_it(place):
  (place / 'runs').mkdir()
  (place / 'runs/__init__.py').write_text(payload(place))
  return send(place, 'runs.x.payload.Net')


def beside_it(place):
  run = send(place, 'sent.payload.Net', 'sent/x')
  (run.parent / 'payload.py').write_text(payload(place))
  return run


def the_run_is_the_current_folder(place):
  run = send(place)
  sys.path[0] = str(run)
  return run


def an_entry_of_the_path(place):
  run = send(place)
  sys.path.append('runs/x')
  return run


def a_pth_file(place):
  run = send(place)
  (place / 'site').mkdir()
  (place / 'site/evil.pth').write_text(f'{run}\n')
  site.addsitedir(str(place / 'site'))
  return run


def a_link_to_a_file(place):
  run = send(place, 'innocent.Net')
  (place / 'innocent.py').symlink_to(run / 'payload.py')
  return run


def a_link_to_the_folder(place):
  run = send(place, 'innocent.payload.Net')
  (place / 'innocent').symlink_to(run)
  return run


def a_link_out_of_it(place):
  run = send(place, 'runs.x.payload.Net')
  (place / 'elsewhere.py').write_text(payload(place))
  (run / 'payload.py').unlink()
  (run / 'payload.py').symlink_to(place / 'elsewhere.py')
  return run


def an_archive(place):
  run = send(place, 'zipped.Net')
  with zipfile.ZipFile(run / 'archive.zip', 'w') as archive:
    archive.writestr('zipped.py', payload(place))
  sys.path.append(str(run / 'archive.zip'))
  return run


def a_package_that_extends_its_path(place):
  run = send(place, 'mine.payload.Net')
  (place / 'mine').mkdir()
  (place / 'mine/__init__.py').write_text(f'__path__.append({str(run)!r})')
  return run


def a_module_that_imports_it(place):
  run = send(place, 'mine.Net')
  (place / 'mine.py').write_text('from runs.x.payload import Net')
  return run


def a_module_that_imports_it_when_asked(place):
  run = send(place, 'mine.Net')
  lines = 'def __getattr__(name):\n  from runs.x import payload\n  return getattr(payload, name)\n'
  (place / 'mine.py').write_text(lines)
  return run


def another_run(place):
  send(place, folder='runs/y')
  return send(place, 'runs.y.payload.Net')


def an_unfinished_checkpoint(place):
  run = place / 'runs/y'
  (run / 'checkpoints/0000000007').mkdir(parents=True)
  (run / 'checkpoints/0000000007/manifest.json').write_text('{}')
  (run / 'payload.py').write_text(payload(place))
  return send(place, 'runs.y.payload.Net')


SPELLINGS = [
  through_the_current_folder,
  deeper,
  through_a_package_around_it,
  beside_it,
  the_run_is_the_current_folder,
  an_entry_of_the_path,
  a_pth_file,
  a_link_to_a_file,
  a_link_to_the_folder,
  a_link_out_of_it,
  an_archive,
  a_package_that_extends_its_path,
  a_module_that_imports_it,
  a_module_that_imports_it_when_asked,
  another_run,
  an_unfinished_checkpoint,
]


def refusal(function, *args) -> str:
  with pytest.raises(UserError) as error:
    function(*args)
  return str(error.value)


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_nothing_in_a_run_is_imported(place, executed, spelling):
  run = spelling(place)
  name = json.loads((run / 'config.json').read_text())['generator']['name']
  told = refusal(gen_jax.load, run)
  assert told.startswith(f'config.generator.name={name!r}: ') and 'nothing is imported' in told
  # And as a system; now under the rules of any config.
  write_config(run, system=name.rpartition('.')[0])
  assert 'nothing is imported' in refusal(configs.load, f'{run}/config.json')
  (run / 'config.json').rename(run / 'other.json')
  if spelling not in (another_run, an_unfinished_checkpoint, a_module_that_imports_it):
    assert 'nothing is imported' in refusal(configs.load, f'{run}/other.json')
  assert not executed()


def test_no_verb_imports_it(place, executed, capsys):
  run = send(place, 'runs.x.payload.Net')
  for argv in (
    ['--mode=sample', f'--workdir={run}'],
    ['--mode=evaluate', f'--workdir={run}'],
    ['--mode=export', f'--workdir={run}'],
    ['--mode=compare', f'--workdir={run}'],
    [f'--config={run}/config.json', '--dry_run'],
    [f'--config={run}/config.json', f'--workdir={place}/new'],
    ['--mode=sample', '--workdir=runs/x', '--config.discriminator.name=runs.x.payload.Net'],
  ):
    assert launch.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'nothing is imported' in line, argv
  assert not executed()


def test_a_run_that_guides_is_a_run(place, executed):
  run = send(place, 'runs.x.payload.Net')
  assert 'nothing is imported' in refusal(trained.load, run)
  assert not executed()


def test_a_checkpoint_names_it(place, executed):
  """The config of the workdir is a good one, that of the checkpoint is not."""
  run = save_untrained(place / 'runs/x', 'gan_ring')
  (run / 'payload.py').write_text(payload(place))
  (run / 'config.json').rename(place / 'config.json')
  folder = run / 'checkpoints/0000000007'
  config = json.loads((folder / 'config.json').read_text())
  config['generator']['name'] = 'runs.x.payload.Net'
  replace_file(folder, 'config.json', config)
  good = configs.load(str(ROOT / 'configs/gan_ring.py:smoke'))
  assert 'nothing is imported' in refusal(restoring.restore, good, find_system('gan'), run)
  assert not executed()


def test_a_prepared_set_names_classes(place, executed):
  """TFDS imports what the features.json of a set names."""
  run = send(place)
  folder = run / 'data/mine/1.0.0'
  folder.mkdir(parents=True)
  info = {'name': 'mine', 'version': '1.0.0', 'fileFormat': 'array_record', 'splits': []}
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  feature = {'pythonClassName': 'runs.x.payload.Feature', 'jsonFeature': {'json': '{}'}}
  (folder / 'features.json').write_text(json.dumps(feature))
  values = PLAIN | {'data.name': 'mine', 'data.path': str(run / 'data'), 'data.shape': (8, 8, 1)}
  config = configs.make('gan', values)
  assert 'nothing is imported' in refusal(data.open_source, config)
  config = configs.replace(config, {'data.name': 'huggingface:mine'})
  assert 'namespace' in refusal(data.open_source, config)
  assert not executed()


def test_a_module_imported_before_is_refused_too(place):
  run = send(place, 'runs.x.payload.Net')
  importlib.import_module('runs.x.payload')
  assert 'nothing is imported' in refusal(configs.load, f'{run}/config.json')


@pytest.mark.parametrize('name', ['antigravity.Net', 'idlelib.idle.Net', 'pip.__main__.Net'])
def test_nothing_that_acts_when_imported(place, name):
  run = send(place, name)
  assert 'is no module of nets' in refusal(configs.load, f'{run}/config.json')
  assert name.rpartition('.')[0] not in sys.modules


def test_a_run_does_not_choose_where_programs_come_from(place):
  send(place, 'mlp.Generator', compilation_cache='runs/x/cache')
  assert configs.load('runs/x/config.json').compilation_cache == 'auto'
  said = [('compilation_cache', 'mine')]
  assert configs.load('runs/x/config.json', said).compilation_cache == 'mine'
  send(place, 'mlp.Generator', compilation_cache=None)
  assert configs.load('runs/x/config.json').compilation_cache is None


@pytest.mark.parametrize(
  'file, name',
  [
    ('my_nets.py', 'my_nets.Net'),
    ('my_package/nets.py', 'my_package.nets.Net'),
    ('my_package/__init__.py', 'my_package.Net'),
    ('my_package/more/nets.py', 'my_package.more.nets.Net'),
  ],
)
def test_a_net_of_ones_own_needs_no_flag(place, file, name):
  (place / file).parent.mkdir(parents=True, exist_ok=True)
  (place / file).write_text(NET)
  # A project may have files of such names, too.
  (place / 'config.json').write_text('{"name": "my project"}')
  (place / 'checkpoints').mkdir()
  write_config(place / 'runs/x', generator__name=name)
  config = configs.load('runs/x/config.json')
  assert config.generator.width == 8
  assert issubclass(nets.find(config.generator.name), nn.Module)
  (place / 'mine').mkdir()
  write_config(place / 'x', generator__name=name)
  assert configs.load('x/config.json').generator == config.generator


def test_a_system_of_ones_own(place):
  text = (ROOT / 'tests/more_systems/logistic.py').read_text()
  (place / 'my_system.py').write_text(text)
  values = {
    'data.shape': (8, 8, 1),
    'data.num_classes': 10,
    'net': {'name': 'my_system.Net'},
    'optim.lr': 0.1,
    'train.steps': 2,
    'train.batch_size': 8,
    'eval.held_out_examples': 16,
    'eval.held_out_split': 'train[:16]',
  }
  config = configs.make('my_system', values)
  assert train.run(config, place / 'runs/x') == 0
  run = gen_jax.load('runs/x')
  assert (run.config.system, run.step) == ('my_system', 2)
  (place / 'package').mkdir()
  (place / 'my_system.py').rename(place / 'package/system.py')
  assert configs.make('package.system', values).net.classes == 10


@pytest.mark.parametrize(
  'name, told',
  [
    ('gann', 'one of aae, acgan, '),
    ('my.gan', 'one of aae, acgan, '),
    ('jax', 'is no system: it has no FIELDS and no init_state and no train_step'),
    ('.gan', 'one of aae'),
    ('a b', 'one of aae'),
    ('empty.system', 'cannot be imported (cannot import name'),
    ('gen_jax.host.imports', 'is no system'),
  ],
)
def test_what_is_no_system(place, name, told):
  (place / 'empty').mkdir()
  (place / 'empty/system.py').write_text('from json import no_such')
  text = refusal(configs.make, name, PLAIN)
  assert text.startswith(f'config.system={name!r}') and told in text
