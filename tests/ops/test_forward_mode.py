"""Derivatives in forward mode within `ops.forward_mode`, and gradients of functions with them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import ops
from gen_jax.nets import adm, layers, song_unet, unet


class Parts(nn.Module):
  """Every layer that has derivatives of its own on CPU."""

  @nn.compact
  def __call__(self, x, t, label=None, h=None, *, train):
    x = layers.Conv(8)(x) + t[:, None, None, None] + h[:, None, None, None] ** 2
    x = layers.GroupNorm(2, swish=True)(layers.Conv(8, stride=2)(x))
    return layers.UpsampledConv(1)(x) + layers.UpConv(1)(x)


TINY = dict(features=8, multipliers=(1, 2), blocks=1, attention=(2,), dropout=0.0)
NETS = {
  'unet': unet.UNet(**TINY, groups=4),
  'song_unet': song_unet.SongUNet(**TINY, taps=(1, 3, 3, 1), residual_input=True, remat=True),
  'adm': adm.ADM(**TINY, groups=4, heads=2),
}


def draw(*shape, seed=0):
  return jnp.float32(np.random.default_rng(seed).standard_normal(shape))


def by_two_transpositions(f, at, along):
  """f and its directional derivative: the derivative of u -> u J, which is linear, transposed."""
  y, pull_back = jax.vjp(f, *at)
  _, push = jax.vjp(pull_back, jnp.zeros_like(y))
  return y, push(along)[0]


@pytest.mark.parametrize(
  'name', ['parts', *(pytest.param(name, marks=pytest.mark.slow) for name in NETS)]
)
def test_jvp_and_the_gradient_of_a_loss_with_it_equal_those_of_reverse_mode(name):
  net, x, t = NETS.get(name, Parts()), draw(2, 4, 4, 1), jnp.array([0.2, 0.9])
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), x, t, h=t, train=False))
  params = jax.tree.map(lambda p: 0.3 * draw(*p.shape, seed=p.size), shapes)
  along = (draw(2, 4, 4, 1, seed=1), jnp.ones(2), jnp.ones(2))

  def loss(params, derivative):  # of MeanFlow
    f = lambda x, t, h: net.apply(params, x, t, h=h, train=True)
    u, du = derivative(f, (x, t, t / 2), along)
    target = jax.lax.stop_gradient(along[0] - (t / 2)[:, None, None, None] * du)
    return ((u - target) ** 2).mean(), (u, du)

  @jax.jit
  def found(params):
    with ops.forward_mode():
      return jax.value_and_grad(loss, has_aux=True)(params, jax.jvp)

  @jax.jit
  def expected(params):
    return jax.value_and_grad(loss, has_aux=True)(params, by_two_transpositions)

  for a, b in zip(*map(jax.tree.leaves, (found(params), expected(params))), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max() + 1e-6)
  assert not ops.plain() or jax.default_backend() != 'cpu'


def test_the_context_ends_with_an_error_too():
  before = ops.plain()
  with pytest.raises(KeyError), ops.forward_mode():
    assert ops.plain()
    raise KeyError
  assert ops.plain() == before
