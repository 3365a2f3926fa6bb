"""The gradient penalty where it is known exactly, and the step against one done by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from gen_jax.errors import UserError
from gen_jax.systems import wgan_gp

ADAM = dict(
  name='adam',
  lr=0.05,
  b1=0.5,
  b2=0.9,
  eps=1e-8,
  schedule='constant',
  warmup_steps=0,
  l2=0.0,
  clip_norm=None,
)

# Compiled once for all calls with equal configs.
init_state = jax.jit(wgan_gp.init_state, static_argnames='config')
train_step = jax.jit(wgan_gp.train_step, static_argnames='config')


class Point(nn.Module):
  """A generator that knows one point only; it records how many latents it saw last."""

  shape: tuple = (2,)

  @nn.compact
  def __call__(self, z, *, train):
    size = int(np.prod(self.shape))
    c = self.param('c', lambda _: jnp.full(self.shape, size**-0.5))
    rows = self.variable('batch_stats', 'rows', lambda: jnp.zeros((), jnp.int32))
    if train:
      rows.value = jnp.int32(len(z))
    return jnp.broadcast_to(c[None], (len(z), *self.shape))


class Linear(nn.Module):
  """A critic w x."""

  @nn.compact
  def __call__(self, x, *, train):
    return x @ self.param('w', lambda _: jnp.array([0.3, -0.7]))


class Quadratic(nn.Module):
  """A critic s |x|^2 / 2, whose gradient is s x."""

  @nn.compact
  def __call__(self, x, *, train):
    return 0.5 * self.param('s', nn.initializers.ones, ()) * (x.reshape(len(x), -1) ** 2).sum(1)


def make_config(**changes):
  config = ConfigDict(
    dict(
      precision='float32',
      data=dict(shape=(2,), num_classes=None),
      generator=dict(name=Point),
      critic=dict(name=Linear),
      latent=dict(dim=2, distribution='normal'),
      loss=dict(penalty=10.0, n_critic=2, g_batch=1),
      optim=dict(G=dict(ADAM), D=dict(ADAM)),
      train=dict(accumulate=1),
    )
  )
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return FrozenConfigDict(config)


def draw(*shape, seed=0):
  return np.float32(np.random.default_rng(seed).standard_normal(shape))


def init(config):
  shape = (1, 4, *config.data.shape)
  return init_state(jax.random.key(0), {'image': jnp.zeros(shape)}, config=config)


def step(state, images, key=0, **changes):
  config = make_config(loss__n_critic=len(images), **changes)
  return train_step(state, {'image': images}, jax.random.key(key), config=config)


# --- The penalty ----------------------------------------------------------------------------------


@pytest.mark.parametrize('scale', [0.2, 1.0, 3.0])
def test_the_penalty_of_a_linear_critic_is_exact(scale):
  w = scale * draw(32) / np.linalg.norm(draw(32))
  for seed in (1, 2):  # whatever the points are
    penalty, slope = wgan_gp.gradient_penalty(
      lambda x: x.reshape(len(x), -1) @ w, draw(6, 4, 4, 2, seed=seed)
    )
    np.testing.assert_allclose(slope, scale, rtol=1e-5)
    np.testing.assert_allclose(penalty, (scale - 1) ** 2, rtol=1e-4, atol=1e-10)


def two_layers(params, x):
  return jnp.tanh(x.reshape(len(x), -1) @ params['a']) @ params['b']


def test_norms_are_per_example_and_over_all_dimensions():
  params = {'a': draw(18, 5), 'b': draw(5, seed=1)}
  x = 0.3 * draw(7, 3, 3, 2, seed=2)
  one = jax.vmap(jax.grad(lambda x: two_layers(params, x[None])[0]))(x)
  norms = np.sqrt((np.asarray(one) ** 2).sum((1, 2, 3)))
  assert norms.std() > 0.1, 'not a case where per-batch norms would do'
  penalty, slope = wgan_gp.gradient_penalty(lambda x: two_layers(params, x), x)
  np.testing.assert_allclose(penalty, np.mean((norms - 1) ** 2), rtol=1e-4)
  np.testing.assert_allclose(slope, norms.mean(), rtol=1e-5)


def test_the_penalty_trains_both_layers():
  with jax.enable_x64(True):
    params = {'a': np.float64(draw(6, 5)), 'b': np.float64(draw(5, seed=1))}
    x = np.float64(draw(4, 3, 2, seed=2))

    @jax.jit
    def penalty(params):
      return wgan_gp.gradient_penalty(lambda x: two_layers(params, x), x)[0]

    grads = jax.grad(penalty)(params)
    for name in params:
      assert np.abs(grads[name]).max() > 1e-2
      direction = np.float64(draw(*params[name].shape, seed=3))
      h = 1e-5
      up, down = (penalty(params | {name: params[name] + sign * h * direction}) for sign in (1, -1))
      np.testing.assert_allclose((grads[name] * direction).sum(), (up - down) / (2 * h), rtol=1e-6)


def test_a_dead_critic_has_penalty_1_and_finite_gradients():
  params = {'a': jnp.zeros((4, 3)), 'b': jnp.zeros(3)}
  penalty, grads = jax.value_and_grad(
    lambda p: wgan_gp.gradient_penalty(lambda x: two_layers(p, x), draw(5, 2, 2))[0]
  )(params)
  np.testing.assert_allclose(penalty, 1)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


# --- The critic's loss ----------------------------------------------------------------------------


def test_the_loss_and_its_metrics():
  config = make_config(critic=dict(name=Quadratic), data__shape=(2, 2, 3))
  x, x_fake = draw(5, 2, 2, 3), 0.5 + draw(5, 2, 2, 3, seed=1)
  alpha = np.float32([0, 0.2, 0.5, 0.9, 1])
  state = init(config)
  keys = dict(zip(('critic', 'penalty'), jax.random.split(jax.random.key(0)), strict=True))
  loss, (metrics, _) = wgan_gp.d_loss(
    {'s': jnp.array(0.4)}, (x, x_fake, alpha), keys, game=wgan_gp.build(config), config=config
  )
  del state
  real, fake = (0.2 * (a**2).sum((1, 2, 3)).mean() for a in (x, x_fake))
  a = alpha[:, None, None, None]
  norms = 0.4 * np.sqrt((((1 - a) * x + a * x_fake) ** 2).sum((1, 2, 3)))
  penalty = np.mean((norms - 1) ** 2)
  expected = {
    'd/loss': fake - real + 10 * penalty,
    'd/wasserstein': real - fake,
    'd/penalty': penalty,
    'd/input_grad_norm': norms.mean(),
  }
  assert {k: float(v) for k, v in metrics.items()} == pytest.approx(expected, rel=1e-5)
  np.testing.assert_allclose(loss, expected['d/loss'], rtol=1e-5)


def test_alpha_is_one_uniform_number_per_example():
  # Real examples at 0, generated ones at c with |c| = 1: the slope of |x|^2 / 2 is alpha itself.
  shape = (4, 4, 4)
  changes = dict(critic=dict(name=Quadratic), data__shape=shape)
  state = init(make_config(**changes))
  _, metrics = step(state, np.zeros((1, 4000, *shape), np.float32), **changes)
  # One for the batch would give a penalty of (slope - 1)^2, one per pixel a slope of sqrt(1/3).
  np.testing.assert_allclose(metrics['d/input_grad_norm'], 1 / 2, atol=0.02)
  np.testing.assert_allclose(metrics['d/penalty'], 1 / 3, atol=0.02)


def test_a_critic_with_batch_norm_is_refused():
  config = make_config(critic=dict(name='dcgan.Discriminator'), data__shape=(64, 64, 3))
  with pytest.raises(UserError, match=r'config\.critic\.name.*batch norm'):
    jax.eval_shape(lambda: init(config))


# --- The step, by hand ----------------------------------------------------------------------------


class Adam:
  """Adam in numpy on one vector."""

  def __init__(self, x):
    self.x, self.m, self.v, self.t = np.asarray(x, np.float64), 0.0, 0.0, 0

  def update(self, g):
    self.t += 1
    self.m = ADAM['b1'] * self.m + (1 - ADAM['b1']) * g
    self.v = ADAM['b2'] * self.v + (1 - ADAM['b2']) * g**2
    m_hat, v_hat = self.m / (1 - ADAM['b1'] ** self.t), self.v / (1 - ADAM['b2'] ** self.t)
    self.x = self.x - ADAM['lr'] * m_hat / (np.sqrt(v_hat) + ADAM['eps'])


@pytest.mark.parametrize('penalty', [0.0, 10.0])
def test_a_step_is_n_critic_updates_of_d_and_then_one_of_g(penalty):
  images = draw(3, 5, 2)
  d, g = Adam([0.3, -0.7]), Adam([0.5**0.5] * 2)
  for _ in range(2):
    for x in images:
      w, norm = d.x, np.linalg.norm(d.x)
      wasserstein = (x.mean(0) - g.x) @ w
      d_grad = g.x - x.mean(0) + penalty * 2 * (norm - 1) * w / norm
      d.update(d_grad)
    # G meets the critic that has just moved.
    g_loss, g_grad = -g.x @ d.x, -d.x
    g.update(g_grad)

  state = init(make_config())
  for _ in range(2):
    state, metrics = step(state, images, loss__penalty=penalty)
  assert state.step == 2
  np.testing.assert_allclose(state.D.params['w'], d.x, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(state.G.params['c'], g.x, rtol=1e-4)
  # Metrics of D are those of its last update.
  expected = {
    'd/wasserstein': wasserstein,
    'd/input_grad_norm': norm,
    'd/penalty': (norm - 1) ** 2,
    'd/loss': penalty * (norm - 1) ** 2 - wasserstein,
    'd/grad_norm': np.linalg.norm(d_grad),
    'g/loss': g_loss,
    'g/grad_norm': np.linalg.norm(g_grad),
  }
  assert {k: float(v) for k, v in metrics.items()} == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_every_minibatch_counts():
  state, images = init(make_config()), draw(3, 4, 2)
  reference = step(state, images)[0].D.params['w']
  for j in range(3):
    changed = images.copy()
    changed[j] += 1
    assert np.abs(step(state, changed)[0].D.params['w'] - reference).max() > 1e-5
  assert wgan_gp.minibatches(make_config(loss__n_critic=3), step=0) == 3


def test_gs_batch_is_a_multiple_and_only_its_step_records_statistics():
  state = init(make_config())
  assert state.G.stats['rows'] == 0
  after, _ = step(state, draw(2, 4, 2), loss__g_batch=3)
  assert after.G.stats['rows'] == 12  # not 4, D's


def test_sample():
  config = make_config(generator=dict(name='mlp.Generator', features=(8,)))
  state = init(config)
  images = [
    wgan_gp.sample(state, {'index': jnp.arange(6)}, jax.random.key(k), config=config)['image']
    for k in (0, 0, 1)
  ]
  assert images[0].shape == (6, 2) and np.abs(images[0]).max() <= 1
  np.testing.assert_array_equal(images[0], images[1])
  assert (images[0] != images[2]).all()
