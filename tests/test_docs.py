"""What the docs show works as shown."""

import importlib.util
import pathlib
import re
import shlex
import shutil
import tomllib

import pytest
import yaml
from children import run_python

import gen_jax
from gen_jax import config as configs
from gen_jax import systems
from gen_jax.fields import SHARED
from gen_jax.run import flags

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


PAGES = [*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md'), ROOT / 'zoo/README.md']
GUIDES = ('README', 'running', 'sampling', 'evaluating', 'own_data', 'scale')
FIELDS = SHARED.keys() | {
  field for name in systems.names() for field in systems.find_system(name).FIELDS
}


def prose(page) -> str:
  """The text of a page without its blocks of code."""
  return re.sub(r'^```.*?^```', '', page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page) -> set[str]:
  """The names that a link may have after `#`, as GitHub makes them of headings."""
  heads = re.findall(r'^#+ (.*)$', prose(page), re.MULTILINE)
  return {re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_commands_and_fields_of_a_page_exist(page):
  text = prose(page)
  for target, anchor in re.findall(r'\]\(([^)#]*)#?([^)]*)\)', text):
    if not target.startswith('http'):
      found = page.parent / target if target else page
      assert found.exists(), target
      assert not anchor or anchor in anchors(found), f'{target}#{anchor}'
  for config in re.findall(r'--config=(configs/[a-z]\w+\.py)', text):
    if 'lsgan' not in config:
      assert (ROOT / config).exists(), config
  for line in re.findall(r'^    python launch\.py (.*[^\\\n])$', text, re.MULTILINE):
    overrides, argv = configs.split_overrides(shlex.split(line))
    flags.parse(argv, description='')
    for field, _ in overrides:  # or an attribute of a net
      assert field in FIELDS or field.rpartition('.')[0] in FIELDS, field
  if page.stem in GUIDES:
    fields = re.findall(r'`((?:data|eval|sample|train|parallel)\.[\w.]*\w)[=`]', text)
    assert set(fields) <= FIELDS


def test_the_readme_is_short_and_its_table_has_every_system_and_config():
  text = (ROOT / 'README.md').read_text()
  assert text.count('\n') < 200
  table = re.sub(r' \([^)]*`[^)]*\)', '', text)  # without remarks that name others
  rows = re.findall(r'^\| \[`\w+`\]\(gen_jax/systems/.*$', table, re.MULTILINE)
  files = {path.stem: path.read_text() for path in (ROOT / 'configs').glob('[!_]*.py')}
  shown = (ROOT / 'docs/gallery.md').read_text() + (ROOT / 'docs/results.md').read_text()
  listed = []
  for row in rows:
    name, trained, not_yet = (re.findall(r'`(\w+)`', cell) for cell in row.split('|')[1:4])
    for config in trained + not_yet:
      assert f"system='{name[0]}'" in files[config], config
    for config in trained:
      assert re.search(rf'\b{config}\b', shown), config
      assert 'Not trained' not in files[config], config
    listed += [name[0], *trained, *not_yet]
  assert sorted(listed) == sorted([*systems.names(), *files])


def test_the_index_of_the_docs_has_every_page():
  index = (ROOT / 'docs/README.md').read_text()
  for page in (ROOT / 'docs').rglob('*.md'):
    if page.name != 'README.md':
      assert f']({page.relative_to(ROOT / "docs")})' in index, page.name


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
