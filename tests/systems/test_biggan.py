"""BigGAN's regularisation, moving average, standing statistics and truncation in closed form."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from ml_collections import ConfigDict, FrozenConfigDict

from gen_jax import config as configs
from gen_jax.errors import UserError
from gen_jax.nets.layers import MOMENTUM
from gen_jax.systems import biggan

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
init_state = jax.jit(biggan.init_state, static_argnames='config')
train_step = jax.jit(biggan.train_step, static_argnames='config')


class Normed(nn.Module):
  """A generator of its normalised latents, moved by a vector of their class."""

  num_classes: int | None

  @nn.compact
  def __call__(self, z, label, *, train):
    move = self.param('move', nn.initializers.ones, (self.num_classes, 2))
    y = nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM, use_bias=False)(z)
    return y + move[label]


class Linear(nn.Module):
  """A discriminator <w_label, x>; it counts its passes and rows in training."""

  num_classes: int | None

  @nn.compact
  def __call__(self, x, label, *, train):
    w = self.param('w', nn.initializers.zeros, (self.num_classes, 2))
    passes = self.variable('batch_stats', 'passes', lambda: jnp.zeros(()))
    rows = self.variable('batch_stats', 'rows', lambda: jnp.zeros(()))
    if train:
      passes.value, rows.value = passes.value + 1, rows.value + len(x)
    return jnp.sum(w[label] * x, axis=1)


def make_config(**changes):
  config = ConfigDict(
    dict(
      system='biggan',
      precision='float32',
      data=dict(shape=(2,), num_classes=3),
      generator=dict(name=Normed),
      discriminator=dict(name=Linear),
      latent=dict(dim=2, distribution='normal'),
      loss=dict(d_steps=1, orthogonal=0.0),
      ema=dict(decay=0.5, start=2),
      optim=dict(G=dict(SGD), D=dict(SGD)),
      train=dict(accumulate=1, batch_size=4),
      sample=dict(weights='ema', truncation=None, standing_batches=6),
    )
  )
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return FrozenConfigDict(config)


def draw(*shape, seed=0):
  return np.float32(np.random.default_rng(seed).standard_normal(shape))


def make_batch(k=1, b=6):
  label = np.random.default_rng(1).integers(0, 3, (k, b)).astype(np.int32)
  return {'image': draw(k, b, 2), 'label': label}


def trained(steps, **changes):
  """The states after 0, 1, ... steps."""
  batch = make_batch()
  states = [init_state(jax.random.key(0), batch, config=make_config(**changes))]
  for _ in range(steps):
    state, _ = train_step(states[-1], batch, jax.random.key(1), config=make_config(**changes))
    states.append(state)
  return states


# --- Training -------------------------------------------------------------------------------------


def test_orthogonal_rows_of_any_length_have_no_penalty():
  Q = np.linalg.qr(draw(12, 12))[0][:4]
  rows = Q * np.array([[1.0], [2], [3], [4]])
  params = {
    'dense': {'kernel': rows.T, 'bias': draw(4)},
    'conv': {'kernel': rows.T.reshape(2, 2, 3, 4)},
    'label': {'embedding': rows},
  }
  value, gradient = jax.value_and_grad(biggan.orthogonal_penalty)(params)
  assert float(value) == pytest.approx(0, abs=1e-8)
  assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient)) < 1e-4


def test_the_gradient_of_the_penalty():
  """4 (W W^T * (1 - I)) W, twice what the released code adds."""
  W = draw(4, 6)
  value, gradient = jax.value_and_grad(biggan.orthogonal_penalty)({'a': {'kernel': W.T}})
  gram = W @ W.T * (1 - np.eye(4))
  np.testing.assert_allclose(value, np.sum(gram**2), rtol=1e-5)
  np.testing.assert_allclose(gradient['a']['kernel'].T, 4 * gram @ W, rtol=1e-4, atol=1e-4)
  assert biggan.orthogonal_penalty({'shared': {'embedding': W}}) == 0
  assert float(biggan.orthogonal_penalty({'x': {'embedding': W}})) == pytest.approx(value)


def test_the_penalty_moves_g_alone():
  batch = make_batch()
  plain, normed = make_config(), make_config(loss__orthogonal=0.5)
  state = init_state(jax.random.key(0), batch, config=plain)
  state = state.replace(
    G=state.G.replace(params=dict(state.G.params, move=jnp.asarray(draw(3, 2))))
  )
  (a, _), (b, metrics) = (
    train_step(state, batch, jax.random.key(1), config=config) for config in (plain, normed)
  )
  M = np.asarray(state.G.params['move'])
  gram = M.T @ M * (1 - np.eye(2))  # as of a dense layer, columns are outputs
  want = a.G.params['move'] - 0.1 * 0.5 * 4 * M @ gram
  np.testing.assert_allclose(b.G.params['move'], want, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(metrics['g/orthogonal'], np.sum(gram**2), rtol=1e-4)
  jax.tree.map(np.testing.assert_array_equal, a.D, b.D)


def test_an_update_of_d_is_one_pass_over_real_and_generated_rows():
  batch = make_batch(k=3)
  config = make_config(loss__d_steps=3)
  state = init_state(jax.random.key(0), batch, config=config)
  state, metrics = train_step(state, batch, jax.random.key(1), config=config)
  assert (float(state.D.stats['passes']), float(state.D.stats['rows'])) == (3, 36)
  assert np.isfinite(metrics['d/loss'])


def test_real_and_generated_rows_keep_their_labels():
  """From w = 0: w_y += lr (sum of x of class y - sum of G(z, y)) / b, where the first is larger."""
  batch = make_batch()
  batch['image'] += 100  # generated ones are near 1
  state = trained_on(batch)
  sums = np.stack([batch['image'][0][batch['label'][0] == c].sum(0) for c in range(3)])
  np.testing.assert_allclose(state.D.params['w'] / 0.1, sums / 6, atol=8)


def trained_on(batch):
  config = make_config()
  state = init_state(jax.random.key(0), batch, config=config)
  return train_step(state, batch, jax.random.key(1), config=config)[0]


def test_the_average_starts_as_a_copy():
  states = trained(4)
  weights = [np.asarray(s.G.params['move']) for s in states]
  assert not np.array_equal(weights[1], weights[2])
  for state, same in zip(states[:3], weights, strict=False):
    np.testing.assert_array_equal(state.G.ema['move'], same)
  want = 0.5 * weights[2] + 0.5 * weights[3]
  np.testing.assert_allclose(states[3].G.ema['move'], want, rtol=1e-6)
  want = 0.5 * want + 0.5 * weights[4]
  np.testing.assert_allclose(states[4].G.ema['move'], want, rtol=1e-6)


# --- Sampling -------------------------------------------------------------------------------------


def standing(config, state=None):
  state = trained(1)[1] if state is None else state
  G = biggan.build(config).G
  return biggan.standing_statistics(G, state.G, state.G.ema, config=config)['BatchNorm_0']


def test_standing_statistics_are_those_of_the_latents_in_many_batches():
  """Latents are N(0, 1): batches of b have the mean 0 and on average the variance 1 - 1 / b."""
  config = make_config(sample__standing_batches=20_000, train__batch_size=5)
  stats = standing(config)
  np.testing.assert_allclose(stats['mean'], 0, atol=4 / np.sqrt(100_000))
  np.testing.assert_allclose(stats['var'], 1 - 1 / 5, rtol=0.02)


def test_standing_statistics_are_means_over_batches():
  """One batch has its own; of two, the mean of both is between them."""
  config = make_config(sample__standing_batches=3)
  state, G = trained(1)[1], biggan.build(config).G
  keys = jax.random.split(jax.random.key(0), 3)
  seen = []
  for key in keys:
    z = np.asarray(biggan.prior(jax.random.split(key)[0], 4, config=config))
    seen.append((z.mean(0), z.var(0)))
  mean, var = np.mean(seen, axis=0)
  stats = biggan.standing_statistics(G, state.G, state.G.ema, config=config)['BatchNorm_0']
  np.testing.assert_allclose(stats['mean'], mean, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(stats['var'], var, rtol=1e-4, atol=1e-5)


def test_without_batches_the_running_averages_stay():
  state = trained(1)[1]
  stats = standing(make_config(sample__standing_batches=0), state)
  jax.tree.map(np.testing.assert_array_equal, stats, state.G.stats['BatchNorm_0'])


def test_samples_do_not_depend_on_how_many_are_drawn_at_once():
  config, state, z = make_config(), trained(1)[1], draw(6, 2)
  label = jnp.array([0, 1, 2, 0, 1, 2])
  decode = functools.partial(biggan.decode, state, config=config)
  whole = decode(z, {'label': label})['image']
  parts = [decode(z[i : i + 2], {'label': label[i : i + 2]})['image'] for i in (0, 2, 4)]
  np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-6)


def test_truncated_latents_are_drawn_again():
  z = np.asarray(
    biggan.prior(jax.random.key(0), 20_000, config=make_config(sample__truncation=0.5))
  ).ravel()
  assert np.abs(z).max() <= 0.5
  assert scipy.stats.kstest(z, scipy.stats.truncnorm(-0.5, 0.5).cdf).pvalue > 0.01
  z = biggan.prior(jax.random.key(0), 20_000, config=make_config())
  assert np.abs(z).max() > 3


def test_samples_are_of_the_average_or_the_weights():
  state, given = trained(3)[3], {'label': jnp.zeros(4, jnp.int32)}
  apart = state.replace(G=state.G.replace(ema=jax.tree.map(lambda p: p + 1, state.G.params)))
  made = [
    biggan.sample(apart, given, jax.random.key(2), config=make_config(sample__weights=weights))
    for weights in ('ema', 'raw')
  ]
  assert np.abs(made[0]['image'] - made[1]['image']).mean() > 0.5


@pytest.mark.parametrize('value', ['-1.0', '0.0'])
def test_a_truncation_that_leaves_nothing_is_one_line(value):
  with pytest.raises(UserError, match=f'sample.truncation={value}: a number above 0'):
    configs.load('configs/biggan_fashion_mnist.py', [('sample.truncation', value)])


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(data__num_classes=None), 'num_classes=None'),
    (dict(generator__num_classes=4), 'config.generator.num_classes=4'),
    (dict(sample__truncation=1.0, latent__distribution='uniform'), "distribution='uniform'"),
  ],
)
def test_inconsistent_fields_are_one_line(changes, message):
  with pytest.raises(UserError, match=message):
    biggan.check(make_config(**changes))
