"""CycleGAN: its losses, its buffer, what a step does, translations."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_contract import make_batch

from gen_jax import config as configs
from gen_jax.errors import UserError
from gen_jax.state import Player
from gen_jax.systems import cyclegan
from gen_jax.systems.cyclegan import Buffer, exchange

KEY = jax.random.key(0)


@functools.cache
def config():
  return configs.load('configs/cyclegan_mnist_usps.py:smoke')


class Net:
  """A net that multiplies with its one parameter."""

  def apply(self, variables, x, *, train):
    return variables['params'] * x


SGD = optax.sgd(0.1)
GAME = cyclegan.Game(Net(), Net(), Net(), SGD, SGD)
PARAMS = {'G': 0.5, 'F': -0.8}, {'X': 0.7, 'Y': 0.2}


def player(params):
  params = jax.tree.map(jnp.float32, params)
  return Player(params, {}, SGD.init(params))


def draw(*shape, seed=0):
  return jnp.float32(np.random.default_rng(seed).standard_normal(shape))


def test_losses_of_d_and_of_translations():
  real, fake = draw(2, 3, 3, 1), draw(2, 3, 3, 1, seed=1)
  D, G = cyclegan.discriminator_loss, cyclegan.adversarial_loss
  want = (((real - 1) ** 2).mean() + (fake**2).mean()) / 2
  assert float(D(real, fake, 'least_squares')) == pytest.approx(float(want), rel=1e-6)
  assert float(G(fake, 'least_squares')) == pytest.approx(float(((fake - 1) ** 2).mean()), rel=1e-6)
  assert float(D(real * 0, fake * 0, 'log')) == pytest.approx(math.log(2), rel=1e-6)
  prob = jax.nn.sigmoid(fake)
  assert float(G(fake, 'log')) == pytest.approx(float(-jnp.log(prob).mean()), rel=1e-5)
  want = -(jnp.log(jax.nn.sigmoid(real)).mean() + jnp.log(1 - prob).mean()) / 2
  assert float(D(real, fake, 'log')) == pytest.approx(float(want), rel=1e-5)


def objective(g, x, y, d, identity=0.5):
  """Eq. 3 with least squares and the identity term, for one number as each net."""
  G, F = g['G'], g['F']
  gan = jnp.mean((d['Y'] * G * x - 1) ** 2) + jnp.mean((d['X'] * F * y - 1) ** 2)
  cycle = jnp.mean(abs(F * G * x - x)) + jnp.mean(abs(G * F * y - y))
  same = jnp.mean(abs(G * y - y)) + jnp.mean(abs(F * x - x))
  return gan + 10 * cycle + 10 * identity * same


def test_a_step_updates_both_translators_and_then_both_discriminators(monkeypatch):
  """By hand: D_X and D_Y learn from the translations made before the update of G and F."""
  monkeypatch.setattr(cyclegan, 'build', lambda *_, **__: GAME)
  x, y = draw(2, 4, 4, 1), draw(2, 4, 4, 1, seed=1)
  empty = Buffer(jnp.zeros((4, 4, 4, 1)), jnp.int32(0))
  g, d = PARAMS
  state = cyclegan.State(jnp.int32(3), player(g), player(d), empty, empty)
  step = jax.jit(functools.partial(cyclegan.train_step, config=config()))
  after, metrics = step(state, {'x': x, 'y': y}, KEY)

  value, slope = jax.value_and_grad(objective)(jax.tree.map(jnp.float32, g), x, y, d)
  assert float(metrics['g/loss']) == pytest.approx(float(value), rel=1e-5)
  for name in 'GF':
    want = g[name] - 0.1 * slope[name]
    assert float(after.G.params[name]) == pytest.approx(float(want), rel=1e-4)
  fakes = {'X': (x, g['F'] * y), 'Y': (y, g['G'] * x)}
  for name, (real, fake) in fakes.items():
    slope = jnp.mean((d[name] * real - 1) * real) + jnp.mean(d[name] * fake**2)
    assert float(after.D.params[name]) == pytest.approx(float(d[name] - 0.1 * slope), rel=1e-4)
  # The buffers hold the translations into their own domain.
  np.testing.assert_allclose(after.x_buffer.images[:2], g['F'] * y, rtol=1e-6)
  np.testing.assert_allclose(after.y_buffer.images[:2], g['G'] * x, rtol=1e-6)
  assert int(after.x_buffer.count) == int(after.y_buffer.count) == 2


# --- The buffer ---------------------------------------------------------------------------------


def filled(size):
  """A full buffer of the images -1, -2, ..."""
  return Buffer(-1.0 - jnp.arange(size).reshape(size, 1, 1, 1), jnp.int32(size))


def test_the_first_ones_are_kept_and_returned():
  buffer, seen = Buffer(jnp.zeros((50, 1, 1, 1)), jnp.int32(0)), []
  step = jax.jit(exchange)
  for i in range(7):
    rows = jnp.arange(8.0 * i, 8.0 * i + 8).reshape(8, 1, 1, 1)
    buffer, returned = step(buffer, rows, jax.random.fold_in(KEY, i))
    seen += [*np.ravel(returned)]
  assert seen[:50] == [*range(50)]
  assert int(buffer.count) == 50
  assert all(value in range(56) for value in seen[50:])
  part = Buffer(jnp.zeros((50, 1, 1, 1)), jnp.int32(0))
  part, _ = step(part, jnp.arange(8.0).reshape(8, 1, 1, 1) + 1, KEY)
  assert [*np.ravel(part.images)] == [*range(1, 9), *[0] * 42] and int(part.count) == 8


def test_then_half_of_them_are_exchanged_for_earlier_ones():
  size, n = 50, 4000
  rows = jnp.arange(float(n)).reshape(n, 1, 1, 1)
  buffer, returned = jax.jit(exchange)(filled(size), rows, KEY)
  returned = np.ravel(returned)
  exchanged = returned != np.arange(n)
  assert abs(exchanged.mean() - 0.5) < 4 * 0.5 / math.sqrt(n)
  # What left the buffer had entered it earlier, once; nothing is lost or doubled.
  before = set(np.ravel(filled(size).images))
  inside = set(np.ravel(buffer.images))
  assert len(inside) == size
  assert sorted([*returned, *inside]) == sorted([*np.arange(n), *before])
  assert all(value < i for i, value in enumerate(returned) if exchanged[i])
  # Every place is exchanged: with 2,000 draws, the first images have all left.
  assert not before & inside


def test_without_a_buffer_only_new_ones_are_seen():
  empty = Buffer(jnp.zeros((0, 2, 2, 1)), jnp.int32(0))
  rows = draw(3, 2, 2, 1)
  buffer, returned = exchange(empty, rows, KEY)
  np.testing.assert_array_equal(returned, rows)
  assert buffer.images.shape == (0, 2, 2, 1)


def test_devices_share_one_buffer():
  """Under pmap the buffer is that of one device, and every device gets its own rows."""
  assert jax.device_count() == 2
  rows = jnp.arange(8.0).reshape(8, 1, 1, 1)
  want, whole = jax.jit(exchange)(filled(3), rows, KEY)
  mapped = jax.pmap(functools.partial(exchange, axis_name='rows'), 'rows', in_axes=(None, 0, None))
  found, parts = mapped(filled(3), rows.reshape(2, 4, 1, 1, 1), KEY)
  np.testing.assert_array_equal(np.ravel(parts), np.ravel(whole))
  for device in range(2):
    np.testing.assert_array_equal(found.images[device], want.images)
  assert not np.array_equal(np.ravel(whole), np.ravel(rows))


# --- Nets and fields ----------------------------------------------------------------------------


def test_a_translation_does_not_depend_on_its_batch_and_goes_both_ways():
  batch = make_batch(config(), cyclegan)
  state = jax.jit(functools.partial(cyclegan.init_state, config=config()))(KEY, batch)
  step = jax.jit(functools.partial(cyclegan.train_step, config=config()))
  for _ in range(20):
    state, _ = step(state, batch, KEY)
  x, y = batch['x'], batch['y']
  given = {'x': x, 'y': y}
  made = jax.jit(functools.partial(cyclegan.sample, config=config()))(state, given, KEY)
  other = jax.jit(functools.partial(cyclegan.sample, config=config()))(
    state, {'x': x.at[1:].set(-x[1:]), 'y': y.at[1:].set(-y[1:])}, KEY
  )
  for name in ('image', 'back', 'image_x', 'back_y'):
    np.testing.assert_allclose(made[name][0], other[name][0], atol=1e-5)
  assert np.abs(made['image'][1] - other['image'][1]).max() > 1e-3
  translate = functools.partial(cyclegan.translate, state, rng=KEY, config=config())
  np.testing.assert_allclose(translate(x, to='y'), made['image'], atol=1e-5)
  np.testing.assert_allclose(translate(y, to='x'), made['image_x'], atol=1e-5)
  np.testing.assert_allclose(translate(made['image'], to='x'), made['back'], atol=1e-4)
  found = cyclegan.evaluate(state, batch, KEY, config=config())
  np.testing.assert_allclose(found['cycle_x'], np.abs(made['back'] - x).mean((1, 2, 3)), rtol=1e-3)
  np.testing.assert_allclose(
    found['cycle_y'], np.abs(made['back_y'] - y).mean((1, 2, 3)), rtol=1e-3
  )


def test_what_does_not_fit_is_one_line():
  wider = configs.replace(config(), {'data.x.shape': (16, 20, 1)})
  with pytest.raises(UserError, match=r'config.data.x.shape=\(16, 20, 1\).*one height and width'):
    cyclegan.check(wider)
  colour = configs.replace(config(), {'data.x.shape': (16, 16, 3)})
  with pytest.raises(UserError, match=r'config.loss.identity=0.5, but .*0 is needed'):
    cyclegan.check(colour)
  cyclegan.check(configs.replace(colour, {'loss.identity': 0.0}))
  normed = configs.replace(config(), {'discriminator.norm': 'batch'})
  with pytest.raises(UserError, match=r"config.discriminator: .*norm='instance'"):
    jax.eval_shape(
      functools.partial(cyclegan.init_state, config=normed), KEY, make_batch(normed, cyclegan)
    )
