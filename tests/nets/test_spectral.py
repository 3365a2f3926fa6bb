"""Spectral normalisation against singular value decompositions and its closed-form gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.nets import layers
from gen_jax.nets.spectral import SpectralNorm, spectral_norm

KEY = jax.random.key(0)


def draw(*shape, seed=0):
  return np.float32(np.random.default_rng(seed).standard_normal(shape))


def converged(w, steps=100):
  """sigma and u after so many power iterations."""
  u = draw(w.shape[-1], seed=9)
  for _ in range(steps):
    sigma, u = spectral_norm(w, u)
  return sigma, u


def test_sigma_converges_to_the_largest_singular_value():
  sigma, _ = converged(jnp.array([[3.0, 0.0], [4.0, 5.0]]))
  assert float(sigma) == pytest.approx(6.7082039, rel=1e-6)
  w = draw(3, 3, 4, 5)
  sigma, u = converged(w)
  _, s, vt = np.linalg.svd(w.reshape(36, 5))
  np.testing.assert_allclose(sigma, s[0], rtol=1e-5)
  np.testing.assert_allclose(abs(u @ vt[0]), 1, rtol=1e-5)


def test_the_gradient_holds_the_singular_vectors_constant():
  """(1 / sigma) (G - <G, W / sigma> u v^T), also far from convergence."""
  w, G, u = draw(6, 4), draw(6, 4, seed=1), draw(4, seed=2)
  found = jax.grad(lambda w: jnp.sum(G * w / spectral_norm(w, u)[0]))(w)
  v = w @ u / np.linalg.norm(w @ u)
  next_u = v @ w / np.linalg.norm(v @ w)
  sigma = v @ w @ next_u
  want = (G - np.sum(G * w / sigma) * np.outer(v, next_u)) / sigma
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)


LAYERS = {
  'dense': (lambda: nn.Dense(5, name='layer'), (2, 4)),
  'conv': (lambda: layers.Conv(5, name='layer'), (2, 6, 6, 4)),
  'strided': (lambda: layers.Conv(5, kernel=4, stride=2, name='layer'), (2, 6, 6, 4)),
  'pooled': (lambda: layers.PooledConv(5, name='layer'), (2, 6, 6, 4)),
  'upsampled': (lambda: layers.UpsampledConv(5, name='layer'), (2, 6, 6, 4)),
}


class Net(nn.Module):
  """One layer with spectral norm, or without."""

  kind: str
  normed: bool = True

  @nn.compact
  def __call__(self, x, *, train):
    layer = LAYERS[self.kind][0]()
    return SpectralNorm(layer, name='sn')(x, train=train) if self.normed else layer(x)


@pytest.mark.parametrize('kind', LAYERS)
def test_a_layer_computes_with_its_kernel_over_sigma(kind):
  x = draw(*LAYERS[kind][1])
  net = Net(kind)
  variables = net.init(KEY, x, train=False)
  kernel = variables['params']['layer']['kernel']
  bias = draw(5, seed=3)
  u = converged(kernel)[1]
  variables = {
    'params': {'layer': {'kernel': kernel, 'bias': bias}},
    'batch_stats': {'sn': {'u': u, 'sigma': jnp.float32(1)}},
  }
  out, updates = net.apply(variables, x, train=True, mutable=['batch_stats'])
  sigma = np.linalg.svd(kernel.reshape(-1, 5))[1][0]
  params = {'layer': {'kernel': kernel / sigma, 'bias': bias}}
  plain = Net(kind, normed=False).apply({'params': params}, x, train=True)
  np.testing.assert_allclose(out, plain, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(updates['batch_stats']['sn']['sigma'], sigma, rtol=1e-5)


def test_only_training_moves_the_vectors():
  x, net = draw(2, 4), Net('dense')
  variables = net.init(KEY, x, train=False)
  out, updates = net.apply(variables, x, train=False, mutable=['batch_stats'])
  assert np.array_equal(updates['batch_stats']['sn']['u'], variables['batch_stats']['sn']['u'])
  in_training, updates = net.apply(variables, x, train=True, mutable=['batch_stats'])
  assert not np.array_equal(updates['batch_stats']['sn']['u'], variables['batch_stats']['sn']['u'])
  np.testing.assert_array_equal(out, in_training)  # both by an iteration from the same vector


def test_in_bfloat16_the_vectors_stay_float32():
  x, net = draw(2, 6, 6, 4), Net('conv')
  variables = net.init(KEY, x, train=False)
  x = jnp.asarray(x, jnp.bfloat16)
  params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), variables['params'])
  variables = dict(variables, params=params)
  out, updates = net.apply(variables, x, train=True, mutable=['batch_stats'])
  assert out.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype('float32')}


def test_initial_weights_are_those_of_the_layer():
  x = draw(2, 4)
  wanted = nn.initializers.normal(0.02)
  layer = nn.Dense(500, kernel_init=wanted)
  made = SpectralNorm(layer).init(KEY, x, train=False)
  kernels = [leaf for leaf in jax.tree.leaves(made['params']) if leaf.ndim > 1]
  assert [float(w.std()) for w in kernels] == pytest.approx([0.02], rel=0.1)


def test_weights_of_zero_stay_zero():
  variables = Net('dense').init(KEY, draw(2, 4), train=False)
  variables = {**variables, 'params': jax.tree.map(jnp.zeros_like, variables['params'])}
  out, _ = Net('dense').apply(variables, draw(2, 4), train=True, mutable=['batch_stats'])
  np.testing.assert_array_equal(out, 0)
