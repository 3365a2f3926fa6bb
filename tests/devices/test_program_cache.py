"""A compiled step is read while a later start traces its own, and is that very step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import config as configs
from gen_jax import systems
from gen_jax.devices import sharding
from gen_jax.devices.program_cache import Prefetch


@pytest.fixture
def folder(tmp_path, set_cache):
  """An empty cache of JAX's that keeps every program."""
  set_cache(jax_compilation_cache_dir=str(tmp_path), jax_persistent_cache_min_compile_time_secs=0.0)
  return tmp_path


def checked(**fields):
  config = configs.load('configs/gan_ring.py:smoke', [(k, str(v)) for k, v in fields.items()])
  return configs.check(config, systems.find_system(config.system).FIELDS)


def start(f, config=None, options=None):
  """What a start of the program gets for f, over both devices."""
  mesh = sharding.make_mesh(config := config or checked())
  rows, whole = sharding.by_rows(mesh), sharding.replicated(mesh)
  prefetch = Prefetch(config, mesh)
  jax.clear_caches()  # as in a new process
  jitted = jax.jit(f, in_shardings=(whole, rows), out_shardings=whole, donate_argnums=0)
  state = {'w': jnp.ones(4)}
  program = prefetch.compile(jitted.lower(state, jnp.ones((2, 4))), options)
  prefetch._pool.shutdown()  # it is written
  return program(jax.device_put(state, whole), jax.device_put(jnp.ones((2, 4)), rows))


def step(state, x):
  return {'w': state['w'] + x.sum(0) / 3}


@pytest.fixture
def compiled(monkeypatch):
  """How many programs were compiled, or read by JAX, so far."""
  calls = []
  compile_ = jax.stages.Lowered.compile

  def count(self, *args):
    calls.append(self)
    return compile_(self, *args)

  monkeypatch.setattr(jax.stages.Lowered, 'compile', count)
  return calls


def test_a_second_start_reads_the_program_of_the_first(folder, compiled):
  first = start(step)
  assert len(compiled) == 1
  np.testing.assert_array_equal(start(step)['w'], first['w'])
  np.testing.assert_allclose(first['w'], 1 + 2 / 3, rtol=1e-6)
  assert len(compiled) == 1


def test_fields_that_no_program_depends_on_may_differ(folder, compiled):
  start(step)
  start(step, checked(**{'seed': 7, 'train.steps': 9, 'eval.seed': 3}))
  assert len(compiled) == 1


def test_another_program_is_never_taken_for_it(folder, compiled):
  start(step)
  doubled = start(lambda state, x: {'w': 2 * step(state, x)['w']})
  np.testing.assert_allclose(doubled['w'], 2 * (1 + 2 / 3), rtol=1e-6)
  assert len(compiled) == 2
  # The same operations, other names of what is returned.
  assert set(start(lambda state, x: {'v': step(state, x)['w']})) == {'v'}
  assert len(compiled) == 3
  start(step)  # not the last one, but still there
  assert len(compiled) == 3
  start(step, options={'xla_backend_optimization_level': 1})
  assert len(compiled) == 4


def test_what_jax_has_read_is_not_kept(folder, compiled):
  start(step)
  for path in folder.glob('*.step'):
    path.unlink()
  for _ in range(2):  # XLA could not serialise it a second time
    start(step)
  assert len(compiled) == 3
  assert not list(folder.glob('*.step'))


@pytest.mark.parametrize('damage', [b'', b'broken'])
def test_a_broken_file_is_passed_over(folder, compiled, damage):
  first = start(step)
  (path,) = folder.glob('*.step')
  path.write_bytes(damage)
  np.testing.assert_array_equal(start(step)['w'], first['w'])
  assert len(compiled) == 2


@pytest.mark.parametrize(
  'off', [{'jax_compilation_cache_dir': None}, {'jax_enable_compilation_cache': False}]
)
def test_nothing_is_kept_where_jax_keeps_nothing(folder, compiled, set_cache, off):
  set_cache(**off)
  start(step)
  start(step)
  assert len(compiled) == 2
  assert not list(folder.iterdir())


def test_pmap_has_its_own_way(folder):
  config = checked(**{'parallel.mode': 'pmap'})
  lowered = jax.jit(step).lower({'w': jnp.ones(4)}, jnp.ones((2, 4)))
  Prefetch(config, sharding.make_mesh(config)).compile(lowered, None)
  assert not list(folder.glob('*.step'))
