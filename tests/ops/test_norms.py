"""Our group norm is Flax's, in another order of summation and with derivatives of its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.nets import layers


def inputs(dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 5)
  x = 3 + 2 * jax.random.normal(keys[0], (2, 5, 4, 16))
  scale, bias = (jax.random.normal(key, (16,)) for key in keys[1:3])
  scale_shift = jax.random.normal(keys[3], (2, 2, 16))
  return jax.tree.map(lambda a: a.astype(dtype), (dict(scale=scale, bias=bias), x, scale_shift))


def by_flax(groups, params, x, scale_shift=None, swish=False):
  y = nn.GroupNorm(groups).apply({'params': params}, x)
  if scale_shift is not None:
    scale, shift = scale_shift[:, :, None, None]
    y = y * (1 + scale) + shift
  return nn.swish(y) if swish else y


def by_us(groups, params, x, scale_shift=None, swish=False):
  return layers.GroupNorm(groups, swish=swish).apply({'params': params}, x, scale_shift)


def derivatives(f, *args):
  """Of a random sum of the result, for each argument, and of a random sum of these."""

  def at_random(tree):
    keys = iter(jax.random.split(jax.random.key(1), 9))
    return sum(jnp.sum(a * jax.random.normal(next(keys), a.shape)) for a in jax.tree.leaves(tree))

  every = tuple(range(len(args)))
  first = jax.grad(lambda *args: at_random(f(*args)), every)
  return first(*args), jax.grad(lambda *args: at_random(first(*args)), every)(*args)


# On one CPU device, passes through x are not_inlined.
@pytest.mark.parametrize('backend, devices', [('cpu', 1), ('cpu', 2), ('gpu', 1)])
@pytest.mark.parametrize('swish', [False, True])
@pytest.mark.parametrize('modulated', [False, True])
@pytest.mark.parametrize('groups', [1, 4, 16])
def test_group_norm_equals_flax_in_value_and_both_orders_of_derivatives(
  groups, modulated, swish, backend, devices, monkeypatch
):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  monkeypatch.setattr(jax, 'device_count', lambda: devices)
  args = inputs() if modulated else inputs()[:2]

  def values(norm):
    f = lambda *args: norm(groups, *args, swish=swish)
    return f(*args), derivatives(f, *args)

  found, expected = jax.tree.leaves(values(by_us)), jax.tree.leaves(values(by_flax))
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_accelerators_keep_forward_mode(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  args = inputs()
  found, expected = (
    jax.jvp(lambda *args, f=f: f(4, *args, swish=True), args, args) for f in (by_us, by_flax)
  )
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_parameters_are_those_of_flax():
  x = inputs()[1]
  ours, theirs = (
    norm.init(jax.random.key(0), x) for norm in (layers.GroupNorm(4), nn.GroupNorm(4))
  )
  assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, theirs)


def test_bfloat16_is_normalised_in_float32():
  """Of data far from 0, the variance would be lost in the squares."""
  params, x, scale_shift = inputs(jnp.bfloat16)
  args = params, x + 100, scale_shift
  found, gradients = jax.value_and_grad(
    lambda *args: by_us(4, *args, swish=True).astype(jnp.float32).sum(), (0, 1, 2)
  )(*args)
  exact = jax.tree.map(lambda a: a.astype(jnp.float32), args)
  expected, exact_gradients = jax.value_and_grad(
    lambda *args: by_flax(4, *args, swish=True).sum(), (0, 1, 2)
  )(*exact)
  np.testing.assert_allclose(found, expected, rtol=0.01)
  for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(exact_gradients), strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.02 * np.abs(b).max())
