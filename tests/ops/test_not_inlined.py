"""A function that is not inlined is computed once for all its readers, with the same values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.ops.not_inlined import not_inlined


def polynomial(x):
  return sum(x * (x + i) for i in range(9))


def read_thrice(f):
  def g(x):
    y = f(x)
    return jnp.where(y > 0, y, 0.2 * y), y * x, jnp.where(y > 0, x, 0)

  return g


def products(f, x):
  """How many products the compiled program computes for every entry of x."""
  return jax.jit(read_thrice(f)).lower(x).compile().as_text().count(' multiply(')


@pytest.mark.parametrize('devices', [1, 2])
def test_on_one_device_what_is_outlined_is_computed_once(devices, monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: devices)
  x = jax.random.normal(jax.random.key(0), (64, 48))
  once = not_inlined(polynomial)
  assert products(polynomial, x) == 3 * 9 + 2  # XLA computes it in each of the three
  assert products(once, x) == (9 + 2 if devices == 1 else 3 * 9 + 2)
  expected, found = jax.jit(read_thrice(polynomial))(x), jax.jit(read_thrice(once))(x)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_arguments_may_be_static(monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  power = not_inlined(lambda x, n: x**n, static_argnums=1)
  np.testing.assert_array_equal(power(jnp.arange(4.0), 2), [0, 1, 4, 9])
