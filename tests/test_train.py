"""The loop as its users meet it: outputs, resuming, real kills, divergence, refusals."""

import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ALL_SLOW, FILES
from children import QUICK, run_python
from ml_collections import FrozenConfigDict
from PIL import Image

import launch
from gen_jax import config as configs
from gen_jax import contract, sampling, train
from gen_jax.data import sources
from gen_jax.devices import compilation
from gen_jax.errors import Diverged, UserError
from gen_jax.host import console
from gen_jax.run import checkpoint, records, writers
from gen_jax.run.workdir import Workdir
from gen_jax.systems import find_system

ROOT = pathlib.Path(__file__).parent.parent
RING = 'configs/gan_ring.py:smoke'

# Configs on which signals are tried in every mode, with flags that add to a run or make it quicker.
TRIED = {
  'gan_ring': ('--config.eval.every_steps=40', '--config.eval.num_reference=500'),
  'ddpm_digits': ('--config.net.multipliers=(1,)',),
}


def main(*argv, capsys=None):
  status = launch.main([str(a) for a in argv])
  return (status, capsys.readouterr()) if capsys else status


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
  monkeypatch.chdir(ROOT)


def metrics(workdir):
  """Lines of metrics.jsonl without their times."""
  lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if k not in ('time', 'rate')} for line in lines
  ]


def final_state(workdir):
  """(step, leaves) of the newest checkpoint, through the manifest and the checksums."""
  config = configs.load(f'{workdir}/config.json')
  system = find_system(config.system)
  saver = checkpoint.Checkpointer(
    f'{workdir}/checkpoints', config=configs.to_dict(config), data_fingerprint='', keep=9
  )
  manifest = saver.latest()
  state = saver.restore(manifest, contract.abstract_state(config, system))
  saver.close()
  return manifest.step, [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def assert_same_run(a, b):
  (step_a, leaves_a), (step_b, leaves_b) = final_state(a), final_state(b)
  assert step_a == step_b
  assert len(leaves_a) == len(leaves_b) > 4
  for x, y in zip(leaves_a, leaves_b, strict=True):
    np.testing.assert_array_equal(x, y)
  assert metrics(a) == metrics(b)
  assert pictures(a) == pictures(b)
  assert quick_evaluations(a) == quick_evaluations(b)


def quick_evaluations(workdir):
  """Lines of evaluation.jsonl without their times."""
  return [line | {'time': None} for line in records.read(Workdir(workdir))]


def pictures(workdir):
  return {path.name: path.read_bytes() for path in (workdir / 'samples').glob('*')}


def start(name, workdir, *flags):
  """A training run in a process of its own, as a user starts it."""
  config = f'--config=configs/{name}.py:smoke'
  with open(f'{workdir}.log', 'a') as log:
    return subprocess.Popen(
      [sys.executable, 'launch.py', config, f'--workdir={workdir}', *flags],
      stdout=log,
      stderr=subprocess.STDOUT,
      env=os.environ | {'XLA_FLAGS': QUICK},
    )


def wait_for_step(process, workdir, step, timeout=240):
  deadline = time.monotonic() + timeout
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  while time.monotonic() < deadline:
    assert process.poll() is None, pathlib.Path(f'{workdir}.log').read_text()
    if path.exists() and f'"step": {step},' in path.read_text():
      return
    time.sleep(0.01)
  raise TimeoutError(f'step {step} not reached')


def finish(process, timeout=240):
  try:
    return process.wait(timeout)
  finally:
    process.kill()


def kill_and_resume(name, tmp_path, *more):
  straight, broken = tmp_path / 'straight', tmp_path / 'broken'
  flags = (
    '--config.train.log_steps=1',
    '--config.train.checkpoint_steps=20',
    '--config.train.sample_steps=50',
    *more,
  )
  # So many that the signals come before the end, however quick they are.
  most = 1000
  # The last start says how many there are, and a schedule would last until then.
  fields = configs.leaves(configs.load(f'configs/{name}.py:smoke'))
  decays = [path for path, value in fields if path.endswith('.decay_steps') and value is not None]
  flags += tuple(f'--config.{path}={most}' for path in decays)
  longer = (*flags, f'--config.train.steps={most}')
  process = start(name, broken, *longer)
  wait_for_step(process, broken, 47)
  process.send_signal(signal.SIGKILL)
  assert finish(process) == -signal.SIGKILL
  killed_at = metrics(broken)[-1]['step']
  saved = final_state(broken)[0]
  # A save takes its time in the background: a kill costs at most two intervals.
  assert 0 < saved <= killed_at < most and killed_at - saved <= 2 * 20

  process = start(name, broken, *longer)
  wait_for_step(process, broken, killed_at + 5)  # metrics.jsonl still has those of before
  process.send_signal(signal.SIGTERM)
  assert finish(process) == 128 + signal.SIGTERM
  # No step is lost: what was logged last is what was saved.
  stopped_at = metrics(broken)[-1]['step']
  assert stopped_at == final_state(broken)[0] < most

  total = (stopped_at // 40 + 1) * 40
  flags = (*flags, f'--config.train.steps={total}')
  assert finish(start(name, broken, *flags)) == 0
  assert finish(start(name, straight, *flags)) == 0
  assert final_state(broken)[0] == total
  assert_same_run(straight, broken)
  if '--config.eval.every_steps=40' in more:
    measured = quick_evaluations(broken)
    assert {line['step'] for line in measured} == set(range(40, total + 1, 40))
    assert f'{records.best_step(measured, "frechet"):010d}' in os.listdir(broken / 'checkpoints')


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
  kill_and_resume('gan_ring', tmp_path, *TRIED['gan_ring'])


@pytest.mark.parametrize('path', ALL_SLOW)
def test_killed_and_resumed_equals_uninterrupted_everywhere(path, tmp_path):
  kill_and_resume(path.stem, tmp_path)


# Flags of a mode, and the devices that it is tried on.
MODES = {
  'jit': ((), (2,)),
  'jit with fsdp': (('--config.parallel.data=1', '--config.parallel.fsdp=2'), (2,)),
  'pmap': (('--config.parallel.mode=pmap',), (1, 2, 4)),
}


@pytest.mark.parametrize(
  'mode', ['jit', pytest.param('jit with fsdp', marks=pytest.mark.slow), 'pmap']
)
def test_every_mode_draws_evaluates_stops_and_resumes(mode, tmp_path, capsys):
  """On the two devices of this process, through the whole loop."""
  straight, broken = tmp_path / 'straight', tmp_path / 'broken'
  flags = (f'--config={RING}', *MODES[mode][0], '--config.train.log_steps=1')
  flags += ('--config.train.checkpoint_steps=20', '--config.train.sample_steps=20')
  flags += ('--config.eval.every_steps=20', '--config.eval.num_reference=500')

  ended = threading.Event()

  def stop():
    path = broken / 'metrics.jsonl'
    while not ended.wait(0.01):
      if path.exists() and '"step": 25,' in path.read_text():
        return os.kill(os.getpid(), signal.SIGTERM)

  thread = threading.Thread(target=stop)
  thread.start()
  try:  # so many steps that the signal comes before the end
    status = main(*flags, '--config.train.steps=5000', f'--workdir={broken}')
  finally:
    ended.set()
    thread.join()
  assert status == 128 + signal.SIGTERM, capsys.readouterr().err
  stopped_at, _ = final_state(broken)
  total = (stopped_at // 20 + 1) * 20
  flags += (f'--config.train.steps={total}',)
  assert main(*flags, f'--workdir={broken}') == 0
  assert f'step {stopped_at} of {total}' in capsys.readouterr().err
  assert main(*flags, f'--workdir={straight}') == 0
  assert_same_run(straight, broken)
  steps = set(range(20, total + 1, 20))
  assert set(pictures(broken)) == {f'{step:07d}_samples.png' for step in steps}
  assert {line['step'] for line in quick_evaluations(broken)} == steps
  for verb in ('sample', 'evaluate'):
    assert main(f'--mode={verb}', f'--workdir={broken}') == 0
  # The modes differ in rounding only.
  plain = tuple(flag for flag in flags if '.parallel.' not in flag)
  assert main(*plain, f'--workdir={tmp_path}/jit') == 0
  for found, wanted in zip(metrics(broken), metrics(tmp_path / 'jit'), strict=True):
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('name', TRIED)
@pytest.mark.parametrize(
  'mode, devices', [(mode, n) for mode, (_, counts) in MODES.items() for n in counts]
)
def test_every_mode_is_killed_and_resumed(name, mode, devices, tmp_path, monkeypatch):
  flags = f'{QUICK} --xla_force_host_platform_device_count={devices}'
  monkeypatch.setattr(f'{__name__}.QUICK', flags)
  kill_and_resume(name, tmp_path, *TRIED[name], *MODES[mode][0])


@pytest.mark.slow
def test_ddpm_digits_trains_in_two_gib(tmp_path):
  command = [
    sys.executable,
    'launch.py',
    '--config=configs/ddpm_digits.py',
    '--config.train.steps=20',
    f'--workdir={tmp_path}/run',
  ]
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  process = subprocess.Popen(command, env=environment)
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  assert process.returncode == 0 and (tmp_path / 'run/samples/0000020_samples.png').exists()
  assert usage.ru_maxrss < 2 * 2**20  # in KiB: 1.3 GiB on two CPU cores


def test_a_run_leaves_what_a_person_looks_for(tmp_path, capsys):
  status, output = main(f'--config={RING}', f'--workdir={tmp_path}/run', capsys=capsys)
  assert status == 0
  picture = tmp_path / 'run/samples/0000020_samples.png'
  assert output.out.strip().endswith(f'samples: {picture}')
  assert 'step 20/20' in output.err and 'points/s' in output.err and 'g/loss' in output.err
  assert f'{tmp_path}/run: training 20 steps, gan with G 82, D 65 parameters on' in output.err
  assert (tmp_path / 'run/curves.png').is_file()
  with Image.open(picture) as image:
    assert len(np.unique(np.asarray(image.convert('RGB')).reshape(-1, 3), axis=0)) > 10
  assert [line['step'] for line in metrics(tmp_path / 'run')] == [5, 10, 15, 20]
  assert list((tmp_path / 'run/tensorboard').glob('events.*'))
  saved = json.loads((tmp_path / 'run/config.json').read_text())
  assert saved['train']['batch_size'] == 16

  # Again: it says that it is finished, and a longer run resumes.
  status, output = main(f'--config={RING}', f'--workdir={tmp_path}/run', capsys=capsys)
  assert status == 0 and 'is finished: step 20 of 20' in output.out
  longer = (f'--config={RING}', f'--workdir={tmp_path}/run', '--config.train.steps=25')
  status, output = main(*longer, capsys=capsys)
  assert status == 0 and 'resuming from step 20 of 25' in output.err
  assert metrics(tmp_path / 'run')[-1]['step'] == 25
  with Image.open(tmp_path / 'run/samples.gif') as film:
    assert film.n_frames == len(list((tmp_path / 'run/samples').glob('*_samples.png'))) == 2
    assert film.size == (600, 600)
    film.seek(1)
    last = np.asarray(film.convert('RGB')).astype(int)
  with Image.open(picture.with_name('0000025_samples.png')) as image:
    assert abs(np.asarray(image.convert('RGB')) - last).mean() < 2

  # Pictures from the finished run, other ones for another seed.
  status, output = main('--mode=sample', f'--workdir={tmp_path}/run', capsys=capsys)
  assert status == 0 and output.out.strip().endswith('step_0000025_seed_0_plot.png')
  other = ('--mode=sample', f'--workdir={tmp_path}/run', '--config.sample.seed=1', '--step=20')
  assert main(*other) == 0
  samples = tmp_path / 'run/samples'
  first = np.load(samples / 'step_0000025_seed_0/points.npy')
  assert first.shape == (64, 2)
  assert not np.array_equal(first, np.load(samples / 'step_0000020_seed_1/points.npy'))


def test_steps_are_traced_for_the_profiler_of_tensorboard(tmp_path, capsys):
  steps = ('--config.train.steps=20', '--config.profile_steps=(3,5)')
  status, said = main(f'--config={RING}', f'--workdir={tmp_path}', *steps, capsys=capsys)
  assert status == 0 and 'steps 3 to 5 are traced' in said.err
  (path,) = tmp_path.glob('tensorboard/plugins/profile/*/*.xplane.pb')
  events = [
    dict(event.stats)
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes
    for line in plane.lines
    for event in line.events
    if event.name == 'train'
  ]
  assert sorted(int(event['step_num']) for event in events) == [3, 4, 5]
  status, said = main(
    f'--config={RING}',
    f'--workdir={tmp_path}',
    steps[0],
    '--config.profile_steps=(9,8)',
    capsys=capsys,
  )
  assert status == 2
  assert said.err == (
    'error: config.profile_steps=(9, 8): the first and the last step to trace, from 1 to '
    'config.train.steps=20, are needed\n'
  )


def test_several_steps_in_a_call_are_the_same_steps(tmp_path):
  flags = (f'--config={RING}', '--config.train.log_steps=1', '--config.train.checkpoint_steps=10')
  assert main(*flags, f'--workdir={tmp_path}/one') == 0
  four = (*flags, '--config.train.steps_per_call=4')
  assert main(*four, f'--workdir={tmp_path}/four') == 0
  found, wanted = metrics(tmp_path / 'four'), metrics(tmp_path / 'one')
  assert [row['step'] for row in found] == list(range(1, 21))
  for a, b in zip(found, wanted, strict=True):
    assert a == pytest.approx(b, rel=1e-4)
  assert main(*four, '--config.train.steps=10', f'--workdir={tmp_path}/resumed') == 0
  assert main(*four, f'--workdir={tmp_path}/resumed') == 0
  (_, leaves), (_, resumed) = final_state(tmp_path / 'four'), final_state(tmp_path / 'resumed')
  for x, y in zip(leaves, resumed, strict=True):
    np.testing.assert_array_equal(x, y)


def test_what_a_finished_run_needs_to_train_further():
  def told(**optim):
    return train._to_train_further(FrozenConfigDict(dict(train=dict(steps=5), optim=optim)))

  assert told(decay_steps=None) == 'A larger --config.train.steps'
  decay = dict(decay_steps=5)
  assert told(**decay) == (
    "A larger --config.train.steps (and --config.optim.decay_steps, where it is not 'train.steps')"
  )
  assert '--config.optim.D.decay_steps and --config.optim.G.decay_steps' in told(D=decay, G=decay)


def test_sampling_does_not_ask_for_the_devices_of_the_training(tmp_path):
  flags = (f'--config={RING}', f'--workdir={tmp_path}', '--config.train.batch_size=15')
  assert main(*flags, '--config.parallel.data=1', '--config.train.steps=1') == 0
  assert main(*flags, '--mode=sample') == 0  # 15 do not divide by the two devices here.


def test_a_start_from_step_0_is_never_silent(tmp_path, capsys):
  flags = (f'--config={RING}', f'--workdir={tmp_path}', '--config.train.steps=1')
  status, output = main(*flags, capsys=capsys)
  assert status == 0 and 'step 0' not in output.err
  (tmp_path / 'checkpoints').rename(tmp_path / 'moved')
  status, output = main(*flags, capsys=capsys)
  assert status == 0
  assert f'{tmp_path}: no checkpoint, starting from step 0\n' in output.err


def test_a_class_conditional_model_samples_one_png_per_image_and_a_trajectory(tmp_path):
  flags = ('--config=configs/ddpm_digits.py:smoke', f'--workdir={tmp_path}')
  flags += ('--config.net.multipliers=(1,)',)
  assert main(*flags, '--config.train.steps=2') == 0
  assert main(*flags, '--mode=sample', '--config.sample.num_images=12') == 0
  folder = tmp_path / 'samples/step_0000002_seed_0_num_images=12'
  files = sorted(path.name for path in folder.iterdir())
  assert files == [f'{i:05d}_class{i % 10}.png' for i in range(12)]
  with Image.open(folder / '00003_class3.png') as image:
    assert image.size == (8, 8)
  beside = sorted(path.name for path in folder.parent.glob('step_*.*'))
  endings = ('.json', '_grid.png', '_trajectory.gif', '_trajectory.png')
  assert beside == [f'{folder.name}{ending}' for ending in endings]
  grid = folder.with_name(f'{folder.name}_grid.png')
  for path in (grid, tmp_path / 'samples/0000002_samples.png'):  # a column for each class
    with Image.open(path) as image:
      rows = 2 if path == grid else 1
      assert image.size[0] == (502 if path == grid else 402)
      assert image.size[1] == 2 + 14 + 50 * rows
  with Image.open(folder.with_name(f'{folder.name}_trajectory.gif')) as image:
    assert image.n_frames == 2 and image.size == (502, 116)
    image.seek(1)
    last = np.asarray(image.convert('L'))
  with Image.open(grid) as image:
    np.testing.assert_allclose(last, np.asarray(image.convert('L')), atol=2)


def test_a_changed_config_is_refused_in_one_line(tmp_path, capsys, monkeypatch):
  flags = (f'--config={RING}', f'--workdir={tmp_path}', '--config.train.steps=2')
  assert main(*flags) == 0
  capsys.readouterr()
  # Other data might have to be downloaded first.
  monkeypatch.setattr(train.data, 'open_source', lambda config: pytest.fail('data were opened'))
  for change, old, new in [
    ('optim.D.lr', '0.0002', '0.002'),
    ('generator.features', '(16,)', '(8,)'),
    ('seed', '0', '1'),
    ('data.name', 'ring', 'grid'),
  ]:
    status, output = main(*flags, f'--config.{change}={new}', capsys=capsys)
    assert status == 2
    assert output.err.count('\n') == 1
    assert f'config.{change}' in output.err and old in output.err and new in output.err


def test_the_config_of_the_checkpoint_is_the_one_that_counts(tmp_path, capsys):
  flags = (f'--config={RING}', f'--workdir={tmp_path}')
  assert main(*flags, '--config.train.steps=2') == 0
  (tmp_path / 'config.json').write_text('damaged')
  capsys.readouterr()
  status, output = main(*flags, '--config.seed=1', capsys=capsys)
  assert status == 2 and output.err.count('\n') == 1 and 'config.seed' in output.err
  assert main(*flags, '--config.train.steps=3') == 0
  # Without a finished checkpoint there is nothing to contradict.
  for path in (tmp_path / 'checkpoints').iterdir():
    shutil.rmtree(path)
  assert main(*flags, '--config.train.steps=2', '--config.seed=1') == 0


def test_other_data_are_refused(tmp_path, capsys):
  flags = (f'--config={RING}', f'--workdir={tmp_path}', '--config.train.steps=2')
  assert main(*flags) == 0
  manifest = next((tmp_path / 'checkpoints').glob('*/manifest.json'))
  # The same config, but the pictures behind it changed: only the fingerprint tells.
  changed = json.loads(manifest.read_text()) | {'data_fingerprint': 'ring/train/1/abc'}
  manifest.write_text(json.dumps(changed, indent=1))
  sums = manifest.with_name('manifest.sha256')
  import hashlib

  old = sums.read_text()
  sums.write_text(old.replace(old.split()[0], hashlib.sha256(manifest.read_bytes()).hexdigest()))
  capsys.readouterr()
  status, output = main(*flags, '--config.train.steps=4', capsys=capsys)
  assert status == 2 and 'ring/train/1/abc' in output.err and output.err.count('\n') == 1


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, caplog):
  flags = (f'--config={RING}', f'--workdir={tmp_path}')
  assert main(*flags) == 0
  newest = tmp_path / 'checkpoints/0000000020'
  victim = max((p for p in newest.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
  raw = bytearray(victim.read_bytes())
  raw[len(raw) // 2] ^= 1
  victim.write_bytes(raw)
  capsys.readouterr()
  status, output = main(*flags, '--config.train.steps=21', capsys=capsys)
  assert status == 0
  assert 'resuming from step 10 of 21' in output.err
  assert '0000000020' in caplog.text and victim.name in caplog.text
  assert final_state(tmp_path)[0] == 21


def test_a_picture_that_a_stop_prevented_is_drawn_by_the_next_start(tmp_path, capsys):
  flags = (f'--config={RING}', f'--workdir={tmp_path}')
  assert main(*flags) == 0
  drawn = pictures(tmp_path)
  assert list(drawn) == ['0000020_samples.png']
  (tmp_path / 'samples/0000020_samples.png').unlink()
  capsys.readouterr()
  status, output = main(*flags, capsys=capsys)
  assert status == 0 and 'is finished' in output.out and 'resuming' not in output.err
  assert pictures(tmp_path) == drawn


def test_pictures_that_are_not_finite_are_refused():
  config = configs.load('configs/gan_mnist.py:smoke')
  nan = jnp.full((config.sample.batch_size, 28, 28, 1), jnp.nan)
  draw = sampling.make_sampler(
    config, types.SimpleNamespace(sample=lambda *_, **__: {'image': nan})
  )
  with pytest.raises(Diverged, match='not finite'):
    draw({}, jax.random.key(0), 8)


@pytest.mark.parametrize(
  'name, net',
  [
    ('gan_ring', 'optim.D.lr'),
    pytest.param('ddpm_digits', 'optim.lr', marks=pytest.mark.slow),
  ],
)
def test_divergence_stops_the_run_and_is_never_saved(name, net, tmp_path, capsys):
  flags = (f'--config=configs/{name}.py:smoke', f'--workdir={tmp_path}')
  flags += (f'--config.{net}=1e30', '--config.train.checkpoint_steps=1')
  status, output = main(*flags, capsys=capsys)
  assert status == 1
  errors = [line for line in output.err.splitlines() if line.startswith('error:')]
  assert len(errors) == 1
  # The net is named: D, or G whose gradient comes through D.
  assert re.search(r' of (D|G|net) is (nan|inf|-inf) at step \d', errors[0]), errors[0]
  if (tmp_path / 'checkpoints').exists() and list((tmp_path / 'checkpoints').iterdir()):
    assert all(np.isfinite(leaf).all() for leaf in final_state(tmp_path)[1])


def test_wrong_input_is_answered_in_one_line_before_anything_compiles(
  tmp_path, capsys, monkeypatch
):
  def no_compile(*args, **kwargs):
    raise AssertionError('compiled')

  monkeypatch.setattr(compilation, 'compile_step', no_compile)
  monkeypatch.setattr(compilation, 'compile_once', no_compile)
  blocked = tmp_path / 'file'
  blocked.write_text('')
  (tmp_path / 'empty').mkdir()
  for config, flags, words in [
    ('gan_ring', ['--config.train.stesp=3'], ['config.train.stesp', 'config.train.steps']),
    ('gan_ring', ['--config.train.batch_size=15'], ['config.train.batch_size=15', '14', '16']),
    ('gan_ring', ['--config.train.batch_size=200000'], ['config.train.batch_size', '100000']),
    ('gan_ring', ['--config.optim.G.lr=nan'], ['config.optim.G.lr']),
    ('gan_ring', ['--config.optim.G.lr=-1'], ['config.optim.G.lr']),
    ('gan_ring', ['--config.generator.name=mlp.Generater'], ['mlp.Generater', 'mlp.Generator']),
    ('gan_ring', ['--config.generator.widths=3'], ['config.generator.widths', 'features']),
    ('gan_ring', ['--config.data.shape=(3,)'], ['config.data.shape', '(3,)']),
    ('gan_ring', ['--config.data.num_classes=2'], ['config.data.num_classes', '8']),
    ('gan_ring', ['--config.parallel.data=64'], ['config.parallel.data=64', '2']),
    ('gan_ring', [f'--workdir={blocked}'], [str(blocked)]),
    ('dcgan_fashion_mnist', ['--config.data.shape=(32, 32, 1)'], ['config.data.shape', '28']),
    (
      'dcgan_folder',
      ['--config.data.name=folder', f'--config.data.path={tmp_path}/empty'],
      ['empty'],
    ),
    ('dcgan_folder', ['--config.data.name=folder', '--config.data.path=nowhere'], ['nowhere']),
    ('ddpm_digits', ['--config.sample.steps=2000'], ['config.sample.steps=2000', '1000']),
    ('ddpm_digits', ['--config.data.num_classes=None'], ['config.net.num_classes=10', 'None']),
    ('ddpm_digits', ['--config.net.groups=5'], ['groups']),
    ('ddpm_digits', ['--config.net.groups=0'], ['config.net', 'ZeroDivisionError']),
    ('ddpm_digits', ['--config.net.dropout=5'], ['dropout=5', 'below 1']),
    (
      'ddpm_digits',
      ['--config.net.features=2', '--config.net.groups=2'],
      ['config.net', 'time embedding of 2'],
    ),
    (
      'ddpm_fashion_mnist',
      ['--config.data.shape=(28, 28, 2)'],
      ['config.data.shape=(28, 28, 2)', '3 or 4 channels'],
    ),
    (
      'ddpm_digits',
      ['--config.data.shape=(2,)', '--config.eval.held_out_examples=None'],
      ['config.net', 'config.data.shape=(2,)'],
    ),
    ('ddpm_digits', ['--config.optim.decay_steps=10'], ['decay_steps=10', 'train.steps=20']),
    ('gan_ring', ['--config.generator.features=(0.5,)'], ['config.generator']),
    ('wgan_gp_cifar', ['--config.data.shape=(30, 30, 3)'], ['config.critic', '(30, 30, 3)']),
    ('ddpm_digits', ['--config.data.shape=(9, 9, 1)'], ['config.data.shape']),
  ]:
    workdir = [] if any('--workdir' in flag for flag in flags) else [f'--workdir={tmp_path}/run']
    status, output = main(f'--config=configs/{config}.py:smoke', *workdir, *flags, capsys=capsys)
    assert status == 2, (flags, output)
    assert output.err.count('\n') == 1, (flags, output.err)
    for word in words:
      assert word in output.err, (flags, output.err)


@pytest.fixture
def at_step(monkeypatch):
  """`at_step(step, act)`: calls `act` when a step is logged."""
  log = writers.Writers.scalars

  def use(step, act):
    def log_and_act(self, done, *values):
      log(self, done, *values)
      if done == step:
        act()

    monkeypatch.setattr(writers.Writers, 'scalars', log_and_act)

  return use


LONG = (f'--config={RING}', '--config.train.log_steps=10', '--config.train.steps=100')
LONG += ('--config.train.sample_steps=40', '--config.train.checkpoint_steps=50')


def test_what_is_removed_during_training_is_made_again(tmp_path, at_step):
  def remove():
    while not (tmp_path / 'checkpoints/0000000050').exists():  # it is being written
      time.sleep(0.01)
    for name in ('samples', 'tensorboard', 'checkpoints'):
      shutil.rmtree(tmp_path / name)
    (tmp_path / 'metrics.jsonl').unlink()

  at_step(70, remove)
  assert main(*LONG, f'--workdir={tmp_path}') == 0
  assert final_state(tmp_path)[0] == 100
  assert [*pictures(tmp_path)] == ['0000080_samples.png', '0000100_samples.png']
  assert [line['step'] for line in metrics(tmp_path)] == [80, 90, 100]
  (events,) = (tmp_path / 'tensorboard').iterdir()
  assert b'brain.Event:2' in events.read_bytes()[:100]


@pytest.mark.parametrize('name', ['samples', 'tensorboard', 'metrics.jsonl'])
def test_a_write_that_fails_ends_the_run_saved(name, tmp_path, at_step, capsys):
  def replace():
    (tmp_path / name).rename(tmp_path / 'moved')
    make = pathlib.Path.mkdir if name.endswith('.jsonl') else pathlib.Path.touch
    make(tmp_path / name)

  at_step(60, replace)
  status, output = main(*LONG, f'--workdir={tmp_path}', capsys=capsys)
  (line,) = (line for line in output.err.splitlines() if 'cannot be written' in line)
  assert 'Traceback' not in output.err
  saved = re.fullmatch(
    rf'error: {tmp_path / name}.*: (Not|Is) a directory; step (\d+) is saved', line
  )
  assert status == 2 and final_state(tmp_path)[0] == int(saved[2]) > 60


def test_a_run_that_is_moved_ends_and_leaves_nothing_in_its_place(tmp_path, at_step, capsys):
  run = tmp_path / 'run'
  at_step(40, lambda: run.rename(tmp_path / 'moved'))
  flags = (*LONG, '--config.train.checkpoint_steps=100')
  status, output = main(*flags, f'--workdir={run}', capsys=capsys)
  (line,) = (line for line in output.err.splitlines() if 'cannot be written' in line)
  assert 'Traceback' not in output.err
  assert re.fullmatch(rf'error: {run}/.* cannot be written: No such file or directory', line)
  assert status == 2 and os.listdir(tmp_path) == ['moved']


def test_examples_that_cannot_be_read_any_more_end_the_run_saved(
  tmp_path, at_step, capsys, monkeypatch
):
  def fail(self, indices):
    raise UserError('a.png is gone')

  at_step(20, lambda: monkeypatch.setattr(sources.ArraySource, 'read', fail))
  flags = (*LONG, '--config.data.storage=stream', '--config.train.steps=100000')
  status, output = main(*flags, f'--workdir={tmp_path}', capsys=capsys)
  saved, _ = final_state(tmp_path)
  assert status == 2 and saved >= 20
  assert output.err.splitlines()[-1] == f'error: a.png is gone; step {saved} is saved'


def test_a_failed_save_ends_the_run_before_the_next_one(tmp_path, at_step, capsys):
  at_step(10, (tmp_path / 'checkpoints').touch)
  flags = (*LONG[:2], '--config.train.steps=100000', '--config.train.checkpoint_steps=300')
  assert main(*flags, f'--workdir={tmp_path}') == 2
  error = f'error: checkpoint {tmp_path}/checkpoints/0000000300 cannot be written: File exists'
  assert capsys.readouterr().err.splitlines()[-1] == error
  assert 300 <= metrics(tmp_path)[-1]['step'] < 600


@pytest.mark.parametrize('stderr', ['reader gone', '/dev/full'])
def test_progress_that_nobody_reads_ends_nothing(stderr, tmp_path, monkeypatch):
  if stderr == 'reader gone':
    read, stderr = os.pipe()
    os.close(read)
  with open(stderr, 'w') as file:
    monkeypatch.setattr(sys, 'stderr', file)
    assert main(*LONG, f'--workdir={tmp_path}') == 0
    console.close_stream(file)
  assert final_state(tmp_path)[0] == 100


def test_a_run_without_stderr_and_with_a_name_that_stdout_lacks(tmp_path):
  workdir = tmp_path / 'rün x'
  command = f'{sys.executable} launch.py --config={RING} --workdir="{workdir}" 2>&-'
  done = subprocess.run(
    ['bash', '-c', command],
    capture_output=True,
    env=os.environ | {'XLA_FLAGS': QUICK, 'PYTHONIOENCODING': 'ascii'},
  )
  assert done.returncode == 0
  assert done.stdout.startswith(rf'{tmp_path}/r\xfcn x is finished after 20 steps'.encode())
  assert [line['step'] for line in metrics(workdir)] == [5, 10, 15, 20]


def test_samples_on_a_full_disk_are_one_line_and_nothing_changes(tmp_path, capsys):
  assert main(f'--config={RING}', f'--workdir={tmp_path}', '--config.train.steps=1') == 0
  flags = ('--config.sample.num_images=1000', '--config.sample.batch_size=1000')
  sample = ('--mode=sample', f'--workdir={tmp_path}', *flags)
  assert main(*sample) == 0
  (points,) = tmp_path.glob('samples/*/points.npy')
  before = points.read_bytes(), sorted(os.listdir(tmp_path / 'samples'))
  capsys.readouterr()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  shortest = jax.config.jax_persistent_cache_min_compile_time_secs
  for most, path in ((4000, points.parent.parent), (5000, points.parent)):
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 1e9)  # it would be damaged
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
      status, output = main(*sample, capsys=capsys)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
      jax.config.update('jax_persistent_cache_min_compile_time_secs', shortest)
    assert status == 2 and output.out == ''
    assert output.err == f'error: {path} cannot be written: File too large\n'
    assert before == (points.read_bytes(), sorted(os.listdir(tmp_path / 'samples')))


def test_two_runs_in_one_workdir_are_refused(tmp_path):
  process = start('gan_ring', tmp_path / 'run', '--config.train.steps=100000')
  try:
    deadline = time.monotonic() + 120
    while not (tmp_path / 'run/metrics.jsonl').exists() and time.monotonic() < deadline:
      time.sleep(0.05)
    second = run_python('launch.py', f'--config={RING}', f'--workdir={tmp_path}/run', cwd=ROOT)
    assert second.returncode == 2
    assert f'in use by process {process.pid}' in second.stderr
    assert second.stderr.count('\n') == 1
  finally:
    process.send_signal(signal.SIGINT)
    assert finish(process) == 128 + signal.SIGINT


def test_dry_run_prints_config_and_parameters(tmp_path, capsys):
  flags = ('--config=configs/ddpm_cifar.py', f'--workdir={tmp_path}/run', '--dry_run')
  status, output = main(*flags, capsys=capsys)
  assert status == 0
  assert '35,746,307' in output.out and 'batch_size' in output.out
  assert not (tmp_path / 'run').exists()


def test_list_names_every_config(capsys):
  status, output = main('--list', capsys=capsys)
  assert status == 0
  lines = output.out.strip().splitlines()
  assert len(lines) == len(FILES)
  for path in FILES:
    assert any(f'configs/{path.name}' in line and len(line) > 60 for line in lines), path
