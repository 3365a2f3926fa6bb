"""UNIT's and CoGAN's nets with the authors' weights compute what the authors' nets do
(unit_reference.py).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import unit_reference as reference
from nets.gans_reference import average
from nets.test_gans_reference import filled
from nets.unets_reference import weight

from gen_jax.nets import cogan, layers, lenet, unit, unit_digits
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


def filled_as(name_of, tree):
  """`tree` of variables with the authors' values; `name_of` says what they call the owner of one of
  our leaves, given the names on the path to it.
  """
  return filled(tree, lambda keys, shape: leaf(name_of(keys[:-1]), keys[-1], shape))


def leaf(name, kind, shape):
  """The authors' parameter in our layout. The kernels of both kinds of convolutions are [k, k, c,
  d] in ours, [d, c, k, k] in theirs, c and d those of a convolution; but theirs have transposed
  ones of a single pixel.
  """
  if kind in ('mean', 'var'):
    return average(f'{name}.running_{kind}', *shape)
  if kind == 'a':
    return weight(f'{name}.weight', (1,))[0]
  if kind != 'kernel':
    return weight(f'{name}.bias', shape)
  height, width, c, d = shape
  if name.startswith(('decode', 'de_conv4')) and height == 1:
    return weight(f'{name}.weight', (c, d, 1, 1)).transpose(2, 3, 0, 1)
  return weight(f'{name}.weight', (d, c, height, width)).transpose(2, 3, 1, 0)


# --- Images ---------------------------------------------------------------------------------------


def image_name(keys):
  """Of a generator: theirs are numbered lists of layers."""
  side, _, which = keys[0].rpartition('_')
  second = 3 if keys[-1] == 'Conv_1' else 0
  if side.startswith('shared'):  # shared_encoder_0: residual blocks only
    return f'{side[7:10]}_shared.{which}.model.{second}'
  downs, blocks = reference.GEN['n_enc_front_blk'], reference.GEN['n_enc_res_blk']
  kind, _, number = keys[1].rpartition('_')
  number = int(number)
  if side == 'decoders' and kind == 'Conv':
    return f'decode_{LETTER[which]}.{blocks + downs - 1}'
  if (side, kind) == ('encoders', 'ResBlock'):
    number += downs
  elif kind == 'UpConv':
    number += blocks
  return f'{side[:6]}_{LETTER[which]}.{number}.model.{second if kind == "ResBlock" else 0}'


def test_the_generator_of_images_computes_what_the_authors_does():
  G = unit.Generator(reference.CHANNELS, features=reference.GEN['ch'], blocks=2)
  images = dict(zip('xy', reference.inputs(16), strict=True))
  variables = filled_as(image_name, shapes_of(G, *images.values()))
  z = applied(G, variables, images, method='encode', train=False)
  assert_close(np.concatenate([z['x'], z['y']]), 'image/z')
  for source in 'xy':
    made = applied(G, variables, z[source], method='decode', train=False)
    for to, a in made.items():
      assert_close(reference.some(a), f'image/{source}{to}')


def multi_scale_name(keys):
  net, conv = keys
  _, domain, scale = net.split('_')
  number = int(conv.removeprefix('Conv_'))
  inner = '' if number == reference.MULTI_SCALE['n_layer'] else '.model.0'
  return f'model_{2 ** int(scale)}_{LETTER[domain]}.{number}{inner}'


def shared_name(keys):
  net, conv = keys
  part = 'S' if net == 'core' else LETTER[net[-1]]
  number = int(conv.removeprefix('Conv_'))
  last = part == 'S' and number == reference.SHARED['n_shared_layer']
  return f'model_{part}.{number}{"" if last else ".model.0"}'


@pytest.mark.parametrize('name', ['multi_scale', 'shared'])
def test_the_discriminators_of_images_compute_what_the_authors_do(name):
  D, name_of = {
    'multi_scale': (unit.MultiScaleDiscriminator(features=2, layers=3), multi_scale_name),
    'shared': (unit.SharedDiscriminator(features=2, private=2, shared=2), shared_name),
  }[name]
  images = reference.inputs(32)
  variables = filled_as(name_of, shapes_of(D, *images))
  names = [f'{d}{i}' for d in 'xy' for i in range(3 if name == 'multi_scale' else 1)]
  for part, logits in zip(names, applied(D, variables, *images), strict=True):
    assert_close(np.ravel(logits), f'{name}/{part}')


# --- Digits ---------------------------------------------------------------------------------------

LETTERS = dict(x='a', y='b')
LAST = dict(mean='g_vae.en_mu', deviation='g_vae.en_sigma')


def digits_name(keys):
  part, *inner = keys
  side, _, which = part.rpartition('_')
  if part in LAST:
    return LAST[part]
  if side == 'heads':
    return f'de_conv4_{LETTERS[which]}'
  name = {
    'encoders': f'g_en_conv0_{LETTERS.get(which)}',
    'decoders': f'g_de_conv3_{LETTERS.get(which)}',
    'shared_encoder': f'g_en_conv{int(which) + 1 if which.isdigit() else ""}',
    'shared_decoder': f'g_de_conv{which}',
  }[side]
  # Convolution, batch norm, bias.
  return f'{name}.model.{2 if not inner else 1 if inner == ["BatchNorm_0"] else 0}'


@pytest.mark.parametrize('mode', ['eval', 'train'])
def test_the_generator_of_digits_computes_what_the_authors_does(mode):
  G = unit_digits.Generator(reference.CHANNELS, 32, features=reference.DIGITS_GEN)
  x, y = reference.inputs(32)
  variables = filled_as(digits_name, shapes_of(G, x, y))
  train = mode == 'train'
  codes = applied(G, variables, {'x': x, 'y': y}, method='encode', train=train)
  for i, part in enumerate(('mean', 'sd')):
    assert_close(np.concatenate([codes[d][i] for d in 'xy']), f'digits/{mode}/{part}')
  z = layers.interleave([mean + reference.DEVIATIONS * sd for mean, sd in codes.values()])
  made = applied(G, variables, z, method='decode', train=train)
  for to in 'xy':
    for source, rows in zip('xy', layers.deinterleave(made[to], 2), strict=True):
      assert_close(reference.some(rows), f'digits/{mode}/{source}{to}')


def digits_judge_name(keys):
  names = dict(end_x='conv0_a.0', end_y='conv0_b.0', source='conv4', classes='conv_cl')
  return names.get(keys[0]) or f'conv{keys[0][-1]}.0'


def cogan_judge_name(keys):
  names = dict(end_x='conv0_a', end_y='conv0_b', second='conv1', third='conv2', act='prelu2')
  return (names | dict(source='conv3', classes='conv_cl'))[keys[0]]


@pytest.mark.parametrize('name', ['digits', 'cogan'])
def test_the_discriminators_of_digits_compute_what_the_authors_do(name):
  D, name_of, images = {
    'digits': (
      unit_digits.Discriminator(10, features=reference.DIGITS_DIS),
      digits_judge_name,
      reference.inputs(32),
    ),
    'cogan': (cogan.Discriminator(10), cogan_judge_name, reference.inputs(28, (1, 1))),
  }[name]
  variables = filled_as(name_of, shapes_of(D, *images))
  want = np.subtract(*fixture()[f'{name}/logits'].T[::-1])
  both = applied(D, variables, *images)
  for domain, judged, logit in zip('xy', both, np.split(want, 2), strict=True):
    np.testing.assert_allclose(judged.logit, logit, **TOLERANCE)
    assert_close(judged.classes, f'{name}/{domain}_classes')
    wide = fixture()[f'{name}/{domain}_features']
    found = judged.features.reshape(3, -1, wide.shape[1]).sum(1)
    np.testing.assert_allclose(found, wide, **TOLERANCE)


def cogan_name(keys):
  kind, _, which = keys[0].rpartition('_')
  names = dict(PReLU='prelu', BatchNorm='bn', UpConv='dconv', last='dconv4_')
  return names[kind] + LETTERS.get(which, which)


@pytest.mark.parametrize('mode', ['eval', 'train'])
def test_the_generator_of_cogan_computes_what_the_authors_does(mode):
  G, z = cogan.Generator(), reference.latents()
  variables = filled_as(cogan_name, shapes_of(G, z, train=False))
  made = applied(G, variables, z, train=mode == 'train')
  for domain, images in made.items():
    assert_close((reference.some(images) + 1) / 2, f'cogan/{mode}/{domain}')  # theirs: [0, 1]


# --- Published counts -----------------------------------------------------------------------------


def test_nets_have_the_published_numbers_of_parameters():
  count = lambda *args, **how: sum(
    math.prod(x.shape) for x in jax.tree.leaves(shapes_of(*args, **how)['params'])
  )
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
    assert count(module, *inputs) == want
  z = jnp.zeros((1, 100))
  assert count(cogan.Generator(), z, train=False) == 7_842_694
  assert count(lenet.Classifier(10), small, train=False) == 431_080
