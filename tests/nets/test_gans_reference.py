"""SNGAN's and BigGAN's nets with the authors' weights compute what the authors' nets do
(gans_reference.py).
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import gans_reference as reference
from nets.unets_reference import weight

from gen_jax.nets import biggan, sngan
from gen_jax.ops.compiler import options_for_one_run

TOLERANCE = dict(rtol=1e-4, atol=1e-4)


def kernel(name, shape):
  """Our kernel [k, k, c, d] or [c, d] from the authors' [d, c, k, k] or [d, c]."""
  value = weight(name, (shape[-1], shape[-2], *shape[:-2]))
  return np.moveaxis(value, (0, 1), (-1, -2))


def filled(tree, leaf):
  """`tree` of variables with leaf(keys, shape) for each leaf, keys the names on its path."""
  return jax.tree.map_with_path(
    lambda path, x: np.float32(leaf([part.key for part in path[1:]], x.shape)), tree
  )


def applied(module, variables, *inputs, train=True):
  run = functools.partial(module.apply, train=train, mutable=['batch_stats'])
  return jax.jit(run, compiler_options=options_for_one_run())(variables, *inputs)


def shapes_of(module, *inputs):
  init = functools.partial(module.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), *inputs)


# --- SNGAN --------------------------------------------------------------------------------------

LAYERS = dict(conv1='c1', conv2='c2', shortcut='c_sc', norm1='b1', norm2='b2')
TOP = dict(
  Dense_0='l1', Conv_0='c5', ConditionalBatchNorm_0='b5', psi='l5', embed='l_y', BatchNorm_0=''
)
KINDS = dict(kernel='W', embedding='W', bias='b', scale='gamma')


def sngan_name(keys):
  """The name that the authors' code has for one of our leaves."""
  names = []
  for key in keys[:-1]:
    block = re.fullmatch(r'(Up|Down)Block_(\d)', key)
    key = key.removesuffix('_sn')
    embedding = re.fullmatch(r'(norm\d)_(scale|shift)', key)
    if block:
      number = int(block[2]) + (2 if block[1] == 'Up' else 1)
      names.append(f'block{number}')
    elif embedding:
      kind = 'gammas' if embedding[2] == 'scale' else 'betas'
      names += [LAYERS[embedding[1]], kind]
    else:
      names.append(LAYERS.get(key) or TOP[key])
  return '/' + '/'.join(filter(None, names))


def sngan_leaf(keys, shape):
  name, kind = sngan_name(keys), keys[-1]
  if kind in ('mean', 'var'):
    return reference.average(f'{name}/avg_{kind}', *shape)
  if kind == 'sigma':
    return 1.0
  if kind == 'u' and name == '/l_y':  # the other side's, converged
    W = weight('/l_y/W', (reference.CLASSES, *shape))
    return np.linalg.svd(W)[2][0]
  if kind == 'u':
    return weight(f'{name}/u', (1, *shape))[0]
  if name == '/l1':  # theirs is [c, h, w] after the dense layer, ours [h, w, c]
    columns = reference.SNGAN_WIDTH, 4, 4
    if kind == 'bias':
      return weight('/l1/b', shape).reshape(columns).transpose(1, 2, 0).ravel()
    W = weight('/l1/W', (shape[1], shape[0])).T
    return W.reshape(-1, *columns).transpose(0, 2, 3, 1).reshape(shape)
  norm = name.endswith(('b1', 'b2', 'b5'))
  name = f'{name}/{"beta" if norm and kind == "bias" else KINDS[kind]}'
  if kind == 'kernel':
    return kernel(name, shape)
  return weight(name, shape) - ('gammas' in name)  # ours is added to 1


@pytest.mark.parametrize('classes', [None, reference.CLASSES])
def test_sngan_computes_what_the_authors_does(classes):
  width = (reference.SNGAN_WIDTH,) * 4
  G = sngan.Generator(classes, features=width)
  D = sngan.Discriminator(classes, features=width)
  z, x, label = reference.inputs(32).values()
  with np.load(reference.FIXTURES / 'sngan.npz') as file:
    kind = 'unconditional' if classes is None else 'conditional'
    want = {k.partition('/')[2]: v for k, v in file.items() if k.startswith(f'{kind}/')}

  variables = filled(shapes_of(G, z, label), sngan_leaf)
  for mode in ('eval', 'train'):
    images, _ = applied(G, variables, z, label, train=mode == 'train')
    np.testing.assert_allclose(images[:2], want[mode], **TOLERANCE)

  variables = filled(shapes_of(D, x, label), sngan_leaf)

  def total(params):
    scores, updates = applied(D, dict(variables, params=params), x, label)
    return jnp.sum(scores), (scores, updates['batch_stats'])

  gradient, (scores, stats) = jax.grad(total, has_aux=True)(variables['params'])
  np.testing.assert_allclose(scores, want['scores'], **TOLERANCE)
  np.testing.assert_allclose(stats['DownBlock_1']['conv2_sn']['u'], want['u'], **TOLERANCE)
  found = gradient['DownBlock_1']['conv2']['kernel']
  np.testing.assert_allclose(found, want['gradient'], rtol=1e-3, atol=1e-3)


# --- BigGAN -------------------------------------------------------------------------------------

BIGGAN_BLOCK = dict(
  **dict(conv1='0.conv1', conv2='0.conv2', shortcut='0.conv_sc', norm1='0.bn1', norm2='0.bn2'),
  **dict(theta='1.theta', phi='1.phi', g='1.g', o='1.o'),
)
BIGGAN_TOP = dict(
  **dict(dense='linear', psi='linear', embed='embed', shared='shared', out='output_layer.2'),
  **dict(ConditionalBatchNorm_0='output_layer.0', BatchNorm_0=''),
)
BIGGAN_KINDS = dict(kernel='weight', embedding='weight', gate='1.gamma', scale='gain')


def biggan_leaf(keys, shape):
  names = []
  for key in keys[:-1]:
    key = key.removesuffix('_sn')
    numbered = re.fullmatch(r'(Up|Down)Block_(\d)', key)
    if numbered:
      names.append(f'blocks.{numbered[2]}')
    elif key == 'SelfAttention_0':
      names.append('blocks.1')  # in both nets it follows the second block
    elif embedding := re.fullmatch(r'(norm\d)_(scale|shift)', key):
      names += [BIGGAN_BLOCK[embedding[1]], dict(scale='gain', shift='bias')[embedding[2]]]
    else:
      names.append(BIGGAN_BLOCK.get(key) or BIGGAN_TOP[key])
  name, kind = '.'.join(filter(None, names)), keys[-1]
  if kind in ('mean', 'var'):
    return reference.average(f'{name}.stored_{kind}', *shape)
  if kind == 'sigma':
    return 1.0
  if kind == 'u' and name == 'embed':  # the other side's, converged
    return np.linalg.svd(weight('embed.weight', (reference.CLASSES, *shape)))[2][0]
  if kind == 'u' and name == 'linear' and shape != (1,):
    return chw_to_hwc(weight('linear.u0', (1, *shape))[0])
  if kind == 'u':
    return weight(f'{name}.u0', (1, *shape))[0]
  name = f'{name}.{BIGGAN_KINDS.get(kind, kind)}'
  if name.startswith('linear.') and shape[-1] > 1:  # the dense layer of G
    return chw_to_hwc(weight(name, shape[::-1]).T)
  return kernel(name, shape) if kind == 'kernel' else weight(name, shape)


def chw_to_hwc(x):
  """The last axis, [c, h, w] in theirs, as [h, w, c]."""
  parts = np.reshape(x, (*x.shape[:-1], -1, 4, 4))
  return np.moveaxis(parts, -3, -1).reshape(x.shape)


CIFAR, LARGE = (4, 4, 4, 4), (16, 16, 8, 4, 2)
BIGGANS = {
  32: (
    biggan.Generator(reference.CLASSES, (32, 32, 3), CIFAR),
    biggan.Discriminator(reference.CLASSES, CIFAR),
  ),
  64: (
    biggan.Generator(
      reference.CLASSES, (64, 64, 3), LARGE, attention=(16,), shared=6, hierarchical=True
    ),
    biggan.Discriminator(reference.CLASSES, (4, 8, 16, 32, 64), downs=4, attention=(16,)),
  ),
}


@pytest.mark.parametrize('size', BIGGANS)
def test_biggan_computes_what_the_authors_does(size):
  G, D = BIGGANS[size]
  z, x, label = reference.inputs(size, reference.BIGGAN[size]['dim_z']).values()
  with np.load(reference.FIXTURES / 'biggan.npz') as file:
    want = {k.partition('/')[2]: v for k, v in file.items() if k.startswith(f'{size}/')}

  variables = filled(shapes_of(G, z, label), biggan_leaf)
  for mode in ('eval', 'train'):
    images, _ = applied(G, variables, z, label, train=mode == 'train')
    every = size // 16
    np.testing.assert_allclose(images[:2, ::every, 1::every], want[mode], **TOLERANCE)

  variables = filled(shapes_of(D, x, label), biggan_leaf)

  def total(params):
    scores, updates = applied(D, dict(variables, params=params), x, label)
    return jnp.sum(scores), (scores, updates['batch_stats'])

  gradient, (scores, stats) = jax.grad(total, has_aux=True)(variables['params'])
  np.testing.assert_allclose(scores, want['scores'], rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(stats['DownBlock_1']['conv2_sn']['u'], want['u'], **TOLERANCE)
  found = gradient['DownBlock_1']['conv2']['kernel']
  np.testing.assert_allclose(found, want['gradient'], rtol=1e-3, atol=1e-3)
