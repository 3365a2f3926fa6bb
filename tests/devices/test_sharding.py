"""Compiled programs: where they are kept, that a second start finds them, and what they gather."""

import collections
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from children import run_python
from jax.sharding import PartitionSpec

from gen_jax import config as configs
from gen_jax import contract
from gen_jax.devices import compilation, fsdp, sharding
from gen_jax.errors import UserError
from gen_jax.systems import ddpm

COUNT = """
import sys
import jax
import launch
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
assert launch.main(sys.argv[1:]) == 0
hits, misses = (events.count(f'/jax/compilation_cache/cache_{x}') for x in ('hits', 'misses'))
print('found', hits, 'of', hits + misses)
"""
ENV = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', 'JAX_COMPILATION_CACHE_DIR': ''}


def start(repository, workdir, cache, *flags):
  """Trains in a process of its own; returns (programs found, programs needed), and metrics."""
  child = run_python(
    '-c',
    COUNT,
    '--config=configs/gan_ring.py:smoke',
    f'--workdir={workdir}',
    *flags,
    cwd=repository,
    GEN_JAX_CACHE=str(cache),
    **ENV,
  )
  assert child.returncode == 0, child.stderr
  words = child.stdout.splitlines()[-1].split()
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return (int(words[1]), int(words[3])), [line['g/loss'] for line in lines]


def test_a_second_start_finds_what_the_first_compiled(repository, tmp_path):
  cache = tmp_path / 'cache'
  (found, _), losses = start(repository, tmp_path / 'a', cache)
  assert found == 0
  (found, needed), again = start(repository, tmp_path / 'b', cache)
  assert found == needed > 2  # initialiser, step and sampler at least
  assert again == losses
  assert [folder.name for folder in (cache / 'compiled').iterdir()] == [
    f'cpu_{compilation._processor()}'
  ]


def test_the_field_moves_it_or_switches_it_off(repository, tmp_path):
  cache, other = tmp_path / 'cache', tmp_path / 'other'
  start(repository, tmp_path / 'a', cache, f'--config.compilation_cache={other}')
  assert list(other.glob('cpu_*/*')) and not (cache / 'compiled').exists()
  start(repository, tmp_path / 'b', cache, '--config.compilation_cache=None')
  assert not (cache / 'compiled').exists()


@pytest.fixture
def unset():
  """As for a user who has given JAX no folder."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', None)
  yield
  jax.config.update('jax_compilation_cache_dir', before)


def test_a_folder_that_cannot_be_made_is_told(tmp_path, repository, unset):
  (tmp_path / 'file').write_text('')
  cache = [('compilation_cache', str(tmp_path / 'file' / 'x'))]
  config = configs.load(str(repository / 'configs' / 'gan_ring.py'), cache)
  with pytest.raises(
    UserError, match=r'config.compilation_cache=.*Not a directory.*None is needed'
  ):
    compilation.keep_programs(config)


def test_no_home_is_no_reason_to_stop(tmp_path, repository, unset, monkeypatch, caplog):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('GEN_JAX_CACHE', str(tmp_path / 'file'))
  config = configs.load(str(repository / 'configs' / 'gan_ring.py'))
  compilation.keep_programs(config)
  assert 'compiled programs are not cached' in caplog.text
  assert jax.config.jax_compilation_cache_dir is None


# --- Fully sharded ------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def compiled():
  """The step of a U-Net with `fsdp` devices, 1 or 2, compiled by the loop's own function, and
  where its state lies; {fsdp: (compiled, state)}.
  """
  made = {}
  for parts in (1, 2):
    layout = [('parallel.data', '1'), ('parallel.fsdp', str(parts))]
    config = configs.load('configs/ddpm_digits.py:smoke', layout)
    mesh = sharding.make_mesh(config)
    state = sharding.abstract_state(contract.abstract_state(config, ddpm), mesh)
    b = config.train.batch_size
    batch = {
      'image': jax.ShapeDtypeStruct((b, *config.data.shape), jnp.float32),
      'label': jax.ShapeDtypeStruct((b,), jnp.int32),
    }

    def step(state, fed, resident, rng, *, axis_name, config=config):
      return ddpm.train_step(state, fed, rng, config=config, axis_name=axis_name)

    key = jax.eval_shape(lambda: jax.random.key(0))
    args = (state, batch, {}, key)
    axes = sharding.BatchAxes((b,))
    made[parts] = compilation.compile_step(step, mesh, *args, mode='jit', axes=axes), state
  return made


def test_the_rule_takes_the_first_or_last_axis_that_divides():
  assert fsdp.spec((3, 3, 64, 128), 4) == PartitionSpec(None, None, None, 'fsdp')
  assert fsdp.spec((512, 8, 64), 4) == PartitionSpec('fsdp', None, None)
  assert fsdp.spec((10, 32, 32, 3), 2) == PartitionSpec('fsdp', None, None, None)
  assert fsdp.spec((64, 64), 4) == PartitionSpec(None, 'fsdp')
  assert fsdp.spec((3, 3, 128, 1), 3) == PartitionSpec('fsdp', None, None, None)
  assert fsdp.spec((10, 6), 4) == fsdp.spec((), 4) == fsdp.spec((64,), 1) == PartitionSpec()


def test_a_device_holds_its_part_of_the_state(compiled):
  step, state = compiled[2]
  spread = [leaf for leaf in jax.tree.leaves(state) if 'fsdp' in leaf.sharding.spec]
  assert sum(leaf.size for leaf in spread) > 0.99 * sum(x.size for x in jax.tree.leaves(state))
  # Parameters, both moments and the average: the state comes out as it went in.
  assert step.output_shardings[0] == jax.tree.map(lambda leaf: leaf.sharding, state)
  whole, parts = (compiled[n][0].memory_analysis().argument_size_in_bytes for n in (1, 2))
  assert parts < 0.51 * whole


def test_parameters_are_gathered_where_a_net_uses_them_and_nowhere_else(compiled):
  step, state = compiled[2]
  gathered = collections.Counter()
  for line in step.as_text().splitlines():
    if found := re.search(r'= (\w+)\[([\d,]*)\]\S* all-gather\(', line):
      if found[1] == 's32':  # the labels, for the gradient of their embedding
        continue
      where = re.search(r'op_name="([^"]*)"', line)[1]
      assert where.endswith('sharding_constraint') or 'class/' in where, where
      gathered[tuple(map(int, found[2].split(',')))] += 1
  held = collections.Counter(leaf.shape for leaf in jax.tree.leaves(state.net.params))
  assert gathered and sum(gathered.values()) >= 0.9 * sum(held.values())
  for shape, times in gathered.items():
    # XLA may write a kernel [3, 3, c, d] as a matrix [9 c, d].
    alike = sum(n for s, n in held.items() if math.prod(s) == math.prod(shape))
    assert times <= 2 * alike, shape  # forward and backward; Adam and the average see parts


# --- Without gradients --------------------------------------------------------------------------


def test_samples_are_the_same_on_any_devices_and_all_take_part():
  config = configs.load('configs/ddpm_digits.py:smoke')
  batch = contract.conditions(config, 6)
  images = {'image': jnp.zeros((6, *config.data.shape)), 'label': batch['label']}
  state = ddpm.init_state(jax.random.key(0), images, config=config)
  # The last layer of an untrained U-Net is zero: every sample would be noise alone.
  state = jax.tree.map(lambda x: x + 0.05 if x.ndim == 4 else x, state)
  made = {}
  for data, parts in ((1, 1), (2, 1), (1, 2)):
    changed = configs.replace(config, {'parallel.data': data, 'parallel.fsdp': parts})
    target = sharding.abstract_state(state, sharding.make_mesh(changed))
    there = jax.tree.map(lambda x, t: jax.device_put(x, t.sharding), state, target)
    sample = compilation.ShardedForward(functools.partial(ddpm.sample, config=config))
    args = (there, batch, jax.random.key(1))
    made[data, parts] = sample(*args)['image']
    label = sample._compiled.input_shardings[0][1]['label']
    assert label.shard_shape((6,)) == (6 // (data * parts),)
  assert np.std(made[1, 1]) > 0.1
  for found in made.values():
    assert found.sharding.is_fully_replicated
    np.testing.assert_allclose(found, made[1, 1], atol=1e-4)


def test_rows_that_do_not_divide_are_drawn_by_every_device():
  whole = sharding.replicated(sharding.make_mesh(configs.load('configs/gan_ring.py')))
  state = jax.device_put({'w': jnp.arange(3.0)}, whole)
  double = compilation.ShardedForward(lambda state, batch, rng: state['w'] + batch['x'])
  assert double(state, {'x': jnp.arange(3.0)}, jax.random.key(0)).tolist() == [0, 2, 4]
  assert double._compiled.input_shardings[0][1]['x'].is_fully_replicated
