"""SNGAN's parameter counts, its projection and its shapes; see also test_gans_reference.py."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.errors import UserError
from gen_jax.nets import layers, sngan

KEY = jax.random.key(0)


def draw(*shape, seed=0):
  return np.float32(np.random.default_rng(seed).standard_normal(shape))


def count(module, *inputs):
  variables = jax.eval_shape(lambda: module.init(KEY, *inputs, train=False))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))


# Trainable parameters of the authors' code.
@pytest.mark.parametrize(
  ('classes', 'g', 'd'), [(None, 4_276_739, 1_053_824), (10, 4_304_387, 1_055_104)]
)
def test_parameters_of_the_nets_for_cifar(classes, g, d):
  label = None if classes is None else jnp.zeros((2,), jnp.int32)
  assert count(sngan.Generator(classes), jnp.zeros((2, 128)), label) == g
  assert count(sngan.Discriminator(classes), jnp.zeros((2, 32, 32, 3)), label) == d


def test_shapes_for_28_pixels():
  G = sngan.Generator(10, shape=(28, 28, 1), features=(4, 4, 4))
  D = sngan.Discriminator(10, features=(4, 4))
  z, label = jnp.zeros((2, 5)), jnp.zeros((2,), jnp.int32)
  made = jax.eval_shape(lambda: G.init_with_output(KEY, z, label, train=False)[0])
  assert made.shape == (2, 28, 28, 1)
  scores = jax.eval_shape(
    lambda: D.init_with_output(KEY, jnp.zeros(made.shape), label, train=False)[0]
  )
  assert scores.shape == (2,)


def test_images_that_the_blocks_cannot_make_are_one_line():
  G = sngan.Generator(None, shape=(30, 30, 1), features=(4, 4, 4))
  with pytest.raises(UserError, match=r'config.data.shape=\(30, 30, 1\): .* multiples of 4'):
    jax.eval_shape(lambda: G.init(KEY, jnp.zeros((2, 5)), train=False))


def test_the_label_enters_d_by_an_inner_product_alone():
  D, x = sngan.Discriminator(3, features=(4, 4), downs=1), draw(3, 8, 8, 1)
  variables = D.init(KEY, x, jnp.zeros(3, jnp.int32), train=False)
  score = lambda label, params: D.apply(
    dict(variables, params=params), x, jnp.full(3, label), train=False
  )
  params = variables['params']
  none = dict(params, embed={'embedding': jnp.zeros((3, 4))})
  plain = score(0, none)
  np.testing.assert_array_equal(plain, score(2, none))
  # Rows e_0, e_1 and e_0 + e_1: the third class adds what the first two do.
  rows = jnp.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]])
  first, second, third = (score(c, dict(params, embed={'embedding': rows})) for c in range(3))
  assert np.abs(first - plain).max() > 0.01
  np.testing.assert_allclose(third - plain, first + second - 2 * plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('train', [True, False])
def test_batch_norm_with_a_scale_and_shift_of_zero_is_plain(train):
  x, zeros = draw(4, 3, 3, 5), jnp.zeros((4, 5))
  stats = {'mean': draw(5, seed=1), 'var': 1 + draw(5, seed=2) ** 2}
  ours, plain = (
    layers.ConditionalBatchNorm(1e-3),
    nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-3),
  )
  affine = {'scale': jnp.ones(5), 'bias': jnp.zeros(5)}
  want, wanted = plain.apply({'params': affine, 'batch_stats': stats}, x, mutable=['batch_stats'])
  variables = {'batch_stats': {'BatchNorm_0': stats}}
  out, updates = ours.apply(variables, x, (zeros, zeros), train=train, mutable=['batch_stats'])
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
  found = updates['batch_stats']['BatchNorm_0']
  jax.tree.map(np.testing.assert_array_equal, found, wanted['batch_stats'])
  scale, shift = draw(4, 5, seed=3), draw(4, 5, seed=4)
  out = ours.apply(variables, x, (scale, shift), train=train, mutable=['batch_stats'])[0]
  scale, shift = scale[:, None, None], shift[:, None, None]
  np.testing.assert_allclose(out, want * (1 + scale) + shift, rtol=1e-4, atol=1e-5)


def test_a_pooled_convolution_is_one_and_then_the_mean():
  x, bias = draw(2, 6, 8, 3), draw(5, seed=1)
  params = {'kernel': draw(3, 3, 3, 5, seed=2), 'bias': bias}
  want = layers.mean_pool(layers.Conv(5).apply({'params': params}, x))
  found = layers.PooledConv(5).apply({'params': params}, x)
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
