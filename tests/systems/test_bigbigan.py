"""BigBiGAN's losses in closed form, its step against one by hand, and what each score sees."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import config as configs
from gen_jax.errors import UserError
from gen_jax.nets import bigbigan as nets
from gen_jax.nets.spectral import SpectralNorm
from gen_jax.systems import bigbigan

X = np.float32(np.random.default_rng(0).uniform(-1, 1, (2, 4, 3)))  # two minibatches
A, B = np.array([0.4, -0.3, 0.8]), np.array([0.9, 0.2, -0.5])
WEIGHTS = {'xz_x': [0.2, -0.4, 0.1], 'xz_z': 0.6, 'x': [-0.3, 0.5, 0.2], 'z': -0.7}
RATES = {'G': 0.1, 'E': 0.2, 'D': 0.3}


class Encoder(nn.Module):
  """mu = a . x; sigma = softplus(raw)."""

  outputs: int
  raw: float = -40.0

  @nn.compact
  def __call__(self, x, *, train):
    mu = x @ self.param('a', lambda _: jnp.float32(A))
    return jnp.stack([mu, jnp.full(len(x), self.raw)], -1)


class Line(nn.Module):
  """G(z) = b z."""

  @nn.compact
  def __call__(self, z, *, train):
    return z * self.param('b', lambda _: jnp.float32(B))[None]


class Linear(nn.Module):
  """Three scores, each linear in what it sees."""

  @nn.compact
  def __call__(self, x, z, *, train):
    w = {name: self.param(name, lambda _, v=v: jnp.float32(v)) for name, v in WEIGHTS.items()}
    return x @ w['xz_x'] + w['xz_z'] * z[:, 0], x @ w['x'], w['z'] * z[:, 0]


def make_config(**fields):
  return configs.make(
    'bigbigan',
    {
      'data': dict(name='ring', shape=(3,)),
      'generator': dict(name=Line),
      'encoder': dict(name=Encoder),
      'discriminator': dict(name=Linear),
      'latent.dim': 1,
      'loss.d_steps': 2,
      'optim': {net: dict(name='sgd', lr=lr) for net, lr in RATES.items()},
    }
    | {name.replace('__', '.'): value for name, value in fields.items()},
  )


def init(config, images=X):
  return bigbigan.init_state(jax.random.key(0), {'image': jnp.asarray(images)}, config=config)


def step(config, images=X):
  state, batch = init(config, images), {'image': jnp.asarray(images)}
  program = jax.jit(bigbigan.train_step, static_argnames='config')
  return (state, *program(state, batch, jax.random.key(1), config=config))


# --- The losses ---------------------------------------------------------------------------------


def test_the_hinge_losses_are_summed_over_the_scores():
  def same(value):
    return {name: jnp.full(5, value) for name in ('xz', 'x', 'z')}

  assert float(bigbigan.discriminator_loss(same(0.0), same(0.0))) == 6  # their mean would be 2
  assert float(bigbigan.discriminator_loss(same(2.0), same(-2.0))) == 0
  assert float(bigbigan.discriminator_loss(same(-1.0), same(1.0))) == 12
  assert float(bigbigan.total(same(2.0))) == 6
  slope = jax.grad(bigbigan.discriminator_loss)(same(2.0), same(-2.0))
  assert all((leaf == 0).all() for leaf in slope.values())
  slope = jax.grad(bigbigan.discriminator_loss, argnums=(0, 1))(same(0.5), same(0.5))
  assert all(
    np.allclose(leaf, sign / 5)
    for s, sign in zip(slope, (-1, 1), strict=True)
    for leaf in s.values()
  )


def by_hand(names=('xz', 'x', 'z')):
  """Parameters after a step with the given scores, in float64."""
  w = {name: np.array(value, np.float64) for name, value in WEIGHTS.items()}
  keys = jax.random.split(jax.random.fold_in(jax.random.key(1), 0), 5)
  draw = lambda key: np.asarray(jax.random.normal(key, (4, 1)), np.float64)[:, 0]
  for x, key in zip(X.astype(np.float64), jax.random.split(keys[0], 2), strict=True):
    z = draw(jax.random.split(key, 4)[0])
    grad = {name: 0.0 for name in w}
    for sign, x_pair, z_pair in ((-1, x, x @ A), (1, z[:, None] * B, z)):
      scores = {
        'xz': x_pair @ w['xz_x'] + w['xz_z'] * z_pair,
        'x': x_pair @ w['x'],
        'z': w['z'] * z_pair,
      }
      for name in names:
        slope = sign * (1 + sign * scores[name] > 0) / 4  # of relu(1 + sign s), the mean over rows
        if name in ('xz', 'x'):
          grad['xz_x' if name == 'xz' else 'x'] = (
            grad['xz_x' if name == 'xz' else 'x'] + slope @ x_pair
          )
        if name in ('xz', 'z'):
          grad['xz_z' if name == 'xz' else 'z'] += slope @ z_pair
    w = {name: w[name] - RATES['D'] * grad[name] for name in w}
  z, x = draw(keys[1]), X[-1].astype(np.float64)
  to_x = w['xz_x'] * ('xz' in names) + w['x'] * ('x' in names)
  to_z = w['xz_z'] * ('xz' in names) + w['z'] * ('z' in names)
  b = B + RATES['G'] * to_x * z.mean()  # G climbs its scores,
  a = A - RATES['E'] * to_z * x.mean(0)  # E descends its own
  return w, b, a


@pytest.mark.parametrize('names', [('xz', 'x', 'z'), ('xz',), ('xz', 'z')])
def test_a_step_is_d_updates_then_generator_and_encoder_against_the_same_d(names):
  _, after, metrics = step(make_config(loss__scores=names))
  w, b, a = by_hand(names)
  for name, value in w.items():
    np.testing.assert_allclose(after.D.params[name], value, rtol=2e-5, err_msg=name)
  np.testing.assert_allclose(after.G.params['b'], b, rtol=2e-5)
  np.testing.assert_allclose(after.E.params['a'], a, rtol=2e-5)
  x, code = X[-1].astype(np.float64), X[-1].astype(np.float64) @ A
  on_pairs = {'xz': x @ w['xz_x'] + w['xz_z'] * code, 'x': x @ w['x'], 'z': w['z'] * code}
  wanted = sum(on_pairs[name].mean() for name in names)
  np.testing.assert_allclose(metrics['e/loss'], wanted, rtol=1e-4)
  assert {m for m in metrics if 'accuracy' in m} == {f'd/accuracy_{name}' for name in names}
  assert int(after.step) == 1


def test_a_code_is_drawn_with_its_sigma():
  config = make_config(encoder=dict(name=Encoder, raw=0.5))
  game, state = bigbigan.build(config), init(config)
  mu, sigma, _ = bigbigan.posterior(game, state.E, jnp.asarray(X[0]))
  np.testing.assert_allclose(mu[:, 0], X[0] @ A, rtol=1e-5)
  np.testing.assert_allclose(sigma, np.log1p(np.exp(0.5)), rtol=1e-6)
  # e/loss is linear in z, so that the mean over many draws of eps is that at mu, and its slope is
  # that of the joint score and of s_z.
  rows = lambda eps: (jnp.zeros((50_000, 3)), eps)
  eps = jax.random.normal(jax.random.key(3), (50_000, 1))
  loss = functools.partial(bigbigan.e_loss, state=state, game=game, config=config)
  spread = [
    float(loss(state.E.params, rows(sign * 1 + 0 * eps), jax.random.key(0))[0]) for sign in (-1, 1)
  ]
  np.testing.assert_allclose(
    spread[1] - spread[0], 2 * np.log1p(np.exp(0.5)) * (0.6 - 0.7), rtol=1e-4
  )


def test_scores_without_the_joint_one_are_refused():
  with pytest.raises(UserError, match=r"config.loss.scores=\('x', 'z'\): 'xz' is needed") as error:
    bigbigan.check(make_config(loss__scores=('x', 'z')))
  assert '\n' not in str(error.value)


def test_reconstructions_are_generated_from_mu():
  config = make_config(encoder=dict(name=Encoder, raw=3.0))
  state, x = init(config), jnp.asarray(X[0])
  coded = bigbigan.encode(state, {'image': x}, jax.random.key(0), config=config)
  code = X[0] @ A
  np.testing.assert_allclose(coded['z'][:, 0], code, rtol=1e-5)
  np.testing.assert_allclose(coded['reconstruction'], code[:, None] * B, rtol=1e-5)
  found = bigbigan.evaluate(state, {'image': x}, jax.random.key(0), config=config)
  np.testing.assert_allclose(
    found['squared_error'], ((X[0] - code[:, None] * B) ** 2).sum(1), rtol=1e-5
  )
  made = bigbigan.sample(state, {'image': x}, jax.random.key(0), config=config)
  np.testing.assert_allclose(made['reconstruction'][:, 0], X[0])
  np.testing.assert_allclose(made['reconstruction'][:, 1], coded['reconstruction'], rtol=1e-6)
  with pytest.raises(UserError, match=r"z is \(4, 2\): \('n', 1\) is needed"):
    bigbigan.decode(state, jnp.zeros((4, 2)), {}, config=config)


# --- The nets -----------------------------------------------------------------------------------

SMALL = dict(features=(2, 3), latent_features=(4,), joint_features=(5,))


def test_each_score_sees_its_inputs_only():
  x, z = (
    jax.random.normal(jax.random.key(0), (2, 8, 8, 1)),
    jax.random.normal(jax.random.key(1), (2, 3)),
  )
  D = nets.Discriminator(**SMALL)
  variables = jax.jit(functools.partial(D.init, train=False))(jax.random.key(2), x, z)
  apply = jax.jit(functools.partial(D.apply, train=False))
  scores = lambda x, z: np.stack(apply(variables, x, z))
  here, other_x, other_z = scores(x, z), scores(x[::-1], z), scores(x, z[::-1])
  assert here.shape == (3, 2)
  assert np.array_equal(here != other_x, [[True] * 2, [True] * 2, [False] * 2])
  assert np.array_equal(here != other_z, [[True] * 2, [False] * 2, [True] * 2])
  # Every weight matrix has its singular vector.
  paths = lambda tree, end: sum(
    path[-1].key == end for path, _ in jax.tree_util.tree_leaves_with_path(tree)
  )
  assert paths(variables['batch_stats'], 'u') == paths(variables['params'], 'kernel') == 7


def test_the_numbers_of_parameters():
  D = nets.Discriminator(**SMALL)
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  x, z = jnp.zeros((1, 8, 8, 1)), jnp.zeros((1, 3))
  init = lambda module, *inputs: jax.eval_shape(
    functools.partial(module.init, train=False), jax.random.key(0), *inputs
  )['params']
  # F: 4 x 4 x 1 x 2 + 2 and 4 x 4 x 2 x 3 + 3, to 2 x 2 x 3 = 12; H: 3 x 4 + 4; J: 16 x 5 + 5.
  assert count(init(D, x, z)) == 34 + 99 + 16 + 85 + (5 + 1) + (12 + 1) + (4 + 1)
  # 4 x 4 x 1 x 2 and 4 x 4 x 2 x 3; 12 x 7; 7 x 6 + 6; batch norm of 2, 3 and 7.
  E = nets.Encoder(6, features=(2, 3), hidden=(7,))
  assert count(init(E, x)) == 32 + 96 + 84 + 48 + 2 * (2 + 3 + 7)


class Normed(nn.Module):
  """A layer with spectral norm for all three scores."""

  @nn.compact
  def __call__(self, x, z, *, train):
    made = SpectralNorm(nn.Dense(3, name='s'), name='sn')(jnp.concatenate([x, z], -1), train=train)
    return tuple(made.T)


def test_only_updates_of_d_move_its_singular_vectors():
  state, after, _ = step(make_config(discriminator=dict(name=Normed), loss__d_steps=1), X[:1])
  # Two passes, of pairs of E and of G, are two power iterations with D's weights before the step.
  kernel, u = np.asarray(state.D.params['s']['kernel'], np.float64), state.D.stats['sn']['u']
  for _ in range(2):
    u = kernel.T @ (kernel @ u)
  np.testing.assert_allclose(after.D.stats['sn']['u'], u / np.linalg.norm(u), rtol=1e-4, atol=1e-6)
