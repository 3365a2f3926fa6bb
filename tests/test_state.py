"""Optimiser, moving average and keys, against hand-computed values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from gen_jax import config as configs
from gen_jax import state as players
from gen_jax.errors import UserError

PLAIN = dict(
  name='adam',
  lr=0.1,
  b1=0.8,
  b2=0.9,
  eps=1e-8,
  schedule='constant',
  warmup_steps=0,
  l2=0.0,
  clip_norm=None,
)
PARAMS = {'a': jnp.array([1.0, -2.0]), 'b': jnp.array([[0.5]])}
GRADS = [
  {'a': jnp.array([3.0, 0.0]), 'b': jnp.array([[4.0]])},  # norm 5
  {'a': jnp.array([-0.3, 0.1]), 'b': jnp.array([[0.2]])},  # norm 0.37
  {'a': jnp.array([1.0, 2.0]), 'b': jnp.array([[-2.0]])},  # norm 3
]


def flat(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


def adam(config, factors=(1, 1, 1)):
  """Three steps of Adam (Kingma and Ba 2015, Algorithm 1) on GRADS, in numpy."""
  x, m, v = flat(PARAMS), 0.0, 0.0
  for t, (grads, factor) in enumerate(zip(GRADS, factors, strict=True), start=1):
    g = flat(grads)
    if config['clip_norm'] is not None:
      g = g * min(1, config['clip_norm'] / np.linalg.norm(g))
    g = g + config['l2'] * x
    m = config['b1'] * m + (1 - config['b1']) * g
    v = config['b2'] * v + (1 - config['b2']) * g**2
    m_hat, v_hat = m / (1 - config['b1'] ** t), v / (1 - config['b2'] ** t)
    x = x - factor * config['lr'] * m_hat / (np.sqrt(v_hat) + config['eps'])
  return x


def apply(player, grads, optimizer, step, stats=None, **options):
  """`update` by a loss with this gradient; the new player and the gradient's norm."""

  def loss(params, rows, keys):
    products = jax.tree.map(lambda p, g: jnp.sum(p * g), params, rows)
    return sum(jax.tree.leaves(products)), ({}, player.stats if stats is None else stats)

  player, metrics = players.update(
    player, loss, grads, {}, name='net', optimizer=optimizer, step=step, **options
  )
  return player, metrics['net/grad_norm']


def train(config, steps=(0, 1, 2), **options):
  optimizer = players.make_optimizer(ConfigDict(config))
  player = players.init_player({'params': PARAMS}, optimizer)
  norms = []
  for grads, step in zip(GRADS, steps, strict=True):
    player, norm = apply(player, grads, optimizer, step, **options)
    norms.append(float(norm))
  return player, norms


@pytest.mark.parametrize(
  'changes, factors',
  [
    ({}, (1, 1, 1)),
    ({'eps': 0.5}, (1, 1, 1)),
    ({'clip_norm': 1.0}, (1, 1, 1)),
    ({'l2': 0.1}, (1, 1, 1)),
    ({'l2': 0.1, 'clip_norm': 1.0}, (1, 1, 1)),
    ({'warmup_steps': 1}, (0, 1, 1)),
    ({'warmup_steps': 2}, (0, 1 / 2, 1)),
    ({'warmup_steps': 4}, (0, 1 / 4, 2 / 4)),
    ({'schedule': 'linear', 'decay_steps': 2}, (1, 1 / 2, 0)),
    ({'schedule': 'linear', 'decay_steps': 4, 'warmup_steps': 2}, (0, 3 / 8, 2 / 4)),
  ],
  ids=str,
)
def test_three_steps_of_adam(changes, factors):
  config = PLAIN | changes
  player, norms = train(config)
  np.testing.assert_allclose(flat(player.params), adam(config, factors), rtol=2e-6)
  # The norm is the gradient's own, whatever is made of it.
  np.testing.assert_allclose(norms, [5, np.sqrt(0.14), 3], rtol=1e-6)


def test_adam_in_a_call_of_its_own_is_adam(monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 1)  # where its moments are not_inlined
  optimizer = players.make_optimizer(ConfigDict(PLAIN))
  player = players.init_player({'params': PARAMS}, optimizer)
  step = jax.jit(lambda player, grads: apply(player, grads, optimizer, 0)[0])
  assert 'inlineable' in step.lower(player, GRADS[0]).as_text()
  for grads in GRADS:
    player = step(player, grads)
  np.testing.assert_allclose(flat(player.params), adam(PLAIN), rtol=2e-6)


def rule(**values):
  """A complete group `optim`, as `config.check` fills it."""
  fields = {f'optim.{name}': field for name, field in players.OPTIMIZER.items()}
  given = {'system': 'none', 'data': {'shape': (2,)}, 'optim': {'lr': 0.1} | values}
  return configs.check(given, fields).optim


OPTIMISERS = {
  'adam': lambda rate: optax.adam(rate, b1=0.6, b2=0.8, eps=1e-3),
  'adamw': lambda rate: optax.adamw(rate, b1=0.6, b2=0.8, eps=1e-3, weight_decay=0.2),
  'adamax': lambda rate: optax.adamax(rate, b1=0.6, b2=0.8, eps=1e-3),
  'rmsprop': lambda rate: optax.rmsprop(rate, decay=0.7, eps=1e-3, eps_in_sqrt=False),
  'sgd': lambda rate: optax.sgd(rate, momentum=0.75),
}
SETTINGS = dict(b1=0.6, b2=0.8, eps=1e-3, weight_decay=0.2, decay=0.7, momentum=0.75)
SCHEDULES = {
  'constant': lambda: optax.constant_schedule(0.1),
  'linear': lambda: optax.linear_schedule(0.1, 0.0, 6),
  'cosine': lambda: optax.cosine_decay_schedule(0.1, 6),
  'constant_then_linear': lambda: optax.join_schedules(
    [optax.constant_schedule(0.1), optax.linear_schedule(0.1, 0.0, 4)], [2]
  ),
}


def settings(name, schedule):
  own = {
    field: value for field, value in SETTINGS.items() if name in players.OPTIMIZER[field].when[1]
  }
  own |= {} if schedule == 'constant' else {'decay_steps': 6}
  own |= {'constant_steps': 2} if schedule == 'constant_then_linear' else {}
  return dict(name=name, schedule=schedule, **own)


@pytest.mark.parametrize('more', [{}, {'l2': 0.3}, {'clip_norm': 1.0, 'l2': 0.3}], ids=str)
@pytest.mark.parametrize('name', OPTIMISERS)
def test_an_optimiser_is_that_of_optax(name, more):
  for schedule in SCHEDULES if not more else ('linear',):
    ours = players.make_optimizer(rule(**settings(name, schedule), **more))
    theirs = optax.chain(
      optax.clip_by_global_norm(more['clip_norm']) if 'clip_norm' in more else optax.identity(),
      optax.add_decayed_weights(more.get('l2', 0.0)),
      OPTIMISERS[name](SCHEDULES[schedule]()),
    )
    params = wanted = PARAMS
    state, reference = ours.init(params), theirs.init(wanted)
    for step in range(8):  # two beyond the decay
      grads = GRADS[step % 3]
      updates, state = ours.update(grads, state, params, step=jnp.int32(step))
      params = optax.apply_updates(params, updates)
      updates, reference = theirs.update(grads, reference, wanted)
      wanted = optax.apply_updates(wanted, updates)
      np.testing.assert_allclose(flat(params), flat(wanted), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('schedule', SCHEDULES)
def test_warm_up_multiplies_the_schedule(schedule):
  rate = players.make_schedule(rule(**settings('sgd', schedule), warmup_steps=4))
  for step in range(8):
    wanted = min(step / 4, 1) * SCHEDULES[schedule]()(step)
    np.testing.assert_allclose(rate(jnp.int32(step)), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'momentum': 0.9}, "config.optim.momentum=0.9, but config.optim.name='adam' does not use it"),
    ({'name': 'sgd', 'b1': 0.5}, "config.optim.b1=0.5, but config.optim.name='sgd' does not use"),
    ({'decay_steps': 3}, "config.optim.decay_steps=3, but config.optim.schedule='constant' does"),
    (
      {'schedule': 'cosine', 'decay_steps': 'steps'},
      "config.optim.decay_steps='steps': an integer",
    ),
    ({'schedule': 'constant_then_linear'}, 'config.optim.constant_steps is missing: an integer of'),
    ({'name': 'adan'}, "config.optim.name='adan': 'adam' or "),
  ],
)
def test_settings_of_another_optimiser_are_refused(values, message):
  with pytest.raises(UserError) as error:
    rule(**values)
  assert str(error.value).startswith(message)


def test_rates_count_training_steps_where_one_makes_several_updates():
  config = PLAIN | {'schedule': 'linear', 'decay_steps': 2}
  player, _ = train(config, steps=(0, 0, 1))
  np.testing.assert_allclose(flat(player.params), adam(config, (1, 1, 1 / 2)), rtol=2e-6)


def test_the_moving_average_sees_the_new_parameters():
  optimizer = players.make_optimizer(ConfigDict(PLAIN))
  player = players.init_player({'params': PARAMS}, optimizer, ema=True)
  expected = flat(PARAMS)
  for grads, decay in zip(GRADS, [0.9, 0.0, 0.75], strict=True):
    player, _ = apply(player, grads, optimizer, 0, ema_decay=decay)
    expected = decay * expected + (1 - decay) * flat(player.params)
    np.testing.assert_allclose(flat(player.ema), expected, rtol=1e-6)
    if decay == 0:
      np.testing.assert_array_equal(flat(player.ema), flat(player.params))


def test_a_player_keeps_its_statistics_until_new_ones_come():
  optimizer = players.make_optimizer(ConfigDict(PLAIN))
  player = players.init_player({'params': PARAMS, 'batch_stats': {'mean': jnp.ones(2)}}, optimizer)
  same, _ = apply(player, GRADS[0], optimizer, 0)
  np.testing.assert_array_equal(same.stats['mean'], 1)
  assert same.ema is None
  new, _ = apply(player, GRADS[0], optimizer, 0, stats={'mean': jnp.zeros(2)})
  np.testing.assert_array_equal(new.stats['mean'], 0)
  assert new.variables()['params'] is new.params
  assert new.variables({'other': 1}) == {'params': {'other': 1}, 'batch_stats': new.stats}
  assert players.init_player({'params': PARAMS}, optimizer).stats == {}


def test_a_fresh_player_can_be_donated():
  optimizer = players.make_optimizer(ConfigDict(PLAIN))
  params = jax.tree.map(jnp.copy, PARAMS)
  player = players.init_player({'params': params}, optimizer, ema=True)
  moved = jax.jit(lambda p: jax.tree.map(lambda leaf: leaf + 1, p), donate_argnums=0)(player)
  np.testing.assert_array_equal(moved.ema['a'], PARAMS['a'] + 1)


def test_gradients_are_averaged_over_devices():
  optimizer = players.make_optimizer(ConfigDict(PLAIN))
  player = players.init_player({'params': PARAMS}, optimizer)
  two = jax.tree.map(lambda a, b: jnp.stack([a, b]), GRADS[0], GRADS[2])

  def step(grads):
    def loss(params, rows, keys):
      products = jax.tree.map(lambda p, g: jnp.sum(p * g), params, rows)
      return sum(jax.tree.leaves(products)), ({'net/own': rows['a'][0]}, {})

    new, metrics = players.update(
      player, loss, grads, {}, name='net', optimizer=optimizer, step=0, axis_name='batch'
    )
    return new.params, metrics

  params, metrics = jax.pmap(step, axis_name='batch')(two)
  mean = jax.tree.map(lambda a, b: (a + b) / 2, GRADS[0], GRADS[2])
  alone, norm = apply(player, mean, optimizer, 0)
  for device in range(2):
    np.testing.assert_allclose(
      flat(jax.tree.map(lambda p, i=device: p[i], params)), flat(alone.params), rtol=1e-6
    )
  np.testing.assert_allclose(metrics['net/grad_norm'], [norm, norm], rtol=1e-6)
  np.testing.assert_allclose(metrics['net/grad_norm'][0], np.linalg.norm([2, 1, 1]), rtol=1e-6)
  np.testing.assert_allclose(metrics['net/own'], [2, 2])


def test_keys_differ_by_step_and_by_use_and_nothing_else():
  rng = jax.random.key(0)

  def bits(step, *names):
    keys = players.step_keys(rng, step, *names)
    return {name: tuple(np.asarray(jax.random.key_data(key))) for name, key in keys.items()}

  first, second = bits(0, 'z', 'dropout'), bits(1, 'z', 'dropout')
  assert list(first) == ['z', 'dropout']
  assert len({*first.values(), *second.values(), tuple(np.asarray(jax.random.key_data(rng)))}) == 5
  assert first == bits(jnp.int32(0), 'z', 'dropout')


def test_batch_size_is_the_number_of_rows():
  assert players.batch_size({'image': jnp.zeros((5, 2, 2, 1)), 'label': jnp.zeros(5)}) == 5


def test_gradients_in_parts_are_those_of_the_whole():
  x = np.float32(np.random.default_rng(0).standard_normal((6, 3)))

  def loss(w, rows, keys):
    x, target = rows
    del keys
    error = x @ w - target
    return jnp.mean(error**2), {'mean': jnp.mean(error), 'rows': jnp.float32(len(x))}

  w = jnp.array([1.0, -2.0, 0.5])
  rows = (x, x[:, 0] ** 2)
  (value, aux), gradient = players.value_and_grad(loss, 3)(w, rows, jax.random.key(0))
  error = x @ np.array([1.0, -2.0, 0.5]) - x[:, 0] ** 2
  np.testing.assert_allclose(value, (error**2).mean(), rtol=1e-6)
  np.testing.assert_allclose(aux['mean'], error.mean(), rtol=1e-5)
  assert aux['rows'] == 2, 'a part has a third of the rows'
  np.testing.assert_allclose(gradient, 2 * x.T @ error / 6, rtol=1e-5)


def test_parts_have_keys_of_their_own_and_every_nth_row():
  def loss(w, rows, keys):
    noise = jax.random.normal(keys['noise'])
    return w * noise, {'noise': noise, 'square': noise**2, 'first': rows[0] * w}

  (_, aux), gradient = players.value_and_grad(loss, 2)(
    jnp.array(1.0), jnp.arange(4.0), {'noise': jax.random.key(0)}
  )
  noise = [float(jax.random.normal(k)) for k in jax.random.split(jax.random.key(0), 2)]
  np.testing.assert_allclose(aux['noise'], np.mean(noise), rtol=1e-6)
  np.testing.assert_allclose(aux['square'], np.mean(np.square(noise)), rtol=1e-6)
  np.testing.assert_allclose(gradient, np.mean(noise), rtol=1e-6)
  assert aux['first'] == 0.5, 'rows 0 and 2, rows 1 and 3'


def test_a_part_needs_the_memory_of_a_part():
  def loss(w, x, keys):
    for _ in range(8):
      x = jnp.sin(x @ w)  # each kept for the gradient
    return jnp.mean(x), {}

  w, x = jnp.ones((64, 64)), jnp.ones((8192, 64))
  memory = []
  for parts in (1, 4):
    f = jax.jit(players.value_and_grad(loss, parts))
    compiled = f.lower(w, x, jax.random.key(0)).compile()
    memory.append(compiled.memory_analysis().temp_size_in_bytes)
  assert memory[1] < 0.5 * memory[0]
