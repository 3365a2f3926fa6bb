"""WGAN: clipping, the schedule of critic updates, and the estimate, against values by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import config as configs
from gen_jax.nets import wgan as nets
from gen_jax.systems import wgan


class Point(nn.Module):
  """A generator that knows one number."""

  @nn.compact
  def __call__(self, z, *, train):
    return jnp.broadcast_to(self.param('c', lambda _: jnp.array([0.25])), (len(z), 1))


class Line(nn.Module):
  """A critic D(x) = s x."""

  @nn.compact
  def __call__(self, x, *, train):
    return x[:, 0] * self.param('s', lambda _: jnp.array(0.5))


def make_config(**loss):
  return configs.make(
    'wgan',
    {
      'data.shape': (1,),
      'generator': dict(name=Point),
      'critic': dict(name=Line),
      'latent.dim': 1,
      'loss': dict(clip=0.01) | loss,
      'optim.G': dict(name='sgd', lr=0.1),
      'optim.D': dict(name='sgd', lr=0.1),
    },
  )


def test_critic_updates_are_many_at_the_start_and_now_and_then():
  config = make_config(n_critic=5, n_critic_start=100, start_steps=25, start_every=500)
  counts = {step: wgan.minibatches(config, step) for step in (0, 24, 25, 499, 500, 501, 1000)}
  assert counts == {0: 100, 24: 100, 25: 5, 499: 5, 500: 100, 501: 5, 1000: 100}


@pytest.mark.parametrize('k', [1, 3])
def test_weights_are_clipped_before_each_update_of_the_critic_and_g_sees_them_unclipped(k):
  config = make_config()
  batch = {'image': jnp.ones((k, 8, 1))}
  state = wgan.init_state(jax.random.key(0), batch, config=config)
  step = jax.jit(functools.partial(wgan.train_step, config=config))
  new, metrics = step(state, batch, jax.random.key(1))
  # s = 0.5 is clipped to 0.01; each update adds lr (E x - E G(z)) = 0.1 (1 - 0.25), and is clipped
  # again before the next one, but not after the last.
  s = 0.01 + 0.075
  np.testing.assert_allclose(new.D.params['s'], s, rtol=1e-5)
  np.testing.assert_allclose(metrics['d/wasserstein'], 0.01 * 0.75, rtol=1e-5)
  np.testing.assert_allclose(metrics['d/loss'], -0.01 * 0.75, rtol=1e-5)
  # G descends -E D(G(z)) = -s c.
  np.testing.assert_allclose(new.G.params['c'], 0.25 + 0.1 * s, rtol=1e-5)
  np.testing.assert_allclose(metrics['g/loss'], -s * 0.25, rtol=1e-5)


def test_the_nets_of_the_paper_have_their_numbers_of_parameters():
  # G: 100 512 16 + (512 256 + 256 128 + 128 64 + 64 3) 16 weights and 2 (512 + 256 + 128 + 64) of
  # batch norm; D: (3 64 + 64 128 + 128 256 + 256 512 + 512) 16 and 2 (128 + 256 + 512).
  for net, x, count in (
    (nets.Generator(), jnp.zeros((1, 100)), 3_576_704),
    (nets.Critic(), jnp.zeros((1, 64, 64, 3)), 2_765_568),
  ):
    variables = jax.eval_shape(functools.partial(net.init, train=True), jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == count


def test_batch_norm_of_the_critic_is_clipped_too():
  config = configs.make(
    'wgan',
    {
      'data.shape': (16, 16, 1),
      'generator': dict(name='wgan.Generator', features=(8, 4)),
      'critic': dict(name='wgan.Critic', features=(4, 8)),
      'latent.dim': 3,
      'optim.G': dict(name='rmsprop', lr=5e-5),
      'optim.D': dict(name='rmsprop', lr=5e-5),
    },
  )
  batch = {'image': jax.random.normal(jax.random.key(2), (1, 4, 16, 16, 1))}
  state = wgan.init_state(jax.random.key(0), batch, config=config)
  assert max(float(jnp.abs(w).max()) for w in jax.tree.leaves(state.D.params)) > 0.9  # gamma
  new, _ = wgan.train_step(state, batch, jax.random.key(1), config=config)
  # RMSProp's first step is lr / sqrt(1 - decay) = 10 lr at most.
  largest = max(float(jnp.abs(w).max()) for w in jax.tree.leaves(new.D.params))
  assert 0.01 <= largest <= 0.01 + 10 * 5e-5 + 1e-7
