"""The command line: in this process with a system of its own, and in real ones for signals."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from children import run_python

import gen_jax
import launch
from gen_jax import systems

SYSTEM = """
from gen_jax.fields import net, number

FIELDS = {'net': net(), 'optim.lr': number(above=0)}
"""

CONFIG = '''"""A tiny system on the ring."""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='tiny',
    compilation_cache=None,
    data=dict(name='ring', shape=(2,)),
    train=dict(steps=100),
    net=dict(name='mlp.Generator', features=(8,)),
    optim=dict(lr=1e-3),
  )
  return ConfigDict(config)


SMOKE = {'net.features': (4,)}
'''


@pytest.fixture
def calls(tmp_path, monkeypatch):
  """A folder with a config and a system `tiny`; train and sample only note how they were called."""
  monkeypatch.chdir(tmp_path)
  Path('configs').mkdir()
  Path('configs/tiny_ring.py').write_text(CONFIG)
  Path('systems').mkdir()
  Path('systems/tiny.py').write_text(SYSTEM)
  monkeypatch.setattr(systems, '__path__', [*systems.__path__, str(tmp_path / 'systems')])
  monkeypatch.delitem(sys.modules, 'gen_jax.systems.tiny', raising=False)

  noted = []
  train, sample, contract = (
    types.ModuleType(f'gen_jax.{name}') for name in ('train', 'sample', 'contract')
  )
  began = time.monotonic()

  def train_run(config, workdir, started):
    assert began <= started <= time.monotonic()
    noted.append(('train', config, workdir))
    return 143

  train.run = train_run
  contract.describe = lambda config: f'parameters of {config.net.name}'
  sample.run = lambda config, workdir, step=None, input=None: (
    noted.append(('sample', config, workdir, step)) or 0
  )
  for name, module in (('train', train), ('sample', sample), ('contract', contract)):
    monkeypatch.setitem(sys.modules, f'gen_jax.{name}', module)
    monkeypatch.setattr(gen_jax, name, module, raising=False)
  yield noted
  sys.modules.pop('gen_jax.systems.tiny', None)
  vars(systems).pop('tiny', None)


def test_train(calls):
  status = launch.main(
    ['--config=configs/tiny_ring.py', '--config.optim.lr=1e-4', '--config.net.features', '3']
  )
  assert status == 143  # what train.run returned
  ((mode, config, workdir),) = calls
  assert mode == 'train' and workdir == Path('runs/tiny_ring')
  assert config.optim.lr == 1e-4 and config.net.features == (3,) and config.train.steps == 100
  assert hash(config)


def test_argument_and_workdir(calls):
  launch.main(['--config', 'configs/tiny_ring.py:smoke'])
  launch.main(['--config', 'configs/tiny_ring.py:smoke', '--workdir', 'elsewhere'])
  assert [c[1].train.steps for c in calls] == [20, 20]
  assert [c[1].net.features for c in calls] == [(4,), (4,)]
  assert [c[2] for c in calls] == [Path('runs/tiny_ring_smoke'), Path('elsewhere')]


def test_sample_from_a_config_or_from_a_run(calls):
  assert launch.main(['--config=configs/tiny_ring.py', '--mode=sample']) == 0
  from gen_jax.config import to_json

  Path('old').mkdir()
  Path('old/config.json').write_text(to_json(calls[0][1]))
  argv = ['--mode=sample', '--workdir=old', '--step=20', '--config.sample.num_images=4']
  assert launch.main(argv) == 0
  assert calls[0][2:] == (Path('runs/tiny_ring'), None)
  assert calls[1][0] == 'sample' and calls[1][2:] == (Path('old'), 20)
  assert calls[1][1].sample.num_images == 4 and calls[1][1].net == calls[0][1].net


def test_dry_run_prints_and_does_nothing(calls, capsys):
  assert launch.main(['--config=configs/tiny_ring.py', '--dry_run', '--config.seed=7']) == 0
  out = capsys.readouterr().out
  (seed,) = (line for line in out.splitlines() if line.startswith('config.seed'))
  assert seed.split()[1:5] == ['=', '7', 'command', 'line'] and 'from 0 to 4294967295' in seed
  (steps,) = (line for line in out.splitlines() if line.startswith('config.train.steps '))
  assert steps.split()[1:4] == ['=', '100', 'file']
  assert 'parameters of mlp.Generator' in out
  assert calls == [] and not Path('runs').exists()


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    ([], '--config=FILE is needed'),
    (['--mode=sample'], '--mode=sample needs --workdir=FOLDER, the folder of a run'),
    (['--mode=sample', '--workdir=none'], 'no run in none: none/config.json is missing'),
    (['--mode=export', '--workdir=configs'], 'no run in configs: configs/config.json is missing'),
    (['--config=configs'], 'configs is a folder: a config file in it is needed'),
    (['--mode=trian', '--config=x.py'], "argument --mode: invalid choice: 'trian'"),
    (['--confg=x.py'], 'unknown argument --confg=x.py; did you mean --config?'),
    (['--workdri', 'x'], 'unknown argument --workdri; did you mean --workdir?'),
    (['--dryrun'], 'unknown argument --dryrun; did you mean --dry_run?'),
    (['--dry'], 'unknown argument --dry; did you mean --dry_run?'),
    (['--train.steps=3'], 'unknown argument --train.steps=3; did you mean --config.train.steps?'),
    (['--zzz'], 'unknown argument --zzz; --help names the flags'),
    (['configs/tiny_ring.py'], 'unknown argument configs/tiny_ring.py'),
    (['--config'], 'argument --config: expected one argument'),
    (['--step=x'], "argument --step: invalid int value: 'x'"),
    (['--config=configs/tiny_ring.py', '--step=3'], '--step is for --mode=sample and --mode='),
    (
      ['--mode=evaluate', '--workdir=r', '--samples=x', '--step=3'],
      '--step is for checkpoints of a',
    ),
    (['--mode=evaluate', '--workdir=r', '--samples='], "--samples='': the path is empty"),
    (['--config=configs/tiny_ring.py', '--workdir='], "--workdir='': the path is empty"),
    (['--config='], "--config='': the path is empty"),
    (['--config=configs/tiny_ring.py', '--workdir=gs://b/r'], "--workdir='gs://b/r': a path of "),
    (['--mode=sample', '--workdir=s3://b/r'], "--workdir='s3://b/r': a path of this machine"),
    (['--mode=export', '--workdir=r', '--out=~nobody-here/x'], "--out='~nobody-here/x': there is"),
    (['--mode=import', '--from=https://h/x', '--workdir=r'], "--from='https://h/x': a path of "),
    (['--mode=compare', '--workdir=a,gs://b'], "--workdir='gs://b': a path of this machine"),
    (['--config=configs/tiny_ring.py', '--workdir=caf\udce9'], "--workdir='caf\\udce9': the path"),
    (['--mode=compare', '--workdir=a,b', '--step=3'], '--step is for --mode=sample and --mode='),
    (['--config=configs/tiny_ring.py', '--samples=x'], '--samples is for --mode=evaluate'),
    (['--mode=compare'], '--mode=compare needs --workdir=FOLDER,FOLDER,...'),
    (['--mode=compare', '--workdir=a', '--config=x.py'], '--mode=compare needs --workdir='),
    (['--mode=compare', '--workdir=none,b'], '--workdir: no run in none (none/config.json: '),
    (['--config=configs/tiny_rng.py'], 'configs/tiny_rng.py: no such config file; did you mean '),
    (['--config=configs/tiny_ring.py:smok'], 'configs/tiny_ring.py:smok: unknown argument'),
    (['--config=configs/tiny_ring.py', '--config.seed'], '--config.seed needs a value'),
    (
      ['--config=configs/tiny_ring.py', '--config.train.stesp=3'],
      'config.train.stesp is not a field; did you mean config.train.steps?',
    ),
    (
      ['--config=configs/tiny_ring.py', '--config.optim.lr=-1'],
      'config.optim.lr=-1: a number above 0 is needed',
    ),
    (['--config=configs/tiny_ring.py', '--config.system=tyny'], "config.system='tyny': one of "),
  ],
)
def test_a_user_error_is_one_line_and_status_2(calls, capsys, argv, message):
  assert launch.main(argv) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.count('\n') == 1
  assert err.startswith(f'error: {message}')
  assert calls == [] and not Path('runs').exists()


@pytest.mark.parametrize('argument', ['--config.system=', '--zz', '--mode='])
def test_what_is_found_is_quoted_in_part(calls, capsys, argument):
  assert launch.main(['--config=configs/tiny_ring.py', argument + 'x' * 100_000]) == 2
  err = capsys.readouterr().err
  assert err.startswith('error: ') and len(err) < 1500 and 'xxx' in err


@pytest.mark.parametrize('name', ['fid', 'FID', 'kid', 'is'])
def test_metrics_are_found_by_the_names_that_papers_use(calls, capsys, name):
  ours = dict(fid='frechet', kid='kernel', **{'is': 'inception_score'})[name.lower()]
  for field in ('metrics', 'best'):
    assert launch.main(['--config=configs/tiny_ring.py', f'--config.eval.{field}={name}']) == 2
    assert f'{name!r} is called {ours!r} here' in capsys.readouterr().err


def test_a_mistyped_system_gets_a_suggestion(calls, capsys):
  assert launch.main(['--config=configs/tiny_ring.py', '--config.system=tinny']) == 2
  err = capsys.readouterr().err
  assert 'tiny' in systems.names() and err.endswith('; did you mean tiny?\n')


@pytest.mark.parametrize('name', [None, 3, '', '../tiny', 'tiny.x', '__init__'])
def test_only_a_file_of_systems_is_a_system(calls, name):
  with pytest.raises(systems.UserError, match='config.system='):
    systems.find_system(name)


def test_a_bug_keeps_its_traceback(calls, monkeypatch):
  def broken(config, workdir, started):
    raise ZeroDivisionError

  monkeypatch.setattr(sys.modules['gen_jax.train'], 'run', broken)
  with pytest.raises(ZeroDivisionError):
    launch.main(['--config=configs/tiny_ring.py'])


def test_list_names_every_config_and_runs_none(capsys):
  assert launch.main(['--list']) == 0
  lines = capsys.readouterr().out.splitlines()
  files = sorted(p.name for p in (Path(launch.__file__).parent / 'configs').glob('[!_]*.py'))
  assert [line.split()[0] for line in lines if line] == [f'configs/{name}' for name in files]


def test_help_names_every_flag(capsys):
  assert launch.main(['--help']) == 0
  out = capsys.readouterr().out
  for flag in (
    '--config',
    '--config.FIELD',
    '--workdir',
    '--mode',
    '--step',
    '--samples',
    '--dry_run',
    '--list',
  ):
    assert f'  {flag}' in out


def start(*argv):
  return subprocess.Popen(
    [sys.executable, launch.__file__, *argv],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_ctrl_c_before_the_loop_is_quiet(tmp_path):
  slow = tmp_path / 'slow.py'
  slow.write_text('import time\nprint("started", flush=True)\ntime.sleep(60)\n')
  process = start(f'--config={slow}')
  assert process.stdout.readline() == 'started\n'
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=20)
  assert (process.returncode, out, err) == (130, '', '')


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_signals_end_it_quietly_from_the_first_line_on(tmp_path, monkeypatch):
  """While it restarts, while it imports, and in the first steps; all at the same time."""
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
  numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
  delays = (0, 0.05, 0.3, 1, 2, 4)
  repository = Path(launch.__file__).parent
  begin, children = time.monotonic(), []
  flags = (f'--config={repository}/configs/gan_ring.py:smoke', '--config.train.steps=1000000')
  for i in range(len(delays)):
    children.append(start(*flags, f'--workdir={tmp_path}/{i}'))
  # From the restart on: what an interpreter does before the first line is not ours.
  for child in children:
    while b'GLIBC_TUNABLES' not in Path(f'/proc/{child.pid}/environ').read_bytes():
      time.sleep(0.001)
  for i, (child, delay) in enumerate(zip(children, delays, strict=True)):
    time.sleep(max(0, begin + delay - time.monotonic()))
    child.send_signal(numbers[i % 3])
  for i, child in enumerate(children):
    out, err = child.communicate(timeout=60)
    assert child.returncode == 128 + numbers[i % 3], err
    assert out == '' and 'Traceback' not in err and 'Error' not in err


@pytest.mark.parametrize('stdout', ['reader gone', 'full', 'closed'])
def test_a_list_that_nobody_reads_is_no_failure(stdout):
  command = f'{sys.executable} {launch.__file__} --list'
  shell = {
    # The reader ends first.
    'reader gone': f'( sleep 0.2; {command}; echo $? >&2 ) | true',
    'full': f'{command} > /dev/full; echo $? >&2',
    'closed': f'{command} >&-; echo $? >&2',
  }
  done = subprocess.run(['bash', '-c', shell[stdout]], capture_output=True, text=True)
  said = 'the output cannot be written: No space left on device\n' * (stdout == 'full')
  assert (done.stdout, done.stderr) == ('', f'{said}0\n')


def test_a_user_error_ends_the_process_with_status_2(tmp_path):
  process = start(f'--config={tmp_path}/none.py')
  out, err = process.communicate(timeout=20)
  assert (process.returncode, out) == (2, '')
  assert err == f'error: {tmp_path}/none.py: no such config file\n'


@pytest.fixture
def probe(tmp_path, monkeypatch):
  """A config that prints the settings of glibc's malloc, if any, and ends with status 4."""
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
  config = tmp_path / 'probe.py'
  config.write_text('import os\nprint([os.environ.get("GLIBC_TUNABLES")])\nraise SystemExit(4)\n')
  return config


@pytest.mark.skipif(sys.platform != 'linux', reason='huge pages on request are Linux')
@pytest.mark.parametrize('said, used', [(None, 'glibc.malloc.hugetlb=1'), ('', '')])
def test_large_arrays_lie_in_huge_pages_unless_the_user_has_settings(probe, said, used):
  more = {} if said is None else {'GLIBC_TUNABLES': said}
  done = run_python(launch.__file__, f'--config={probe}', cwd=probe.parent, **more)
  assert (done.stdout, done.stderr, done.returncode) == (f'{[used]}\n', '', 4)


def test_what_runs_the_launcher_is_not_started_a_second_time(probe):
  code = f"""import runpy, sys
sys.path.insert(0, {str(Path(launch.__file__).parent)!r})
sys.argv = ['launch.py', '--config={probe}']
runpy.run_path({launch.__file__!r}, run_name='__main__')
"""
  done = run_python('-c', code, cwd=probe.parent)
  assert (done.stdout, done.returncode) == ('[None]\n', 4)


def test_the_config_of_a_run_is_not_executed(calls, capsys):
  Path('old').mkdir()
  Path('old/config.json').write_text('raise SystemExit(9)')
  assert launch.main(['--mode=sample', '--workdir=old']) == 2
  assert capsys.readouterr().err.startswith('error: old/config.json: not a config as JSON')
  Path('old/config.json').write_text(json.dumps({'gen_jax': '0.2.0', 'system': 'tiny', 'seed': 0}))
  assert launch.main(['--mode=sample', '--workdir=old']) == 2
  assert ' is missing: ' in capsys.readouterr().err
  Path('old/config.json').write_text(json.dumps({'system': 'tiny', 'seed': 0}))
  assert launch.main(['--mode=sample', '--workdir=old']) == 2
  assert capsys.readouterr().err.startswith(
    'error: old/config.json: a config of a version before 0'
  )


def test_a_warning_is_told_in_its_own_words():
  code = (
    'import logging, launch\n'
    "launch.main(['--list'])\n"
    'import jax, orbax.checkpoint, absl.logging\n'
    "logging.getLogger('gen_jax.data').warning('one file is skipped')"
  )
  done = run_python('-c', code, cwd=Path(launch.__file__).parent)
  assert done.stderr == 'one file is skipped\n'


ENVIRONMENTS = {
  'JAX_PLATFORMS=cuda': 'error: JAX_PLATFORMS=cuda: JAX finds no such device (',
  'JAX_DISABLE_JIT=1': 'error: JAX_DISABLE_JIT is set: gen_jax compiles its steps',
  'JAX_NUM_CPU_DEVICES=x': 'error: JAX cannot start, an environment variable of it is wrong: ',
  'SLURM_STEP_NUM_TASKS=': '',
}


def test_an_environment_that_cannot_work_is_one_line(tmp_path, repository):
  command = [sys.executable, 'launch.py', '--config=configs/gan_ring.py', '--dry_run']
  started = {}
  for said in ENVIRONMENTS:
    name, _, value = said.partition('=')
    env = {k: v for k, v in os.environ.items() if not k.startswith('JAX_NUM')} | {name: value}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started[said] = subprocess.Popen(command, cwd=repository, env=env, **pipes)
  for said, child in started.items():
    _, err = child.communicate(timeout=120)
    message = ENVIRONMENTS[said]
    assert child.returncode == (2 if message else 0), (said, err)
    assert err.startswith(message) and err.count('\n') == bool(message), (said, err)
