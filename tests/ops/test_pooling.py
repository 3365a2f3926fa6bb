"""Pooling over 3x3 windows against Flax's, on CPU and as on an accelerator."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.ops import pooling


@pytest.fixture(params=['cpu', 'gpu'])
def backend(request, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: request.param)
  return request.param


@pytest.fixture
def x():
  return jnp.float32(np.random.default_rng(0).standard_normal((2, 7, 6, 3)))


@pytest.mark.parametrize('stride, padding', [(1, 0), (2, 0), (1, 1), (2, 1)])
def test_max_pool_is_flax(stride, padding, backend, x):
  expected = nn.max_pool(x, (3, 3), (stride, stride), ((padding, padding),) * 2)
  np.testing.assert_array_equal(pooling.max_pool(x, stride, padding), expected)


def test_average_pool_counts_what_lies_inside(backend, x):
  expected = nn.avg_pool(x, (3, 3), padding='SAME', count_include_pad=False)
  np.testing.assert_allclose(pooling.average_pool(x), expected, atol=1e-6)
  np.testing.assert_allclose(pooling.average_pool(x)[:, 0, 0], x[:, :2, :2].mean((1, 2)), atol=1e-6)


def test_accelerators_pool_by_one_operation(monkeypatch, x):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  for pool in (pooling.average_pool, pooling.max_pool):
    assert 'reduce_window' in jax.jit(pool).lower(x).as_text()
