"""The losses of improved_gan in closed form and by hand, its labels, averages and devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from ml_collections import ConfigDict, FrozenConfigDict

from gen_jax import config as configs
from gen_jax import contract
from gen_jax.errors import UserError
from gen_jax.nets import improved
from gen_jax.systems import gan
from gen_jax.systems import improved_gan as system

ADAM = dict(
  name='adam', lr=0.01, b1=0.5, b2=0.9, eps=1e-8, schedule='constant', warmup_steps=0
) | dict(l2=0.0, clip_norm=None)
CLASSES, KEY = 3, jax.random.key(0)
# Compiled once for all calls with equal configs.
init_state = jax.jit(system.init_state, static_argnames='config')
train_step = jax.jit(system.train_step, static_argnames='config')


class Linear(nn.Module):
  """Logits x w and features x."""

  num_classes: int | None

  @nn.compact
  def __call__(self, x, *, train):
    w = self.param('w', lambda _: draw(2, self.num_classes or 1, seed=5))
    return x @ w, x


class Shift(nn.Module):
  """A generator z + c."""

  @nn.compact
  def __call__(self, z, *, train):
    return z + self.param('c', lambda _: jnp.array([0.5, -0.25]))[None]


def draw(*shape, seed=0):
  return np.float32(np.random.default_rng(seed).standard_normal(shape))


def make_config(**changes):
  config = ConfigDict(
    dict(
      precision='float32',
      data=dict(shape=(2,), num_classes=CLASSES),
      labels=dict(per_class=2),
      generator=dict(name=Shift),
      discriminator=dict(name=Linear),
      latent=dict(dim=2, distribution='normal'),
      loss=dict(
        generator='feature_matching',
        feature_distance='squared',
        real_target=1.0,
        historical=0.0,
        unlabelled=1.0,
        d_steps=1,
        g_steps=1,
      ),
      first=dict(minibatches=3),
      ema_decay=0.9,
      optim=dict(G=dict(ADAM), D=dict(ADAM)),
      train=dict(accumulate=1, batch_size=6),
    )
  )
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return FrozenConfigDict(config)


UNLABELLED = dict(data__num_classes=None, labels__per_class=None)


def batch_of(config, step=0, seed=0):
  m, b = system.minibatches(config, step), config.train.batch_size
  batch = {'image': draw(m, b, 2, seed=seed)}
  if config.data.num_classes is not None:
    batch['label'] = np.int32(np.random.default_rng(seed).integers(0, CLASSES, (m, b)))
  return batch


def start(config):
  return init_state(KEY, batch_of(config), config=config)


def keys(*names):
  return dict(zip(names, jax.random.split(jax.random.key(1), len(names)), strict=True))


def d_loss(config, state, rows):
  history = state.history and state.history['D']
  loss, (metrics, _) = system.d_loss(
    state.D.params,
    rows,
    keys('real', 'fake', 'labelled'),
    player=state.D,
    history=history,
    game=system.build(config),
    config=config,
  )
  return loss, metrics


def g_loss(config, state, rows):
  loss, _ = system.g_loss(
    state.G.params,
    rows,
    keys('real', 'fake'),
    player=state.G,
    history=state.history and state.history['G'],
    D=state.D,
    game=system.build(config),
    config=config,
    axis_name=None,
  )
  return loss


# --- The losses -----------------------------------------------------------------------------------


@pytest.mark.parametrize('weight', [1.0, 0.25])
def test_ds_loss_is_that_of_classes_and_a_generated_one(weight):
  """The cross-entropies of the softmax over K + 1 logits, the last of which is 0."""
  config = make_config(loss__unlabelled=weight)
  state, x, x_fake, x_lab = start(config), *(draw(6, 2, seed=s) for s in (1, 2, 3))
  y = np.int32([0, 2, 1, 1, 0, 2])
  w = np.asarray(state.D.params['w'], np.float64)
  p = {
    name: scipy.special.softmax(np.pad(rows @ w, ((0, 0), (0, 1))), axis=1)
    for name, rows in (('real', x), ('fake', x_fake), ('lab', x_lab))
  }
  unlabelled = -0.5 * np.log(1 - p['real'][:, -1]).mean() - 0.5 * np.log(p['fake'][:, -1]).mean()
  of_real = p['lab'][:, :-1] / p['lab'][:, :-1].sum(1, keepdims=True)
  labelled = -np.log(of_real[np.arange(6), y]).mean()
  loss, metrics = d_loss(config, state, (x, x_fake, {'image': x_lab, 'label': y}))
  np.testing.assert_allclose(loss, labelled + weight * unlabelled, rtol=1e-5)
  expected = {
    'd/loss': labelled + weight * unlabelled,
    'd/unlabelled': unlabelled,
    'd/labelled': labelled,
    'd/labelled_accuracy': (of_real.argmax(1) == y).mean(),
    'd/real_prob': 1 - p['real'][:, -1].mean(),
    'd/fake_prob': 1 - p['fake'][:, -1].mean(),
    'd/accuracy': np.mean([*(p['real'][:, -1] < 0.5), *(p['fake'][:, -1] > 0.5)]),
  }
  assert {k: float(v) for k, v in metrics.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('target', [1.0, 0.75])
def test_without_labels_ds_loss_is_that_of_gan(target):
  config = make_config(loss__real_target=target, **UNLABELLED)
  state, x, x_fake = start(config), draw(6, 2, seed=1), draw(6, 2, seed=2)
  w = state.D.params['w']
  expected = gan.discriminator_loss((x @ w)[:, 0], (x_fake @ w)[:, 0], target)
  np.testing.assert_allclose(d_loss(config, state, (x, x_fake, None))[0], expected, rtol=1e-5)


@pytest.mark.parametrize('distance', ['squared', 'absolute'])
def test_feature_matching_by_hand(distance):
  config = make_config(loss__feature_distance=distance)
  state, z, x = start(config), draw(6, 2, seed=1), draw(6, 2, seed=2)
  gap = x.mean(0) - (z + np.array([0.5, -0.25])).mean(0)
  expected = np.mean(gap**2) if distance == 'squared' else np.mean(np.abs(gap))
  np.testing.assert_allclose(g_loss(config, state, (z, x)), expected, rtol=1e-5)


@pytest.mark.parametrize('name', gan.GENERATOR_LOSSES)
def test_other_losses_of_g_are_those_of_gan_on_all_classes(name):
  config = make_config(loss__generator=name)
  state, z = start(config), draw(6, 2, seed=1)
  logits = np.asarray((z + np.array([0.5, -0.25])) @ state.D.params['w'])
  real = np.log(np.exp(logits).sum(1))
  expected = gan.GENERATOR_LOSSES[name](jnp.float32(real))
  np.testing.assert_allclose(g_loss(config, state, (z, z)), expected, rtol=1e-5)


def test_historical_averaging_pulls_to_the_mean_over_all_steps():
  config = make_config(loss__historical=0.3)
  state = start(config)
  rows = draw(6, 2, seed=1), draw(6, 2, seed=2)
  plain = g_loss(make_config(), state, rows)
  np.testing.assert_allclose(g_loss(config, state, rows), plain, rtol=1e-6)  # at the start
  seen = [np.asarray(state.G.params['c'])]
  seen_by_d = [np.asarray(state.D.params['w'])]
  for step in range(3):
    batch = batch_of(config, step, seed=step)
    state, metrics = train_step(state, batch, KEY, config=config)
    seen.append(np.asarray(state.G.params['c']))
    seen_by_d.append(np.asarray(state.D.params['w']))
  np.testing.assert_allclose(state.history['G']['c'], np.mean(seen, 0), rtol=1e-5)
  np.testing.assert_allclose(state.history['D']['w'], np.mean(seen_by_d, 0), rtol=1e-5)
  plain = g_loss(make_config(), state, rows)
  far = 0.3 * np.sum((seen[-1] - np.mean(seen, 0)) ** 2)
  assert far > 1e-5
  np.testing.assert_allclose(g_loss(config, state, rows) - plain, far, rtol=1e-3)


# --- Labels ---------------------------------------------------------------------------------------


def test_the_first_examples_of_each_class_are_labelled():
  label = jnp.array([2, 0, 0, 1, 2, 0, 2, 1, 0])
  rows = system.first_of_each_class(label, 3, 2)
  assert sorted(rows.tolist()) == [0, 1, 2, 3, 4, 7]
  # Class 1 has only two: a later row of another class has its own label.
  rows = system.first_of_each_class(label, 3, 3)
  assert len(set(rows.tolist())) == 9


def test_labelled_examples_are_those_of_the_first_batch():
  config = make_config()
  batch, state = batch_of(config), start(config)
  images, labels = (np.concatenate(batch[name]) for name in ('image', 'label'))
  for image, label in zip(state.labelled['image'], state.labelled['label'], strict=True):
    (row,) = np.flatnonzero((images == image[None]).all(1))
    assert labels[row] == label
  assert np.bincount(state.labelled['label']).tolist() == [2, 2, 2]
  after, _ = train_step(state, batch, KEY, config=config)
  np.testing.assert_array_equal(after.labelled['image'], state.labelled['image'])


def test_labels_of_the_stream_are_not_read_after_the_start():
  config = make_config()
  state, batch = start(config), batch_of(config, 1, seed=3)
  other = batch | {'label': (batch['label'] + 1) % CLASSES}
  found = [train_step(state, b, KEY, config=config) for b in (batch, other)]
  for a, b in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('b', [4, 6, 12])
def test_a_labelled_batch_repeats_no_example_before_all_are_in_it(b):
  labelled = {'image': draw(6, 2), 'label': jnp.arange(6)}
  found = system.draw_labelled(labelled, jax.random.key(0), b, None)
  counts = np.bincount(found['label'], minlength=6)
  assert counts.max() - counts.min() <= 1 and counts.sum() == b
  np.testing.assert_array_equal(found['image'], labelled['image'][found['label']])
  other = system.draw_labelled(labelled, jax.random.key(1), b, None)
  assert (found['label'] != other['label']).any()


# --- The step -------------------------------------------------------------------------------------


def test_minibatches():
  count = lambda step, **changes: system.minibatches(make_config(**changes), step)
  assert count(0) == 3 and count(1) == 2
  assert count(1, loss__d_steps=5, loss__g_steps=3) == 8
  assert count(1, loss__d_steps=2, loss__g_steps=3, loss__generator='minimax') == 3
  assert count(0, loss__d_steps=5) == 6


def test_g_matches_features_of_other_examples_than_ds():
  config = make_config(loss__d_steps=2)
  state, batch = start(config), batch_of(config, 1)
  step = functools.partial(train_step, rng=KEY, config=config)
  before, _ = step(state, batch)
  moved = []
  for i in range(3):
    image = batch['image'].copy()
    image[i] -= 4  # so far that G's gradient changes its sign
    after, _ = step(state, batch | {'image': image})
    d = (after.D.params['w'] != before.D.params['w']).any()
    moved.append((bool(d), bool((after.G.params['c'] != before.G.params['c']).any())))
  assert moved[2] == (False, True)  # without a trace in D
  assert moved[0][0] and moved[1][0]


def test_ds_average_rises_to_its_decay():
  config = make_config()
  state = start(config)
  expected = np.asarray(state.D.params['w'])
  for step in range(3):
    batch = batch_of(config, step, seed=step)
    state, _ = train_step(state, batch, KEY, config=config)
    decay = min(0.9, (1 + step) / (10 + step))
    expected = decay * expected + (1 - decay) * np.asarray(state.D.params['w'])
  np.testing.assert_allclose(state.D.ema['w'], expected, rtol=1e-5)


def test_held_out_examples_are_classified_by_the_average():
  config = make_config()
  state, x, y = start(config), draw(6, 2, seed=1), np.int32([0, 2, 1, 1, 0, 2])
  w = draw(2, CLASSES, seed=8)
  state = state.replace(D=state.D.replace(ema={'w': w}))
  found = system.evaluate(state, {'image': x, 'label': y}, None, config=config)
  u = x @ w
  p = scipy.special.softmax(np.pad(u, ((0, 0), (0, 1))), axis=1)
  np.testing.assert_array_equal(found['error'], u.argmax(1) != y)
  np.testing.assert_allclose(found['real_prob'], 1 - p[:, -1], rtol=1e-4)
  free = make_config(**UNLABELLED)
  assert set(system.evaluate(start(free), {'image': x}, None, config=free)) == {'real_prob'}


# --- Devices and microbatches ---------------------------------------------------------------------

SMALL = dict(
  data__shape=(2,),
  generator=dict(name=improved.Generator, features=(8,), squash=False, reference=3),
  discriminator=dict(
    name=improved.Discriminator, features=(8,), noise=0.1, hidden_noise=0.1, kernels=0
  ),
)
TOGETHER = dict(
  discriminator__kernels=4,
  loss__historical=0.5,
  loss__real_target=0.9,
  generator__norm='virtual',
  loss__g_steps=2,
)


def two_steps(config, axis_name=None):
  step, key = functools.partial(system.train_step, config=config, axis_name=axis_name), KEY
  state = first = start(config)
  if axis_name is None:
    step = jax.jit(step)
  else:
    step = jax.pmap(step, axis_name=axis_name, in_axes=(0, 1, None))
    state = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
  for i in (1, 2):
    batch = batch_of(config, i, seed=i)
    if axis_name is not None:
      batch = {k: v.reshape(len(v), 2, -1, *v.shape[2:]) for k, v in batch.items()}
    state, _ = step(state, batch, key)
  return first, jax.tree.map(lambda leaf: leaf[0], state) if axis_name else state


def learnt(player):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(player.params)])


@pytest.mark.parametrize('changes', [TOGETHER, dict(loss__generator='minimax')])
def test_two_devices_train_as_one(changes):
  config = make_config(**SMALL, **changes)
  (first, one), (_, two) = two_steps(config), two_steps(config, 'batch')
  for name in ('G', 'D'):
    before, a, b = (learnt(getattr(state, name)) for state in (first, one, two))
    # Adam makes a whole step of a gradient that is 0 within rounding.
    assert np.abs(a - b).mean() < 0.01 * np.abs(a - before).mean(), name


def test_rows_do_not_meet_in_microbatches_under_virtual_batch_norm():
  """Unlike batch norm: the gradients of microbatches add up to that of the batch."""
  quiet = dict(discriminator__noise=0.0, discriminator__hidden_noise=0.0)
  apart = {}
  for norm in ('virtual', 'batch'):
    changes = SMALL | dict(generator__norm=norm, loss__generator='minimax')
    states = [two_steps(make_config(**changes, **quiet, train__accumulate=k)) for k in (1, 3)]
    a, b = (learnt(state.G) for _, state in states)
    apart[norm] = np.abs(a - b).mean()
  assert apart['virtual'] < 1e-5 < 1e-3 < apart['batch']


# --- User errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'labels.per_class': None}, 'config.labels.per_class=None, but config.data.num_classes=10'),
    ({'data.num_classes': None}, 'config.labels.per_class=1, but config.data.num_classes=None'),
    ({'labels.per_class': 9}, 'config.labels.per_class=9: 10 classes need 90 examples, but'),
    ({'generator.norm': 'virtual', 'generator.reference': 50}, 'reference=50 of Generator: a ref'),
    ({'generator.norm': 'layer'}, "config.generator.norm='layer'"),
    ({'discriminator.kernels': 4, 'train.accumulate': 8}, 'is too small for minibatch discrimin'),
    ({'discriminator.name': 'mlp.Discriminator'}, 'returns no features'),
  ],
)
def test_what_a_user_can_get_wrong_is_one_line(changes, words):
  config = configs.to_dict(configs.load('configs/improved_gan_mnist.py:smoke'))
  if 'discriminator.name' in changes:
    config['discriminator'] = {}
  for path, value in changes.items():
    group, _, name = path.rpartition('.')
    config[group] = config[group] | {name: value}
  with pytest.raises(UserError) as error:
    checked = configs.check(config)
    contract.check(checked)
    contract.abstract_state(checked, system)
    jax.eval_shape(
      functools.partial(system.train_step, config=checked),
      contract.abstract_state(checked, system),
      contract.abstract_batch(checked, system),
      jax.random.key(0),
    )
  assert words in str(error.value) and '\n' not in str(error.value)
