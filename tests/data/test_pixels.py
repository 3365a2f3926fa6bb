"""The map from levels to [-1, 1] and its inverse."""

import jax
import numpy as np
import pytest

from gen_jax.data import from_pixels, to_pixels

LEVELS = np.arange(256, dtype=np.uint8)


def test_none_is_symmetric_and_reaches_both_ends():
  x = np.asarray(from_pixels(LEVELS, 'none'))
  assert x.dtype == np.float32
  np.testing.assert_allclose(x, LEVELS / 127.5 - 1, atol=1e-7)
  assert x[0] == -1 and x[255] == 1


def test_uniform_fills_256_equal_bins():
  for noise in (0.0, 0.25, 0.5, 0.75):
    x = from_pixels(LEVELS, 'uniform', np.float32(noise))
    np.testing.assert_array_equal(x, 2 * (LEVELS + noise) / 256 - 1)
  np.testing.assert_array_equal(from_pixels(LEVELS, 'uniform'), (2.0 * LEVELS + 1) / 256 - 1)


@pytest.mark.parametrize('jitted', [False, True])
def test_no_level_is_lost_on_the_way(jitted):
  run = jax.jit(from_pixels, static_argnums=1) if jitted else from_pixels
  np.testing.assert_array_equal(to_pixels(run(LEVELS, 'none'), 'none'), LEVELS)
  np.testing.assert_array_equal(to_pixels(run(LEVELS, 'uniform'), 'uniform'), LEVELS)
  # JAX draws multiples of 2^-23 below 1: all near the ends, others at random.
  edge = np.arange(64) * 2**-23
  u = np.concatenate([edge, 1 - 2**-23 - edge, np.random.default_rng(0).uniform(size=512), [1.0]])
  levels, noise = np.broadcast_arrays(LEVELS[:, None], np.float32(u)[None])
  x = np.asarray(run(levels, 'uniform', noise))
  assert x.dtype == np.float32 and x.min() == -1 and x.max() < 1
  np.testing.assert_array_equal(to_pixels(x, 'uniform'), levels)


def test_the_lower_edge_belongs_to_a_bin_and_the_rest_is_clipped():
  x = [0.0, -1.0, 1.0, -3.0, np.inf, 0.5 / 127.5 - 1, 0.4999 / 127.5 - 1, 1 - 0.51 / 127.5]
  assert to_pixels(x, 'none').tolist() == [128, 0, 255, 0, 255, 1, 0, 254]
  x = [0.0, -1.0, 1.0, -3.0, np.inf, 2 / 256 - 1, 1.999 / 256 - 1, 1 - 2.01 / 256]
  assert to_pixels(x, 'uniform').tolist() == [128, 0, 255, 0, 255, 1, 0, 254]


def test_nan_is_refused():
  x = np.zeros((3, 8, 8, 1))
  x[1, 0, 0] = np.nan
  with pytest.raises(ValueError, match='1 of 192 values are NaN'):
    to_pixels(x, 'none')
