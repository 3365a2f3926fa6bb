"""Writes fixtures/improved.npz: what the authors' layers of improved GANs compute.

    python tests/nets/improved_reference.py IMPROVED_GAN

The argument is a clone of openai/improved-gan (commit 4f5d1ec). Their code is for Theano, Lasagne
and an early TensorFlow: here its classes run on numpy, which stands in for the few functions that
they call. The test draws the same weights and inputs again.
"""

import contextlib
import pathlib
import re
import sys
import types

import numpy as np

FIXTURE = pathlib.Path(__file__).parent / 'fixtures' / 'improved.npz'
KERNELS, DIMS, UNITS, REFERENCE = 4, 3, 5, 6


def draw(*shape, seed):
  return np.float32(np.random.RandomState(seed).standard_normal(shape))


def inputs() -> dict[str, np.ndarray]:
  """Rows, images, and the weights of the layers; channels last."""
  return dict(
    x=1 + draw(8, 7, seed=0),
    images=1 + draw(8, 3, 2, 4, seed=1),
    theta=draw(7, KERNELS, DIMS, seed=2),
    dense=draw(7, UNITS, seed=3),
    conv=draw(3, 3, 2, 4, seed=4),
    gamma=1 + 0.3 * draw(4, seed=5),
    beta=draw(4, seed=6),
  )


class Shape(tuple):
  """The shape of a tensor."""

  def as_list(self):
    return list(self)


class Array(np.ndarray):
  """A numpy array with the methods of symbolic ones."""

  def dimshuffle(self, *axes):
    moved = self.transpose([a for a in axes if a != 'x'])
    return moved[tuple(np.newaxis if a == 'x' else slice(None) for a in axes)]

  def flatten(self, ndim=1):
    return np.reshape(self, (*self.shape[: ndim - 1], -1))

  def get_shape(self):
    return Shape(self.shape)


def array(x):
  return np.array(x, np.float64).view(Array)


class Layer:
  """Stands in for the base class of layers; parameters are given by name."""

  given = {}

  def __init__(self, incoming, **_):
    self.input_shape = incoming if isinstance(incoming, tuple) else incoming.output_shape

  def add_param(self, spec, shape, name=None, **_):
    return array(self.given.get(name, np.full(shape, spec)))


def authors_layers(root: pathlib.Path) -> types.SimpleNamespace:
  """The authors' module nn.py, on numpy."""
  names = 'sum exp sqrt square eye concatenate min mean log tensordot dot maximum'
  tensor = types.ModuleType('theano.tensor')
  for name in names.split():
    f = getattr(np, name)
    setattr(tensor, name, lambda *args, f=f, **kwargs: array(f(*args, **kwargs)))
  tensor.cast = lambda x, dtype: x
  theano, lasagne, layers, mrg = (types.ModuleType(n) for n in ('theano', 'lasagne', 'l', 'm'))
  theano.tensor, theano.config = tensor, types.SimpleNamespace(floatX='float64')
  mrg.MRG_RandomStreams = None
  layers.Layer, layers.dnn = Layer, None
  lasagne.layers = layers
  lasagne.init = types.SimpleNamespace(Normal=lambda sd: 0.0, Constant=lambda value: value)
  modules = {'theano': theano, 'theano.tensor': tensor, 'lasagne': lasagne}
  modules |= {'lasagne.layers': layers, 'theano.sandbox': types.ModuleType('s')}
  sys.modules.update(modules | {'theano.sandbox.rng_mrg': mrg})
  found = {}
  exec((root / 'mnist_svhn_cifar10/nn.py').read_text(), found)
  return types.SimpleNamespace(**found)


def authors_vbn(root: pathlib.Path, gamma, beta) -> type:
  """The authors' class VBN, on numpy."""
  reduce_mean = lambda x, axes, keep_dims: np.mean(x, tuple(axes), keepdims=keep_dims)
  tf = types.SimpleNamespace(
    reduce_mean=reduce_mean,
    square=np.square,
    sqrt=np.sqrt,
    reshape=np.reshape,
    variable_scope=lambda name: contextlib.nullcontext(),
    get_variable=lambda name, *_, **__: array({'gamma': gamma, 'beta': beta}[name]),
    random_normal_initializer=lambda *_: None,
    constant_initializer=lambda *_: None,
  )
  source = (root / 'imagenet/model.py').read_text()
  (source,) = re.findall(r'^class VBN\(.*?(?=^class |\Z)', source, re.DOTALL | re.MULTILINE)
  found = {'tf': tf}
  exec(source, found)
  return found['VBN']


def first_then_again(layer, x) -> dict:
  """The output for the first batch, what it sets, and the output after that."""
  first = layer.get_output_for(array(x), init=True)
  names = {id(value): name for name, value in vars(layer).items()}
  made = {names[id(parameter)]: value for parameter, value in layer.init_updates}
  return {'first': first} | made


def main(root):
  root, given = pathlib.Path(root), inputs()
  nn = authors_layers(root)
  made = {}

  def record(name, layer, x):
    for key, value in first_then_again(layer, x).items():
      made[f'{name}_{key}'] = np.float32(value)

  x, images = given['x'], given['images']
  Layer.given = {'theta': given['theta']}
  layer = nn.MinibatchLayer(x.shape, KERNELS, DIMS)
  made['minibatch_plain'] = np.float32(layer.get_output_for(array(x)))
  record('minibatch', layer, x)

  Layer.given = {'theta': given['dense']}
  record('dense', nn.DenseLayer(x.shape, UNITS, nonlinearity=lambda y: y), x)

  # A convolution below, [d, c, k, k]: the norm layer scales its weights, and its outputs at first.
  below = types.SimpleNamespace(W=array(given['conv'].transpose(3, 2, 0, 1)))
  below.output_shape = images.transpose(0, 3, 1, 2).shape
  Layer.given = {}
  layer = nn.WeightNormLayer(below, nonlinearity=lambda y: y, init_stdv=0.1)
  made['conv_weight'] = np.float32(below.W.transpose(2, 3, 1, 0))
  record('conv', layer, images.transpose(0, 3, 1, 2))

  layer = nn.BatchNormLayer(x.shape, g=None, nonlinearity=lambda y: y)
  made['batch_norm'] = np.float32(layer.get_output_for(array(x)))

  norm = authors_vbn(root, given['gamma'], given['beta'])(array(images[:REFERENCE]), 'g_norm')
  made['vbn_reference'] = np.float32(norm.reference_output)
  made['vbn_live'] = np.float32(norm(array(images[REFERENCE:])))
  np.savez_compressed(FIXTURE, **made)
  print({name: value.shape for name, value in made.items()})


if __name__ == '__main__':
  main(*sys.argv[1:])
