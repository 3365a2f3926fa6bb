"""Draws for a part of the batch are that part of the draws for all of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from children import QUICK

from gen_jax import draws

# As users compile: the quick form of the tests rounds the polynomial of `normal` otherwise.
DEFAULT = {'xla_cpu_use_fusion_emitters': True} if 'fusion_emitters' in QUICK else None

DRAWS = {
  'normal': lambda key, shape, *where: draws.normal(key, shape, *where),
  'uniform': lambda key, shape, *where: draws.uniform(key, shape, *where, low=-1.0),
  'integers': lambda key, shape, *where: draws.integers(key, shape, 0, 1000, *where),
  'bernoulli': lambda key, shape, *where: draws.bernoulli(key, 0.3, shape, *where),
}


def test_the_rows_of_each_device_are_rows_of_the_global_draw():
  assert jax.device_count() == 2
  key = jax.random.key(3)
  shape, halves = (6, 4, 3), {0: (3, 4, 3), 1: (6, 2, 3)}

  def per_device(_):
    return {
      (name, axis): draw(key, half, 'batch', axis)
      for name, draw in DRAWS.items()
      for axis, half in halves.items()
    }

  mapped = jax.pmap(per_device, axis_name='batch')
  parts = mapped.lower(jnp.zeros(2)).compile(DEFAULT)(jnp.zeros(2))
  assert len(parts) == 2 * len(DRAWS)
  for (name, axis), (first, second) in parts.items():
    together = np.concatenate([np.asarray(first), np.asarray(second)], axis)
    whole = jax.jit(DRAWS[name], static_argnums=1).lower(key, shape).compile(DEFAULT)(key)
    np.testing.assert_array_equal(together, whole, err_msg=f'{name} {axis}')
    assert (first != second).any()


def test_a_sharded_draw_under_jit_has_the_same_bits():
  mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))

  def draw_all(key):
    return {name: draw(key, (6, 4)) for name, draw in DRAWS.items()}

  key = jax.random.key(3)
  sharded, whole = jax.jit(draw_all, out_shardings=sharding)(key), draw_all(key)
  for name in DRAWS:
    assert len(sharded[name].sharding.device_set) == 2
    np.testing.assert_array_equal(sharded[name], whole[name], err_msg=name)


def test_the_distributions():
  key, n = jax.random.key(0), 40_000
  normal = draws.normal(key, (n,))
  np.testing.assert_allclose([normal.mean(), normal.var()], [0, 1], atol=0.03)
  uniform = draws.uniform(key, (n,), low=-1.0, high=3.0)
  assert uniform.min() >= -1 and uniform.max() < 3
  np.testing.assert_allclose([uniform.mean(), uniform.var()], [1, 16 / 12], atol=0.03)
  integers = draws.integers(key, (n,), 2, 6)
  assert integers.dtype == jnp.int32
  np.testing.assert_allclose(
    np.bincount(integers, minlength=7) / n, [0, 0, *[0.25] * 4, 0], atol=0.01
  )
  for p in (0, 0.3, 1):
    np.testing.assert_allclose(draws.bernoulli(key, p, (n,)).mean(), p, atol=0.01)
  assert normal.dtype == uniform.dtype == jnp.float32


def test_bernoulli_entries_are_independent_of_their_neighbours():
  # Neighbours share a random word; the last axis may be odd.
  a = np.float64(draws.bernoulli(jax.random.key(1), 0.3, (40_000, 3)))
  correlations = np.corrcoef(a.T)
  np.testing.assert_allclose(correlations, np.eye(3), atol=0.02)


def test_threefry_is_the_published_one_and_jaxs():
  # Counter and key 0: the known answer of Random123 (Salmon et al. 2011), file kat_vectors.
  zero = draws.threefry(jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32)), (1,))
  np.testing.assert_array_equal(np.ravel(zero), np.uint32([0x6B200159, 0x99BA4EFE]))
  key = jax.random.key(5)
  for shape in ((7,), (3, 4, 5)):
    x0, x1 = draws.threefry(key, shape)
    np.testing.assert_array_equal(x0 ^ x1, jax.random.bits(key, shape))


def test_a_key_used_twice_for_bernoulli_is_found():
  def twice(key):
    return draws.bernoulli(key, 0.5, (4,)), draws.bernoulli(key, 0.5, (4,))

  with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
    jax.jit(twice)(jax.random.key(0))
