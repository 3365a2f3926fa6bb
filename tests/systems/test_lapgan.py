"""LAPGAN: its pyramid, and the games of its levels, against values by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit as sigmoid
from scipy.special import log_expit

from gen_jax import config as configs
from gen_jax.errors import UserError
from gen_jax.systems import lapgan

LR = 0.2
A = np.array([[0.3, -0.2, 0.5], [-0.4, 0.1, 0.2]])  # of G_0 and G_1, one for each class
C = np.array([0.6, -0.5, 0.2])  # of G_2
S, T = 0.7, -0.1  # of all D


def draw(*shape, seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


class Scaled(nn.Module):
  """A residual a[label] l, whatever z is; other a at other sizes."""

  num_classes: int | None

  @nn.compact
  def __call__(self, z, l, label=None, *, train):
    assert z.shape == (*l.shape[:3], 1)
    a = self.param('a', lambda _: jnp.float32(A[0 if l.shape[1] == 4 else 1]))
    return l * a[0 if label is None else label].reshape(-1, 1, 1, 1)


class Grey(nn.Module):
  """The image c[label], whatever z is."""

  num_classes: int | None
  shape: tuple

  @nn.compact
  def __call__(self, z, label=None, *, train):
    assert z.shape[1:] == (5,)
    c = self.param('c', lambda _: jnp.float32(C))
    c = jnp.broadcast_to(c[0] if label is None else c[label], (len(z),))
    return jnp.broadcast_to(c.reshape(-1, 1, 1, 1), (len(z), *self.shape))


class Sum(nn.Module):
  """D with the logit s sum(x) + t."""

  @nn.compact
  def __call__(self, x, label=None, *, train):
    s, t = (self.param(n, lambda _, v=v: jnp.float32(v)) for n, v in (('s', S), ('t', T)))
    return s * x.sum((1, 2, 3)) + t


def make_config(**fields):
  sgd = dict(name='sgd', lr=LR)
  return configs.make(
    'lapgan',
    {
      'data.shape': (4, 4, 1),
      'data.num_classes': 3,
      'generator': dict(name=Scaled),
      'discriminator': dict(name=Sum),
      'coarse_generator': dict(name=Grey),
      'coarse_discriminator': dict(name=Sum),
      'latent.dim': 5,
      **{f'optim.{net}{k}': sgd for net in 'GD' for k in range(3)},
    }
    | fields,
  )


def down(x):
  return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def up(x):
  """Linear interpolation between corners that stay where they are."""
  for axis in (1, 2):
    n = x.shape[axis]
    where = np.linspace(0, n - 1, 2 * n)
    x = np.apply_along_axis(lambda row, n=n, w=where: np.interp(w, np.arange(n), row), axis, x)
  return x


@pytest.mark.parametrize('classes', [3, None])
def test_a_step_updates_every_level_with_its_own_pairs(classes):
  config = make_config(**{'data.num_classes': classes})
  label, x = np.array([0, 2, 2, 1, 0]), draw(5, 4, 4, 1)
  batch = {'image': x, 'label': np.int32(label)}
  state = lapgan.init_state(jax.random.key(0), batch, config=config)
  step = jax.jit(functools.partial(lapgan.train_step, config=config))
  state, metrics = step(state, batch, jax.random.key(1))
  if classes is None:
    label = np.zeros_like(label)
  x, one_hot, n = x.astype(np.float64), np.eye(3)[label], len(label)
  total = lambda x: x.sum((1, 2, 3))

  for k in range(3):
    if k < 2:
      l = up(down(x))
      theta, name, slope_in_theta = A[k], 'a', total(l)
      fake = total(l * (1 + A[k][label])[:, None, None, None])
    else:
      theta, name, slope_in_theta = C, 'c', np.ones(n)
      assert x.shape[1:] == (1, 1, 1)
      fake = C[label]
    real = total(x)
    on_real, on_fake = S * real + T, S * fake + T
    real_slope, fake_slope = -sigmoid(-on_real) / (2 * n), sigmoid(on_fake) / (2 * n)
    s = S - LR * (real_slope @ real + fake_slope @ fake)
    t = T - LR * (real_slope.sum() + fake_slope.sum())
    after = s * fake + t  # G meets the D that has just moved
    g_slope = -sigmoid(-after) * s * slope_in_theta / n
    wanted = theta - LR * one_hot.T @ g_slope

    D, G = getattr(state, f'D{k}').params, getattr(state, f'G{k}').params
    np.testing.assert_allclose([D['s'], D['t']], [s, t], rtol=1e-5)
    np.testing.assert_allclose(G[name], wanted, rtol=1e-5)
    found = [metrics[f'{m}'] for m in (f'd{k}/loss', f'g{k}/loss', f'd{k}/real_prob')]
    found.append(metrics[f'd{k}/fake_prob'])
    d_loss = -(log_expit(on_real).mean() + log_expit(-on_fake).mean()) / 2
    wanted = [d_loss, -log_expit(after).mean(), sigmoid(on_real).mean(), sigmoid(on_fake).mean()]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    x = down(x)


class Stored(nn.Module):
  """A residual, or a coarsest image, that is its parameter."""

  shape: tuple

  @nn.compact
  def __call__(self, *inputs, train):
    return self.param('h', nn.initializers.zeros, self.shape)[None]


def test_sampling_inverts_the_pyramid():
  """With the residuals of an image in place of generated ones, a sample is the image."""
  stored = {'generator': dict(name=Stored), 'coarse_generator': dict(name=Stored)}
  config = make_config(**stored, **{'data.shape': (8, 12, 2), 'data.num_classes': None})
  x = draw(1, 8, 12, 2)
  state = lapgan.init_state(jax.random.key(0), {'image': x}, config=config)
  images = lapgan.pyramid(x)
  np.testing.assert_allclose(images[1], down(x), rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(images[2], down(down(x)), rtol=1e-5, atol=1e-7)
  h = [x - up(down(x)), down(x) - up(down(down(x))), down(down(x))]
  players = {f'G{k}': getattr(state, f'G{k}').replace(params={'h': h[k][0]}) for k in range(3)}
  state = state.replace(**players)
  made = lapgan.sample(state, {'index': np.arange(1)}, jax.random.key(0), config=config)
  np.testing.assert_allclose(made['image'], x, atol=1e-5)
  # The levels are shown from the coarsest on, at the size of the image.
  levels = made['levels'][0]
  assert levels.shape == (3, 8, 12, 2)
  np.testing.assert_array_equal(levels[2], made['image'][0])
  for level, size in ((1, 2), (0, 4)):
    blocks = levels[level].reshape(8 // size, size, 12 // size, size, 2)
    assert (blocks == blocks[:, :1, :, :1]).all()
    np.testing.assert_allclose(blocks[:, 0, :, 0], images[2 - level][0], atol=1e-5)


def test_each_level_has_latents_of_its_own():
  config = configs.load('configs/lapgan_fashion_mnist.py:smoke')
  batch = {'image': draw(2, 28, 28, 1), 'label': np.int32([0, 1])}
  state = lapgan.init_state(jax.random.key(0), batch, config=config)
  z = np.array(lapgan.prior(jax.random.key(1), 2, config=config))
  ends = np.cumsum([28 * 28, 14 * 14, config.latent.dim])
  assert z.shape == (2, ends[-1]) and np.abs(z).max() <= 1 and z.std() > 0.5
  decode = jax.jit(lambda z: lapgan.decode(state, z, batch, config=config)['levels'])
  before = decode(z)
  for k, start in enumerate((0, *ends[:-1])):
    other = z.copy()
    other[:, start : ends[k]] *= -1
    differs = [bool((a != b).any()) for a, b in zip(decode(other)[0], before[0], strict=True)]
    assert differs == [level >= 2 - k for level in range(3)]  # the level itself and finer ones
  with pytest.raises(UserError, match=r'z is \(2, 3\)'):
    lapgan.decode(state, z[:, :3], batch, config=config)


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'data.shape': (30, 32, 1)}, r'shape=\(30, 32, 1\): .* multiples of 4'),
    ({'data.shape': (2,)}, r'shape=\(2,\): images'),
    ({'generator.num_classes': 4}, 'generator.num_classes=4 but config.data.num_classes=3'),
  ],
)
def test_what_a_user_can_get_wrong_is_told_in_one_line(fields, words):
  with pytest.raises(UserError, match=words):
    lapgan.check(make_config(**fields))
