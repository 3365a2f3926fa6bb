"""The hinge where it is known, and SNGAN's step: passes, labels and batches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from gen_jax.errors import UserError
from gen_jax.systems import sngan

SGD = dict(
  name='sgd',
  lr=0.1,
  momentum=0.0,
  schedule='constant',
  warmup_steps=0,
  l2=0.0,
  clip_norm=None,
)

# Compiled once for all calls with equal configs.
init_state = jax.jit(sngan.init_state, static_argnames='config')
train_step = jax.jit(sngan.train_step, static_argnames='config')


class Points(nn.Module):
  """A generator with one point for each class; it records its rows and their labels' histogram."""

  num_classes: int | None

  @nn.compact
  def __call__(self, z, label=None, *, train):
    classes = self.num_classes or 1
    label = jnp.zeros(len(z), jnp.int32) if label is None else label
    c = self.param('c', lambda _: 1 + jnp.arange(2.0 * classes).reshape(classes, 2))
    seen = self.variable('batch_stats', 'seen', lambda: jnp.zeros(classes))
    if train:
      seen.value = jnp.zeros(classes).at[label].add(1)
    return c[label]


class Linear(nn.Module):
  """A discriminator <w_label, x>; it counts its passes in training."""

  num_classes: int | None

  @nn.compact
  def __call__(self, x, label=None, *, train):
    label = jnp.zeros(len(x), jnp.int32) if label is None else label
    w = self.param('w', nn.initializers.zeros, (self.num_classes or 1, 2))
    passes = self.variable('batch_stats', 'passes', lambda: jnp.zeros(()))
    if train:
      passes.value += 1
    return jnp.sum(w[label] * x, axis=1)


def make_config(**changes):
  config = ConfigDict(
    dict(
      precision='float32',
      data=dict(shape=(2,), num_classes=3),
      generator=dict(name=Points),
      discriminator=dict(name=Linear),
      latent=dict(dim=2, distribution='normal'),
      loss=dict(n_dis=1, g_batch=1),
      optim=dict(G=dict(SGD), D=dict(SGD)),
      train=dict(accumulate=1),
    )
  )
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return FrozenConfigDict(config)


def draw(*shape, seed=0):
  return np.float32(np.random.default_rng(seed).standard_normal(shape))


def step(batch, **changes):
  config = make_config(loss__n_dis=len(batch['image']), **changes)
  state = init_state(jax.random.key(0), batch, config=config)
  return state, *train_step(state, batch, jax.random.key(1), config=config)


def test_the_hinge_is_flat_beyond_the_margins():
  real, fake = jnp.full(3, 2.0), jnp.full(3, -2.0)
  value, slopes = jax.value_and_grad(sngan.discriminator_loss, (0, 1))(real, fake)
  assert value == 0 and not np.any(slopes)
  assert float(sngan.discriminator_loss(jnp.zeros(3), jnp.zeros(3))) == 2.0
  assert float(sngan.discriminator_loss(-real, -fake)) == 6.0


def test_d_ascends_on_real_and_descends_on_generated_examples_of_their_classes():
  """From w = 0 the hinge's slopes are -1 and 1 everywhere: w_y += lr (E_y x - E_y c_y)."""
  x, label = draw(1, 6, 2), jnp.array([[0, 1, 2, 0, 1, 0]])
  before, after, metrics = step({'image': x, 'label': label})
  real = np.stack([x[0][label[0] == c].sum(0) for c in range(3)]) / 6
  # The generated labels are not ours to know, but each gives a multiple of its class's point.
  residual = (real - after.D.params['w'] / 0.1) / before.G.params['c']
  counts = 6 * residual
  np.testing.assert_allclose(counts[:, 0], counts[:, 1], atol=1e-4)
  np.testing.assert_allclose(counts, np.round(counts), atol=1e-4)
  assert counts[:, 1].sum() == pytest.approx(6, abs=1e-4)
  assert float(metrics['d/loss']) == 2.0


def test_g_follows_the_new_discriminator():
  x, label = draw(1, 6, 2), jnp.array([[0, 1, 2, 0, 1, 0]])
  before, after, metrics = step({'image': x, 'label': label})
  seen = np.asarray(after.G.stats['seen'])
  moved = np.asarray(after.G.params['c'] - before.G.params['c']) / 0.1
  want = np.asarray(after.D.params['w']) * seen[:, None] / 6
  np.testing.assert_allclose(moved, want, rtol=1e-3, atol=1e-5)
  want = -np.sum(want * np.asarray(before.G.params['c']))
  assert float(metrics['g/loss']) == pytest.approx(want, rel=1e-5)


def test_each_update_of_d_makes_two_passes_and_g_has_its_own_batch():
  batch = {'image': draw(3, 4, 2), 'label': jnp.zeros((3, 4), jnp.int32)}
  _, after, _ = step(batch, loss__g_batch=2)
  assert float(after.D.stats['passes']) == 6
  assert float(after.G.stats['seen'].sum()) == 8


def test_generated_labels_are_uniform():
  batch = {'image': draw(1, 3000, 2), 'label': jnp.zeros((1, 3000), jnp.int32)}
  _, after, _ = step(batch)
  np.testing.assert_allclose(after.G.stats['seen'], 1000, atol=150)


def test_without_classes_labels_are_not_needed():
  _, after, metrics = step({'image': draw(2, 4, 2)}, data__num_classes=None)
  assert after.G.params['c'].shape == (1, 2) and np.isfinite(metrics['g/loss'])
  assert not sngan.conditional(after, config=make_config(data__num_classes=None))


def test_samples_are_of_the_given_classes():
  config = make_config()
  state = init_state(jax.random.key(0), {'image': draw(1, 4, 2)}, config=config)
  label = jnp.array([2, 0, 1])
  made = sngan.sample(state, {'label': label}, jax.random.key(1), config=config)
  np.testing.assert_array_equal(made['image'], state.G.params['c'][label])
  assert sngan.conditional(state, config=config)


@pytest.mark.parametrize('net', ['generator', 'discriminator'])
def test_nets_with_other_classes_than_the_data_are_one_line(net):
  with pytest.raises(UserError, match=f'config.{net}.num_classes=4 .*num_classes=3'):
    sngan.check(make_config(**{f'{net}__num_classes': 4}))
