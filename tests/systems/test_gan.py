"""The GAN's losses at their optimum, and its step against one done by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from ml_collections import ConfigDict, FrozenConfigDict

from gen_jax.systems import gan

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
init_state = jax.jit(gan.init_state, static_argnames='config')
train_step = jax.jit(gan.train_step, static_argnames='config')


class Point(nn.Module):
  """A generator that knows one point only, whatever z is."""

  shape: tuple = (2,)

  @nn.compact
  def __call__(self, z, *, train):
    c = self.param('c', lambda _, s: jnp.linspace(0.5, -0.25, s[0]), self.shape)
    return jnp.broadcast_to(c[None], (len(z), *self.shape))


class Linear(nn.Module):
  """A discriminator with logits w x + b."""

  @nn.compact
  def __call__(self, x, *, train):
    w = self.param('w', lambda _: jnp.array([0.3, -0.7]))
    b = self.param('b', lambda _: jnp.array(0.1))
    return x @ w + b


class Identity(nn.Module):
  """A generator that shows its latents."""

  @nn.compact
  def __call__(self, z, *, train):
    return z + 0 * self.param('unused', nn.initializers.zeros, (1,))[None]


class Normed(nn.Module):
  """Batch norm, and a sum of the features where it serves as a discriminator."""

  reduce: bool = False

  @nn.compact
  def __call__(self, x, *, train):
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
    return x.sum(1) if self.reduce else x


def make_config(**changes):
  config = ConfigDict(
    dict(
      precision='float32',
      data=dict(shape=(2,), num_classes=None),
      generator=dict(name=Point),
      discriminator=dict(name=Linear),
      latent=dict(dim=2, distribution='normal'),
      loss=dict(generator='non_saturating', real_target=1.0, d_steps=2),
      optim=dict(G=dict(ADAM), D=dict(ADAM)),
      train=dict(accumulate=1),
    )
  )
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return FrozenConfigDict(config)


def draw(*shape, seed=0):
  return np.float32(np.random.default_rng(seed).standard_normal(shape))


def step(state, images, key=0, **changes):
  config = make_config(loss__d_steps=len(images), **changes)
  return train_step(state, {'image': images}, jax.random.key(key), config=config)


def init(**changes):
  config = make_config(**changes)
  return init_state(jax.random.key(0), {'image': jnp.zeros((1, 4, 2))}, config=config)


# --- The losses -----------------------------------------------------------------------------------


def test_the_values_at_equilibrium():
  zero = jnp.zeros(3)
  value = -2 * gan.discriminator_loss(zero, zero)
  np.testing.assert_allclose(value, -1.3862944, rtol=1e-6)
  losses = {name: float(loss(zero)) for name, loss in gan.GENERATOR_LOSSES.items()}
  expected = {'minimax': -0.6931472, 'non_saturating': 0.6931472, 'maximum_likelihood': -1.0}
  assert losses == pytest.approx(expected, rel=1e-6)


def test_the_slopes_where_d_wins():
  slopes = {n: float(jax.grad(f)(jnp.array([-10.0]))[0]) for n, f in gan.GENERATOR_LOSSES.items()}
  expected = {
    'minimax': -4.5398e-5,
    'non_saturating': -0.9999546,
    'maximum_likelihood': -4.53999e-5,
  }
  assert slopes == pytest.approx(expected, rel=1e-4)


def test_the_discriminator_loss_is_minus_half_the_value():
  real, fake = draw(5), draw(7, seed=1)
  value = np.mean(np.log(scipy.special.expit(real))) + np.mean(np.log(scipy.special.expit(-fake)))
  np.testing.assert_allclose(gan.discriminator_loss(real, fake), -value / 2, rtol=1e-5)


def test_the_losses_survive_extreme_logits():
  for loss in (
    lambda l: gan.discriminator_loss(l, -l, 0.9),
    gan.GENERATOR_LOSSES['minimax'],
    gan.GENERATOR_LOSSES['non_saturating'],
  ):
    value, slope = jax.value_and_grad(loss)(jnp.array([1e4, -1e4]))
    assert np.isfinite(value) and np.isfinite(slope).all()


def minimise(loss, start):
  """Newton's method; the losses are convex in the parameters of a logit that is linear in them."""

  @jax.jit
  def newton(p):
    return p - jnp.linalg.solve(jax.hessian(loss)(p) + 1e-6 * jnp.eye(len(p)), jax.grad(loss)(p))

  p = jnp.asarray(start, jnp.float32)
  for _ in range(12):
    p = newton(p)
  return p


@pytest.mark.parametrize('target', [1.0, 0.9])
def test_the_best_d_on_three_atoms_is_the_smoothed_ratio(target):
  p_data, p_g = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
  real, fake = (np.repeat(np.arange(3), (10 * p).astype(int)) for p in (p_data, p_g))
  logits = minimise(lambda l: gan.discriminator_loss(l[real], l[fake], target), np.zeros(3))
  np.testing.assert_allclose(nn.sigmoid(logits), target * p_data / (p_data + p_g), rtol=1e-4)


def test_the_best_d_on_two_gaussians():
  p_data, p_g = scipy.stats.norm(1, 1), scipy.stats.norm(-0.5, 1.5)
  levels = (np.arange(20_000) + 0.5) / 20_000
  real, fake = (np.float32(p.ppf(levels)) for p in (p_data, p_g))

  def logit(p, x):  # log p_data - log p_g is quadratic
    return p[0] + p[1] * x + p[2] * x**2

  p = minimise(lambda p: gan.discriminator_loss(logit(p, real), logit(p, fake)), np.zeros(3))
  x = np.linspace(-4, 4, 41)
  expected = p_data.pdf(x) / (p_data.pdf(x) + p_g.pdf(x))
  np.testing.assert_allclose(nn.sigmoid(logit(p, x)), expected, atol=2e-3)

  # The value there is -2 log 2 + 2 JSD, here by integration.
  grid = np.linspace(-12, 12, 20_001)
  a, b = p_data.pdf(grid), p_g.pdf(grid)
  half = (a + b) / 2
  jsd = 0.5 * np.sum(a * np.log(a / half) + b * np.log(b / half)) * (grid[1] - grid[0])
  loss = gan.discriminator_loss(logit(p, real), logit(p, fake))
  np.testing.assert_allclose(-2 * loss, -2 * np.log(2) + 2 * jsd, atol=1e-3)


def test_the_best_d_is_one_half_where_g_is_perfect():
  x = draw(1000)
  features = np.stack([np.ones_like(x), x, x**2], 1)
  p = minimise(
    lambda p: gan.discriminator_loss(features @ p, features @ p), np.float32([1.0, 0.5, -0.3])
  )
  np.testing.assert_allclose(nn.sigmoid(features @ p), 0.5, atol=1e-4)
  loss = gan.discriminator_loss(features @ p, features @ p)
  np.testing.assert_allclose(-2 * loss, -2 * np.log(2), rtol=1e-6)


# --- Metrics, statistics --------------------------------------------------------------------------


def d_loss(config, x, x_fake, params=None):
  game = gan.build(config)
  state = init_state(jax.random.key(0), {'image': x[None]}, config=config)
  keys = dict(zip(('real', 'fake'), jax.random.split(jax.random.key(0)), strict=True))
  params = state.D.params if params is None else params
  return gan.d_loss(params, (x, x_fake), keys, player=state.D, game=game, config=config)


@pytest.mark.parametrize('target', [1.0, 0.9])
def test_the_metrics(target):
  x, x_fake = draw(6, 2), draw(6, 2, seed=1)
  loss, (metrics, stats) = d_loss(make_config(loss__real_target=target), x, x_fake)
  w = np.array([0.3, -0.7])
  real, fake = x @ w + 0.1, x_fake @ w + 0.1
  d_real, d_fake = 1 / (1 + np.exp(-real)), 1 / (1 + np.exp(-fake))
  plain = -np.mean(np.log(d_real)) - np.mean(np.log(1 - d_fake))
  smooth = -np.mean(target * np.log(d_real) + (1 - target) * np.log(1 - d_real)) - np.mean(
    np.log(1 - d_fake)
  )
  expected = {
    'd/loss': smooth / 2,
    'd/real_prob': d_real.mean(),
    'd/fake_prob': d_fake.mean(),
    'd/accuracy': np.mean([*(d_real > 0.5), *(d_fake < 0.5)]),
    # log 2 minus the plain loss, whatever the target is.
    'd/jsd': np.log(2) - plain / 2,
  }
  assert {k: float(v) for k, v in metrics.items()} == pytest.approx(expected, rel=1e-5, abs=1e-6)
  assert 0 < expected['d/accuracy'] < 1
  np.testing.assert_allclose(loss, smooth / 2, rtol=1e-5)
  assert stats == {}


def test_the_metrics_at_equilibrium():
  params = {'w': jnp.zeros(2), 'b': jnp.array(0.0)}
  _, (metrics, _) = d_loss(make_config(), draw(6, 2), draw(6, 2, seed=1), params)
  found = {k: float(v) for k, v in metrics.items() if k != 'd/accuracy'}
  expected = {'d/loss': np.log(2), 'd/real_prob': 0.5, 'd/fake_prob': 0.5, 'd/jsd': 0.0}
  assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_ds_batch_norm_sees_real_and_generated_examples_apart():
  x, x_fake = draw(64, 2), 3 + draw(64, 2, seed=1)
  config = make_config(discriminator=dict(name=Normed, reduce=True))
  _, (metrics, stats) = d_loss(config, x, x_fake)
  # Each pass is centred by itself, so nothing tells them apart.
  np.testing.assert_allclose([metrics['d/real_prob'], metrics['d/fake_prob']], 0.5, atol=0.02)
  expected = 0.9 * 0.1 * x.mean(0) + 0.1 * x_fake.mean(0)
  np.testing.assert_allclose(stats['BatchNorm_0']['mean'], expected, rtol=1e-5)


def test_gs_batch_statistics_change_in_gs_step_only():
  changes = dict(generator=dict(name=Normed))
  state = init(**changes)
  stats = [step(state, draw(k, 256, 2), **changes)[0].G.stats['BatchNorm_0'] for k in (1, 2)]
  # More steps of D, each of which runs G, leave no trace in G.
  for name in ('mean', 'var'):
    np.testing.assert_array_equal(stats[0][name], stats[1][name])
  # One update with momentum 0.9 by the statistics of 256 normal latents.
  assert 0 < np.abs(stats[0]['mean']).max() < 0.1 * 0.3
  np.testing.assert_allclose(stats[0]['var'], 1, atol=0.1 * 0.4)


def test_batch_statistics_are_the_mean_over_the_parts_of_a_batch():
  changes = dict(generator=dict(name=Normed))
  state, images = init(**changes), draw(1, 8, 2)
  whole, parts = (
    step(state, images, **changes, train__accumulate=k)[0].G.stats['BatchNorm_0'] for k in (1, 4)
  )
  np.testing.assert_allclose(parts['mean'], whole['mean'], rtol=1e-4, atol=1e-6)
  # Less than that of the whole by the variance of the parts' means.
  assert (parts['var'] < whole['var'] - 1e-4).all()


def test_g_is_taught_by_d_with_dropout():
  config = make_config(discriminator=dict(name='mlp.Discriminator', features=(16,), dropout=0.5))
  state = init_state(jax.random.key(0), {'image': jnp.zeros((1, 4, 2))}, config=config)
  game = gan.build(config)

  def loss(seed):
    z, key = jnp.zeros((4, 2)), jax.random.key(seed)
    return gan.g_loss(state.G.params, z, key, state=state, game=game, config=config)[0]

  assert loss(0) == loss(0) != loss(1)


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


def sigmoid(l):
  return 1 / (1 + np.exp(-l))


# d loss / d logit of G's losses.
SLOPES = {
  'minimax': lambda l: -sigmoid(l),
  'non_saturating': lambda l: -sigmoid(-l),
  'maximum_likelihood': lambda l: -np.exp(l),
}


@pytest.mark.parametrize('name', SLOPES)
def test_a_step_is_k_updates_of_d_and_then_one_of_g(name):
  images = 0.5 + draw(2, 5, 2)
  d, g = Adam([0.3, -0.7, 0.1]), Adam([0.5, -0.25])  # (w, b) and c
  for _ in range(2):
    for x in images:
      w, b = d.x[:2], d.x[2]
      real, fake = x @ w + b, g.x @ w + b
      slope_real, slope_fake = -sigmoid(-real) / (2 * len(x)), sigmoid(fake) / 2
      d_grad = np.append(slope_real @ x + slope_fake * g.x, slope_real.sum() + slope_fake)
      d_prob = sigmoid(real).mean()
      d.update(d_grad)
    # G meets the D that has just moved.
    w, b = d.x[:2], d.x[2]
    g_grad = SLOPES[name](g.x @ w + b) * w
    g.update(g_grad)

  state = init(loss__generator=name)
  for _ in range(2):
    state, metrics = step(state, images, loss__generator=name)
  assert state.step == 2
  np.testing.assert_allclose(np.append(state.D.params['w'], state.D.params['b']), d.x, rtol=1e-4)
  np.testing.assert_allclose(state.G.params['c'], g.x, rtol=1e-4)
  # Metrics of D are those of its last update.
  np.testing.assert_allclose(metrics['d/real_prob'], d_prob, rtol=1e-4)
  np.testing.assert_allclose(metrics['d/grad_norm'], np.linalg.norm(d_grad), rtol=1e-3)
  np.testing.assert_allclose(metrics['g/grad_norm'], np.linalg.norm(g_grad), rtol=1e-3)


def test_every_minibatch_counts():
  state, images = init(), draw(3, 4, 2)
  reference = step(state, images)[0].D.params['w']
  for j in range(3):
    changed = images.copy()
    changed[j] += 1
    assert np.abs(step(state, changed)[0].D.params['w'] - reference).max() > 1e-5
  assert gan.minibatches(make_config(loss__d_steps=3), step=0) == 3


# --- Latents, samples -----------------------------------------------------------------------------


@pytest.mark.parametrize('distribution, variance', [('normal', 1), ('uniform', 1 / 3)])
def test_latents_in_training_and_in_sampling(distribution, variance):
  changes = dict(
    latent__distribution=distribution,
    latent__dim=3,
    data__shape=(3,),
    generator=dict(name=Identity),
    discriminator=dict(name=Normed),
  )
  config = make_config(**changes)
  state = init_state(jax.random.key(0), {'image': jnp.zeros((1, 4, 3))}, config=config)
  z = gan.latents(jax.random.key(1), 5000, config)
  made = gan.sample(state, {'index': jnp.arange(5000)}, jax.random.key(2), config=config)['image']
  for points in (z, made):
    assert points.shape == (5000, 3) and points.dtype == jnp.float32
    np.testing.assert_allclose(points.mean(0), 0, atol=0.06)
    np.testing.assert_allclose(points.var(0), variance, rtol=0.1)
    assert (np.abs(points).max() <= 1) == (distribution == 'uniform')
  assert (z != made).any()
