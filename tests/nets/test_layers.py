"""The layers against loops in numpy and closed forms."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.nets import layers
from gen_jax.ops import convolutions


def draw(*shape, seed=0):
  return jnp.float32(np.random.default_rng(seed).standard_normal(shape))


def test_upconv_is_pytorchs_conv_transpose():
  x, w, bias = draw(2, 3, 3, 3), draw(4, 4, 2, 3, seed=1), draw(2, seed=2)
  # torch.nn.ConvTranspose2d(3, 2, kernel_size=4, stride=2, padding=1) by its definition.
  full = np.zeros((2, 8, 8, 2))
  for i, j, k, l in itertools.product(range(3), range(3), range(4), range(4)):
    full[:, 2 * i + k, 2 * j + l] += np.asarray(x)[:, i, j] @ np.asarray(w)[k, l].T
  expected = full[:, 1:-1, 1:-1] + np.asarray(bias)
  found = layers.UpConv(2).apply({'params': {'kernel': w, 'bias': bias}}, x)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('kernel', 'stride', 'padding', 'extra'), [(3, 2, 1, 1), (3, 2, 1, 0), (4, 1, 0, 0), (6, 1, 1, 0)]
)
def test_upconv_with_pytorchs_padding_is_its_conv_transpose(kernel, stride, padding, extra):
  x, w = draw(2, 4, 3, 3), draw(kernel, kernel, 2, 3, seed=1)
  sizes = [(n - 1) * stride + kernel + extra for n in (4, 3)]
  full = np.zeros((2, *sizes, 2))
  for i, j, k, l in itertools.product(range(4), range(3), range(kernel), range(kernel)):
    full[:, stride * i + k, stride * j + l] += np.asarray(x)[:, i, j] @ np.asarray(w)[k, l].T
  height, width = (n - padding for n in sizes)
  expected = full[:, padding:height, padding:width]
  net = layers.UpConv(2, kernel, stride, bias=False, padding=padding, extra=extra)
  found = net.apply({'params': {'kernel': w}}, x)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_max_pool_2_has_the_largest_of_each_block():
  x = np.asarray(draw(2, 5, 6, 3))
  found = layers.max_pool_2(jnp.asarray(x))
  for i, j in itertools.product(range(2), range(3)):
    block = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
    np.testing.assert_array_equal(found[:, i, j], block.max((1, 2)))
  assert found.shape == (2, 2, 3, 3)


def test_interleaved_rows_of_an_example_stay_together():
  parts = [draw(3, 2, seed=i) for i in range(2)]
  whole = layers.interleave(parts)
  np.testing.assert_array_equal(whole[2:4], [parts[0][1], parts[1][1]])
  for part, again in zip(parts, layers.deinterleave(whole, 2), strict=True):
    np.testing.assert_array_equal(part, again)


def test_conv_adds_its_bias_and_can_go_without():
  x, w, bias = draw(2, 6, 6, 2), draw(3, 3, 2, 4, seed=1), draw(4, seed=2)
  found = layers.Conv(4, stride=2).apply({'params': {'kernel': w, 'bias': bias}}, x)
  expected = convolutions.conv(x, w, 2) + bias.reshape(1, 1, 1, 4)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  for module in (layers.Conv(4, bias=False), layers.UpConv(4, bias=False)):
    assert list(module.init(jax.random.key(0), x)['params']) == ['kernel']


def test_the_default_initialisers_keep_the_scale():
  x = draw(64, 8, 8, 32)
  for module in (layers.Conv(32, kernel=4, stride=2), layers.UpConv(32)):
    kernel = module.init(jax.random.key(0), x)['params']['kernel']
    np.testing.assert_allclose(kernel.std(), (4 * 4 * 32) ** -0.5, rtol=0.05)


# --- Noise ----------------------------------------------------------------------------------------


def test_dropout_keeps_the_mean():
  x = jnp.ones((100, 400))
  out = layers.Dropout(0.3).apply({}, x, train=True, rngs={'dropout': jax.random.key(0)})
  np.testing.assert_allclose(np.unique(out), [0, 1 / 0.7], rtol=1e-6)
  np.testing.assert_allclose((np.asarray(out) == 0).mean(), 0.3, atol=0.01)
  # Entries are dropped one by one, not whole rows or columns.
  np.testing.assert_allclose((np.asarray(out) == 0).mean(0), 0.3, atol=0.25)
  np.testing.assert_allclose((np.asarray(out) == 0).mean(1), 0.3, atol=0.12)


def test_dropout_does_nothing_in_sampling_or_at_rate_0():
  x = draw(3, 5)
  np.testing.assert_array_equal(layers.Dropout(0.9).apply({}, x, train=False), x)
  np.testing.assert_array_equal(layers.Dropout(0.0).apply({}, x, train=True), x)


def test_dropout_draws_the_same_mask_on_two_devices():
  key = jax.random.key(0)

  class Net(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
      return layers.Dropout(0.5, self.axis_name)(x, train=True)

  x = jnp.ones((6, 5))
  whole = Net().apply({}, x, rngs={'dropout': key})
  parts = jax.pmap(lambda x: Net('batch').apply({}, x, rngs={'dropout': key}), axis_name='batch')(
    x.reshape(2, 3, 5)
  )
  np.testing.assert_array_equal(parts.reshape(6, 5), whole)
  assert (whole[:3] != whole[3:]).any()


# --- Resolution, time -----------------------------------------------------------------------------


def test_mean_pool_and_upsample():
  x = draw(2, 4, 6, 3)
  pooled = np.zeros((2, 2, 3, 3))
  for i, j in itertools.product(range(2), range(3)):
    pooled[:, i, j] = np.asarray(x)[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2))
  np.testing.assert_allclose(layers.mean_pool(x), pooled, rtol=1e-5, atol=1e-6)
  expected = np.asarray(x).repeat(2, axis=1).repeat(2, axis=2)
  np.testing.assert_array_equal(convolutions.upsample(x), expected)


def test_the_time_embedding_has_the_published_values():
  e = layers.time_embedding(jnp.array([0, 1, 999]), 128)
  assert e.shape == (3, 128) and e.dtype == jnp.float32
  np.testing.assert_allclose(
    e[1, jnp.array([0, 1, 63, 64, 65])],
    [0.8414710, 0.7604387, 1.0e-4, 0.5403023, 0.6494097],
    rtol=2e-6,
  )
  np.testing.assert_array_equal(e[0], [0] * 64 + [1] * 64)
  np.testing.assert_allclose(e[2, 0], np.sin(999), atol=1e-4)


def test_the_time_embedding_of_improved_ddpm_has_the_published_values():
  e = layers.adm_time_embedding(jnp.array([0, 1]), 128)
  assert e.shape == (2, 128) and e.dtype == jnp.float32
  np.testing.assert_allclose(
    e[1, jnp.array([0, 1, 64, 65])], [0.5403023, 0.6479059, 0.8414710, 0.7617204], rtol=2e-6
  )
  np.testing.assert_array_equal(e[0], [1] * 64 + [0] * 64)


def test_fourier_features_are_fixed_sinusoids_of_random_frequencies():
  t = jnp.float32([0, 1e-4, -1e-4])
  e = layers.fourier_embedding(t, 4000)
  np.testing.assert_array_equal(e[0], [0] * 2000 + [1] * 2000)
  np.testing.assert_allclose(e[2], np.append(-e[1, :2000], e[1, 2000:]), rtol=1e-5)
  # sin(2 pi f t) = 2 pi f t for small t, with f from N(0, 16^2).
  np.testing.assert_allclose(e[1, :2000].std() / 2e-4 / np.pi, 16, rtol=0.05)
  np.testing.assert_array_equal(e, layers.fourier_embedding(t, 4000))


@pytest.mark.parametrize('taps', [(1, 1), (1, 3, 3, 1), (1, 2, 5, 3, 2, 1)])
def test_fir_resampling_is_that_of_its_definition(taps):
  x = draw(2, 6, 8, 3)
  k, pad = len(taps), len(taps) // 2 - 1
  f = np.outer(taps, taps) / sum(taps) ** 2
  padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  down = np.zeros((2, 3, 4, 3))
  for i, j in itertools.product(range(3), range(4)):
    patch = padded[:, 2 * i : 2 * i + k, 2 * j : 2 * j + k]
    down[:, i, j] = (patch * f[:, :, None]).sum((1, 2))
  np.testing.assert_allclose(layers.fir_downsample(x, taps), down, rtol=1e-4, atol=1e-5)
  # Every pixel spreads over k x k of twice as many, with sum 4.
  up = np.zeros((2, 12 + 2 * pad, 16 + 2 * pad, 3))
  for i, j in itertools.product(range(6), range(8)):
    up[:, 2 * i : 2 * i + k, 2 * j : 2 * j + k] += (
      4 * f[:, :, None] * np.asarray(x)[:, i, j, None, None]
    )
  up = up[:, pad : pad + 12, pad : pad + 16]
  np.testing.assert_allclose(layers.fir_upsample(x, taps), up, rtol=1e-4, atol=1e-5)


def test_flatten():
  x = draw(2, 3, 4)
  np.testing.assert_array_equal(layers.flatten(x), np.asarray(x).reshape(2, 12))


def test_maxout_is_the_largest_of_its_pieces():
  x = draw(4, 5)
  module = layers.Maxout(3, 2)
  variables = module.init(jax.random.key(0), x)
  w = np.asarray(variables['params']['Dense_0']['kernel']).reshape(5, 3, 2)
  b = np.asarray(draw(3, 2, seed=1))
  variables['params']['Dense_0']['bias'] = b.ravel()
  first, second = (np.asarray(x) @ w[:, :, i] + b[:, i] for i in range(2))
  found = module.apply(variables, x)
  np.testing.assert_allclose(found, np.maximum(first, second), rtol=1e-5)
  assert (found != first).any() and (found != second).any()


def test_linear_upsampling_keeps_the_corners():
  x = np.asarray(draw(2, 3, 4, 2))
  rows = [[0, 0.4, 0.8, 1.2, 1.6, 2], np.linspace(0, 3, 8)]
  expected = x
  for axis, where in enumerate(rows, start=1):
    old = np.arange(x.shape[axis])
    interpolate = functools.partial(lambda row, w, o: np.interp(w, o, row), w=where, o=old)
    expected = np.apply_along_axis(interpolate, axis, expected)
  np.testing.assert_allclose(layers.upsample_linear(jnp.asarray(x)), expected, atol=1e-6)
