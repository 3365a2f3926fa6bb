"""The U-Net of Improved DDPM and flow matching: sizes, initial values, attention.

test_unets_reference.py compares what it computes.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.errors import UserError
from gen_jax.nets.adm import ADM
from gen_jax.ops.compiler import options_for_one_run

FLOW = dict(multipliers=(2, 2, 2), blocks=4, attention=(16,), heads=1, conv_resample=False)
TINY = dict(features=8, multipliers=(1,), blocks=1, attention=(), groups=4, heads=2, dropout=0.0)


def abstract(module, x, t, label=None, h=None):
  return jax.eval_shape(
    lambda: module.init_with_output(jax.random.key(0), x, t, label, h, train=False)
  )


# Numbers of trainable parameters in the authors' code; a class costs 512.
@pytest.mark.parametrize(
  'attributes, channels, number',
  [
    ({}, 3, 52_542_979),
    (dict(out_channels=6), 6, 52_546_438),
    (dict(num_classes=10, drop_labels=True), 3, 52_542_979 + 11 * 512),
    (FLOW, 3, 55_676_419),
  ],
)
def test_number_of_parameters_and_shape(attributes, channels, number):
  x, label = jnp.zeros((2, 32, 32, 3)), jnp.zeros(2, jnp.int32)
  out, variables = abstract(
    ADM(**attributes), x, jnp.zeros(2), label if 'num_classes' in attributes else None
  )
  assert out.shape == (2, 32, 32, channels) and out.dtype == jnp.float32
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) == number


def test_attention_is_after_every_block_at_its_sizes():
  _, variables = abstract(ADM(), jnp.zeros((1, 32, 32, 3)), jnp.zeros(1))
  found = {name for name in variables['params'] if name.endswith('attention')}
  assert found == {
    *(f'down{level}_{i}_attention' for level in (1, 2) for i in range(3)),
    *(f'up{level}_{i}_attention' for level in (1, 2) for i in range(4)),
    'mid1_attention',
  }


def test_a_fresh_net_predicts_zeros_and_the_rest_starts_as_in_pytorch():
  x = np.random.default_rng(0).standard_normal((2, 4, 4, 1), np.float32)
  module = ADM(**{**TINY, 'features': 32, 'blocks': 0})
  run = functools.partial(module.init_with_output, train=False)
  run = jax.jit(run, compiler_options=options_for_one_run())
  out, variables = run(jax.random.key(0), x, np.float32([3, 700]))
  assert not np.any(out)
  params = variables['params']
  for layer in params.values():
    for name in {'conv2', 'out'} & set(layer):
      assert not np.any(layer[name]['kernel']) and not np.any(layer[name]['bias'])
    for name in {'conv1', 'emb', 'qkv', 'shortcut'} & set(layer):
      kernel, bias = layer[name]['kernel'], layer[name]['bias']
      bound = math.prod(kernel.shape[:-1]) ** -0.5  # uniform between +-1 / sqrt(fan_in)
      assert 0.8 * bound < np.abs(bias).max() <= bound
      assert 0.95 * bound < np.abs(kernel).max() <= bound


@pytest.mark.parametrize(
  'attributes, words',
  [
    (dict(groups=3), 'config.net.groups=3 does not divide the width 8'),
    (dict(heads=3), 'config.net.heads=3 does not divide the width 8'),
    (dict(blocks=-1), 'config.net.blocks=-1'),
  ],
)
def test_wrong_attributes_are_told_in_one_line(attributes, words):
  with pytest.raises(UserError, match=words) as raised:
    abstract(ADM(**{**TINY, **attributes}), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1))
  assert '\n' not in str(raised.value)
