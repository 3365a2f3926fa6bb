"""UNIT's and CoGAN's nets with the authors' weights compute what the authors' nets do
(unit_reference.py).
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import unit_reference as reference
from nets.gans_reference import average
from nets.test_gans_reference import filled
from nets.unets_reference import weight

from gen_jax.nets import cogan, layers, unit, unit_digits
from gen_jax.ops.compiler import options_for_one_run

TOLERANCE = dict(rtol=1e-4, atol=1e-4)
LETTER = dict(x='A', y='B')


@functools.cache
def fixture():
  with np.load(reference.FIXTURE) as file:
    return dict(file)


def assert_close(found, name):
  np.testing.assert_allclose(found, fixture()[name], err_msg=name, **TOLERANCE)


def shapes_of(module, *inputs, **how):
  return jax.eval_shape(functools.partial(module.init, **how), jax.random.key(0), *inputs)


def applied(module, variables, *inputs, method=None, **how):
  run = functools.partial(module.apply, method=method, mutable=['batch_stats'], **how)
  return jax.jit(run, compiler_options=options_for_one_run())(variables, *inputs)[0]


def leaf(name, kind, shape):
  """The authors' parameter `name` in our layout: both kinds of convolutions are [k, k, in, out] in
  ours, where in and out are those of the convolution; theirs are [out, in, k, k].
  """
  if kind in ('mean', 'var'):
    return average(f'{name}.running_{kind}', *shape)
  if kind == 'kernel':
    return weight(f'{name}.weight', (shape[3], shape[2], *shape[:2])).transpose(2, 3, 1, 0)
  return weight(f'{name}.bias', shape)


def transposed_leaf(name, kind, shape):
  """As `leaf`, of a 1x1 convolution that is a transposed one in theirs."""
  if kind == 'kernel':
    return weight(f'{name}.weight', (*shape[2:], 1, 1)).transpose(2, 3, 0, 1)
  return leaf(name, kind, shape)


# --- Images ---------------------------------------------------------------------------------------


def image_leaf(keys, shape):
  """Of a generator: theirs are numbered lists of layers."""
  part, *inner = keys[:-1]
  side, _, which = part.rpartition('_')
  downs, blocks = reference.GEN['n_enc_front_blk'], reference.GEN['n_enc_res_blk']
  if side.startswith('shared'):  # shared_encoder_0: residual blocks only
    layer = f'{side[7:10]}_shared.{which}'
  else:
    layer = f'{side[:6]}_{LETTER[which]}'
    kind, number = re.fullmatch(r'(\w+)_(\d)', inner[0]).groups()
    number = int(number)
    if kind == 'ResBlock' and side == 'encoders':
      number += downs
    elif kind == 'UpConv':
      number += blocks
    elif side == 'decoders' and kind == 'Conv':
      return transposed_leaf(f'{layer}.{blocks + downs - 1}', keys[-1], shape)
    layer = f'{layer}.{number}'
  second = inner[-1] == 'Conv_1' and (len(inner) > 1 or side.startswith('shared'))
  return leaf(f'{layer}.model.{3 if second else 0}', keys[-1], shape)


def test_the_generator_of_images_computes_what_the_authors_does():
  G = unit.Generator(reference.CHANNELS, features=reference.GEN['ch'], blocks=2)
  images = dict(zip('xy', reference.inputs(16), strict=True))
  variables = filled(shapes_of(G, *images.values()), image_leaf)
  z = applied(G, variables, images, method='encode', train=False)
  assert_close(np.concatenate([z['x'], z['y']]), 'image/z')
  for source in 'xy':
    made = applied(G, variables, z[source], method='decode', train=False)
    for to, a in made.items():
      assert_close(reference.some(a), f'image/{source}{to}')


def multi_scale_leaf(keys, shape):
  net, conv, kind = keys
  _, domain, scale = net.split('_')
  number = int(conv.removeprefix('Conv_'))
  inner = '' if number == reference.MULTI_SCALE['n_layer'] else '.model.0'
  return leaf(f'model_{2 ** int(scale)}_{LETTER[domain]}.{number}{inner}', kind, shape)


def shared_leaf(keys, shape):
  net, conv, kind = keys
  part = 'S' if net == 'core' else LETTER[net[-1]]
  number = int(conv.removeprefix('Conv_'))
  last = part == 'S' and number == reference.SHARED['n_shared_layer']
  return leaf(f'model_{part}.{number}{"" if last else ".model.0"}', kind, shape)


@pytest.mark.parametrize('name', ['multi_scale', 'shared'])
def test_the_discriminators_of_images_compute_what_the_authors_do(name):
  D, fill = {
    'multi_scale': (unit.MultiScaleDiscriminator(features=2, layers=3), multi_scale_leaf),
    'shared': (unit.SharedDiscriminator(features=2, private=2, shared=2), shared_leaf),
  }[name]
  images = reference.inputs(32)
  variables = filled(shapes_of(D, *images), fill)
  names = [f'{d}{i}' for d in 'xy' for i in range(3 if name == 'multi_scale' else 1)]
  for part, logits in zip(names, applied(D, variables, *images), strict=True):
    assert_close(np.ravel(logits), f'{name}/{part}')


# --- Digits ---------------------------------------------------------------------------------------

LETTERS = dict(x='a', y='b')
LAST = dict(mean='g_vae.en_mu', deviation='g_vae.en_sigma')


def digits_leaf(keys, shape):
  part, *inner, kind = keys
  side, _, which = part.rpartition('_')
  if part in LAST:
    return leaf(LAST[part], kind, shape)
  if side == 'heads':
    return transposed_leaf(f'de_conv4_{LETTERS[which]}', kind, shape)
  name = {
    'encoders': f'g_en_conv0_{LETTERS.get(which)}',
    'decoders': f'g_de_conv3_{LETTERS.get(which)}',
    'shared_encoder': f'g_en_conv{int(which) + 1 if which.isdigit() else ""}',
    'shared_decoder': f'g_de_conv{which}',
  }[side]
  # Convolution, batch norm, bias.
  number = 2 if not inner else 1 if inner == ['BatchNorm_0'] else 0
  return leaf(f'{name}.model.{number}', kind, shape)


@pytest.mark.parametrize('mode', ['eval', 'train'])
def test_the_generator_of_digits_computes_what_the_authors_does(mode):
  G = unit_digits.Generator(reference.CHANNELS, 32, features=reference.DIGITS_GEN)
  x, y = reference.inputs(32)
  variables = filled(shapes_of(G, x, y), digits_leaf)
  train = mode == 'train'
  codes = applied(G, variables, {'x': x, 'y': y}, method='encode', train=train)
  for i, part in enumerate(('mean', 'sd')):
    assert_close(np.concatenate([codes[d][i] for d in 'xy']), f'digits/{mode}/{part}')
  z = layers.interleave([mean + reference.DEVIATIONS * sd for mean, sd in codes.values()])
  made = applied(G, variables, z, method='decode', train=train)
  for to in 'xy':
    for source, rows in zip('xy', layers.deinterleave(made[to], 2), strict=True):
      assert_close(reference.some(rows), f'digits/{mode}/{source}{to}')


def digits_judge_leaf(keys, shape):
  part, kind = keys
  names = dict(end_x='conv0_a.0', end_y='conv0_b.0', source='conv4', classes='conv_cl')
  return leaf(names.get(part) or f'conv{part[-1]}.0', kind, shape)


def cogan_judge_leaf(keys, shape):
  part, kind = keys
  if part == 'act':
    return weight('prelu2.weight', (1,))[0]
  names = dict(end_x='conv0_a', end_y='conv0_b', second='conv1', third='conv2')
  names |= dict(source='conv3', classes='conv_cl')
  return leaf(names[part], kind, shape)


@pytest.mark.parametrize('name', ['digits', 'cogan'])
def test_the_discriminators_of_digits_compute_what_the_authors_do(name):
  D, fill, images = {
    'digits': (
      unit_digits.Discriminator(10, features=reference.DIGITS_DIS),
      digits_judge_leaf,
      reference.inputs(32),
    ),
    'cogan': (cogan.Discriminator(10), cogan_judge_leaf, reference.inputs(28, (1, 1))),
  }[name]
  variables = filled(shapes_of(D, *images), fill)
  want = np.subtract(*fixture()[f'{name}/logits'].T[::-1])
  both = applied(D, variables, *images)
  for domain, judged, logit in zip('xy', both, np.split(want, 2), strict=True):
    np.testing.assert_allclose(judged.logit, logit, **TOLERANCE)
    assert_close(judged.classes, f'{name}/{domain}_classes')
    wide = fixture()[f'{name}/{domain}_features']
    found = judged.features.reshape(3, -1, wide.shape[1]).sum(1)
    np.testing.assert_allclose(found, wide, **TOLERANCE)


def cogan_leaf(keys, shape):
  part, kind = keys
  number = part[-1]
  if part.startswith('PReLU'):
    return weight(f'prelu{number}.weight', (1,))[0]
  if part.startswith('BatchNorm'):
    return leaf(f'bn{number}', kind, shape)
  name = f'dconv4_{LETTERS[number]}' if part.startswith('last') else f'dconv{number}'
  return leaf(name, kind, shape)


@pytest.mark.parametrize('mode', ['eval', 'train'])
def test_the_generator_of_cogan_computes_what_the_authors_does(mode):
  G, z = cogan.Generator(), reference.latents()
  variables = filled(shapes_of(G, z, train=False), cogan_leaf)
  made = applied(G, variables, z, train=mode == 'train')
  for domain, images in made.items():
    assert_close((reference.some(images) + 1) / 2, f'cogan/{mode}/{domain}')  # theirs: [0, 1]


# --- Published counts -----------------------------------------------------------------------------


def test_nets_have_the_published_numbers_of_parameters():
  from gen_jax.contract import _count
  from gen_jax.nets import lenet

  rgb, rgb_32, grey, small = (
    jnp.zeros((1, s, s, c)) for s, c in ((64, 3), (32, 3), (32, 1), (28, 1))
  )
  for module, inputs, want in (
    (unit.Generator((3, 3)), (rgb, rgb), 18_017_286),
    (unit.MultiScaleDiscriminator(), (rgb, rgb), 9_308_934),
    (unit.SharedDiscriminator(), (rgb, rgb), 25_240_065),
    (unit_digits.Generator((3, 1), 32), (rgb_32, grey), 22_606_468),
    (unit_digits.Generator((1, 1), 32), (grey, grey), 22_601_474),
    (unit_digits.Discriminator(10), (rgb_32, grey), 4_332_812),
    (unit_digits.Discriminator(10), (grey, grey), 4_329_612),
    (cogan.Discriminator(10), (small, small), 432_603),
  ):
    assert _count(shapes_of(module, *inputs)['params']) == want
  z = jnp.zeros((1, 100))
  assert _count(shapes_of(cogan.Generator(), z, train=False)['params']) == 7_842_694
  assert _count(shapes_of(lenet.Classifier(10), small, train=False)['params']) == 431_080
