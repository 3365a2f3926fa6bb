"""The order of examples, both storages, and `finish` inside jit and pmap."""

import functools
import os
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from gen_jax import data
from gen_jax.data import pipeline
from gen_jax.errors import UserError


def open_batches(config, minibatches=None):
  return pipeline.Batches(data.open_source(config), config, minibatches=minibatches)


@functools.cache
def compiled(config):
  return jax.jit(
    lambda device_data, host_batch, rng: data.preprocess(
      device_data, host_batch, rng, config=config
    )
  )


def finished(batches, fed, config, key=0):
  run = compiled(config)
  return jax.device_get(run(batches.device_data, fed, jax.random.key(key)))


def assert_same(a, b):
  assert a.keys() == b.keys()
  for key in a:
    assert a[key].dtype == b[key].dtype
    np.testing.assert_array_equal(a[key], b[key])


def test_the_number_of_minibatches_may_vary_by_step(make_config):
  """As for a critic that is trained more at the start: no example is skipped."""
  batches = open_batches(make_config(100), lambda step: 4 if step % 3 == 0 else 1)
  sizes = [batches.host_batch(step)['index'].size for step in range(7)]
  assert sizes == [400, 100, 100, 400, 100, 100, 400]
  order = np.concatenate([batches.host_batch(step)['index'].ravel() for step in range(12)])
  constant = open_batches(make_config(100))
  steps = [constant.host_batch(step)['index'] for step in range(len(order) // 100)]
  np.testing.assert_array_equal(order, np.concatenate(steps))
  fresh = open_batches(make_config(100), lambda step: 4 if step % 3 == 0 else 1)
  np.testing.assert_array_equal(fresh.host_batch(5)['index'], batches.host_batch(5)['index'])


@pytest.mark.parametrize('minibatches', [None, 3])
def test_every_epoch_is_a_permutation(make_config, minibatches):
  batches = open_batches(make_config(100), minibatches)
  per_step = 100 * (minibatches or 1)
  count = -(-3 * 1797 // per_step)
  feeds = [batches.host_batch(step) for step in range(count)]
  assert feeds[0].keys() == {'index'} and feeds[0]['index'].dtype == np.int32
  assert feeds[0]['index'].shape == ((100,) if minibatches is None else (3, 100))
  order = np.concatenate([fed['index'].ravel() for fed in feeds])
  epochs = order[: 3 * 1797].reshape(3, 1797)
  for epoch in epochs:
    assert sorted(epoch) == list(range(1797))
    # Of a random permutation about one element stays in place, and neighbours are rarely so.
    assert (epoch == np.arange(1797)).sum() < 10 and (np.diff(epoch) == 1).sum() < 10
  assert (epochs[0] == epochs[1]).sum() < 10 and (epochs[1] == epochs[2]).sum() < 10


def test_order_depends_on_the_seed(make_config):
  feeds = [
    open_batches(make_config(256, seed=seed)).host_batch(0)['index']
    for seed in (0, 0, 1, 2**32 - 1)
  ]
  np.testing.assert_array_equal(feeds[0], feeds[1])
  assert (feeds[0] != feeds[2]).any() and (feeds[0] != feeds[3]).any()
  # Seed 1 does not simply run one epoch ahead of seed 0.
  second_epoch = pipeline.permutation(0, 1, 1797)
  assert (second_epoch != pipeline.permutation(1, 0, 1797)).mean() > 0.9


def test_order_is_the_same_in_another_version_of_the_code():
  # A run that goes on after an update must see the same batches. Change these only with a note.
  assert pipeline.permutation(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
  assert pipeline.permutation(7, 3, 8).tolist() == [2, 5, 7, 3, 0, 6, 4, 1]


@pytest.mark.parametrize('storage', ['device', 'stream'])
def test_resuming_at_any_step_is_the_uninterrupted_stream(
  make_config, make_images, tmp_path, storage
):
  make_images(tmp_path, [f'{c}/{i}.png' for c in 'ab' for i in range(9)])
  config = make_config(4, name='folder', path=str(tmp_path), shape=(6, 5, 3), storage=storage)
  batches = open_batches(config, minibatches=2)
  steps = range(2 * 18 // 8 + 2)  # two epochs and a little more
  stream = batches.iterate(0)
  whole = [next(stream) for _ in steps]
  stream.close()
  for start in steps:
    resumed = open_batches(config, minibatches=2).iterate(start)
    for step in steps[start:]:
      assert_same(next(resumed), whole[step])
    resumed.close()
    assert_same(batches.host_batch(start), whole[start])


@pytest.mark.parametrize(('source', 'minibatches'), [('digits', None), ('folder', 2)])
def test_both_storages_give_the_same_batches(
  make_config, make_images, tmp_path, source, minibatches
):
  fields = dict(flip=0.5, dequantize='uniform')
  if source == 'folder':
    make_images(tmp_path, [f'{c}/{i}.png' for c in 'ab' for i in range(20)])
    fields |= dict(name='folder', path=str(tmp_path), shape=(6, 5, 3))
  device, stream = (
    open_batches(make_config(storage=storage, **fields), minibatches)
    for storage in ('device', 'stream')
  )
  config = make_config(**fields)
  assert device.device_data and not stream.device_data
  feeds = stream.iterate(3)
  for step in range(3, 7):
    fed = next(feeds)
    assert fed['image'].dtype == np.uint8
    a = finished(device, device.host_batch(step), config, key=step)
    b = finished(stream, fed, config, key=step)
    assert a['image'].shape == ((16,) if minibatches is None else (2, 16)) + config.data.shape
    assert a['image'].dtype == np.float32 and a['label'].dtype == np.int32
    assert len(np.unique(a['image'])) > 100
    assert_same(a, b)
  feeds.close()


def test_finished_batch_holds_the_examples_of_its_indices(make_config):
  config = make_config()
  source = data.open_source(config)
  batches = pipeline.Batches(source, config, minibatches=None)
  fed = batches.host_batch(11)
  batch = finished(batches, fed, config)
  for row, index in enumerate(fed['index']):
    example = source[int(index)]
    expected = example['image'].astype(np.float32) / np.float32(127.5) - 1
    np.testing.assert_allclose(batch['image'][row], expected, atol=1e-6)
    assert batch['label'][row] == example['label']
  assert batch['image'].min() == -1 and batch['image'].max() == 1


def test_uniform_dequantisation_stays_in_its_cell(make_config):
  config = make_config(1024, dequantize='uniform')
  batches = open_batches(config)
  fed = batches.host_batch(0)
  x = finished(batches, fed, config)['image']
  u = (x + 1) * 128 - batches.device_data['image'][fed['index']]
  assert -1e-4 < u.min() < 0.01 and 0.99 < u.max() < 1.0001
  assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.002
  assert x.min() >= -1 and x.max() <= 1


@pytest.mark.parametrize('probability', [0.0, 0.25, 1.0])
def test_flip(make_config, probability):
  config, plain = make_config(1000, flip=probability), make_config(1000)
  batches = open_batches(config)
  fed = batches.host_batch(0)
  x = finished(batches, fed, config)['image']
  original = finished(batches, fed, plain)['image']
  mirrored = original[:, :, ::-1]
  same = (x == original).all((1, 2, 3))
  assert (same | (x == mirrored).all((1, 2, 3))).all()
  assert abs((~same).mean() - probability) < 0.06


def test_points_are_left_as_they_are(make_config):
  config = make_config(64, name='ring', shape=(2,))
  batches = open_batches(config)
  fed = batches.host_batch(5)
  batch = finished(batches, fed, config)
  np.testing.assert_array_equal(batch['image'], batches.device_data['image'][fed['index']])
  assert batch['image'].dtype == np.float32 and batch['label'].shape == (64,)


def test_finish_uses_no_key_twice(make_config):
  config = make_config(flip=0.5, dequantize='uniform')
  batches = open_batches(config)
  with jax.debug_key_reuse(True):
    finished(batches, batches.host_batch(0), config)


PMAP = """
import jax, numpy as np, pickle, sys
from ml_collections import FrozenConfigDict
from gen_jax import data
config = FrozenConfigDict({config!r})
batches = data.Batches(data.open_source(config), config, minibatches={k})
fed, key, axis = batches.host_batch(2), jax.random.key(5), {axis}
assert jax.device_count() == 2
def finish(fed, axis_name):
  return data.preprocess(batches.device_data, fed, key, config=config, axis_name=axis_name)
whole = jax.jit(lambda fed: finish(fed, None))(fed)
split = {{n: np.stack(np.split(v, 2, axis)) for n, v in fed.items()}}
parts = jax.pmap(lambda fed: finish(fed, 'batch'), axis_name='batch')(split)
mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
spec = jax.sharding.PartitionSpec(*[None] * axis, 'data')
sharded = jax.jit(lambda fed: finish(fed, None))(
  jax.device_put(fed, jax.sharding.NamedSharding(mesh, spec)))
for n in whole:
  joined = np.concatenate(list(np.asarray(parts[n])), axis)
  assert (joined == np.asarray(whole[n])).all(), n
  assert (np.asarray(sharded[n]) == np.asarray(whole[n])).all(), n
print('equal', sorted(whole))
"""


@pytest.mark.parametrize(('k', 'axis', 'dequantize'), [(None, 0, 'none'), (2, 1, 'uniform')])
def test_pmap_and_sharded_jit_make_the_batch_of_jit(make_config, k, axis, dequantize):
  config = make_config(flip=0.5, dequantize=dequantize).to_dict()
  env = os.environ | {
    'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
    'JAX_PLATFORMS': 'cpu',
  }
  code = PMAP.format(config=config, k=k, axis=axis)
  done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
  assert done.stdout == "equal ['image', 'label']\n", done.stderr[-2000:]


def test_storage_is_chosen_by_size(make_config, monkeypatch):
  assert open_batches(make_config()).storage == 'device'
  monkeypatch.setattr('gen_jax.data.sources.DEVICE_BYTES', 1797 * 68 - 1)
  batches = open_batches(make_config())
  assert batches.storage == 'stream' and batches.device_data == {}
  assert open_batches(make_config(storage='device')).storage == 'device'


def test_batch_larger_than_the_set_is_refused(make_config):
  open_batches(make_config(1797), minibatches=5).host_batch(1)
  with pytest.raises(UserError, match='config.train.batch_size=1798, but digits has only 1797'):
    open_batches(make_config(1798))


def test_streaming_reads_ahead_in_threads_and_stops_when_closed(make_config):
  config = make_config(storage='stream', prefetch=3)
  batches = open_batches(config)
  asked, fed = [], batches.host_batch
  batches.host_batch = lambda step: (
    asked.append((int(step), threading.current_thread())) or fed(step)
  )
  before = threading.active_count()
  stream = batches.iterate(10)
  next(stream)
  deadline = time.monotonic() + 10
  while len(asked) < 4 and time.monotonic() < deadline:
    time.sleep(0.01)
  assert {10, 11, 12} <= {step for step, _ in asked}
  assert threading.main_thread() not in {thread for _, thread in asked}
  time.sleep(0.2)
  assert len(asked) <= 10  # It does not run away from the training.
  stream.close()
  while threading.active_count() > before and time.monotonic() < deadline:
    time.sleep(0.01)
  assert threading.active_count() <= before


def test_feeding_indices_costs_little(make_config):
  batches = open_batches(make_config(128))
  batches.host_batch(0)
  start = time.perf_counter()
  for step in range(1000):
    batches.host_batch(step)
  assert (time.perf_counter() - start) / 1000 < 0.3e-3
