"""pix2pix: its losses in closed form, what a step does, translations."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_contract import equal, make_batch

from gen_jax import config as configs
from gen_jax.errors import UserError
from gen_jax.state import Player
from gen_jax.systems import pix2pix

KEYS = dict(zip(('z', 'real', 'fake', 'g'), jax.random.split(jax.random.key(0), 4), strict=True))


@functools.cache
def config(**values):
  return configs.load('configs/pix2pix_digits.py:smoke', [(k, str(v)) for k, v in values.items()])


@functools.cache
def fresh(config):
  batch = make_batch(config, pix2pix)
  return jax.jit(functools.partial(pix2pix.init_state, config=config))(jax.random.key(1), batch)


def trained(config, batch, steps=20):
  """A state after some steps on one batch."""
  step = jax.jit(functools.partial(pix2pix.train_step, config=config))
  state = fresh(config)
  for _ in range(steps):
    state, _ = step(state, batch, jax.random.key(2))
  return state


class Net:
  """f in the place of a net."""

  def __init__(self, f):
    self.f = f

  def apply(self, variables, x, **how):
    return self.f(variables['params'], x), {}


def game(logits, y=None):
  """A game in which D returns `logits(pair)`, and G `y`."""
  D, G = Net(lambda params, xy: params * logits(xy)), Net(lambda params, x: params * y)
  return pix2pix.Game(G, D, None, None)


def player(params):
  return Player(params=jnp.float32(params), stats={}, opt_state=None)


def images(value, channels=1):
  return jnp.full((2, 4, 4, channels), value, jnp.float32)


def test_losses_in_closed_form():
  # D has the logit 2 for y = 0.5, and -1 for y = -0.25: x, before it, is not seen.
  logits = lambda xy: jnp.where(xy[:, ::2, ::2, 3:] == 0.5, 2.0, -1.0)
  x, y, y_fake = images(9, 3), images(0.5), images(-0.25)
  softplus = lambda a: math.log1p(math.exp(a))
  loss, (metrics, _) = pix2pix.d_loss(
    jnp.float32(1), (x, y, y_fake), KEYS, player=player(1), game=game(logits)
  )
  assert float(loss) == pytest.approx((softplus(-2) + softplus(-1)) / 2, rel=1e-6)
  assert float(metrics['d/real_prob']) == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-6)
  assert float(metrics['d/accuracy']) == 1
  # Where D cannot tell, the loss is log 2, half of the cross-entropy of both.
  undecided = pix2pix.d_loss(
    jnp.float32(0), (x, y, y_fake), KEYS, player=player(0), game=game(logits)
  )
  assert float(undecided[0]) == pytest.approx(math.log(2), rel=1e-6)

  state = pix2pix.State(None, player(1), player(1))
  loss, (metrics, _) = pix2pix.g_loss(
    jnp.float32(1), (x, y), KEYS, state=state, game=game(logits, y_fake), config=config()
  )
  assert float(metrics['g/gan']) == pytest.approx(softplus(1), rel=1e-6)
  assert float(metrics['g/l1']) == pytest.approx(0.75, rel=1e-6)
  assert float(loss) == pytest.approx(softplus(1) + 100 * 0.75, rel=1e-6)


class Noisy:
  """G in the place of a net: a multiple of x, and noise."""

  def apply(self, variables, x, *, rngs, **how):
    return variables['params'] * x + jax.random.normal(rngs['dropout'], x.shape), {}


def test_a_step_is_one_update_of_d_then_of_g_with_the_same_noise(monkeypatch):
  """By hand: D learns from the very translations that G then improves, and G sees the new D."""
  D = Net(lambda params, xy: params * xy[..., 1])
  sgd = optax.sgd(0.1)
  monkeypatch.setattr(pix2pix, 'build', lambda *_, **__: pix2pix.Game(Noisy(), D, sgd, sgd))
  players = (Player(jnp.float32(p), {}, sgd.init(0.0)) for p in (0.5, 0.3))
  state = pix2pix.State(jnp.int32(7), *players)
  x, y = (jax.random.normal(key, (2, 4, 4, 1)) for key in jax.random.split(jax.random.key(1)))
  step = jax.jit(functools.partial(pix2pix.train_step, config=config()))
  after, metrics = step(state, {'x': x, 'y': y}, KEYS['z'])

  key = pix2pix.step_keys(KEYS['z'], 7, 'z', 'real', 'fake', 'g')['z']
  y_fake = 0.5 * x + jax.random.normal(key, x.shape)
  sigmoid, softplus = jax.nn.sigmoid, jax.nn.softplus
  slope = -0.5 * jnp.mean(y * sigmoid(-0.3 * y)) + 0.5 * jnp.mean(y_fake * sigmoid(0.3 * y_fake))
  new_d = 0.3 - 0.1 * slope
  assert float(after.D.params) == pytest.approx(float(new_d), rel=1e-5)
  assert float(metrics['g/gan']) == pytest.approx(float(jnp.mean(softplus(-new_d * y_fake))), 1e-5)
  gan = -jnp.mean(x * new_d * sigmoid(-new_d * y_fake))
  new_g = 0.5 - 0.1 * (gan + 100 * jnp.mean(x * jnp.sign(y_fake - y)))
  assert float(after.G.params) == pytest.approx(float(new_g), rel=1e-5)


def test_translations_have_noise_and_with_instance_norm_no_neighbours():
  """Of trained nets. The noise is dropout, in sampling; a translation depends on its batch with
  batch norm only.
  """
  for norm, depends in (('batch', True), ('instance', False)):
    made = configs.replace(config(), {'generator.norm': norm, 'discriminator.norm': norm})
    batch = make_batch(made, pix2pix)
    state, x = trained(made, batch), batch['x']
    other = x.at[1:].set(-x[1:] / 2)
    translate = jax.jit(
      functools.partial(pix2pix.translate, state, to='y', config=made), static_argnames='to'
    )
    first, second = translate(x, rng=KEYS['z']), translate(other, rng=KEYS['z'])
    assert (np.abs(first[0] - second[0]).max() > 1e-3) == depends, norm
    assert not np.allclose(first, translate(x, rng=KEYS['g']), atol=1e-3)
    assert equal(first, translate(x, rng=KEYS['z']))


def test_the_map_of_patches_is_d_of_every_patch():
  made = config()
  state, batch = fresh(made), make_batch(made, pix2pix)
  x, y = batch['x'], batch['y']
  found = pix2pix.patch_map(state, x, y, config=made)
  assert found.shape == (len(x), *made.data.shape[:2], 1)
  logits, _ = pix2pix.build(made).D.apply(
    state.D.variables(), pix2pix.pair(x, y), train=False, mutable=['batch_stats']
  )
  patches = jax.nn.sigmoid(logits)
  # The corners of the map are the patches there; it lies between the smallest and the largest.
  np.testing.assert_allclose(found[:, 0, 0], patches[:, 0, 0], atol=1e-5)
  np.testing.assert_allclose(found[:, -1, -1], patches[:, -1, -1], atol=1e-5)
  assert found.min() >= patches.min() - 1e-6 and found.max() <= patches.max() + 1e-6


def test_held_out_pairs_are_compared():
  made = config()
  state, batch = fresh(made), make_batch(made, pix2pix)
  rng = jax.random.key(3)
  y = pix2pix.translate(state, batch['x'], 'y', rng, config=made)
  found = pix2pix.evaluate(state, batch, rng, config=made)
  np.testing.assert_allclose(found['l1'], np.abs(y - batch['y']).mean((1, 2, 3)), rtol=1e-5)
  perfect = pix2pix.evaluate(state, batch | {'y': y}, rng, config=made)
  np.testing.assert_allclose(perfect['l1'], 0, atol=1e-6)
  np.testing.assert_allclose(perfect['psnr'], 100)
  np.testing.assert_allclose(perfect['ssim'], 1, atol=1e-5)


def test_what_cannot_be_translated_is_one_line():
  with pytest.raises(UserError, match="to='x': pix2pix translates x to y"):
    pix2pix.translate(None, None, 'x', None, config=config())
  small = {'data.x_from': 'small', 'data.x.factor': 2, 'data.x.shape': (4, 4, 1)}
  with pytest.raises(UserError, match=r'config.data.x.shape=\(4, 4, 1\).* one height and width'):
    pix2pix.check(configs.replace(config(), small))
