"""What the docs show works as shown."""

import importlib.util
import pathlib
import re
import shutil
import tomllib

import pytest
import yaml
from children import run_python

import gen_jax
from gen_jax import systems
from gen_jax.fields import SHARED

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
def test_the_system_of_the_docs_needs_no_other_edit(tmp_path):
  for folder in ('gen_jax', 'configs', 'tests', 'docs', 'examples', 'benchmarks', 'zoo'):
    shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns('__pycache__'))
  for file in ('launch.py', 'pyproject.toml'):
    shutil.copy(ROOT / file, tmp_path)
  text = (ROOT / 'docs/adding_a_system.md').read_text()
  found = re.findall(r'`([\w/]+\.py)`:\n\n```python\n(.*?)```', text, re.DOTALL)
  assert [name for name, _ in found] == ['gen_jax/systems/lsgan.py', 'configs/lsgan_ring.py']
  for name, code in found:
    (tmp_path / name).write_text(code)

  train, renew, check = re.findall(
    r'^    python (.*)$', re.sub(r'```.*?```', '', text, flags=re.S), re.M
  )
  done = run_python(*train.split(), cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'runs/lsgan_ring_smoke/samples/0000020_samples.png').exists()
  done = run_python(*renew.split(), cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  every = dict(GEN_JAX_CHANGED_SINCE='')  # the copy has no commits to compare with
  done = run_python(*check.split(), '-n0', cwd=tmp_path, **every)
  assert done.returncode == 0, done.stdout[-3000:]
  assert re.search(r'\d\d passed', done.stdout)
  done = run_python('-m', 'pytest', '-n0', 'tests/test_layering.py', cwd=tmp_path, **every)
  assert done.returncode == 0, done.stdout[-3000:]


def test_links_and_commands_of_the_docs_name_what_exists():
  for page in [ROOT / 'README.md', ROOT / 'CHANGELOG.md', *(ROOT / 'docs').glob('*.md')]:
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)
    for target in re.findall(r'\]\(([^)#]+)', text):
      if not target.startswith('http'):
        assert (page.parent / target).exists(), f'{page.name}: {target}'
    for config in re.findall(r'--config=(configs/\w+\.py)', text):
      if 'lsgan' not in config:
        assert (ROOT / config).exists(), f'{page.name}: {config}'


def test_generated_pages_are_up_to_date():
  spec = importlib.util.spec_from_file_location('renew_docs', ROOT / 'docs/renew.py')
  renew = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(renew)
  for path, text in renew.PAGES.items():
    assert path.read_text() == text(), f'{path.name} is out of date: python docs/renew.py'
  page = renew.config_page()
  for name in systems.names():
    for field in SHARED | systems.find_system(name).FIELDS:
      assert f'| `{field}`' in page or field.startswith('optim.'), field


def test_changelog_and_citation_are_of_this_version():
  citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
  assert citation['cff-version'] == '1.2.0' and citation['version'] == gen_jax.__version__
  assert citation['authors'] == [{'name': 'The gen_jax authors'}]
  assert {'message', 'title'} <= set(citation)  # required, as are the fields above
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  assert (citation['license'], citation['version']) == (project['license'], project['version'])
  versions = re.findall(r'^## (\S+)', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE)
  assert versions[0] == gen_jax.__version__.removesuffix('.0')
