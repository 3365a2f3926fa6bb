"""Our U-Nets with the authors' weights predict what the authors' nets do
(unets_reference.py)."""

import functools

import jax
import numpy as np
import pytest
from nets import unets_reference as reference

from gen_jax.nets.adm import ADM
from gen_jax.nets.song_unet import SongUNet
from gen_jax.ops.compiler import options_for_one_run

# Names of the authors' layers within blocks of EDM, and of Improved DDPM.
SONG_BLOCK = dict(
  norm1='norm0',
  conv1='conv0',
  emb='affine',
  norm2='norm1',
  conv2='conv1',
  shortcut='skip',
  attention_norm='norm2',
  attention_qkv='qkv',
  attention_out='proj',
)
ADM_BLOCK = dict(
  norm1='in_layers.0',
  conv1='in_layers.2',
  emb='emb_layers.1',
  norm2='out_layers.0',
  conv2='out_layers.3',
  shortcut='skip_connection',
)
ADM_ATTENTION = dict(norm='norm', qkv='qkv', out='proj_out')


def song_names(levels=2):
  """Ours -> theirs, for levels with one block each."""
  names = dict(emb1='map_layer0', emb2='map_layer1', augment='map_augment', conv_in='enc.8x8_conv')
  names |= {'class': 'map_label', 'norm_out': 'dec.8x8_aux_norm', 'conv_out': 'dec.8x8_aux_conv'}
  blocks = {}
  for level in range(levels):
    size = f'{8 // 2**level}x{8 // 2**level}'
    names[f'input{level}'] = f'enc.{size}_aux_residual'
    blocks |= {f'down{level}': f'enc.{size}_down', f'down{level}_0': f'enc.{size}_block0'}
    blocks |= {f'up{level}_{i}': f'dec.{size}_block{i}' for i in (0, 1)}
    blocks[f'up{level}'] = f'dec.{size}_up'
  blocks |= dict(mid1=f'dec.{size}_in0', mid2=f'dec.{size}_in1')
  for block, theirs in blocks.items():
    names |= {f'{block}.{a}': f'{theirs}.{b}' for a, b in SONG_BLOCK.items()}
  return names


def adm_names():
  names = {
    **dict(emb1='time_embed.0', emb2='time_embed.2', conv_in='input_blocks.0.0'),
    **{'class': 'label_emb', 'norm_out': 'out.0', 'conv_out': 'out.2'},
    **dict(down1='input_blocks.2.0.op', up1='output_blocks.1.2.conv'),
  }
  blocks = dict(down0_0='input_blocks.1.0', down1_0='input_blocks.3.0')
  blocks |= dict(mid1='middle_block.0', mid2='middle_block.2')
  blocks |= {f'up{1 - i // 2}_{i % 2}': f'output_blocks.{i}.0' for i in range(4)}
  for block, theirs in blocks.items():
    names |= {f'{block}.{a}': f'{theirs}.{b}' for a, b in ADM_BLOCK.items()}
    after = f'{theirs[:-1]}1'
    names |= {f'{block}_attention.{a}': f'{after}.{b}' for a, b in ADM_ATTENTION.items()}
  return names


def weights(shapes, names, conv1d, qkv_axes):
  """Our parameters of `shapes` with the authors' values.

  Args:
    names: of layers, ours -> theirs.
    conv1d: theirs are 1x1 convolutions over one axis in attention; those of EDM over two.
    qkv_axes: the order in their output of q, k and v, of the heads, and of channels.
  """

  def one(path, leaf):
    *layer, kind = (part.key for part in path)
    layer = '.'.join(layer)
    name = names[layer] + ('.bias' if kind == 'bias' else '.weight')
    if kind == 'embedding':
      return reference.weight(name, leaf.shape)
    if kind != 'kernel':
      value = reference.weight(name, leaf.shape)
    else:
      attention = 'attention' in layer
      one_by_one = attention or layer.endswith('shortcut')
      sizes = (1,) * (1 if attention and conv1d else 2) if one_by_one else leaf.shape[:-2]
      value = reference.weight(name, (leaf.shape[-1], leaf.shape[-2], *sizes))
      value = value.reshape(*value.shape[:2], *leaf.shape[:-2])
      value = np.moveaxis(value, (0, 1), (-1, -2))
    if 'qkv' in layer:
      heads = 2 if conv1d else 1
      lengths = {'qkv': 3, 'heads': heads, 'channels': leaf.shape[-1] // (3 * heads)}
      value = value.reshape(*value.shape[:-1], *(lengths[axis] for axis in qkv_axes))
      ours = [qkv_axes.index(axis) - 3 for axis in ('qkv', 'heads', 'channels')]
      value = np.moveaxis(value, ours, (-3, -2, -1)).reshape(leaf.shape)
    assert value.shape == leaf.shape
    return value

  return jax.tree.map_with_path(one, shapes)


SONG = functools.partial(
  SongUNet, features=8, multipliers=(1, 2), blocks=1, attention=(4,), augment_dim=9
)
ADM_2 = functools.partial(ADM, 32, blocks=1, attention=(4,), heads=2, out_channels=6)
SONG_WEIGHTS = (song_names(), False, ('channels', 'qkv', 'heads'))
CASES = {
  'ddpmpp': (SONG(num_classes=3), ('label', 'augment'), *SONG_WEIGHTS),
  'ncsnpp': (
    SONG(
      multipliers=(1, 2, 2),
      embedding='fourier',
      noise_width=2,
      residual_input=True,
      taps=(1, 3, 3, 1),
    ),
    ('augment',),
    song_names(levels=3),
    *SONG_WEIGHTS[1:],
  ),
  'mean_flow': (
    SONG(noise_width=2, taps=(1, 3, 3, 1)),
    ('augment', 'h'),
    song_names(),
    False,
    ('qkv', 'heads', 'channels'),
  ),
  'improved_ddpm': (
    ADM_2(multipliers=(1, 2), num_classes=3),
    ('label',),
    adm_names(),
    True,
    ('heads', 'qkv', 'channels'),
  ),
  'flow_matching': (
    ADM_2(multipliers=(2, 1), conv_resample=False),
    (),
    adm_names(),
    True,
    ('qkv', 'heads', 'channels'),
  ),
}


QUICK = ('ddpmpp', 'ncsnpp', 'improved_ddpm')


@pytest.mark.parametrize(
  'name', [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in CASES]
)
def test_predictions_are_the_authors(name):
  module, more, *mapping = CASES[name]
  given = reference.inputs()
  args, more = (given['x'], given['t']), {key: given[key] for key in more}
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **more, train=False))
  params = weights(shapes['params'], *mapping)

  @functools.partial(jax.jit, compiler_options=options_for_one_run())
  def found(params):
    return module.apply({'params': params}, *args, **more, train=False)

  with np.load(reference.FIXTURE) as expected:
    np.testing.assert_allclose(found(params), expected[name], rtol=1e-3, atol=2e-5)
