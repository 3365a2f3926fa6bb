"""The nets of pix2pix and CycleGAN: sizes, receptive fields, and what the authors' nets compute."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import translation_reference as reference
from nets.test_nets import count
from nets.unets_reference import weight

from gen_jax.errors import UserError
from gen_jax.nets import cyclegan, layers, pix2pix
from gen_jax.ops.compiler import options_for_one_run

KEYS = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}


def abstract(module, shape):
  """Variables and output as shapes; nothing is computed."""

  def run(x):
    variables = module.init(KEYS, x, train=False)
    out, _ = module.apply(variables, x, train=False, mutable=['batch_stats'], rngs=KEYS)
    return variables, out

  return jax.eval_shape(run, jax.ShapeDtypeStruct(shape, jnp.float32))


def applied(module, variables, x):
  """The output of the module, compiled for one run; x [b, h, w, c], or several batches of it."""

  def run(variables, x):
    how = dict(train=True, mutable=['batch_stats'], rngs={'dropout': KEYS['dropout']})
    if x.ndim > 4:
      return jnp.stack([module.apply(variables, batch, **how)[0] for batch in x])
    return module.apply(variables, x, **how)[0]

  return jax.jit(run, compiler_options=options_for_one_run())(variables, x)


# Module, shape of the images, shape of the output, parameters of the authors' PyTorch code.
SIZES = {
  'unet': (pix2pix.UNet(), (1, 256, 256, 3), (1, 256, 256, 3), 54_413_955),
  'unet_128': (pix2pix.UNet(depth=7), (1, 128, 128, 3), (1, 128, 128, 3), 41_828_995),
  'patch_1': (pix2pix.PatchGAN(patch=1), (1, 256, 256, 6), (1, 256, 256, 1), 9_024),
  'patch_16': (pix2pix.PatchGAN(patch=16), (1, 256, 256, 6), (1, 126, 126, 1), 139_585),
  'patch_34': (pix2pix.PatchGAN(patch=34), (1, 256, 256, 6), (1, 62, 62, 1), 666_433),
  'patch_70': (pix2pix.PatchGAN(), (1, 256, 256, 6), (1, 30, 30, 1), 2_768_705),
  'patch_142': (pix2pix.PatchGAN(patch=142), (1, 256, 256, 6), (1, 14, 14, 1), 6_964_033),
  'patch_286': (pix2pix.PatchGAN(patch=286), (1, 256, 256, 6), (1, 6, 6, 1), 11_159_361),
  'patch_70_instance': (
    pix2pix.PatchGAN(norm='instance'),
    (1, 256, 256, 3),
    (1, 30, 30, 1),
    2_764_737,
  ),
  'resnet_9': (cyclegan.ResNet(), (1, 256, 256, 3), (1, 256, 256, 3), 11_378_179),
  'resnet_6': (cyclegan.ResNet(blocks=6), (1, 128, 128, 3), (1, 128, 128, 3), 7_837_699),
}


@pytest.mark.parametrize('name', SIZES)
def test_number_of_parameters_and_shape(name):
  module, inputs, output, number = SIZES[name]
  variables, out = abstract(module, inputs)
  assert count(variables['params']) == number
  assert out.shape == output and out.dtype == jnp.float32


def test_any_size_is_translated_to_the_same_size():
  for net in (pix2pix.UNet((1, 1, 2), features=1, depth=3), cyclegan.ResNet((1, 1, 2), 1, 1)):
    for size in ((28, 28), (3, 65)):
      assert abstract(net, (1, *size, 3))[1].shape == (1, *size, 2)


def test_padding_is_by_reflection_and_cropped_again():
  x = np.arange(15, dtype=np.float32).reshape(1, 3, 5, 1)
  padded = layers.reflect_to_multiple(x, 4)
  np.testing.assert_array_equal(padded, np.pad(x, ((0, 0), (0, 1), (1, 2), (0, 0)), 'reflect'))
  np.testing.assert_array_equal(layers.crop(padded, (3, 5)), x)
  np.testing.assert_array_equal(
    layers.reflect(x, 2), np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), 'reflect')
  )
  assert layers.reflect_to_multiple(x[:, :, :4], 1).shape == (1, 3, 4, 1)


# --- Receptive fields ---------------------------------------------------------------------------


@pytest.mark.parametrize('patch', pix2pix.PATCHES)
def test_a_logit_sees_a_patch_of_its_size(patch, monkeypatch):
  """By the gradient of one logit, without norms, which see the whole image."""
  monkeypatch.setattr(layers, 'batch_or_instance_norm', lambda *_: lambda x: x)
  D, size = pix2pix.PatchGAN(patch=patch, features=1), patch + 40
  x = jnp.zeros((1, size, size, 1))
  variables = jax.tree.map(jnp.ones_like, D.init(KEYS, x, train=True))

  @functools.partial(jax.jit, compiler_options=options_for_one_run())
  def gradient(x):
    def logit(x):
      logits = D.apply(variables, x, train=True)[0, ..., 0]
      return logits[logits.shape[0] // 2, logits.shape[1] // 2]

    return jax.grad(logit)(x)[0, ..., 0]

  rows, columns = np.nonzero(gradient(x))
  assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == patch
  assert len(rows) == patch**2


@pytest.mark.parametrize(('norm', 'depends'), [('batch', True), ('instance', False)])
def test_norms_see_the_batch_or_the_image(norm, depends):
  x = np.float32(np.random.default_rng(0).standard_normal((2, 16, 16, 1)))
  other = x.copy()
  other[1] = 1 - x[1] / 2
  for net in (pix2pix.UNet((16, 16, 1), 2, 3, norm), pix2pix.PatchGAN(16, 2, norm)):
    variables, _ = abstract(net, x.shape)
    draw = lambda leaf: np.random.default_rng(1).standard_normal(leaf.shape, np.float32)
    found = applied(net, jax.tree.map(draw, variables), np.stack([x, other]))
    assert np.allclose(found[0, 0], found[1, 0], atol=1e-5) != depends


def test_instance_norm_gives_mean_0_and_variance_1():
  x = np.float32(3 + 2 * np.random.default_rng(0).standard_normal((2, 9, 7, 5)))
  y = layers.instance_norm(x)
  np.testing.assert_allclose(np.mean(y, (1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(np.var(y, (1, 2)), 1, atol=1e-4)


def test_dropout_is_the_noise_of_the_unet():
  net = pix2pix.UNet((16, 16, 1), features=2, depth=4, norm='instance')
  x = np.float32(np.random.default_rng(0).standard_normal((2, 16, 16, 1)))
  variables = net.init(KEYS, x, train=False)

  def translated(net, key):
    return net.apply(variables, x, train=False, rngs={'dropout': jax.random.key(key)})

  assert not np.array_equal(translated(net, 1), translated(net, 2))
  np.testing.assert_array_equal(translated(net, 1), translated(net, 1))
  calm = net.clone(dropout=0.0)
  np.testing.assert_array_equal(translated(calm, 1), translated(calm, 2))


@pytest.mark.parametrize(
  ('net', 'size', 'words'),
  [
    (pix2pix.UNet(norm='layer'), 8, r"generator.norm='layer': 'batch' or 'instance'"),
    (pix2pix.UNet(depth=0), 8, 'generator.depth=0: an integer from 1'),
    (pix2pix.PatchGAN(norm='none'), 32, "discriminator.norm='none'"),
    (pix2pix.PatchGAN(patch=64), 64, 'patch=64: one of 1, 16, 34, 70, 142, 286'),
    (pix2pix.PatchGAN(patch=70), 23, 'patch=70 needs images of at least 24 pixels, not 23x23'),
    (cyclegan.ResNet(blocks=-1), 8, 'generator.blocks=-1'),
  ],
)
def test_what_a_net_cannot_be_is_one_line(net, size, words):
  with pytest.raises(UserError, match=words):
    abstract(net, (1, size, size, 3))


def test_the_smallest_images_of_a_patch_have_one_logit():
  for patch, halvings in pix2pix.PATCHES.items():
    smallest = 3 * 2**halvings if halvings else 1
    assert abstract(pix2pix.PatchGAN(patch=patch), (1, smallest, smallest, 3))[1].shape[1] == 1


# --- The authors' nets ---------------------------------------------------------------------------

KINDS = dict(Conv='Conv2d', UpConv='ConvTranspose2d', _Norm='BatchNorm2d')
PARTS = dict(kernel='weight', bias='bias', scale='weight')


def leaf(keys, shape):
  """The authors' weight of one of our leaves; keys are the names on its path."""
  module, part = keys[0], PARTS[keys[-1]]
  kind, number = re.fullmatch(r'(\w+)_(\d+)', module).groups()
  number = int(number)
  if kind == 'ResBlock':
    kind, number = 'Conv', 3 + 2 * number + int(keys[1][-1])
  elif kind == 'Conv' and number == 3 and shape[-1] == 2:
    number += 2 * reference.CASES['resnet'][2]  # the last one, behind the residual blocks
  name = f'{KINDS[kind]}_{number}.{part}'
  if len(shape) == 1:
    return weight(name, shape)
  return np.moveaxis(weight(name, (shape[-1], shape[-2], *shape[:-2])), (0, 1), (-1, -2))


def ours(kind, norm, number):
  if kind == 'unet':
    return pix2pix.UNet((0, 0, 2), reference.WIDTH, number, norm, dropout=0.0)
  if kind == 'resnet':
    return cyclegan.ResNet((0, 0, 2), reference.WIDTH, number)
  patch = next(patch for patch, halvings in pix2pix.PATCHES.items() if halvings == number)
  return pix2pix.PatchGAN(patch, reference.WIDTH, norm)


@pytest.mark.parametrize('name', reference.CASES)
def test_computes_what_the_authors_net_does(name):
  *how, size = reference.CASES[name]
  x, net = reference.images(size), ours(*how)
  variables, _ = abstract(net, x.shape)
  variables = jax.tree.map_with_path(
    lambda path, x: (
      jnp.zeros(x.shape)
      if path[0].key == 'batch_stats'
      else jnp.float32(leaf([part.key for part in path[1:]], x.shape))
    ),
    variables,
  )
  found = reference.kept(name, np.asarray(applied(net, variables, x)))
  with np.load(reference.FIXTURE) as file:
    np.testing.assert_allclose(found, file[name], rtol=1e-4, atol=1e-4)
