"""BigGAN's parameter counts, initialisers and self-attention; see also test_gans_reference.py."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.errors import UserError
from gen_jax.nets import biggan
from gen_jax.ops.compiler import options_for_one_run

KEY, LABEL = jax.random.key(0), jnp.zeros((1,), jnp.int32)
LARGE_G = biggan.Generator(
  1000, (128, 128, 3), (1536, 1536, 768, 384, 192, 96), (64,), 128, hierarchical=True
)
LARGE_D = biggan.Discriminator(1000, (96, 192, 384, 768, 1536, 1536), 5, (64,))
# Trained parameters of the authors' code; of the large G the paper's 70.43 M.
COUNTS = {
  'cifar_g': (biggan.Generator(10), (128,), 4_304_387),
  'cifar_d': (biggan.Discriminator(10), (32, 32, 3), 4_207_361),
  'large_g': (LARGE_G, (120,), 70.43e6),
  'large_d': (LARGE_D, (128, 128, 3), 87_982_370),
}


def draw(*shape, seed=0):
  return np.float32(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize('name', COUNTS)
def test_parameters(name):
  net, shape, want = COUNTS[name]
  made = jax.eval_shape(lambda: net.init(KEY, jnp.zeros((1, *shape)), LABEL, train=False))
  found = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(made['params']))
  assert found == want if want != 70.43e6 else round(found, -4) == want


def test_attention_with_its_gate_closed_is_the_identity():
  x, net = draw(2, 4, 4, 8), biggan.SelfAttention()
  variables = jax.jit(functools.partial(net.init, train=False))(KEY, x)
  assert variables['params']['gate'] == 0
  apply = jax.jit(functools.partial(net.apply, train=False))
  np.testing.assert_array_equal(apply(variables, x), x)
  params = dict(variables['params'], gate=jnp.float32(1))
  opened = apply(dict(variables, params=params), x)
  assert np.abs(opened - x).max() > 0.01
  # Keys that are all alike have equal weights: every pixel attends to the mean of the pooled ones.
  params['theta'] = jax.tree.map(jnp.zeros_like, params['theta'])
  added = apply(dict(variables, params=params), x) - x
  np.testing.assert_allclose(added, np.broadcast_to(added[:, :1, :1], added.shape), atol=1e-6)


@pytest.mark.parametrize('init', ['N02', 'orthogonal'])
def test_initial_weights(init):
  shape = (8, 8, 1)
  net = biggan.Generator(3, shape, (64, 32), shared=16, init_name=init)
  initialise = jax.jit(
    functools.partial(net.init, train=False), compiler_options=options_for_one_run()
  )
  params = initialise(KEY, draw(1, 8), LABEL)['params']
  for kernel in (params['UpBlock_0']['conv1']['kernel'], params['dense']['kernel']):
    W = np.reshape(kernel, (-1, kernel.shape[-1]))
    W = W if len(W) >= W.shape[1] else W.T
    if init == 'orthogonal':
      np.testing.assert_allclose(W.T @ W, np.eye(W.shape[1]), atol=1e-4)
    else:
      assert W.std() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'hierarchical': True, 'shared': 4}, r'latent.dim=7, .* multiple of 3'),
    ({'hierarchical': True}, 'shared=None: .* shared embedding'),
    ({'init_name': 'xavier'}, "init_name='xavier': one of N02, orthogonal"),
    ({'shape': (30, 30, 1)}, r'data.shape=\(30, 30, 1\): .* multiples of 4'),
  ],
)
def test_what_cannot_be_built_is_one_line(changes, message):
  net = biggan.Generator(3, **({'shape': (8, 8, 1), 'features': (4, 4, 4)} | changes))
  with pytest.raises(UserError, match=message):
    jax.eval_shape(lambda: net.init(KEY, jnp.zeros((1, 7)), LABEL, train=False))
