"""DDPM++, NCSN++ and the net of MeanFlow: sizes, initial values, and what every row depends on."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.errors import UserError
from gen_jax.nets.song_unet import SongUNet

NCSNPP = dict(embedding='fourier', noise_width=2, residual_input=True, taps=(1, 3, 3, 1))
TINY = dict(features=8, multipliers=(1,), blocks=1, attention=(), dropout=0.0)


def draw(*shape, seed=0):
  return np.float32(np.random.default_rng(seed).standard_normal(shape))


def init(module, x, *inputs, **more):
  return jax.eval_shape(
    lambda: module.init_with_output(jax.random.key(0), x, *inputs, **more, train=False)
  )


def awake(module, *inputs, **more):
  """Random parameters, none of them almost zero."""
  shapes = init(module, *inputs, **more)[1]['params']
  return jax.tree.map(lambda p: 0.3 * draw(*p.shape, seed=p.size), shapes)


# Numbers of trainable parameters in the authors' code.
@pytest.mark.parametrize(
  'attributes, labels, h, number',
  [
    (dict(augment_dim=9), False, False, 55_733_891),
    (dict(augment_dim=9, num_classes=10), True, False, 55_735_299),
    (dict(augment_dim=9, **NCSNPP), False, False, 56_397_827),
    (dict(multipliers=(1, 2, 2, 2)), False, False, 61_804_419),
    (dict(noise_width=2, taps=(1, 3, 3, 1), augment_dim=6), False, True, 55_932_419),  # MeanFlow
  ],
  ids=[
    'ddpmpp',
    'ddpmpp_10',
    'ncsnpp',
    'song_ddpmpp',
    'mean_flow',
  ],
)
def test_number_of_parameters_and_shape(attributes, labels, h, number):
  x, t = jnp.zeros((2, 32, 32, 3)), jnp.zeros(2)
  label = jnp.zeros(2, jnp.int32) if labels else None
  out, variables = init(SongUNet(**attributes), x, t, label, h=t if h else None)
  assert out.shape == x.shape and out.dtype == jnp.float32
  assert set(variables) == {'params'}
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) == number


def test_attention_is_after_every_block_down_and_once_per_level_up():
  _, variables = init(SongUNet(), jnp.zeros((1, 32, 32, 3)), jnp.zeros(1))
  found = {name for name, layer in variables['params'].items() if 'attention_qkv' in layer}
  assert found == {*(f'down1_{i}' for i in range(4)), 'mid1', 'up1_4'}


def test_the_null_label_and_the_learned_variance_cost_their_rows():
  x, t, label = jnp.zeros((2, 4, 4, 3)), jnp.zeros(2), jnp.zeros(2, jnp.int32)
  out, variables = init(
    SongUNet(**TINY, num_classes=10, drop_labels=True, out_channels=6), x, t, label
  )
  assert out.shape == (2, 4, 4, 6)
  assert variables['params']['class']['kernel'].shape == (11, 8)


def test_initial_values():
  module = SongUNet(64, (1,), blocks=1, attention=(), dropout=0.0, num_classes=10)
  x, label = draw(2, 4, 4, 1), np.array([1, 2])
  run = jax.jit(functools.partial(module.init_with_output, train=False))
  out, variables = run(jax.random.key(0), x, np.float32([0, 1]), label)
  assert 0 < np.abs(out).max() < 1e-3  # a fresh net predicts nothing
  params = variables['params']
  for layer in params.values():
    if 'conv2' in layer:
      assert np.abs(layer['conv2']['kernel']).max() < 1e-5
      # Xavier uniform, of variance 2 / (fan_in + fan_out).
      fans = sum(layer['conv1']['kernel'].shape[2:]) * 9
      np.testing.assert_allclose(layer['conv1']['kernel'].var(), 2 / fans, rtol=0.1)
    if 'attention_qkv' in layer:
      kernel = layer['attention_qkv']['kernel']
      np.testing.assert_allclose(kernel.var(), 0.2 * 2 / sum(kernel.shape), rtol=0.1)
      assert np.abs(layer['attention_out']['kernel']).max() < 1e-4
  biases = [p for path, p in jax.tree.leaves_with_path(params) if path[-1].key == 'bias']
  assert biases and not any(map(np.any, biases))


def test_a_row_depends_on_its_image_noise_label_augmentation_and_interval():
  module = SongUNet(**TINY, num_classes=3, drop_labels=True, augment_dim=2)
  x, t, label = draw(2, 4, 4, 1), np.float32([0.3, 0.7]), np.array([0, 2])
  augment, h = draw(2, 2), np.float32([0.1, 0.2])
  params = awake(module, x, t, label, augment, h)
  run = jax.jit(lambda *args: module.apply({'params': params}, *args, train=False))
  out = np.asarray(run(x, t, label, augment, h))
  first = np.float32([1, 0])
  for changed in (
    (x + first.reshape(2, 1, 1, 1), t, label, augment, h),
    (x, t + first, label, augment, h),
    (x, t, np.array([3, 2]), augment, h),
    (x, t, label, augment + first[:, None], h),
    (x, t, label, augment, h + first),
  ):
    other = np.asarray(run(*changed))
    assert np.abs(other[0] - out[0]).max() > 1e-4
    np.testing.assert_allclose(other[1], out[1], rtol=1e-6, err_msg='rows do not meet')
  plain = module.apply({'params': params}, x, t, label, h=h, train=False)
  zeros = run(x, t, label, 0 * augment, h)
  np.testing.assert_allclose(plain, zeros, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  'attributes, words',
  [
    (dict(embedding='cosine'), "config.net.embedding='cosine'"),
    (dict(taps=(1, 2, 1)), r'config.net.taps=\(1, 2, 1\)'),
    (dict(features=18), 'config.net.features'),
    (dict(features=2, noise_width=2), 'config.net.features'),
    (dict(attention=(3,)), r'config.net.attention=\(3,\)'),
  ],
)
def test_wrong_attributes_are_told_in_one_line(attributes, words):
  module = SongUNet(**{**TINY, **attributes})
  with pytest.raises(UserError, match=words) as raised:
    init(module, jnp.zeros((1, 4, 4, 1)), jnp.zeros(1))
  assert '\n' not in str(raised.value)
