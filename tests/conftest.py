"""Settings of the whole suite: two virtual devices, strict shapes, deprecations as errors."""

import gc
import os
import pathlib
import signal
import warnings

from children import QUICK

# Before JAX starts. Two devices, so that sharding and pmap are tested on any machine.
os.environ['XLA_FLAGS'] = f'{QUICK} --xla_force_host_platform_device_count=2'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Most of the suite's time is compilation; child processes share the cache through the environment.
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR', str(pathlib.Path.home() / '.cache' / 'gen_jax_tests')
)
# Classifiers and reference features, likewise, and not those of the user.
os.environ['GEN_JAX_CACHE'] = str(pathlib.Path.home() / '.cache' / 'gen_jax_tests' / 'cache')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')

ROOT = pathlib.Path(__file__).parent.parent
# A deprecation warning of our own code is an error in child processes, too. The interpreter knows
# modules by their whole names only.
os.environ['PYTHONWARNINGS'] = ','.join(
  f'error::{category}:{name}'
  for category in ('DeprecationWarning', 'PendingDeprecationWarning', 'FutureWarning')
  for name in (
    '__main__',
    *(
      '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
      for path in ROOT.glob('gen_jax/**/*.py')
    ),
  )
)

import cases  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

# An unintended broadcast of [b] against [b, 1] is a classic silent bug of losses.
jax.config.update('jax_numpy_rank_promotion', 'raise')

OURS = tuple(str(ROOT / name) for name in ('gen_jax', 'configs', 'examples', 'launch.py'))

# A shell that starts a job in the background has it ignore Ctrl-C, and its children too; the tests
# send that signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` ignores it


@pytest.fixture(autouse=True)
def deprecations_are_errors(monkeypatch):
  """A deprecation warning that our own code causes fails the test;
  those inside libraries do not.
  """
  show = warnings.showwarning
  seen = []

  def record(message, category, filename, lineno, file=None, line=None):
    if issubclass(category, DeprecationWarning | PendingDeprecationWarning | FutureWarning):
      if filename.startswith(OURS):
        seen.append(f'{filename}:{lineno}: {message}')
        return
    show(message, category, filename, lineno, file, line)

  with warnings.catch_warnings():
    warnings.simplefilter('always')
    monkeypatch.setattr(warnings, 'showwarning', record)
    yield
  assert not seen, 'deprecated calls: ' + '; '.join(seen)


def pytest_report_header():
  """Says which configs' slow checks run, where not all of them do."""
  names = cases.selection()
  if names is None:
    return []
  return f'slow checks of {len(names)} of {len(cases.FILES)} configs: {", ".join(names)}'


def _is_left_out(item, names) -> bool:
  """Whether a test is a slow check of a config that is not among the names."""
  mark = item.get_closest_marker('config')
  return mark is not None and 'slow' in item.keywords and mark.args[0] not in names


def pytest_collection_modifyitems(config, items):
  """Starts the longest tests early, so that no worker is left alone with one at the end,
  and leaves slow tests out unless `-m` asks for them.
  """
  with_children = ('test_train.py', 'test_examples.py', 'test_docs.py')
  items.sort(key=lambda item: item.path.name not in with_children)
  if (names := cases.selection()) is not None:
    left_out = [item for item in items if _is_left_out(item, names)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
  if config.option.markexpr:
    return
  skip = pytest.mark.skip(reason='slow; run with -m "slow or not slow"')
  for item in items:
    if 'slow' in item.keywords:
      item.add_marker(skip)


@pytest.fixture
def repository() -> pathlib.Path:
  """The root of the checkout."""
  return pathlib.Path(__file__).parent.parent


@pytest.fixture
def memory():
  """memory(function): runs it, and returns by how many bytes that raised the memory of the process
  at its highest.
  """

  def measure(function) -> int:
    gc.collect()
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak is what there is now
    before = _peak_memory()
    function()
    return _peak_memory() - before

  return measure


def _peak_memory() -> int:
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.partition('VmHWM:')[2].split()[0]) * 1024
