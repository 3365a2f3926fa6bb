"""Games with labels: their steps against ones by hand in numpy; data without labels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit as sigmoid
from scipy.special import log_expit, log_softmax, softmax

from gen_jax import config as configs
from gen_jax.errors import UserError
from gen_jax.systems import acgan, cgan, find_system

LR_D, LR_G = 0.3, 0.2
CLASSES = 3
POINTS = np.array([[0.5, -0.25], [-0.1, 0.7], [0.9, 0.2]])  # of G, one for each class
W, B = np.array([0.3, -0.7]), 0.1  # of D
V = np.array([[0.2, -0.4, 0.6], [0.5, 0.1, -0.3]])  # of D, one column for each class


class Points(nn.Module):
  """A generator that knows one point of each class, whatever z is."""

  num_classes: int

  @nn.compact
  def __call__(self, z, label, *, train):
    points = self.param('points', lambda _: jnp.float32(POINTS))
    return points[label]


def draw(*shape, seed=0):
  return np.float32(np.random.default_rng(seed).standard_normal(shape))


def make_config(system, **fields):
  return configs.make(
    system,
    {
      'data.shape': (2,),
      'data.num_classes': CLASSES,
      'generator': dict(name=Points),
      'latent.dim': 2,
      'optim.G': dict(name='sgd', lr=LR_G),
      'optim.D': dict(name='sgd', lr=LR_D),
    }
    | fields,
  )


def batch_of(label, seed=0):
  return {'image': draw(1, len(label), 2, seed=seed), 'label': np.int32(label)[None]}


def step(system, config, batch):
  state = system.init_state(jax.random.key(0), batch, config=config)
  run = jax.jit(lambda s, b: system.train_step(s, b, jax.random.key(1), config=config))
  return run(state, batch)


# --- Conditional GAN ------------------------------------------------------------------------------


class Joint(nn.Module):
  """D with the logit w[label] x + b."""

  num_classes: int

  @nn.compact
  def __call__(self, x, label, *, train):
    w = self.param('w', lambda _: jnp.float32(V.T))
    b = self.param('b', lambda _: jnp.float32(B))
    return (x * w[label]).sum(1) + b


@pytest.mark.parametrize('form', ['non_saturating', 'minimax'])
def test_a_step_of_cgan_by_hand(form):
  config = make_config('cgan', discriminator=dict(name=Joint), **{'loss.generator': form})
  label = np.array([0, 2, 2, 1, 0])
  batch, one_hot, n = batch_of(label), np.eye(CLASSES)[label], len(label)
  x, x_fake = batch['image'][0].astype(np.float64), POINTS[label]

  def logit(x, w, b):
    return (x * w[label]).sum(1) + b

  real, fake = logit(x, V.T, B), logit(x_fake, V.T, B)
  real_slope, fake_slope = -sigmoid(-real) / (2 * n), sigmoid(fake) / (2 * n)
  w = V.T - LR_D * one_hot.T @ (real_slope[:, None] * x + fake_slope[:, None] * x_fake)
  b = B - LR_D * (real_slope.sum() + fake_slope.sum())

  # G meets the D that has just moved.
  after = logit(x_fake, w, b)
  slope = -sigmoid(-after) if form == 'non_saturating' else -sigmoid(after)
  points = POINTS - LR_G * one_hot.T @ (slope[:, None] * w[label]) / n

  state, metrics = step(cgan, config, batch)
  np.testing.assert_allclose(state.D.params['w'], w, rtol=1e-5)
  np.testing.assert_allclose(state.D.params['b'], b, rtol=1e-5)
  np.testing.assert_allclose(state.G.params['points'], points, rtol=1e-5)
  minimax = log_expit(-after).mean()
  wanted = {
    'd/loss': -(log_expit(real).mean() + log_expit(-fake).mean()) / 2,
    'd/real_prob': sigmoid(real).mean(),
    'd/fake_prob': sigmoid(fake).mean(),
    'd/accuracy': (np.mean(real > 0) + np.mean(fake < 0)) / 2,
    'g/loss': -log_expit(after).mean() if form == 'non_saturating' else minimax,
  }
  found = {name: float(metrics[name]) for name in wanted}
  assert found == pytest.approx(wanted, rel=1e-5)
  assert set(cgan.METRICS) == set(wanted)
  assert 0 < wanted['d/accuracy'] < 1


def test_both_nets_of_cgan_drop_out_in_training():
  """The paper's nets do: other keys, other losses for the same latents."""
  config = configs.load('configs/cgan_mnist.py:smoke', [('generator.dropout', '0.5')])
  batch = {'image': draw(1, 4, 28, 28, 1), 'label': np.int32([[0, 1, 2, 3]])}
  state = cgan.init_state(jax.random.key(0), batch, config=config)
  game = cgan.build(config)
  loss = jax.jit(lambda z, y, keys: g_loss(z, y, keys)[0])

  def g_loss(z, y, keys):
    return cgan.g_loss(state.G.params, (z, y), keys, state=state, game=game, config=config)

  a, b = jax.random.split(jax.random.key(1))
  found = [
    float(loss(draw(4, config.latent.dim), batch['label'][0], {'g': g, 'd': d}))
    for g, d in ((a, b), (a, b), (b, b), (a, a))
  ]
  assert found[0] == found[1] and len(set(found)) == 3


# --- AC-GAN ---------------------------------------------------------------------------------------


class TwoHeads(nn.Module):
  """D with logits w x + b of the source and V x of the classes."""

  num_classes: int

  @nn.compact
  def __call__(self, x, *, train):
    w = self.param('w', lambda _: jnp.float32(W))
    b = self.param('b', lambda _: jnp.float32(B))
    v = self.param('v', lambda _: jnp.float32(V))
    return x @ w + b, x @ v


@pytest.mark.parametrize('form', ['non_saturating', 'minimax'])
def test_a_step_of_acgan_by_hand(form):
  config = make_config('acgan', discriminator=dict(name=TwoHeads), **{'loss.generator': form})
  label = np.array([0, 2, 2, 1, 0])
  batch, one_hot, n = batch_of(label), np.eye(CLASSES)[label], len(label)
  x, x_fake = batch['image'][0].astype(np.float64), POINTS[label]

  # D's gradient of -(L_S + L_C), from the slopes of each log-likelihood in its logit.
  real, fake = x @ W + B, x_fake @ W + B
  real_slope, fake_slope = -sigmoid(-real) / n, sigmoid(fake) / n
  real_class = (softmax(x @ V, axis=1) - one_hot) / n
  fake_class = (softmax(x_fake @ V, axis=1) - one_hot) / n
  w = W - LR_D * (real_slope @ x + fake_slope @ x_fake)
  b = B - LR_D * (real_slope.sum() + fake_slope.sum())
  v = V - LR_D * (x.T @ real_class + x_fake.T @ fake_class)

  # G meets the D that has just moved.
  fake_after = x_fake @ w + b
  slope = -sigmoid(-fake_after) if form == 'non_saturating' else -sigmoid(fake_after)
  in_x = (slope[:, None] * w + (softmax(x_fake @ v, axis=1) - one_hot) @ v.T) / n
  points = POINTS - LR_G * one_hot.T @ in_x

  state, metrics = step(acgan, config, batch)
  for name, wanted in (('w', w), ('b', b), ('v', v)):
    np.testing.assert_allclose(state.D.params[name], wanted, rtol=1e-5, err_msg=name)
  np.testing.assert_allclose(state.G.params['points'], points, rtol=1e-5)

  def likelihood(logits):
    return log_softmax(logits, axis=1)[np.arange(n), label].mean()

  source = -log_expit(real).mean() - log_expit(-fake).mean()
  classes = -likelihood(x @ V) - likelihood(x_fake @ V)
  wanted_source = log_expit(-fake_after).mean()
  if form == 'non_saturating':
    wanted_source = -log_expit(fake_after).mean()
  wanted = {
    'd/loss': source + classes,
    'd/source_loss': source,
    'd/class_loss': classes,
    'd/real_prob': sigmoid(real).mean(),
    'd/fake_prob': sigmoid(fake).mean(),
    'd/real_class_accuracy': np.mean((x @ V).argmax(1) == label),
    'd/fake_class_accuracy': np.mean((x_fake @ V).argmax(1) == label),
    'g/loss': wanted_source - likelihood(x_fake @ v),
    'g/source_loss': wanted_source,
    'g/class_loss': -likelihood(x_fake @ v),
  }
  found = {name: float(metrics[name]) for name in wanted}
  assert found == pytest.approx(wanted, rel=1e-5)
  assert set(acgan.METRICS) == set(wanted)
  assert 0 < wanted['d/real_class_accuracy'] < 1


# --- All ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['acgan', 'cgan'])
def test_data_without_classes_are_one_line(name):
  config = configs.load(f'configs/{name}_mnist.py:smoke', [('data.num_classes', 'None')])
  with pytest.raises(UserError, match=rf"num_classes=None: config.system='{name}' needs labelled"):
    find_system(name).check(config)
