"""Checkpoints against real disks, real damage and real kills."""

import asyncio
import gc
import json
import logging
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import textwrap
import time

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore
from forged import replace_file, seal

from gen_jax.errors import UserError
from gen_jax.run import checkpoint, orbax_arrays
from gen_jax.run.manifest import PARTS

CONFIG = {'system': 'toy', 'train': {'steps': 10}, 'data': {'shape': [8, 8, 1], 'path': None}}


@flax.struct.dataclass
class Player:
  params: dict
  opt_state: optax.OptState
  ema: dict | None


@flax.struct.dataclass
class State:
  step: jax.Array
  net: Player
  D: Player


def make_state(seed=0, width=5):
  w_key, b_key = jax.random.split(jax.random.key(seed))
  params = {
    'dense': {
      'kernel': jax.random.normal(w_key, (3, width)),
      'bias': jax.random.normal(b_key, (width,), jnp.bfloat16),
    },
    'empty': jnp.zeros((0, 4), jnp.float16),
    'mask': jnp.array([True, False]),
  }
  opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
  floats = {'dense': params['dense']}
  grads = jax.tree.map(jnp.ones_like, floats)
  _, opt_state = opt.update(grads, opt.init(floats), floats)
  return State(
    step=jnp.int32(7),
    net=Player(params, opt_state, ema=jax.tree.map(lambda x: x + x, params['dense'])),
    D=Player({'table': jnp.arange(6, dtype=jnp.int32).reshape(2, 3)}, optax.EmptyState(), None),
  )


def make(directory, keep=3, config=CONFIG):
  return checkpoint.Checkpointer(directory, config=config, data_fingerprint='toy-1', keep=keep)


def snapshot(tree):
  """The bytes of every leaf, by value: a donated buffer would change under a view."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return [
    (jax.tree_util.keystr(k), str(x.dtype), x.shape, np.asarray(x).tobytes()) for k, x in leaves
  ]


def files(path):
  return sorted(p for p in pathlib.Path(path).rglob('*') if p.is_file())


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A directory with the checkpoints of steps 1 and 2; tests work on copies."""
  directory = tmp_path_factory.mktemp('saved') / 'checkpoints'
  c = make(directory)
  c.save(1, make_state(1))
  c.save(2, make_state(2))
  c.close()
  return directory


@pytest.fixture
def copied(saved, tmp_path):
  return pathlib.Path(shutil.copytree(saved, tmp_path / 'checkpoints'))


def test_round_trip_is_exact(saved):
  c = make(saved)
  manifest = c.latest()
  assert (manifest.step, manifest.config, manifest.data_fingerprint) == (2, CONFIG, 'toy-1')
  assert manifest.leaves['net/params/dense/kernel'] == ((3, 5), 'float32')
  assert manifest.leaves['net/ema/bias'] == ((5,), 'bfloat16')
  assert manifest.leaves['net/params/empty'] == ((0, 4), 'float16')
  assert manifest.environment['jax'] == jax.__version__
  target = jax.eval_shape(make_state)
  restored = c.restore(manifest, target)
  assert jax.tree.structure(restored) == jax.tree.structure(make_state())
  assert snapshot(restored) == snapshot(make_state(2))
  assert snapshot(c.restore(c.latest(step=1), make_state())) == snapshot(make_state(1))
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(restored))


def test_numpy_leaves_and_keys_survive(tmp_path):
  state = {'table': np.arange(3, dtype=np.int64), 'key': jax.random.key(3)}
  c = make(tmp_path)
  c.save(1, state)
  state['table'][:] = 0
  restored = c.restore(c.latest(), state)
  assert isinstance(restored['table'], np.ndarray) and restored['table'].tolist() == [0, 1, 2]
  assert jnp.array_equal(jax.random.key_data(restored['key']), jax.random.key_data(state['key']))


def test_arrays_may_be_donated_right_after_save(tmp_path):
  @jax.jit
  def fresh(i):
    return {'w': jnp.full((256, 256), i, jnp.float32), 'n': jnp.full((1000,), i, jnp.int32)}

  step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  c = make(tmp_path, keep=10)
  state = fresh(0)
  for i in range(4):
    c.save(i, state)
    for _ in range(20):
      state = step(state)
  for i in range(4):
    got = c.restore(c.latest(step=i), state)
    for leaf in jax.tree.leaves(got):
      assert np.unique(leaf).tolist() == [20 * i]
  c.close()


def test_sharded_state_returns_to_the_sharding_of_the_target(tmp_path):
  code = """
    import jax, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from gen_jax.run.checkpoint import Checkpointer
    jax.config.update('jax_num_cpu_devices', 2)
    mesh = jax.make_mesh((2,), ('data',))
    rows, whole = NamedSharding(mesh, P('data')), NamedSharding(mesh, P())
    x = jax.device_put(np.arange(8.0, dtype=np.float32), rows)
    c = Checkpointer(DIR, config={}, data_fingerprint='', keep=1)
    c.save(1, {'x': x})
    for sharding in (rows, whole):
      target = {'x': jax.ShapeDtypeStruct((8,), np.float32, sharding=sharding)}
      y = c.restore(c.latest(), target)['x']
      assert y.sharding == sharding, y.sharding
      assert np.array_equal(y, np.arange(8)), y
    c.close()
  """
  run_child(code, tmp_path / 'checkpoints')


def test_every_flipped_bit_is_detected(copied):
  rng = random.Random(0)
  c = make(copied)
  seen = files(copied / '0000000002')
  assert len(seen) > 8
  names = {p.name for p in seen}
  assert {'config.json', 'manifest.json', 'manifest.sha256', 'manifest.ocdbt'} <= names
  for path in seen:
    good = path.read_bytes()
    for _ in range(3):
      bit = rng.randrange(8 * len(good))
      bad = bytearray(good)
      bad[bit // 8] ^= 1 << bit % 8
      path.write_bytes(bad)
      with pytest.raises(UserError, match='step|damaged'):
        c.latest(step=2)
      assert make(copied).latest().step == 1, path
    path.write_bytes(good)
  assert c.latest().step == 2


@pytest.mark.parametrize('damage', ['delete', 'halve', 'empty', 'append'])
def test_every_damaged_file_is_named(copied, damage):
  for path in files(copied / '0000000002'):
    good = path.read_bytes()
    if damage == 'delete':
      path.unlink()
    else:
      path.write_bytes(dict(halve=good[: len(good) // 2], empty=b'', append=good + b'x')[damage])
    with pytest.raises(UserError) as error:
      make(copied).latest(step=2)
    assert path.name in str(error.value) and 'damaged' in str(error.value)
    path.write_bytes(good)
  assert make(copied).latest(step=2).step == 2


def test_foreign_files_and_links_are_refused(copied):
  step = copied / '0000000002'
  (step / 'arrays' / 'note').write_text('hello')
  with pytest.raises(UserError, match='arrays/note does not belong'):
    make(copied).latest(step=2)
  (step / 'arrays' / 'note').unlink()
  (step / 'config.json').rename(copied / 'elsewhere.json')
  (step / 'config.json').symlink_to(copied / 'elsewhere.json')
  with pytest.raises(UserError, match='config.json is not a regular file'):
    make(copied).latest(step=2)


NONSENSE = [None, 5, -1, True, 'x', [], {}, [5], {'x': 5}, {'x': None}, 1.5, 10**400]
LEAVES = [[3], [3, 'float32'], [[3], 'banana'], [[3.5], 'float32'], [[-3], 'float32'], [[3], 7]]


@pytest.mark.parametrize('part', ['format', *PARTS])
def test_a_manifest_that_is_not_one_is_damage(copied, caplog, part):
  """Under right checksums, as only somebody who writes them leaves it."""
  folder = copied / '0000000002'
  good = json.loads((folder / 'manifest.json').read_bytes())
  fine = {'data_fingerprint': ['x'], 'leaves': [{}], 'files': [], 'environment': [{}], 'runs': [{}]}
  edits = [good | {part: value} for value in NONSENSE if value not in fine.get(part, [])]
  if part == 'format':
    edits = [edit for edit in edits if edit['format'] != 5]  # that of a later version
  if part != 'runs':
    edits.append({name: value for name, value in good.items() if name != part})
  if part == 'leaves':
    edits += [good | {'leaves': good['leaves'] | {'net/params/empty': leaf}} for leaf in LEAVES]
  if part == 'runs':
    edits += [good | {'runs': {'a': run}} for run in ({}, {'path': 'x'}, {'path': 5, 'sha256': ''})]
  for edit in edits:
    (folder / 'manifest.json').write_text(json.dumps(edit))
    seal(folder)
    caplog.clear()
    assert make(copied).latest().step == 1, edit[part]
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith(f'checkpoint {folder} is damaged: ') and len(line) < 300


@pytest.mark.parametrize(
  'content', [b'null', b'[]', b'5', b'"x"', b'{}', b'{', b'\xff', b'[' * 2000, b'{"a":' * 2000]
)
def test_files_of_a_checkpoint_that_are_no_objects(copied, content):
  folder = copied / '0000000002'
  good = (folder / 'manifest.json').read_bytes()
  (folder / 'manifest.json').write_bytes(content)
  seal(folder)
  assert make(copied).latest().step == 1
  with pytest.raises(UserError, match='0000000002 is damaged'):
    make(copied).latest(step=2)
  (folder / 'manifest.json').write_bytes(good)
  replace_file(folder, 'config.json', content)
  assert make(copied).latest().step == (2 if content == b'{}' else 1)


def test_arrays_that_are_none_are_one_line(copied):
  folder = copied / '0000000002'
  for name in ('arrays/_METADATA', 'arrays/manifest.ocdbt'):
    good = {p: (folder / p).read_bytes() for p in (name, 'manifest.json')}
    for content in (b'[]', b'{}', b'null'):
      replace_file(folder, name, content)
      c = make(copied)
      try:  # orbax may do without some
        restored = c.restore(c.latest(), make_state())
      except UserError as error:
        assert f'checkpoint {folder}: arrays cannot be read' in str(error)
      else:
        assert snapshot(restored) == snapshot(make_state(2))
    for path, data in good.items():
      (folder / path).write_bytes(data)


@pytest.mark.parametrize(
  'name', ['.DS_Store', 'Thumbs.db', 'desktop.ini', 'arrays/.DS_Store', 'arrays/d/._manifest']
)
def test_what_a_desktop_leaves_is_harmless(copied, caplog, name):
  for folder in (copied, copied / '0000000002'):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b'\0\0\0\1Bud1')
  c = make(copied, keep=1)
  assert snapshot(c.restore(c.latest(), make_state())) == snapshot(make_state(2))
  c.save(3, make_state(3))
  c.close()
  assert c.steps() == [3] and not caplog.records


def test_damaged_newest_falls_back_with_one_warning(copied, caplog):
  (copied / '0000000002' / 'config.json').write_text('{}')
  c = make(copied)
  with caplog.at_level(logging.WARNING):
    assert c.latest().step == 1
  (line,) = [r.getMessage() for r in caplog.records]
  assert '0000000002' in line and 'config.json' in line and '\n' not in line
  assert c.steps() == [1, 2]  # Left alone.
  # The run that goes on from step 1 reaches step 2 again; the damaged one is set aside.
  c.save(2, make_state(9))
  c.close()
  assert snapshot(c.restore(make(copied).latest(), make_state())) == snapshot(make_state(9))
  assert (copied / '0000000002.replaced-1' / 'config.json').read_text() == '{}'


def test_no_silent_restart_when_all_are_damaged(copied):
  for step in ('0000000001', '0000000002'):
    (copied / step / 'manifest.json').unlink()
  with pytest.raises(UserError, match='none is intact'):
    make(copied).latest()
  (copied / '0000000001').rename(copied / '0000000001.replaced-1')
  shutil.rmtree(copied / '0000000002')
  with pytest.raises(UserError, match='none is intact'):
    make(copied).latest()


def test_a_reader_finds_what_the_run_wrote_while_it_read(copied, monkeypatch):
  verify = checkpoint.verify

  def overtaken(path):
    if path.name == '0000000002' and path.exists():  # The run saves step 3 and deletes the others.
      shutil.copytree(path, copied / 'moved')
      for step in ('0000000001', '0000000002'):
        shutil.rmtree(copied / step)
      c = make(copied)
      c.save(3, make_state(3))
      c.close()
    return verify(path)

  monkeypatch.setattr(checkpoint, 'verify', overtaken)
  reader = make(copied)
  manifest = reader.latest()
  assert manifest.step == 3
  shutil.rmtree(copied / '0000000003')
  with pytest.raises(UserError, match='0000000003 was deleted while it was read.*try again'):
    reader.restore(manifest, make_state())


def test_nothing_there_is_none_and_a_wrong_step_lists_the_steps(saved, tmp_path):
  assert make(tmp_path / 'none').latest() is None
  with pytest.raises(UserError, match=r'no checkpoint of step 5 .*\[1, 2\]'):
    make(saved).latest(step=5)
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='Not a directory'):
    make(tmp_path / 'file').latest()


def test_a_copied_folder_under_another_step_is_refused(copied):
  shutil.copytree(copied / '0000000002', copied / '0000000099')
  with pytest.raises(UserError, match='manifest is that of step 2'):
    make(copied).latest(step=99)
  assert make(copied).latest().step == 2


def test_another_format_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, 'FORMAT', 99)
  c = make(tmp_path)
  c.save(1, make_state())
  c.close()
  monkeypatch.undo()
  with pytest.raises(UserError, match='has format 99, gen_jax 0.*reads format 2: train'):
    make(tmp_path).latest()


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda s: make_state(width=6), ['net/', 'float32[3,5]', 'float32[3,6]']),
    (lambda s: s.replace(step=jnp.float32(0)), ['step', 'int32[]', 'float32[]']),
    (
      lambda s: s.replace(D=s.D.replace(params={**s.D.params, 'extra': jnp.zeros(2)})),
      ['lacks D/params/extra'],
    ),
    (lambda s: s.replace(net=s.net.replace(ema=None)), ['model lacks net/ema/bias and 1 more']),
  ],
)
def test_another_model_is_refused_in_one_line(saved, change, words):
  c = make(saved)
  with pytest.raises(UserError) as error:
    c.restore(c.latest(), change(make_state()))
  message = str(error.value)
  assert all(word in message for word in words), message
  assert len(message) < 400


@pytest.mark.parametrize('value', [jnp.nan, jnp.inf, -jnp.inf])
def test_nothing_but_finite_values_is_saved(tmp_path, value):
  state = make_state()
  bad = state.net.ema['bias'].at[3].set(value)
  c = make(tmp_path / 'checkpoints')
  with pytest.raises(ValueError, match='^net/ema/bias holds NaN or infinity'):
    c.save(1, state.replace(net=state.net.replace(ema={**state.net.ema, 'bias': bad})))
  c.close()
  assert c.steps() == [] and not (tmp_path / 'checkpoints').exists()


def test_python_numbers_are_refused(tmp_path):
  with pytest.raises(TypeError, match='a/0 is a float'):
    make(tmp_path).save(1, {'a': [1.0]})


def test_keeps_the_newest_and_never_deletes_damaged_ones(tmp_path, caplog):
  c = make(tmp_path, keep=2)
  state = {'x': jnp.arange(3.0)}
  c.save(1, state)
  c.save(2, state)
  c.wait()
  assert c.steps() == [1, 2]
  (tmp_path / '0000000001' / 'config.json').write_text('')
  for step in (3, 4, 5):
    c.save(step, state)
  c.close()
  assert c.steps() == [1, 4, 5]
  assert sum('0000000001' in r.getMessage() for r in caplog.records) == 1
  assert all(not name.startswith('.') for name in os.listdir(tmp_path))


def test_the_same_step_is_saved_once(tmp_path):
  c = make(tmp_path)
  c.save(1, {'x': jnp.arange(3.0)})
  c.wait()
  before = {p: p.stat().st_mtime_ns for p in files(tmp_path)}
  c.save(1, {'x': jnp.arange(3.0)})
  c.close()
  assert {p: p.stat().st_mtime_ns for p in files(tmp_path)} == before


def test_rubbish_of_dead_runs_goes_at_the_first_save(tmp_path):
  rubbish = tmp_path / '.tmp-0000000003' / 'arrays'
  rubbish.mkdir(parents=True)
  (rubbish / 'd').write_bytes(b'x' * 1000)
  c = make(tmp_path)
  assert c.latest() is None
  # A reader must not tidy up: the writer may be alive.
  assert rubbish.exists()
  c.save(3, {'x': jnp.arange(3.0)})
  c.close()
  assert os.listdir(tmp_path) == ['0000000003']


def test_another_environment_warns_in_one_line(saved, caplog, monkeypatch):
  c = make(saved)
  manifest = c.latest()
  caplog.set_level(logging.WARNING)
  c.restore(manifest, make_state())
  assert not caplog.records
  monkeypatch.setenv('XLA_FLAGS', '--xla_new')
  c.restore(manifest, make_state())
  (line,) = [r.getMessage() for r in caplog.records]
  assert '-> --xla_new' in line and 'may differ in the last bits' in line


def test_a_failed_write_surfaces_at_the_next_call(tmp_path):
  (tmp_path / 'checkpoints').write_text('in the way')
  c = make(tmp_path / 'checkpoints')
  c.save(1, {'x': jnp.arange(3.0)})
  with pytest.raises(UserError, match=r'0000000001 cannot be written: File exists'):
    c.wait()
  c.check()  # Raised once.
  c.wait()
  c.save(2, {'x': jnp.arange(3.0)})
  with pytest.raises(UserError, match=r'0000000002 cannot be written'):
    c.save(3, {'x': jnp.arange(3.0)})
  (tmp_path / 'checkpoints').unlink()
  c.save(3, {'x': jnp.arange(3.0)})
  c.close()
  assert c.steps() == [3]


def test_a_failed_save_is_noticed_before_the_next_one(tmp_path):
  (tmp_path / 'checkpoints').write_text('in the way')
  c = make(tmp_path / 'checkpoints')
  c.save(1, {'x': jnp.arange(3.0)})
  with pytest.raises(UserError, match='0000000001 cannot be written'):
    while True:
      c.check()
      time.sleep(0.01)


def test_a_folder_removed_while_it_is_written_is_one_line(tmp_path, monkeypatch):
  c = make(tmp_path / 'checkpoints')
  save = c._arrays.save

  def save_and_remove(folder, **options):
    save(folder, **options)
    shutil.rmtree(folder.parent)

  monkeypatch.setattr(c._arrays, 'save', save_and_remove)
  c.save(1, {'x': jnp.arange(3.0)})
  with pytest.raises(UserError, match='0000000001 cannot be written: it was removed while'):
    c.wait()
  assert os.listdir(tmp_path / 'checkpoints') == []


def test_a_full_disk_is_one_line_and_keeps_the_old_checkpoint(tmp_path):
  code = """
    import os, resource, sys
    import jax, jax.numpy as jnp
    from gen_jax.run.checkpoint import Checkpointer
    from gen_jax.errors import UserError
    c = Checkpointer(DIR, config={}, data_fingerprint='', keep=1)
    c.save(1, {'x': jnp.arange(4.0)})
    c.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    many = {f'x{i}': jax.random.normal(jax.random.key(i), (200, 200 + i)) for i in range(20)}
    for _ in range(5):  # whose threads fail in another order each time
      c.save(2, many)
      try:
        c.wait()
      except UserError as error:
        print(error)
      assert os.listdir(DIR) == ['0000000001']
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert c.latest().step == 1
    c.save(3, {'x': jax.random.normal(jax.random.key(0), (500, 500))})
    c.close()
    assert c.steps() == [3], c.steps()
  """
  directory = tmp_path / 'checkpoints'
  child = run_child(code, directory)
  line = f'checkpoint {directory}/0000000002 cannot be written: File too large\n'
  assert child.stdout == 5 * line
  assert child.stderr == ''
  assert os.listdir(directory) == ['0000000003']


def test_what_a_save_raises_is_not_printed_by_its_threads(tmp_path, caplog):
  """Their errors are raised once more by the save, so that the event loop's report is a copy."""

  async def forgotten(error):
    asyncio.get_running_loop().create_future().set_exception(error)

  orbax_arrays.mute()
  with pytest.raises(OSError) as of_orbax:
    ocp.ArrayCheckpointHandler().restore(tmp_path / 'absent')
  with pytest.raises(OSError) as of_others:
    open(tmp_path / 'absent')  # noqa: SIM115
  spec = {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': str(tmp_path / 'absent')}}
  with pytest.raises(ValueError) as of_tensorstore:
    tensorstore.open(spec).result()
  # As the event loop finds it: the error of an array that Orbax did not wait for has no frames.
  of_tensorstore.value.__traceback__ = None
  for caught in (of_orbax, of_tensorstore, of_others):
    asyncio.run(forgotten(caught.value))
    gc.collect()
  (record,) = (record for record in caplog.records if record.name == 'asyncio')
  assert record.exc_info[1] is of_others.value


FULL = """
  import os, subprocess
  import jax
  from gen_jax.run.checkpoint import Checkpointer
  from gen_jax.errors import UserError
  many = {f'x{i}': jax.random.normal(jax.random.key(i), (200, 100 + i)) for i in range(12)}
  for size in range(500, 2100, 45):  # KiB
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}k', 'tmpfs', DIR], check=True)
    c = Checkpointer(f'{DIR}/checkpoints', config={}, data_fingerprint='', keep=1)
    for step in (1, 2):
      c.save(step, many)
      try:
        c.wait()
      except UserError as error:
        print(size, error)
    c.close()
    left = os.listdir(f'{DIR}/checkpoints')
    assert all(name.isdecimal() for name in left) and len(left) < 2, left
    subprocess.run(['umount', DIR], check=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('unshare') is None, reason='needs mounts of its own')
def test_nothing_is_left_on_a_disk_that_becomes_full_anywhere(tmp_path):
  alone = ('unshare', '--user', '--map-root-user', '--mount')
  if subprocess.run([*alone, 'true'], capture_output=True).returncode:
    pytest.skip('no mounts of its own')
  child = run_child(FULL, tmp_path, before=alone)
  lines = child.stdout.splitlines()
  assert child.stderr == '' and len(lines) > 20
  for line in lines:
    assert re.fullmatch(r'\d+ checkpoint .*/000000000[12] cannot be written: No space left.*', line)


KILLED = """
  import os, random, select, signal, sys, time
  import jax, jax.numpy as jnp
  from gen_jax.run.checkpoint import Checkpointer

  def state(step):
    return {'w': jnp.full((200, 200), step, jnp.float32), 'n': jnp.int32(step)}

  def saves_for_ever(out):
    c = Checkpointer(DIR, config={}, data_fingerprint='', keep=2)
    manifest = c.latest()
    step = 0 if manifest is None else manifest.step
    if manifest is not None:
      assert int(c.restore(manifest, state(0))['n']) == step
    while True:
      step += 1
      c.save(step, state(step))
      c.wait()
      os.write(out, b'%d ' % step)

  # JAX starts its threads in the children, so that forking is safe and a kill costs no import.
  rng = random.Random(0)
  for _ in range(12):
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
      os.close(read)
      saves_for_ever(write)
    os.close(write)
    claimed = os.read(read, 1000)
    time.sleep(rng.uniform(0, 0.25))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while more := os.read(read, 1000):
      claimed += more
    os.close(read)
    print(claimed.split()[-1].decode(), flush=True)
    sys.stdin.readline()
"""


def test_sigkill_loses_nothing_that_was_claimed(tmp_path):
  directory = tmp_path / 'checkpoints'
  with child_process(KILLED, directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
    kills, leftovers, seen = 0, 0, 0
    for line in child.stdout:
      claimed = int(line)
      c = make(directory)
      manifest = c.latest()
      assert seen < claimed <= manifest.step
      seen = manifest.step
      target = {'w': jax.ShapeDtypeStruct((200, 200), 'float32'), 'n': jnp.int32(0)}
      for step in c.steps():
        got = c.restore(c.latest(step=step), target)
        assert np.unique(got['w']).tolist() == [step] and int(got['n']) == step
      kills += 1
      leftovers += any(name.startswith('.tmp') for name in os.listdir(directory))
      child.stdin.write('\n')
      child.stdin.flush()
  assert child.returncode == 0
  assert kills == 12
  assert leftovers > 3  # The kills did hit saves.


def child_process(code, directory, before=(), **kwargs):
  code = f'DIR = {str(directory)!r}\n' + textwrap.dedent(code)
  env = {**os.environ, 'PYTHONPATH': os.pathsep.join(p or os.getcwd() for p in sys.path)}
  return subprocess.Popen([*before, sys.executable, '-c', code], text=True, env=env, **kwargs)


def run_child(code, directory, before=()):
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  with child_process(code, directory, before, **pipes) as child:
    out, err = child.communicate(timeout=200)
  assert child.returncode == 0, err
  return subprocess.CompletedProcess(child.args, 0, out, err)
