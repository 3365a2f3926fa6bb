"""Our group norm is Flax's, in another order of summation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.nets import layers


@pytest.mark.parametrize('groups', [1, 4, 16])
def test_group_norm_equals_flax_in_value_and_gradients(groups):
  x_key, s_key, b_key, g_key = jax.random.split(jax.random.key(0), 4)
  x = 3 + 2 * jax.random.normal(x_key, (2, 5, 4, 16))
  params = {
    'scale': jax.random.normal(s_key, (16,)),
    'bias': jax.random.normal(b_key, (16,)),
  }
  g = jax.random.normal(g_key, x.shape)

  def loss(module, params, x):
    return jnp.sum(module.apply({'params': params}, x) * g)

  ours, theirs = layers.GroupNorm(groups), nn.GroupNorm(groups)
  assert jax.tree.map(jnp.shape, ours.init(x_key, x)) == jax.tree.map(
    jnp.shape, theirs.init(x_key, x)
  )
  np.testing.assert_allclose(
    ours.apply({'params': params}, x), theirs.apply({'params': params}, x), atol=2e-5
  )
  for argument in (1, 2):
    a, b = (jax.grad(loss, argument)(module, params, x) for module in (ours, theirs))
    for one, two in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
      np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
