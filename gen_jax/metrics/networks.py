"""The feature networks by name, each with the information that makes numbers comparable: the
checksum of its weights, its resize, and the name of its results.
"""

import contextlib
import functools
import io
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import requests
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from gen_jax.errors import UserError
from gen_jax.host import console
from gen_jax.metrics import classifier, efficientnet, inception
from gen_jax.metrics.weights import Weights, read_weights, sha256
from gen_jax.ops import compiler
from gen_jax.run.cache import cache_folder, keep

PUBLISHED = 'Inception-2015'  # the title of FID's network with its own weights
NAMES = ('inception', 'efficientnet_lite0', 'classifier')
OF_THEIR_DATA = ('classifier', 'points')  # their input has the shape of their own data set
SMALL = 28  # pixels: images up to this size are scored by a classifier of their data set
SECONDS_TO_ANSWER = 10.0
CPU_BATCH = 16  # batch size of a large network on CPU


class Network(NamedTuple):
  """A feature network, ready to be used.

  Attributes:
    name: one of `NAMES`, or 'points'.
    title: suffix of the names of distances, e.g. 'EfficientNet-Lite0'; only those of `inception`
      with its published weights are called FID, KID and IS.
    checksum: the first 16 hex digits of the SHA-256 of the weights.
    resize: how images are resized for its input.
    size: number of features.
    note: additional information for the reader, e.g. a classifier's accuracy.
    apply: uint8 images [b, h, w, 3] (the classifier: of its data set's shape) -> float32 features
      [b, size] and probabilities [b, classes].
  """

  name: str
  title: str
  checksum: str
  resize: str
  size: int
  note: str
  apply: Callable


def open_network(name: str, *, path=None, source=None) -> Network:
  """A network by name.

  Args:
    name: one of `NAMES`, or 'auto': none for points, a classifier for labelled images of up to 28
      pixels, otherwise Inception where its weights are available or can be fetched, otherwise
      EfficientNet-Lite0.
    path: file of Inception's weights; None: from the cache, or else fetched. A `.pth` must be the
      published file; others, in safetensors or npz, may differ, and results are then not called
      FID.
    source: the `gen_jax.data.Source` on which a classifier is trained.

  Raises:
    UserError: the name is unknown, or weights or data are missing.
  """
  if source is not None and len(source.shape) == 1:
    if name != 'auto':
      raise UserError(f'{source.name} has points, but {name!r} needs images: auto is needed')
    return _points(source.shape[0])
  if name == 'auto':
    small = source is not None and max(source.shape[:2]) <= SMALL
    if small and path is None and _can_train(source):
      return _classifier(source)
    try:
      return _inception(path)
    except NoNetwork:
      return _efficientnet()._replace(note='instead of Inception, whose weights cannot be fetched')
  if name == 'inception':
    return _inception(path)
  if name == 'efficientnet_lite0':
    return _efficientnet()
  if name == 'classifier':
    return _classifier(source)
  raise UserError(f'{name!r} is not a feature network: auto, {", ".join(NAMES)} are')


class NoNetwork(UserError):
  """Weights cannot be fetched."""


def features(network: Network, pictures: Iterator[np.ndarray]) -> Iterator[tuple]:
  """(features, probabilities), both float32, of blocks of images uint8 [b, h, w, c].

  A block is dispatched before the results of the previous one are fetched. A block that is smaller
  than the first one is padded, so that one program serves all.
  """
  pending, size = None, 0
  for block in pictures:
    if network.name != 'points' and (block.dtype != np.uint8 or block.ndim != 4):
      raise UserError(
        f'images {block.dtype} {block.shape}: uint8 [n, h, w, c] in 0 to 255 is needed '
        '(gen_jax.data.to_pixels converts floats in [-1, 1])'
      )
    n, size = len(block), max(size, len(block))
    block = np.concatenate([block, np.zeros((size - n, *block.shape[1:]), block.dtype)])
    made = network.apply(block if network.name in OF_THEIR_DATA else colour(block))
    if pending is not None:
      yield _fetched(*pending)
    pending = made, n
  if pending is not None:
    yield _fetched(*pending)


def _fetched(made, n: int) -> tuple:
  return tuple(np.asarray(array)[:n] for array in made)


def colour(pictures):
  """Grey images [b, h, w, 1] repeated to three channels; RGB unchanged.

  Raises:
    UserError: another number of channels.
  """
  if pictures.shape[-1] not in (1, 3):
    raise UserError(
      f'images with {pictures.shape[-1]} channels: Inception and EfficientNet-Lite0 need grey or '
      'RGB'
    )
  return pictures if pictures.shape[-1] == 3 else pictures.repeat(3, axis=-1)


# --- The networks -------------------------------------------------------------------------------


def _points(size: int) -> Network:
  """Points are their own features."""
  return Network(
    name='points',
    title='points',
    checksum='',
    resize='none',
    size=size,
    note='',
    apply=lambda x: (np.float32(x), np.zeros((len(x), 0), np.float32)),
  )


def _inception(path) -> Network:
  if path is None:
    arrays, checksum = _published_inception()
  else:
    path = pathlib.Path(path)
    arrays, checksum = read_weights(path)
    if path.suffix == '.pth' and checksum != inception.SHA256:
      raise UserError(
        f"{path} has the checksum {checksum[:16]}, not {inception.SHA256[:16]} as FID's weights: "
        f'fetch {inception.URL} again'
      )
  published = checksum == inception.SHA256
  return Network(
    name='inception',
    title=PUBLISHED if published else f'Inception-{checksum[:8]}',
    checksum=checksum[:16],
    resize=f'TensorFlow 1 bilinear to {inception.SIZE}',
    size=2048,
    note='' if published else f'weights of {path.name}, not those of FID',
    apply=_compiled(inception.Inception(), inception.from_torch(arrays)),
  )


def _published_inception() -> Weights:
  """The published weights from the cache, fetched if necessary."""
  path = cache_folder('weights') / pathlib.PurePosixPath(inception.URL).name
  with contextlib.suppress(UserError):  # not there, or damaged
    weights = read_weights(path)
    if weights.sha256 == inception.SHA256:
      return weights
  try:
    with requests.get(inception.URL, stream=True, timeout=SECONDS_TO_ANSWER) as answer:
      answer.raise_for_status()
      total = int(answer.headers.get('content-length', 0)) or None
      content = io.BytesIO()
      with console.bar(total=total, unit='B', unit_scale=True, desc=path.name, disable=None) as bar:
        for part in answer.iter_content(2**20):
          content.write(part)
          bar.update(len(part))
  except requests.RequestException as error:
    raise NoNetwork(
      f'{inception.URL} cannot be reached: download it elsewhere and set its path, or choose '
      'another feature network'
    ) from error
  if sha256(content.getvalue()) != inception.SHA256:
    raise NoNetwork(f'the file at {inception.URL} has a wrong checksum')
  return read_weights(keep(path, content.getvalue()))


def _efficientnet() -> Network:
  path = efficientnet.weights_path()
  arrays, checksum = read_weights(path)
  if checksum != efficientnet.SHA256:
    raise UserError(f'{path} is not version 0.1.0 of the EfficientNet-Lite0 weights')
  return Network(
    name='efficientnet_lite0',
    title='EfficientNet-Lite0',
    checksum=checksum[:16],
    resize=f'bilinear, aligned centres, to {efficientnet.SIZE}',
    size=1280,
    note='',
    apply=_compiled(efficientnet.EfficientNetLite0(), efficientnet.from_torch(arrays)),
  )


def _can_train(source) -> bool:
  return source.num_classes is not None and len(source) >= 2 * classifier.BATCH


def _classifier(source) -> Network:
  if source is None or not _can_train(source):
    raise UserError(
      f'a classifier needs labelled data, {2 * classifier.BATCH} images or more: choose another '
      'feature network'
    )
  from gen_jax.data.sources import content_hash  # a slow import, already done by the source's user

  # The fingerprint of a folder does not include the size to which images are cropped.
  parts = (source.fingerprint, source.shape, source.num_classes, classifier.RECIPE)
  path = cache_folder('classifiers') / f'{content_hash(str(parts).encode())}.npz'
  try:
    arrays, checksum = read_weights(path)
  except UserError:  # not there, or damaged
    arrays, checksum = read_weights(keep(path, _trained_classifier(source)))
  share = float(arrays.pop('accuracy'))
  params = traverse_util.unflatten_dict(arrays, sep='/')
  return Network(
    name='classifier',
    title=f'classifier of {source.fingerprint}',
    checksum=checksum[:16],
    resize='none',
    size=classifier.FEATURES,
    note=f'held-out accuracy {share:.4f}',
    apply=_compiled(classifier.Classifier(source.num_classes), params, cpu_batch=classifier.BATCH),
  )


def _trained_classifier(source) -> bytes:
  """The npz file of a classifier trained on nine tenths of a source, shuffled, and tested on the
  rest.
  """
  arrays = source.arrays()
  order = np.random.RandomState(0).permutation(len(source))
  test, train = np.split(order, [len(order) // 10])
  params = classifier.train(
    arrays['image'][train],
    arrays['label'][train],
    source.num_classes,
    progress=lambda steps: console.bar(steps, desc=f'classifier of {source.name}', disable=None),
  )
  net = classifier.Classifier(source.num_classes)
  logits = [
    net.apply({'params': params}, arrays['image'][rows]).logits
    for rows in np.array_split(test, -(-len(test) // 1000))
  ]
  share = classifier.accuracy(np.concatenate(logits), arrays['label'][test])
  content = io.BytesIO()
  np.savez(content, accuracy=share, **traverse_util.flatten_dict(params, sep='/'))
  return content.getvalue()


def _compiled(net, params, *, cpu_batch: int = CPU_BATCH) -> Callable:
  """`Network.apply` of a module whose results are features and logits."""

  def some(params, x):
    # The default precision on GPU and TPU is below float32, which would change the numbers.
    with jax.default_matmul_precision('highest'):
      features, logits = net.apply({'params': params}, x)
    return features, jax.nn.softmax(logits)

  # Few products and no reductions: passing them to YNNPACK costs more than it gains.
  @functools.partial(jax.jit, compiler_options=compiler.compiler_options(()))
  def apply(params, x):
    if jax.default_backend() != 'cpu' or len(x) <= cpu_batch:
      return some(params, x)
    # A few at a time: their feature maps reuse memory, and stay partly in the cache.
    parts = jnp.pad(x, ((0, -len(x) % cpu_batch), (0, 0), (0, 0), (0, 0)))
    parts = parts.reshape(-1, cpu_batch, *x.shape[1:])
    made = jax.lax.map(functools.partial(some, params), parts)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1])[: len(x)], made)

  # Virtual devices of a CPU share its cores.
  devices = jax.local_devices()[: 1 if jax.default_backend() == 'cpu' else None]
  mesh = jax.sharding.Mesh(np.array(devices), ('data',))
  rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (('data',), ()))
  # The weights are arguments: as constants, compilation would copy them.
  params = jax.device_put(params, whole)

  def on_all_devices(x):
    filled = np.pad(x, ((0, -len(x) % len(devices)), (0, 0), (0, 0), (0, 0)))
    return tuple(made[: len(x)] for made in apply(params, jax.device_put(filled, rows)))

  return on_all_devices
