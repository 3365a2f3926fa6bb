"""Feature networks by name: which one 'auto' takes, what is cached, what is refused."""

import http.server
import shutil
import threading

import jax
import numpy as np
import pytest
import requests
from metrics import inception_reference as reference

from gen_jax.data import toys
from gen_jax.data.sources import ArraySource, digits
from gen_jax.errors import UserError
from gen_jax.metrics import classifier, efficientnet, inception, networks


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('GEN_JAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


@pytest.fixture
def offline(monkeypatch):
  def get(*args, **kwargs):
    raise requests.ConnectionError

  monkeypatch.setattr(requests, 'get', get)


@pytest.fixture
def serve(monkeypatch):
  """Serves bytes as Inception's weights."""
  content = b'something else'

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      self.send_response(200)
      self.send_header('content-length', str(len(content)))
      self.end_headers()
      self.wfile.write(content)

    def log_message(self, *args):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(inception, 'URL', f'http://127.0.0.1:{server.server_port}/weights.pth')
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    yield
    server.shutdown()


def unlabelled(shape):
  image = np.zeros((8, *shape), np.uint8)
  return ArraySource('pictures', {'image': image}, None, 'pictures/train/8/0')


def test_a_small_labelled_set_gets_a_classifier_that_is_trained_once(cache, monkeypatch, offline):
  monkeypatch.setattr(classifier, 'LEAST_STEPS', 100)
  source = digits()
  network = networks.open_network('auto', source=source)
  assert network.name == 'classifier' and network.title == f'classifier of {source.fingerprint}'
  share = float(network.note.removeprefix('held-out accuracy '))
  assert 0.85 < share <= 1
  image, label = source.arrays()['image'], source.arrays()['label']
  seen = list(networks.features(network, iter(np.split(image[:300], [128, 256]))))
  assert [len(features) for features, _ in seen] == [128, 128, 44]
  features, probabilities = (np.concatenate(part) for part in zip(*seen, strict=True))
  assert features.shape == (300, network.size) and features.min() >= 0
  np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
  assert classifier.accuracy(probabilities, label[:300]) > 0.85

  monkeypatch.setattr(classifier, 'train', None)
  again = networks.open_network('classifier', source=source)
  assert again[:-1] == network[:-1]
  np.testing.assert_array_equal(again.apply(image[:5])[0], network.apply(image[:5])[0])
  other = ArraySource('digits', source.arrays(), 10, 'digits/train/1797/other')
  with pytest.raises(TypeError):  # other data: the one of before does not count
    networks.open_network('classifier', source=other)


def test_a_damaged_classifier_is_trained_again(cache, monkeypatch, offline):
  monkeypatch.setattr(classifier, 'LEAST_STEPS', 8)
  monkeypatch.setattr(classifier, 'EPOCHS', 0)
  first = networks.open_network('classifier', source=digits())
  (file,) = cache.rglob('*.npz')
  whole = file.read_bytes()
  file.write_bytes(whole[: len(whole) // 2])
  assert networks.open_network('classifier', source=digits())[:-1] == first[:-1]
  # The same files of a folder, cut to another size: another classifier.
  arrays = digits().arrays()
  smaller = {'image': arrays['image'][:, :7, :7], 'label': arrays['label']}
  networks.open_network(
    'classifier', source=ArraySource('digits', smaller, 10, digits().fingerprint)
  )
  assert len(list(cache.rglob('*.npz'))) == 2


def test_without_a_network_auto_takes_what_is_installed(offline):
  for source in (None, unlabelled((8, 8, 1)), unlabelled((32, 32, 3))):
    network = networks.open_network('auto', source=source)
    assert (network.name, network.size) == ('efficientnet_lite0', 1280)
    assert network.note == 'instead of Inception, whose weights cannot be fetched'
  features, probabilities = next(networks.features(network, iter([np.zeros((2, 9, 9, 1), 'u1')])))
  assert features.shape == (2, 1280) and probabilities.shape == (2, 1000)


def test_a_few_pictures_at_a_time_give_what_all_at_once_give():
  net = classifier.Classifier(3)
  x = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1), np.uint8)
  params = net.init(jax.random.key(0), x)['params']
  at_once, in_parts = (networks._compiled(net, params, cpu_batch=n)(x) for n in (10, 4))
  for a, b in zip(at_once, in_parts, strict=True):
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_several_accelerators_share_the_pictures(monkeypatch):
  net = classifier.Classifier(3)
  x = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), np.uint8)
  params = net.init(jax.random.key(0), x)['params']
  on_one = networks._compiled(net, params)(x)
  with monkeypatch.context() as patch:
    patch.setattr(jax, 'default_backend', lambda: 'gpu')
    on_two = networks._compiled(net, params)(x)
  for a, b in zip(on_one, on_two, strict=True):
    assert a.shape == b.shape and len(b.sharding.device_set) == jax.device_count() == 2
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_points_are_their_own_features():
  network = networks.open_network('auto', source=toys.toy('ring'))
  x = toys.toy('ring').read(range(5))['image']
  ((features, probabilities),) = networks.features(network, iter([x]))
  np.testing.assert_array_equal(features, x)
  assert (network.name, network.size, probabilities.shape) == ('points', 2, (5, 0))


def test_weights_of_another_inception_are_not_called_fid(tmp_path, offline):
  names = np.load(reference.FIXTURE)
  shapes = zip(names['names'], names['shapes'], strict=True)
  arrays = {
    str(name): np.zeros([int(n) for n in str(shape).strip('[]').split(',')], np.float32)
    for name, shape in shapes
  }
  np.savez_compressed(tmp_path / 'zero.npz', **arrays)
  network = networks.open_network('inception', path=tmp_path / 'zero.npz')
  assert network.title == f'Inception-{network.checksum[:8]}' != 'Inception-2015'
  assert 'zero.npz, not those of FID' in network.note


@pytest.mark.parametrize(
  'name, kwargs, words',
  [
    ('inceptoin', {}, "'inceptoin' is not a feature network: auto, inception, efficientnet_lite0"),
    ('inception', {}, 'cannot be reached.*set its path'),
    ('inception', {'path': 'none.pth'}, 'none.pth: no weights can be read'),
    ('classifier', {}, 'needs labelled data'),
    ('classifier', {'source': unlabelled((8, 8, 1))}, 'needs labelled data, 256 images'),
    ('inception', {'source': toys.toy('ring')}, "ring has points, but 'inception' needs images"),
    (
      'inception',
      {'path': 'other.pth'},
      "other.pth has the checksum .*, not 6726825d0af5f729 as FID's",
    ),
  ],
)
def test_refusals(offline, tmp_path, monkeypatch, name, kwargs, words):
  monkeypatch.chdir(tmp_path)
  shutil.copy(efficientnet.weights_path(), 'other.pth')
  with pytest.raises(UserError, match=words):
    networks.open_network(name, **kwargs)


def test_a_download_with_another_checksum_is_not_kept(serve, cache):
  with pytest.raises(UserError, match='a wrong checksum'):
    networks.open_network('inception')
  assert not list(cache.rglob('*.pth'))


@pytest.mark.parametrize(
  'pictures, words',
  [
    (np.zeros((2, 9, 9, 4), np.uint8), '4 channels'),
    (np.zeros((2, 9, 9, 3), np.float32), r'float32 \(2, 9, 9, 3\): uint8 \[n, h, w, c\]'),
    (np.zeros((9, 9, 3), np.uint8), r'uint8 \(9, 9, 3\): uint8'),
  ],
)
def test_other_pictures_are_refused(offline, pictures, words):
  network = networks.open_network('efficientnet_lite0')
  with pytest.raises(UserError, match=words):
    next(networks.features(network, iter([pictures])))
