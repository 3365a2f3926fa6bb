"""The Inception-v3 of FID: the network of the TensorFlow graph `inception-2015-12-05` (Szegedy et
al. 2015, arXiv 1512.00567), by which all published FID, KID and IS are measured.

It differs from later Inception-v3 nets in its weights and in four details: it has 1,008 logits, its
average pools exclude the padding, the last block has a max pool, and images of any size are resized
to 299x299 as TensorFlow 1 did.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.metrics.weights import StateDict
from gen_jax.ops.pooling import average_pool, max_pool

SIZE = 299  # pixels of a side
SHA256 = '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2'
URL = (
  'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
  'pt_inception-2015-12-05-6726825d.pth'
)
BATCH_NORM_EPSILON = 1e-3


class Features(NamedTuple):
  pool_3: jax.Array  # float32 [b, 2048], the features of FID and KID
  logits: jax.Array  # float32 [b, 1008], without the bias, as in the inception score's own code


class Conv(nn.Module):
  """Convolution, batch norm (folded into kernel and bias), average pool if any, and ReLU."""

  features: int
  kernel: tuple[int, int] = (1, 1)
  stride: int = 1
  padding: str = 'SAME'
  averaged: bool = False

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(self.features, self.kernel, self.stride, self.padding, name='conv')(x)
    return nn.relu(average_pool(x) if self.averaged else x)


def join(*branches):
  return jnp.concatenate(branches, -1)


class Inception(nn.Module):
  """uint8-valued images [b, h, w, 3] in 0 to 255 -> `Features`.

  With `layers` it returns a dict {name: output} of all blocks instead. The names are those of the
  weights of the PyTorch ports.
  """

  @nn.compact
  def __call__(self, x, *, layers: bool = False):
    outputs = {}

    def note(name, x):
      outputs[name] = x
      return x

    def conv(x, name, *args, **options):
      return Conv(*args, **options, name=name.replace('.', '/'))(x)

    def single(x, name, *args):
      return note(name, conv(x, name, *args))

    x = note('input', preprocess(x))
    x = single(x, 'Conv2d_1a_3x3', 32, (3, 3), 2, 'VALID')
    x = single(x, 'Conv2d_2a_3x3', 32, (3, 3), 1, 'VALID')
    x = single(x, 'Conv2d_2b_3x3', 64, (3, 3))
    x = max_pool(x, stride=2)
    x = single(x, 'Conv2d_3b_1x1', 80)
    x = single(x, 'Conv2d_4a_3x3', 192, (3, 3), 1, 'VALID')
    x = max_pool(x, stride=2)
    for name, pooled in (('5b', 32), ('5c', 64), ('5d', 64)):
      x = note(f'Mixed_{name}', self._block_a(x, f'Mixed_{name}.', conv, pooled))
    x = note('Mixed_6a', self._block_b(x, 'Mixed_6a.', conv))
    for name, width in (('6b', 128), ('6c', 160), ('6d', 160), ('6e', 192)):
      x = note(f'Mixed_{name}', self._block_c(x, f'Mixed_{name}.', conv, width))
    x = note('Mixed_7a', self._block_d(x, 'Mixed_7a.', conv))
    x = note('Mixed_7b', self._block_e(x, 'Mixed_7b.', conv, average_pool))
    x = note(
      'Mixed_7c', self._block_e(x, 'Mixed_7c.', conv, functools.partial(max_pool, padding=1))
    )
    pool_3 = x.mean((1, 2))
    logits = nn.Dense(1008, use_bias=False, name='fc')(pool_3)
    if layers:
      return outputs | {'pool_3': pool_3, 'logits': logits}
    return Features(pool_3, logits)

  def _block_a(self, x, name, conv, pooled):
    """35x35: 1x1, 5x5, two 3x3, and a pool."""
    wide = conv(conv(x, name + 'branch5x5_1', 48), name + 'branch5x5_2', 64, (5, 5))
    double = conv(conv(x, name + 'branch3x3dbl_1', 64), name + 'branch3x3dbl_2', 96, (3, 3))
    return join(
      conv(x, name + 'branch1x1', 64),
      wide,
      conv(double, name + 'branch3x3dbl_3', 96, (3, 3)),
      conv(x, name + 'branch_pool', pooled, averaged=True),
    )

  def _block_b(self, x, name, conv):
    """35x35 -> 17x17."""
    double = conv(conv(x, name + 'branch3x3dbl_1', 64), name + 'branch3x3dbl_2', 96, (3, 3))
    return join(
      conv(x, name + 'branch3x3', 384, (3, 3), 2, 'VALID'),
      conv(double, name + 'branch3x3dbl_3', 96, (3, 3), 2, 'VALID'),
      max_pool(x, stride=2),
    )

  def _block_c(self, x, name, conv, width):
    """17x17: 1x1, 7x7 as 1x7 and 7x1, twice that, and a pool."""
    once = conv(x, name + 'branch7x7_1', width)
    once = conv(once, name + 'branch7x7_2', width, (1, 7))
    once = conv(once, name + 'branch7x7_3', 192, (7, 1))
    twice = conv(x, name + 'branch7x7dbl_1', width)
    twice = conv(twice, name + 'branch7x7dbl_2', width, (7, 1))
    twice = conv(twice, name + 'branch7x7dbl_3', width, (1, 7))
    twice = conv(twice, name + 'branch7x7dbl_4', width, (7, 1))
    twice = conv(twice, name + 'branch7x7dbl_5', 192, (1, 7))
    return join(
      conv(x, name + 'branch1x1', 192),
      once,
      twice,
      conv(x, name + 'branch_pool', 192, averaged=True),
    )

  def _block_d(self, x, name, conv):
    """17x17 -> 8x8."""
    small = conv(x, name + 'branch3x3_1', 192)
    large = conv(x, name + 'branch7x7x3_1', 192)
    large = conv(large, name + 'branch7x7x3_2', 192, (1, 7))
    large = conv(large, name + 'branch7x7x3_3', 192, (7, 1))
    return join(
      conv(small, name + 'branch3x3_2', 320, (3, 3), 2, 'VALID'),
      conv(large, name + 'branch7x7x3_4', 192, (3, 3), 2, 'VALID'),
      max_pool(x, stride=2),
    )

  def _block_e(self, x, name, conv, pool):
    """8x8: 1x1, 1x3 beside 3x1, the same after a 3x3, and a pool."""
    small = conv(x, name + 'branch3x3_1', 384)
    double = conv(conv(x, name + 'branch3x3dbl_1', 448), name + 'branch3x3dbl_2', 384, (3, 3))
    return join(
      conv(x, name + 'branch1x1', 320),
      conv(small, name + 'branch3x3_2a', 384, (1, 3)),
      conv(small, name + 'branch3x3_2b', 384, (3, 1)),
      conv(double, name + 'branch3x3dbl_3a', 384, (1, 3)),
      conv(double, name + 'branch3x3dbl_3b', 384, (3, 1)),
      conv(pool(x), name + 'branch_pool', 192),
    )


def preprocess(x):
  """Images in 0 to 255 -> 299x299 in [-1, 1)."""
  return (resize_as_tensorflow_1(x, SIZE) - 128) / 128


def resize_as_tensorflow_1(x, size: int):
  """`tf.image.resize_bilinear` of TensorFlow 1, [b, h, w, c] -> float32 [b, size, size, c].

  Neither corners nor centres are aligned: the output at i is sampled at i * (input / output), which
  shifts images by half a pixel. There is no antialiasing.
  """
  x = x.astype(jnp.float32)
  for axis in (2, 1):
    n = x.shape[axis]
    at = np.arange(size, dtype=np.float32) * np.float32(n / size)
    low = at.astype(np.int32)
    t = np.expand_dims(at - low, [i for i in range(x.ndim) if i != axis])
    first = jnp.take(x, low, axis)
    x = first + (jnp.take(x, np.minimum(low + 1, n - 1), axis) - first) * t
  return x


def from_torch(arrays: dict) -> dict:
  """Parameters of `Inception` from the state dict of a PyTorch port, batch norm folded in.

  Raises:
    UserError: a layer is missing or unknown, or its shape differs.
  """
  model = jax.eval_shape(Inception().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))['params']
  state, params = StateDict(arrays, 'the Inception weights'), {}
  for module, leaves in model.items():
    if module == 'fc':
      continue
    name = module.replace('/', '.')
    shape = leaves['conv']['kernel'].shape
    params[module] = {'conv': state.conv(f'{name}.conv', f'{name}.bn', shape, BATCH_NORM_EPSILON)}
  shape = model['fc']['kernel'].shape
  params['fc'] = {'kernel': np.float32(state.take('fc.weight', shape[::-1]).T)}
  state.finish('fc.bias')
  return params
