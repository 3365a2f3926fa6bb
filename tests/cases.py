"""Which configs are tested where.

The quick suite has one config per system, the one with the smallest examples. All others are slow
checks: every one of them while they are few, otherwise those that a change reaches and, in turns,
some of the rest (`chosen`).
"""

import ast
import functools
import math
import os
import pathlib
import subprocess

import pytest

from gen_jax import config as configs

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / 'configs').glob('[!_]*.py'))
# The slow checks of a config take about 2 minutes on two cores: so many fit into .ci/run.
MOST = 10


@functools.cache
def load(path):
  """The config of a file in :smoke."""
  return configs.load(f'{path}:smoke')


def _one_per_system() -> dict[str, pathlib.Path]:
  def size(path):
    return math.prod(load(path).data.shape)

  smallest = {}
  for path in sorted(FILES, key=size):
    smallest.setdefault(load(path).system, path)
  return smallest


QUICK = _one_per_system()


def param(path, slow=False):
  """A parameter of a test. With several workers, all tests of a config run in one of them and share
  what is compiled.
  """
  marks = [pytest.mark.xdist_group(path.stem), pytest.mark.config(path.stem)]
  if slow or path not in QUICK.values():
    marks.append(pytest.mark.slow)
  return pytest.param(path, id=path.stem, marks=marks)


ALL = [param(path) for path in FILES]
ALL_SLOW = [param(path, slow=True) for path in FILES]


# --- The slow checks of a change ------------------------------------------------------------------


def chosen(names: list[str], reached: list[str], turn: int, most: int) -> list[str]:
  """At most `most` of the names: those that a change reaches first. Where there are more, `turn`
  says which; one turn begins where the one before ends.
  """
  if len(names) <= most:
    return names

  def some(part, count):
    start = turn * count % max(len(part), 1)
    return (part[start:] + part[:start])[:count]

  own = some([name for name in names if name in reached], most)
  others = [name for name in names if name not in reached]
  return sorted(own + some(others, most - len(own)))


def reached(changed: set[str]) -> list[str]:
  """Configs whose own file, system or nets are among the changed files. A file that all share, such
  as the loop, reaches none more than others.
  """
  return [path.stem for path in FILES if files_of(path) & changed]


def files_of(path: pathlib.Path) -> set[str]:
  """The files that make a config's experiment: its own, the system's and the nets', with what these
  import of systems, nets and diffusion.
  """
  config = load(path)
  found, new = set(), {ROOT / f'gen_jax/systems/{config.system}.py'}
  for field, value in configs.leaves(config):
    if field.endswith('.name') and isinstance(value, str):
      net = ROOT / f'gen_jax/nets/{value.partition(".")[0]}.py'
      new |= {net} if net.exists() else set()
  while new:
    found |= new
    new = {file for each in new for file in _imported(each)} - found
  return {str(file.relative_to(ROOT)) for file in {path, *found}}


@functools.cache
def _imported(file: pathlib.Path) -> frozenset[pathlib.Path]:
  names = set()
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      names |= {node.module, *(f'{node.module}.{alias.name}' for alias in node.names)}
    elif isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
  parts = [name.split('.') for name in names]
  files = {
    ROOT.joinpath(*part[:3]).with_suffix('.py')
    for part in parts
    if part[0] == 'gen_jax' and len(part) > 2 and part[1] in ('systems', 'nets', 'diffusion')
  }
  return frozenset(file for file in files if file.exists())


@functools.cache
def selection() -> list[str] | None:
  """The configs whose slow checks run, after the changes since the commit that
  GEN_JAX_CHANGED_SINCE names; None: all, as without it.
  """
  since = os.environ.get('GEN_JAX_CHANGED_SINCE')
  if not since:
    return None

  def git(*args):
    done = subprocess.run(['git', *args], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.split('\n')

  changed = set(git('diff', '--name-only', since))
  names, (turn, _) = [path.stem for path in FILES], git('rev-list', '--count', 'HEAD')
  return chosen(names, reached(changed), int(turn), MOST)


def steady(config) -> dict:
  """Changes to a config that keep rounding small, for comparing runs on different devices.

  With b1 = 0, Adam's steps are nearly the signs of the gradient: whole steps also for biases before
  batch norm, whose gradient is nothing but rounding, and a game of two such nets amplifies them. An
  average over gradients, a larger eps and a smaller rate end that.
  """
  values, changes = dict(configs.leaves(config)), {}
  for path in [path for path in values if path.endswith('.b1') and values[path] == 0]:
    optimizer = path[: -len('b1')]
    rate = values[optimizer + 'lr'] / 10
    changes |= {path: 0.5, optimizer + 'eps': 1e-2, optimizer + 'lr': rate}
  return changes
