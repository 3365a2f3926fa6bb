"""Data flows one way: configs -> launch -> verbs -> systems -> {nets, diffusion, state,
...} -> jax.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BASE = {
  'domains',
  'errors',
  'fields',
}  # and `config`, which knows systems: for what lies above them
LEAVES = BASE | {'config', 'host'}
VERBS = ('train', 'sample', 'evaluate', 'compare')
# What a file or folder of gen_jax may import of gen_jax, besides itself. A file with arrows of its
# own, 'folder/file', stands beside its folder: others import it only where that is said.
ALLOWED = {
  '__init__': {'run/trained'},
  'domains': {'errors', 'fields'},
  'errors': set(),
  'fields': set(),
  'host': {'errors'},
  'config': {'host', 'nets', 'systems'} | BASE,
  'draws': set(),
  'latent': {'errors'},
  'ops': set(),
  'state': {'ops'} | BASE,
  'nets': {'draws', 'errors', 'devices', 'host', 'ops'},
  'diffusion': {'draws'} | BASE,
  'systems': {'nets', 'diffusion', 'latent', 'state', 'draws', 'host', 'ops'} | BASE,
  'data': {'draws', 'host'} | BASE,
  'devices': {'ops', 'run'} | LEAVES,
  'run': LEAVES,
  'run/restoring': {'contract', 'devices', 'run', 'state'} | LEAVES,
  'run/starting': {'run', 'run/restoring'} | LEAVES,
  'run/trained': {'contract', 'data', 'devices', 'evaluate', 'metrics', 'run', 'run/restoring'}
  | {'sampling'}
  | LEAVES,
  'run/published': {'contract', 'run'} | LEAVES,
  'run/history': {'contract', 'run', 'run/restoring', 'systems'} | LEAVES,
  'run/command': {'devices', 'run/launcher'},
  'run/launcher': {'contract', 'devices', 'run', 'run/export', 'run/published', *VERBS} | LEAVES,
  'run/export': {'devices', 'run', 'run/trained'} | LEAVES,
  'metrics': {'data', 'devices', 'nets', 'ops', 'run'} | LEAVES,
  'contract': {'devices', 'systems', 'state', 'nets'} | LEAVES,
  'sampling': {'contract', 'data', 'devices', 'run'} | LEAVES,
  'sample': {'contract', 'data', 'devices', 'run', 'run/restoring', 'run/trained', 'sampling'}
  | LEAVES,
  'evaluate': {'contract', 'data', 'devices', 'metrics', 'run', 'run/restoring', 'sampling'}
  | LEAVES,
  'compare': {'run', 'run/history'} | LEAVES,
  'train': {'contract', 'data', 'devices', 'evaluate', 'sampling', 'run', 'run/starting'} | LEAVES,
}


def imports(path):
  """Dotted names that a file imports, at any depth of its code."""
  tree = ast.parse(path.read_text())
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      for alias in node.names:
        yield f'{node.module}.{alias.name}'


def room(path):
  parts = path.relative_to(ROOT / 'gen_jax').with_suffix('').parts
  return own_room(parts) or parts[0]


def own_room(parts):
  name = '/'.join(parts[:2])
  return name if len(parts) > 1 and name in ALLOWED else None


@pytest.mark.parametrize(
  'path',
  sorted((ROOT / 'gen_jax').rglob('*.py')),
  ids=lambda path: str(path.relative_to(ROOT)),
)
def test_imports_follow_the_arrows(path):
  here = room(path)
  assert here in ALLOWED, f'{here} is new: say in ALLOWED what it may import'
  for name in imports(path):
    parts = name.split('.')
    assert parts[0] not in ('configs', 'launch', 'tests', 'benchmarks', 'examples'), name
    assert '_src' not in parts and '_internal' not in parts, f'private: {name}'
    if parts[0] == 'gen_jax' and len(parts) > 1:
      # `from gen_jax import x` and `import gen_jax.x` both name the room second.
      there = own_room(parts[1:]) or parts[1]
      allowed = ALLOWED[here] | {here, '__version__'}
      assert there in allowed, f'{here} imports {name}'


def test_the_verbs_name_no_system():
  systems = [p.stem for p in (ROOT / 'gen_jax/systems').glob('[!_]*.py')]
  assert {'ddpm', 'gan', 'wgan_gp'} <= set(systems)
  files = [ROOT / f'gen_jax/{name}.py' for name in VERBS]
  files.append(ROOT / 'gen_jax/contract.py')
  files += [
    path
    for room in ('run', 'host', 'devices', 'metrics')
    for path in (ROOT / 'gen_jax' / room).glob('*.py')
    if path.stem != 'published'  # a format of others is that of one model
  ]
  for path in files:
    tree = ast.parse(path.read_text())
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & set(systems), path


def test_systems_do_not_ask_for_the_backend():
  for folder in ('systems', 'diffusion'):
    for path in (ROOT / 'gen_jax' / folder).glob('*.py'):
      assert 'default_backend' not in path.read_text(), path


def test_configs_import_nothing_of_ours():
  for path in (ROOT / 'configs').glob('*.py'):
    assert {name.split('.')[0] for name in imports(path)} == {'ml_collections'}, path


def test_nothing_unpickles_or_executes_data():
  for path in (ROOT / 'gen_jax').rglob('*.py'):
    for name in imports(path):
      assert name.split('.')[0] not in ('pickle', 'dill', 'cloudpickle', 'marshal', 'shelve'), path
    if path != ROOT / 'gen_jax/config/files.py':  # runs the config file that the user names
      tree = ast.parse(path.read_text())
      called = {
        n.func.id
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
      }
      assert not called & {'eval', 'exec'}, path
