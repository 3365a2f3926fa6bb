"""The contract, for every config in :smoke: what a system promises to the loop and to a script.

A new system and a new config are found by themselves, see cases.py: one config per system in the
quick suite, on one device, everything of it compiled once; the others, and devices, microbatches
and bfloat16, are slow. See gen_jax/contract.py for the contract.
"""

import functools
import re
import types

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ALL, ALL_SLOW, FILES, QUICK, steady

from gen_jax import config as configs
from gen_jax import contract, data
from gen_jax.data import toys
from gen_jax.devices import compilation, sharding
from gen_jax.errors import UserError
from gen_jax.nets import layers
from gen_jax.ops import compiler, convolutions
from gen_jax.run import checkpoint
from gen_jax.systems import find_system

STEP_KEY, OTHER_KEY, INIT_KEY, SAMPLE_KEY, BATCH_KEY = jax.random.split(jax.random.key(0), 5)


def load(path, *overrides):
  config = configs.load(f'{path}:smoke', overrides)
  system = find_system(config.system)
  return config, system


def make_batch(config, system, key=BATCH_KEY):
  """A random batch in the shape that the config's step takes."""
  k = contract.minibatches(config, system)
  rows = (config.train.batch_size,) if k is None else (k, config.train.batch_size)
  return {leaf: _random(key, rows, shape, config, leaf) for leaf, shape in leaves(config, system)}


def leaves(config, system):
  return contract.inputs(config, system).items()


def _random(key, rows, shape, config, leaf):
  if not shape:
    return jax.random.randint(key, rows, 0, config.data.num_classes)
  key = key if leaf == 'image' else jax.random.fold_in(key, ord(leaf))
  return jnp.tanh(jax.random.normal(key, (*rows, *shape)))


def given_of(config, system, n):
  """What `sample` is given: with random examples where the system has no samples without them."""
  about = contract.inputs(config, system)
  needed = {leaf: about[leaf] for leaf in contract.needed(system)}
  return contract.conditions(config, n) | {
    leaf: _random(BATCH_KEY, (n,), shape, config, leaf) for leaf, shape in needed.items()
  }


class Case:
  """A config's initial state and its programs on one device, compiled once for all tests.

  They are traced with JAX's check that no key is used twice.
  """

  def __init__(self, path, **changes):
    self.config, self.system = load(path)
    self.config = configs.replace(self.config, changes)
    self.batch = make_batch(self.config, self.system)
    self.init = self._compiled('init_state')
    self.step = self._compiled('train_step')
    self.sample = self._compiled('sample')
    self.evaluate = self._compiled('evaluate')
    # A sampler that adds noise does not encode.
    without_noise = configs.to_dict(self.config)
    if 'eta' in without_noise.get('sample', {}):
      without_noise['sample'] |= {'sampler': 'ddim', 'eta': 0.0}
    without_noise = configs.check(without_noise)
    self.encode = self._compiled('encode', without_noise)
    self.decode = self._compiled('decode', without_noise)
    self.prior = self._compiled('prior', n=self.config.train.batch_size)
    self.state = self.init(INIT_KEY, self.batch)
    self.after, self.metrics = self.step(self.state, self.batch, STEP_KEY)

  def _compiled(self, name, config=None, **static):
    """A jitted function of the contract; None: the system has none of this name."""
    if not hasattr(self.system, name):
      return None
    config = config or self.config
    program = jax.jit(functools.partial(getattr(self.system, name), config=config, **static))

    def call(*args):
      is_key = lambda x: isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
      with jax.debug_key_reuse(True):  # which remembers the keys of earlier calls, too
        return program(*(jax.random.clone(x) if is_key(x) else x for x in args))

    return call

  @property
  def held_out(self):
    """A batch without an axis of minibatches."""
    k = contract.minibatches(self.config, self.system)
    return self.batch if k is None else jax.tree.map(lambda leaf: leaf[0], self.batch)


@functools.cache
def case_of(path):
  return Case(path)


@functools.cache
def steady_case_of(path):
  changes = steady(case_of(path).config)
  return Case(path, **changes) if changes else case_of(path)


@pytest.fixture(params=ALL)
def case(request):
  return case_of(request.param)


def equal(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def test_every_config_is_complete_and_can_be_made_small(case):
  contract.check(case.config)
  assert case.config.train.steps <= 100
  assert case.config.data.name in ('digits', 'shapes', *toys.NAMES), 'smoke needs no download'


@pytest.mark.parametrize('path', ALL)
def test_the_full_config_passes_all_checks_that_need_no_data(path):
  spec = [('data.path', 'pictures')] if path.stem.endswith('_folder') else []
  config = configs.load(str(path), spec)
  contract.check(config)
  contract.check_training(config)


class Broken(nn.Module):
  """A user's net that fails inside a layer of ours."""

  @nn.compact
  def __call__(self, z, *, train):
    return layers.GroupNorm(0)(z[:, None, None])[:, 0, 0]


def test_a_fault_in_a_net_of_the_users_keeps_its_traceback():
  config, _ = load(QUICK['gan'])
  changed = configs.to_dict(config) | {'generator': {'name': Broken}}
  with pytest.raises(ZeroDivisionError):
    contract.check(configs.check(changed))


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_config_says_what_it_is(path):
  source = path.read_text()
  doc = source.split('"""')[1]
  assert doc.partition('\n')[0].endswith('.')  # a line of --list
  assert 'https://arxiv.org/abs/' in doc
  assert f'python launch.py --config=configs/{path.name}' in doc
  has_samples = contract.has_samples(load(path)[1])
  assert f'runs/{path.stem}' + '/samples' * has_samples in doc
  assert re.search(r'\d (s|seconds|minutes?|hours?)\b[^.]* cores', doc) and 'AMD EPYC' in doc
  assert 20 <= len(source.splitlines()) <= 46


def test_a_batch_of_another_rank_is_one_line_that_names_the_shape(case):
  for leaf, shape in leaves(case.config, case.system):
    if not shape:
      continue
    field = 'config.data.x.shape' if leaf == 'x' else 'config.data.shape'
    for wrong in (lambda x: x[0], lambda x: x[..., None], lambda x: x[..., :-1]):
      batch = case.batch | {leaf: wrong(case.batch[leaf])}
      with pytest.raises(UserError, match=rf"batch\['{leaf}'\] is .*{field}="):
        case.system.init_state(INIT_KEY, batch, config=case.config)


def test_state_keeps_its_shapes_and_dtypes(case):
  chex.assert_trees_all_equal_shapes_and_dtypes(case.state, case.after)
  assert all(not leaf.weak_type for leaf in jax.tree.leaves(case.after))
  assert int(case.after.step) == int(case.state.step) + 1 == 1


def test_every_player_moves(case):
  players = {n: p for n, p in vars(case.state).items() if hasattr(p, 'params')}
  assert players
  state = case.after
  for key in jax.random.split(STEP_KEY, 2):  # what is behind two layers of zeros moves in the third
    state, _ = case.step(state, case.batch, key)
  for name, player in players.items():
    after = getattr(state, name)
    still = [
      jax.tree_util.keystr(path)
      for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(player.params),
        jax.tree.leaves(after.params),
        strict=True,
      )
      if np.array_equal(a, b)
    ]
    assert len(still) < len(jax.tree.leaves(player.params)) / 2, (name, still)


def test_metrics_are_finite_float32_scalars_of_the_players(case):
  players = {name.lower() for name, p in vars(case.state).items() if hasattr(p, 'params')}
  rates = contract.learning_rates(case.config, case.system)
  assert {name.split('/')[0] for name in rates} == players
  about = contract.metrics(case.system)
  assert {*case.metrics, *rates} <= set(about)  # each is described
  for name in set(about) - {*case.metrics, *rates}:
    assert 'where' in about[name], f'{name}: when it is there'
  for name, value in case.metrics.items():
    assert value.shape == () and value.dtype == jnp.float32, name
    assert np.isfinite(value), name
    assert name.split('/')[0] in players, name
  for player in players:
    assert f'{player}/loss' in case.metrics and f'{player}/grad_norm' in case.metrics


def test_learning_rates_are_told_for_the_step_that_used_them():
  config = configs.load('configs/ddpm_digits.py', [('train.steps', '100000')])
  rate = contract.learning_rates(config, find_system('ddpm'))['net/lr']
  for step in (1, 51, 101, 65_537, 100_000):
    count = step - 1  # of steps before
    wanted = 2e-3 * min(count / 100, 1) * (1 - count / 100_000)
    assert rate(step) == pytest.approx(wanted, rel=1e-5)
  config = configs.load('configs/gan_ring.py', [('optim.D.lr', '0.5')])
  rates = contract.learning_rates(config, find_system('gan'))
  assert {name: rate(7) for name, rate in rates.items()} == {'g/lr': 2e-4, 'd/lr': 0.5}


def test_same_key_same_bits_other_key_others(case):
  again, metrics = case.step(case.state, case.batch, STEP_KEY)
  assert equal(again, case.after) and equal(metrics, case.metrics)
  other, _ = case.step(case.state, case.batch, OTHER_KEY)
  assert not equal(other, case.after)


def test_the_step_number_changes_the_noise(case):
  later = case.state.replace(step=case.state.step + 1)
  _, metrics = case.step(later, case.batch, STEP_KEY)
  assert not equal(metrics, case.metrics)


def test_a_key_that_is_used_twice_is_found(case, monkeypatch):
  def twice(rng, batch, *, config):
    return jax.random.normal(rng) + jax.random.uniform(rng)

  broken = Case.__new__(Case)
  broken.config, broken.system = case.config, types.SimpleNamespace(init_state=twice)
  with pytest.raises(jax.errors.KeyReuseError):
    broken._compiled('init_state')(INIT_KEY, case.batch)


def test_samples_have_the_shape_of_the_data(case):
  if case.sample is None:
    with pytest.raises(UserError, match='generates no samples'):
      contract.check_samples(case.config, case.system)
    return
  shape = tuple(case.config.data.shape)
  given = given_of(case.config, case.system, 8)
  made = case.sample(case.after, given, SAMPLE_KEY)
  assert made['image'].shape == (8, *shape)
  for name, value in made.items():
    assert value.shape[0] == 8 and value.ndim - len(shape) in (1, 2), name
    assert value.dtype == jnp.float32, name
    if len(shape) == 3:
      assert np.abs(value).max() <= 1, name
  assert equal(made, case.sample(case.after, given, SAMPLE_KEY))
  if not contract.needed(case.system):  # a translation may have no noise
    assert not equal(made, case.sample(case.after, given, OTHER_KEY))


def test_samples_depend_on_labels_where_the_system_says_so(case):
  if case.sample is None:
    return
  given = given_of(case.config, case.system, 8)
  asked = contract.asked_labels(case.config, case.system, case.after, 8)
  if 'label' not in given:
    assert asked is None
    return
  # Fresh nets may ignore what a trained one does not: layers that are 0.
  float_leaf = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
  noise = lambda x: 0.2 * jax.random.normal(INIT_KEY, x.shape)
  state = jax.tree.map(lambda x: x + noise(x) if float_leaf(x) else x, case.after)
  other = given | {'label': (given['label'] + 1) % case.config.data.num_classes}
  depends = not equal(case.sample(state, given, SAMPLE_KEY), case.sample(state, other, SAMPLE_KEY))
  assert depends == (asked is not None)
  if depends:
    np.testing.assert_array_equal(asked, given['label'])


def test_every_value_of_an_evaluation_is_named(case):
  if case.evaluate is None:
    return
  batch, about = case.held_out, contract.measures(case.system)
  found = case.evaluate(case.after, batch, OTHER_KEY)
  assert found and set(found) <= set(about)
  for name, value in found.items():
    assert value.ndim in (1, 2) and len(value) == case.config.train.batch_size, name
    assert np.isfinite(value).all(), name
  first = next(name for name in about if name in found)
  assert found[first].ndim == 1, 'the first value stands for the system'
  assert equal(found, case.evaluate(case.after, batch, OTHER_KEY))


def test_codes_and_reconstructions_are_of_each_example(case):
  if case.encode is None:
    return
  found = case.encode(case.after, case.held_out, OTHER_KEY)
  assert set(found) == {'z', 'reconstruction'}
  assert len(found['z']) == case.config.train.batch_size
  assert found['reconstruction'].shape == case.held_out['image'].shape
  if case.decode is not None:
    again = case.decode(case.after, found['z'], case.held_out)['image']
    np.testing.assert_allclose(again, found['reconstruction'], atol=1e-4)


def test_latents_are_drawn_and_decoded(case):
  if case.prior is None:
    return
  z = case.prior(OTHER_KEY)
  n = case.config.train.batch_size
  assert len(z) == n and z.dtype == jnp.float32 and jnp.isfinite(z).all()
  if case.decode is not None:
    image = case.decode(case.after, z, case.held_out)['image']
    assert image.shape == (n, *case.config.data.shape) and jnp.isfinite(image).all()
    assert not np.array_equal(image[0], image[1])


def run_steps(case, mode, devices, steps=2, fsdp=1):
  """The state after all steps and the metrics of each, through the loop's own compilation."""
  config, system = case.config, case.system
  mesh = sharding.make_mesh(load_parallel(config, mode, devices // fsdp, fsdp))

  def step(state, host_batch, device_data, rng, *, axis_name):
    return system.train_step(state, host_batch, rng, config=config, axis_name=axis_name)

  whole = sharding.replicated(mesh)
  state = jax.tree.map(np.asarray, case.state)
  state = jax.tree.map(
    lambda leaf, target: jax.device_put(leaf, target.sharding),
    state,
    sharding.abstract_state(state, mesh),
  )
  key = jax.device_put(STEP_KEY, whole)
  batches = [
    jax.tree.map(np.asarray, make_batch(config, system, jax.random.fold_in(BATCH_KEY, i)))
    for i in range(steps)
  ]
  k, b = contract.minibatches(config, system), config.train.batch_size
  axes = sharding.BatchAxes((b,) if k is None else (k, b))
  compiled = compilation.compile_step(step, mesh, state, batches[0], {}, key, mode=mode, axes=axes)
  history = []
  for batch in batches:
    state, metrics = compiled(state, batch, {}, key)
    history.append(jax.device_get(metrics))
  return state, history


def load_parallel(config, mode, data, fsdp):
  changed = configs.to_dict(config) | {'parallel': {'mode': mode, 'data': data, 'fsdp': fsdp}}
  return configs.check(changed)


@functools.cache
def reference(path, steps=2):
  """The state after all steps and the metrics of each, on one device."""
  case, history = steady_case_of(path), []
  state = case.state
  for i in range(steps):
    batch = make_batch(case.config, case.system, jax.random.fold_in(BATCH_KEY, i))
    state, metrics = case.step(state, batch, STEP_KEY)
    history.append(jax.device_get(metrics))
  return state, history


def learnt(state):
  """Parameters, batch statistics and moving averages of all players, as one vector."""
  players = [p for p in vars(state).values() if hasattr(p, 'params')]
  leaves = jax.tree.leaves([(p.params, p.stats, p.ema) for p in players])
  return np.concatenate([np.ravel(leaf) for leaf in leaves])


def assert_trains_as_on_one_device(path, state, history):
  """`state` and `history`, from `run_steps`, agree with `reference(path)` within rounding."""
  wanted, history_wanted = reference(path)
  # Adam makes a whole step of a gradient that is 0 within rounding, so single entries may differ.
  # Without an average over the devices the difference is as large as the movement.
  moved, apart = learnt(wanted) - learnt(steady_case_of(path).state), learnt(state) - learnt(wanted)
  assert np.abs(apart).mean() < 0.05 * np.abs(moved).mean()
  for want, found in zip(history_wanted, history, strict=True):
    for name in want:
      np.testing.assert_allclose(found[name], want[name], rtol=2e-3, atol=1e-4, err_msg=name)
    for name in want:
      if name.endswith('/loss'):
        # A mean of scores of both signs, as of the hinge, has fewer digits than they have.
        np.testing.assert_allclose(found[name], want[name], rtol=3e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(('mode', 'fsdp'), [('jit', 1), ('jit', 2), ('pmap', 1)])
@pytest.mark.parametrize('path', ALL_SLOW)
def test_two_devices_equal_one(path, mode, fsdp):
  """A sharded jit and pmap train on the same noise, and batch norm sees the whole batch."""
  assert jax.device_count() == 2
  assert_trains_as_on_one_device(path, *run_steps(steady_case_of(path), mode, 2, fsdp=fsdp))


def without_dropout(config):
  return configs.replace(
    config, {path: 0.0 for path, _ in configs.leaves(config) if path.endswith('.dropout')}
  )


def normalises_batches(state):
  """Whether rows of a batch meet in batch norm, which then sees a part only (see test_gan.py)."""
  return any(jax.tree.leaves(p.stats) for p in vars(state).values() if hasattr(p, 'params'))


@pytest.mark.parametrize('path', ALL_SLOW)
def test_a_batch_in_parts_trains_as_the_whole(path):
  case = case_of(path)
  if normalises_batches(case.state):
    pytest.skip('batch norm')
  batch = make_batch(case.config, case.system)
  after = []
  for parts in (1, 4):
    config = configs.replace(without_dropout(case.config), {'train.accumulate': parts})
    step = jax.jit(functools.partial(case.system.train_step, config=config))
    after.append(step(case.state, batch, STEP_KEY))
  (whole, metrics), (in_parts, found) = after
  for name in metrics:
    np.testing.assert_allclose(found[name], metrics[name], rtol=1e-4, atol=1e-5, err_msg=name)
  # Adam makes a whole step of a gradient that is 0 within rounding: the mean over entries.
  moved, apart = learnt(whole) - learnt(case.state), learnt(in_parts) - learnt(whole)
  assert np.abs(apart).mean() < 0.01 * np.abs(moved).mean()


@pytest.mark.parametrize('path', ALL_SLOW)
def test_bfloat16_is_for_the_nets_only(path):
  """The nets compute in it; losses are those of float32 within its rounding, and the state stays
  float32.
  """
  case = steady_case_of(path)
  config = configs.replace(case.config, {'precision': 'bfloat16'})
  batch = make_batch(config, case.system, jax.random.fold_in(BATCH_KEY, 0))
  step = jax.jit(functools.partial(case.system.train_step, config=config))
  lines = step.lower(case.state, batch, STEP_KEY).as_text().splitlines()
  # Those in the highest precision are float32 by intent: moments of a group norm, singular vectors,
  # a penalty on parameters, images that are resized.
  products = re.findall(
    r'stablehlo\.(?:dot_general|convolution).*-> tensor<[\dx]*(\w+)>',
    '\n'.join(line for line in lines if 'HIGHEST' not in line),
  )
  assert products and set(products) == {'bf16'}
  state, metrics = step(case.state, batch, STEP_KEY)
  assert {x.dtype.name for x in jax.tree.leaves(state)} <= {'float32', 'int32'}
  wanted = reference(path)[1][0]
  for name in wanted:
    if name.endswith('/loss'):
      np.testing.assert_allclose(metrics[name], wanted[name], rtol=0.05, atol=5e-3, err_msg=name)


@pytest.mark.parametrize('path', ALL_SLOW)
def test_the_forms_for_accelerators_compute_the_same(path, monkeypatch):
  reference(path)  # in the forms for CPU
  with monkeypatch.context() as patch:
    patch.setattr(jax, 'default_backend', lambda: 'gpu')
    for name in ('_conv', '_input_gradient', '_weight_gradient'):
      patch.setattr(convolutions, name, lambda *args, name=name: pytest.fail(f'{name} is for CPU'))
    trained = run_steps(steady_case_of(path), 'jit', 1)
  assert_trains_as_on_one_device(path, *trained)


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='options of the CPU backend')
def test_options_of_the_cpu_backend_leave_what_the_user_said(monkeypatch):
  options = compiler.compiler_options.__wrapped__
  monkeypatch.setenv('XLA_FLAGS', '')
  libraries = 'LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE'
  assert options()['xla_cpu_experimental_ynn_fusion_type'] == libraries
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_experimental_ynn_fusion_type=x')
  assert options() == {'xla_backend_optimization_level': 1}
  monkeypatch.setenv('XLA_FLAGS', '--xla_backend_optimization_level=0')
  assert list(options()) == ['xla_cpu_experimental_ynn_fusion_type']
  monkeypatch.setenv(
    'XLA_FLAGS', '--xla_backend_optimization_level=0 --xla_cpu_experimental_ynn_fusion_type=x'
  )
  assert options() is None


def test_checkpoint_round_trip_is_exact(case, tmp_path):
  saver = checkpoint.Checkpointer(
    tmp_path, config=configs.to_dict(case.config), data_fingerprint='', keep=1
  )
  try:
    saver.save(1, case.after)
    manifest = saver.latest()
    target = jax.eval_shape(lambda: case.after)
    restored = saver.restore(manifest, target)
  finally:
    saver.close()
  chex.assert_trees_all_equal_shapes_and_dtypes(case.after, restored)
  assert equal(case.after, restored)
  assert configs.difference(manifest.config, configs.to_dict(case.config)) is None


def test_smoke_data_fit_the_config(case):
  source = data.open_source(case.config)
  assert source.shape == tuple(case.config.data.shape)
  assert len(source) >= case.config.train.batch_size
