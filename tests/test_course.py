"""The pages of the course: their code runs, and what they link to exists."""

import ast
import importlib.util
import json
import pathlib
import re

import pytest
from untrained import save_untrained

ROOT = pathlib.Path(__file__).parent.parent
COURSE = ROOT / 'docs/course'


def load_renew():
  spec = importlib.util.spec_from_file_location('renew_course', COURSE / 'renew.py')
  renew = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(renew)
  return renew


renew = load_renew()
PAGE = renew.PAGE.read_text()

# The short form of the page: runs that were not trained, and few samples.
FEW = {'sample.intermediates': '0'}  # not more than steps
RUNS = {
  'ddpm_ring': FEW,
  'score_sde_ring': FEW,
  'edm_ring': FEW,
  'flow_ring': FEW,
  'mean_flow_ring': FEW,
  'ddpm_digits': FEW | {'diffusion.steps': '20', 'eval.ode_tolerance': '0.01'},
  'edm_digits': FEW | {'eval.ode_tolerance': '0.01'},
  'edm_digits_weak': FEW | {'net.features': '4', 'net.groups': '2'},
  'noisy_classifier_digits': {'net.multipliers': '(1,)'},
}
SHORT = {
  'N = 2000 ': 'N = 8 ',
  'STEPS = (5, 10, 20, 50, 200) ': 'STEPS = (3,) ',
  'SCALES = (0.0, 0.5, 1.0, 2.0, 4.0) ': 'SCALES = (1.0,) ',
}


def numbers(text: str) -> list[float]:
  return [float(number) for number in re.findall(r'-?\d+\.?\d*(?:e-?\d+)?', text)]


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
  for name, overrides in RUNS.items():
    save_untrained(tmp_path / f'runs/{name}', name.removesuffix('_weak'), **overrides)
  monkeypatch.chdir(tmp_path)
  text, trained = PAGE, False
  for long, short in SHORT.items():
    assert text.count(long) == 1
    text = text.replace(long, short)
  count = 0
  for match, printed in renew.execute(text):
    count += 1
    trained |= 'gen_jax.load(' in match[1]
    shown = match[2] or ''
    assert bool(printed) == bool(shown), match[1]
    if not trained and 'STEPS' not in match[1]:
      assert numbers(printed) == pytest.approx(numbers(shown), rel=0.02, abs=1e-5), match[1]
  assert count == PAGE.count('```python')
  drawn = {path.name for path in (tmp_path / 'runs/course').iterdir()}
  assert drawn == {path.name for path in COURSE.glob('*.png')}
  assert drawn == set(re.findall(r'\]\((\w+\.png)\)', PAGE))


def test_the_notebook_is_the_page():
  text = renew.PAGE.with_suffix('.ipynb').read_text()
  assert text == renew.notebook(PAGE), 'out of date: python docs/course/renew.py'
  book = json.loads(text)
  assert (book['nbformat'], book['nbformat_minor']) == (4, 5)
  for cell in book['cells']:
    assert {'cell_type', 'id', 'metadata', 'source'} <= set(cell)
    assert ('outputs' in cell) == (cell['cell_type'] == 'code')
  blocks = [''.join(c['source']) for c in book['cells'] if c['cell_type'] == 'code']
  assert blocks[1:] == [
    block.strip('\n') for block in re.findall(r'```python\n(.*?)```', PAGE, re.S)
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


def test_links_of_the_page_name_what_exists():
  text = renew.BLOCK.sub('', PAGE)
  links = re.findall(r'\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)', text)
  assert len(links) > 50
  for label, target, _ in links:
    path = COURSE / target
    assert path.exists(), target
    if path.suffix == '.py' and (name := re.fullmatch(r'`(\w+)`', label)):
      assert name[1] in defined(path), f'{target} defines no {name[1]}'
  for config in re.findall(r'`(\w+_(?:ring|digits|mnist))`', text):
    assert (ROOT / f'configs/{config}.py').exists() or 'weak' in config, config


def test_formulas_are_those_that_github_renders():
  for formula in re.findall(r'\$([^$\n]+)\$', renew.BLOCK.sub('', PAGE)):
    # Markdown comes first: it takes these for emphasis, escapes and the walls of a table.
    assert not re.search(r"""[^\w\s]_|\\[^a-zA-Z]|\||\*|<""", formula), formula
  for path in COURSE.glob('*.png'):
    assert path.stat().st_size < 150_000, path
