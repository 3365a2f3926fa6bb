"""TFDS sets, made here as array_record, and the child process that prepares the real ones."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from gen_jax import data
from gen_jax.data import prepare_tfds
from gen_jax.data.prepare_tfds import SECONDS_TO_ANSWER
from gen_jax.errors import UserError

# Run in a process of its own, so that no builder is registered in this one: `tfds.builder` then has
# only the files, as for any set whose code is not part of TFDS. PNG files need no TensorFlow.
BUILDERS = """
import io, sys, time
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

def png(i, size):
  file = io.BytesIO()
  Image.fromarray(np.full((*size, 3), i, np.uint8)).save(file, 'PNG')
  file.seek(0)
  return file

class Base(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  VERSION = tfds.core.Version('1.0.0')
  FEATURES = {{}}
  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.FEATURES))
  def _split_generators(self, _):
    return {{'train': self._generate_examples(30), 'test': self._generate_examples(7)}}

class TinyPictures(Base):
  FEATURES = {{
    'image': tfds.features.Image(shape=(4, 6, 3)),
    'label': tfds.features.ClassLabel(num_classes=3),
  }}
  def _generate_examples(self, n):
    for i in range(n):
      if {slow}:
        print('working', flush=True)
        time.sleep(0.5)
      yield i, {{'image': png(i, (4, 6)), 'label': i % 3}}

class TinyMixed(Base):
  FEATURES = {{'image': tfds.features.Image(), 'id': np.int64}}
  def _generate_examples(self, n):
    for i in range(n):
      yield i, {{'image': png(i, (4 + i, 9)), 'id': i}}

class TinyNumbers(Base):
  FEATURES = {{'x': np.int64}}
  def _generate_examples(self, n):
    for i in range(n):
      yield i, {{'x': i}}

for builder in {names}:
  builder(data_dir=sys.argv[1], file_format='array_record').download_and_prepare()
assert 'tensorflow' not in sys.modules
"""

HIDE_TENSORFLOW = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *args: None if name == 'tensorflow' else find_spec(name, *args)
"""


def prepare_script(names, slow=False):
  return [sys.executable, '-c', BUILDERS.format(names=names, slow=slow)]


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A TFDS folder with three small sets."""
  folder = tmp_path_factory.mktemp('tfds')
  command = prepare_script('[TinyPictures, TinyMixed, TinyNumbers]') + [str(folder)]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  return folder


@pytest.fixture
def open_tfds(make_config, prepared):
  def open_source(name='tiny_pictures', shape=(4, 6, 3), path=prepared, **fields):
    return data.open_source(make_config(name=name, path=str(path), shape=shape, **fields))

  return open_source


@pytest.fixture
def refusal(open_tfds):
  def refuse(**fields) -> str:
    with pytest.raises(UserError) as error:
      open_tfds(**fields)
    assert '\n' not in str(error.value)
    return str(error.value)

  return refuse


def test_prepared_set(open_tfds):
  source = open_tfds(num_classes=3)
  assert (source.name, len(source), source.shape, source.num_classes) == (
    'tiny_pictures',
    30,
    (4, 6, 3),
    3,
  )
  arrays = source.arrays()
  assert arrays['image'].shape == (30, 4, 6, 3) and arrays['image'].dtype == np.uint8
  assert arrays['label'].dtype == np.int32 and source.nbytes == 30 * (72 + 4)
  values = arrays['image'][:, 0, 0, 0]
  assert sorted(values) == list(range(30))  # TFDS shuffles when it prepares
  assert (arrays['image'] == values[:, None, None, None]).all()
  np.testing.assert_array_equal(arrays['label'], values % 3)
  for i in (0, 17, 29):
    np.testing.assert_array_equal(source[i]['image'], arrays['image'][i])
    assert source[i]['label'] == arrays['label'][i]


def test_splits(open_tfds, refusal):
  sources = [open_tfds(split=s) for s in ('train', 'test', 'train[:10]', 'train[10:]+test')]
  assert [len(source) for source in sources] == [30, 7, 10, 27]
  assert len({source.fingerprint for source in sources}) == 4
  np.testing.assert_array_equal(
    np.concatenate([sources[2].arrays()['image'], sources[3].arrays()['image']]),
    np.concatenate([sources[0].arrays()['image'], sources[1].arrays()['image']]),
  )
  assert sources[0].classes == ('0', '1', '2')
  for wrong in ('validation', 'train[', 'train[:1000%]', 'train[:31]'):
    message = refusal(split=wrong)
    assert f'config.data.split={wrong!r}' in message and 'train, test' in message
  for wrong in ('train[20:10]', 'train[30:]'):
    assert f'config.data.split={wrong!r} is empty' in refusal(split=wrong)


def test_storages_agree(make_config, prepared):
  fields = dict(name='tiny_pictures', path=str(prepared), shape=(4, 6, 3))
  device, stream = (
    data.Batches(data.open_source(config), config, minibatches=2)
    for config in (make_config(8, storage=s, **fields) for s in ('device', 'stream'))
  )
  feeds = stream.iterate(5)
  for step in (5, 6, 7):
    fed, index = next(feeds), device.host_batch(step)['index']
    assert fed['image'].shape == (2, 8, 4, 6, 3)
    np.testing.assert_array_equal(fed['image'], device.device_data['image'][index])
    np.testing.assert_array_equal(fed['label'], device.device_data['label'][index])
  feeds.close()


def test_images_of_several_sizes_need_crop(open_tfds, refusal):
  message = refusal(name='tiny_mixed')
  assert "config.data.fit='exact'" in message and "'crop'" in message
  source = open_tfds(name='tiny_mixed', shape=(4, 4, 3), fit='crop')
  assert source.num_classes is None and set(source[0]) == {'image'}
  assert source.arrays()['image'].shape == (30, 4, 4, 3)
  grey = open_tfds(name='tiny_mixed', shape=(4, 4, 1), fit='crop').arrays()['image']
  np.testing.assert_array_equal(grey, source.arrays()['image'][..., :1])  # saved in colour
  for shape in ((4, 4, 2), (4,)):
    message = refusal(name='tiny_mixed', shape=shape, fit='crop')
    assert f'config.data.shape={shape}' in message and '1, 3 or 4 channels' in message


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    (dict(shape=(28, 28, 1)), ['config.data.shape=(28, 28, 1)', '(4, 6, 3)', 'crop']),
    (dict(num_classes=2), ['config.data.num_classes=2', 'set it to 3']),
    (dict(name='tiny_mixed', shape=(4, 4, 3), fit='crop', num_classes=3), ['no labels', 'None']),
    (dict(name='tiny_numbers'), ["config.data.name='tiny_numbers'", "'image'", 'x']),
    (dict(name='mnits'), ["config.data.name='mnits'", "did you mean 'mnist'"]),
    (dict(name='digit'), ["did you mean 'digits'"]),
    (dict(name='mnist:9.9.9'), ["config.data.name='mnist:9.9.9'", '3.0.1']),
    (dict(name='mnist/large'), ["config.data.name='mnist/large'"]),
    (dict(name='two words'), ["config.data.name='two words'"]),
  ],
)
def test_refusals(refusal, fields, words):
  message = refusal(**fields)
  for word in words:
    assert word in message


@pytest.mark.parametrize('kind', ['missing', 'truncated', 'tfrecord'])
def test_damaged_set(refusal, prepared, tmp_path, kind):
  shutil.copytree(prepared / 'tiny_pictures', tmp_path / 'tiny_pictures')
  folder = tmp_path / 'tiny_pictures/1.0.0'
  (shard,) = folder.glob('*-train.array_record-*')
  if kind == 'missing':
    shard.unlink()
  elif kind == 'truncated':
    os.truncate(shard, shard.stat().st_size // 2)
  else:
    info = folder / 'dataset_info.json'
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
  message = refusal(path=tmp_path)
  assert str(folder) in message
  # array_record gives empty records instead of those that were cut off.
  words = {'missing': 'damaged', 'truncated': 'is not a PNG', 'tfrecord': 'config.data.path'}
  assert words[kind] in message


def test_preparing_that_was_killed_is_not_taken_for_complete(refusal, open_tfds, tmp_path):
  command = prepare_script('[TinyPictures]', slow=True) + [str(tmp_path)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as p:
    assert any('working' in line for line in p.stdout)
    p.send_signal(signal.SIGKILL)
  (left,) = (tmp_path / 'tiny_pictures').iterdir()
  assert left.name.startswith('incomplete.')
  assert "config.data.name='tiny_pictures'" in refusal(path=tmp_path)
  command = prepare_script('[TinyPictures]') + [str(tmp_path)]
  subprocess.run(command, check=True, capture_output=True)
  assert len(open_tfds(path=tmp_path)) == 30


@pytest.fixture
def fake_tensorflow(tmp_path):
  """Environment of a child process with a TensorFlow that only says that it is imported."""
  folder = tmp_path / 'site'
  (folder / 'tensorflow').mkdir(parents=True)
  (folder / 'tensorflow/__init__.py').write_text('print("TensorFlow is imported", flush=True)\n')
  return os.environ | {'PYTHONPATH': os.pathsep.join([str(folder), *sys.path])}


def training(repository, **fields):
  """The command of a short training, with fields of config.data."""
  return [
    sys.executable,
    str(repository / 'launch.py'),
    f'--config={repository}/configs/gan_mnist.py:smoke',
    *(f'--config.data.{field}={value}' for field, value in fields.items()),
  ]


def test_reading_does_not_import_tensorflow(prepared, fake_tensorflow):
  # A TensorFlow that is there must be left alone: importing this one would be noticed.
  code = f"""
import sys
from ml_collections import FrozenConfigDict
from gen_jax import data
fields = dict(
  name='tiny_pictures', path={str(prepared)!r}, split='train', shape=(4, 6, 3), num_classes=3,
  flip=0.0, dequantize='none', binarize='none',
  storage='stream', fit='exact', read_threads=2, prefetch=2)
config = FrozenConfigDict(dict(seed=0, data=fields, train=dict(batch_size=4)))
source = data.open_source(config)
source.arrays()
stream = data.Batches(source, config, minibatches=None).iterate(0)
next(stream)
stream.close()
assert 'tensorflow_datasets' in sys.modules
print([name for name in sys.modules if name.split('.')[0] == 'tensorflow'])
"""
  done = subprocess.run(
    [sys.executable, '-c', code], env=fake_tensorflow, capture_output=True, text=True
  )
  assert done.stdout == '[]\n', done.stdout + done.stderr[-2000:]


# TFDS has code of its own for mnist, and only files for the made-up set.
@pytest.mark.parametrize(
  ('name', 'shape'),
  [('tiny_pictures', '4,6,3'), pytest.param('mnist', '28,28,1', marks=pytest.mark.real_data)],
)
def test_training_does_not_import_tensorflow(
  request, tmp_path, repository, fake_tensorflow, name, shape
):
  folder = request.getfixturevalue('prepared' if name == 'tiny_pictures' else 'real_data')

  def run(*command):
    return subprocess.run(command, env=fake_tensorflow, capture_output=True, text=True)

  imported = run(sys.executable, '-c', 'import tensorflow')
  assert imported.stdout == 'TensorFlow is imported\n'  # This test can fail.
  done = run(
    *training(repository, name=name, path=folder, shape=shape),
    '--config.train.batch_size=4',
    '--config.train.steps=2',
    f'--workdir={tmp_path}/run',
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert 'is finished after 2 steps' in done.stdout and 'TensorFlow' not in done.stdout


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_data_are_prepared_is_quiet(tmp_path, repository, fake_tensorflow, number):
  # Preparing looks for TensorFlow before it asks the network.
  with socket.create_server(('127.0.0.1', 0)) as silent:  # Takes connections and never answers.
    silent.settimeout(60)
    env = fake_tensorflow | {'no_proxy': ''}
    for name in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'):
      env[name] = f'http://127.0.0.1:{silent.getsockname()[1]}'
    command = training(repository, name='mnist', shape='28,28,1', path=tmp_path / 'data')
    command += [f'--workdir={tmp_path}/run']
    process = subprocess.Popen(
      command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    connection, _ = silent.accept()
    asked = time.monotonic()
    if number == signal.SIGINT:
      os.killpg(process.pid, number)  # As a terminal does: the child gets it, too.
    else:
      process.send_signal(number)
    _, err = process.communicate(timeout=20)
    connection.settimeout(20)
    while connection.recv(4096):  # Until the child, which asks the network, is gone as well.
      pass
    connection.close()
  # Left alone, the child would wait for an answer.
  assert time.monotonic() - asked < SECONDS_TO_ANSWER - 1
  assert (process.returncode, err) == (128 + number, '')


def test_a_slow_server_is_a_network(tmp_path, monkeypatch):
  monkeypatch.setattr(prepare_tfds, 'SECONDS_TO_ANSWER', 0.2)
  monkeypatch.setenv('no_proxy', '127.0.0.1')

  class Builder:
    data_dir_root = tmp_path
    BUILDER_CONFIGS = MANUAL_DOWNLOAD_INSTRUCTIONS = None

  with socket.create_server(('127.0.0.1', 0)) as silent:
    Builder.url_infos = {f'http://127.0.0.1:{silent.getsockname()[1]}/archive': None}
    prepare_tfds._check_network(Builder)
  with pytest.raises(ConnectionError, match='no network, http://127.0.0.1:.*/archive cannot be'):
    prepare_tfds._check_network(Builder)


def test_without_tensorflow_the_error_says_so(refusal, tmp_path, monkeypatch, capfd):
  (tmp_path / 'sitecustomize.py').write_text(HIDE_TENSORFLOW)
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  message = refusal(name='mnist', path=tmp_path / 'data', shape=(28, 28, 1))
  assert "config.data.name='mnist'" in message and str(tmp_path / 'data') in message
  assert 'pip install tensorflow' in message
  assert f'`python -m gen_jax.data.prepare_tfds mnist {tmp_path / "data"}`' in message
  assert 'Traceback' not in capfd.readouterr().err


def test_folder_that_cannot_be_written_is_named(refusal, tmp_path):
  (tmp_path / 'file').write_text('')
  message = refusal(name='mnist', path=tmp_path / 'file/data', shape=(28, 28, 1))
  assert f'not prepared in {tmp_path}/file/data' in message


def test_without_network_the_error_comes_at_once(
  refusal, tmp_path, monkeypatch, capfd, fake_tensorflow
):
  # Preparing looks for TensorFlow before it asks the network.
  monkeypatch.setenv('PYTHONPATH', fake_tensorflow['PYTHONPATH'])
  with socket.socket() as closed:
    closed.bind(('127.0.0.1', 0))  # Nobody listens: every connection is refused.
    proxy = f'http://127.0.0.1:{closed.getsockname()[1]}'
    for name in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'):
      monkeypatch.setenv(name, proxy)
    monkeypatch.setenv('no_proxy', '')
    start = time.monotonic()
    message = refusal(name='mnist', path=tmp_path, shape=(28, 28, 1))
  assert time.monotonic() - start < 60  # TFDS alone would try for more than 3 minutes.
  assert 'no network' in message and "config.data.name='mnist'" in message
  assert 'prepare_tfds mnist' in message
  assert capfd.readouterr() == ('', '')  # The message is the only line.


@pytest.fixture
def real_data():
  folder = os.environ.get('GEN_JAX_REAL_DATA')
  if not folder:
    pytest.skip('GEN_JAX_REAL_DATA names no TFDS folder with mnist and fashion_mnist')
  return folder


@pytest.mark.real_data
@pytest.mark.parametrize(
  ('name', 'mean', 'counts'),
  [
    ('mnist', 33.318, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
    ('fashion_mnist', 72.940, [6000] * 10),
  ],
)
def test_real_sets(make_config, real_data, name, mean, counts):
  """Both have the same file names and sizes: only the pixels tell a mix-up of the two."""
  config = make_config(name=name, path=real_data, shape=(28, 28, 1), num_classes=10)
  source = data.open_source(config)
  arrays = source.arrays()
  assert len(source) == 60_000 and abs(arrays['image'].mean() - mean) < 0.001
  assert np.bincount(arrays['label']).tolist() == counts
  test = data.open_source(make_config(name=name, path=real_data, shape=(28, 28, 1), split='test'))
  assert len(test) == 10_000 and test.fingerprint != source.fingerprint
