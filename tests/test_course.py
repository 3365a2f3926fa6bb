"""The pages of the course: their code runs, and what they link to exists."""

import ast
import importlib.util
import json
import pathlib
import re

import pytest
from untrained import save_untrained

from gen_jax.diffusion import ode

ROOT = pathlib.Path(__file__).parent.parent
COURSE = ROOT / 'docs/course'


def load_renew():
  spec = importlib.util.spec_from_file_location('renew_course', COURSE / 'renew.py')
  renew = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(renew)
  return renew


renew = load_renew()
PAGES = {page.stem: page.read_text() for page in renew.PAGES}
each_page = pytest.mark.parametrize('name', PAGES)

# The short form of a page: constants of its first block, and runs that were not trained. What
# blocks print is compared with the page, except in those that match `depends`.
FEW = {'sample.intermediates': '0'}  # not more than steps
RUNS = {
  'diffusion': {
    'ddpm_ring': FEW,
    'score_sde_ring': FEW,
    'edm_ring': FEW,
    'flow_ring': FEW,
    'mean_flow_ring': FEW,
    'ddpm_digits': FEW | {'diffusion.steps': '20'},
    'edm_digits': FEW,
    'edm_digits_weak': FEW | {'net.features': '4', 'net.groups': '2'},
    'noisy_classifier_digits': {'net.multipliers': '(1,)'},
  },
  'gans': {},
  'translation': {},
}
SHORT = {
  'diffusion': {
    'N = 2000 ': 'N = 8 ',
    'STEPS = (5, 10, 20, 50, 200) ': 'STEPS = (3,) ',
    'SCALES = (0.0, 0.5, 1.0, 2.0, 4.0) ': 'SCALES = (1.0,) ',
  },
  'gans': {
    'SEEDS = 5 ': 'SEEDS = 1 ',
    'FIT = 2000 ': 'FIT = 20 ',
    'STEPS = 1000 ': 'STEPS = 20 ',
    'K = 5 ': 'K = 1 ',
    'RATES = (1e-4, 1e-3, 1e-2) ': 'RATES = (1e-3,) ',
  },
  'translation': {
    'FIT = 3000 ': 'FIT = 20 ',
    'STEPS = 3000 ': 'STEPS = 12 ',
    'SEEDS = 4 ': 'SEEDS = 1 ',
  },
}
DEPENDS = {
  'diffusion': r'STEPS',
  'gans': r'\bfit\(|\bplay\(|over_seeds\(|digit_gan',
  'translation': r'answers_to|digits_of|STEPS|SEEDS|to_y|best_d',
}


def numbers(text: str) -> list[float]:
  return [float(number) for number in re.findall(r'-?\d+\.?\d*(?:e-?\d+)?', text)]


@pytest.mark.slow
@each_page
def test_the_code_of_the_page_runs(name, tmp_path, monkeypatch):
  for run, overrides in RUNS[name].items():
    save_untrained(tmp_path / f'runs/{run}', run.removesuffix('_weak'), **overrides)
  (tmp_path / 'zoo').symlink_to(ROOT / 'zoo')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(ode, 'MAX_STEPS', 4)  # such nets are stiff; the numbers do not matter
  text, trained = PAGES[name], False
  for long, short in SHORT[name].items():
    assert text.count(long) == 1
    text = text.replace(long, short)
  count = compared = 0
  for match, printed in renew.execute(text, COURSE / f'{name}.md'):
    count += 1
    trained |= "gen_jax.load('runs/" in match[1]
    shown = match[2] or ''
    assert bool(printed) == bool(shown), match[1]
    if not trained and not re.search(DEPENDS[name], match[1]):
      assert numbers(printed) == pytest.approx(numbers(shown), rel=0.02, abs=1e-5), match[1]
      compared += bool(shown)
  assert count == text.count('```python') and compared >= 3
  drawn = {path.name for path in (tmp_path / 'runs/course').iterdir()}
  assert drawn == renew.pictures(text)


def test_every_picture_is_of_a_page():
  shown = [drawn for text in PAGES.values() for drawn in renew.pictures(text)]
  assert sorted(shown) == sorted(path.name for path in COURSE.glob('*.png'))


@each_page
def test_the_notebook_is_the_page(name):
  page = PAGES[name]
  text = (COURSE / f'{name}.ipynb').read_text()
  assert text == renew.notebook(page), 'out of date: python docs/course/renew.py'
  book = json.loads(text)
  assert (book['nbformat'], book['nbformat_minor']) == (4, 5)
  for cell in book['cells']:
    assert {'cell_type', 'id', 'metadata', 'source'} <= set(cell)
    assert ('outputs' in cell) == (cell['cell_type'] == 'code')
  blocks = [''.join(c['source']) for c in book['cells'] if c['cell_type'] == 'code']
  assert blocks[1:] == [
    block.strip('\n') for block in re.findall(r'```python\n(.*?)```', page, re.S)
  ]


def defined(path: pathlib.Path) -> set[str]:
  """The functions, methods and classes of a module, and the names that it assigns."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      names.add(node.name)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
      names.add(node.id)
  return names


@each_page
def test_links_of_the_page_name_what_exists(name):
  text = renew.BLOCK.sub('', PAGES[name])
  links = re.findall(r'\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)', text)
  assert len(links) >= 25
  for label, target, _ in links:
    if target.startswith('https://'):
      continue
    path = COURSE / target
    assert path.exists(), target
    if path.suffix == '.py' and (symbol := re.fullmatch(r'`(\w+)`', label)):
      assert symbol[1] in defined(path), f'{target} defines no {symbol[1]}'
  for config in re.findall(r'`(\w+_(?:ring|digits|mnist))`', text):
    assert (ROOT / f'configs/{config}.py').exists() or 'weak' in config, config


@each_page
def test_formulas_are_those_that_github_renders(name):
  for formula in re.findall(r'\$([^$\n]+)\$', renew.BLOCK.sub('', PAGES[name])):
    # Markdown comes first: it takes these for emphasis, escapes and the walls of a table.
    assert not re.search(r"""[^\w\s]_|\\[^a-zA-Z]|\||\*|<""", formula), formula
  for path in COURSE.glob('*.png'):
    assert path.stat().st_size < 150_000, path
