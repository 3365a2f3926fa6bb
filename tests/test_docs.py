"""What the docs show works as shown."""

import pathlib
import re
import shutil

from children import run_python

ROOT = pathlib.Path(__file__).parent.parent


def test_the_system_of_the_docs_needs_no_other_edit(tmp_path):
  for folder in ('gen_jax', 'configs'):
    shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns('__pycache__'))
  shutil.copy(ROOT / 'launch.py', tmp_path)
  text = (ROOT / 'docs/adding_a_system.md').read_text()
  files = re.findall(r'`([\w/]+\.py)`[^`]*:\n\n```python\n(.*?)```', text, re.DOTALL)
  assert [name for name, _ in files] == ['gen_jax/systems/lsgan.py', 'configs/lsgan_ring.py']
  for name, code in files:
    (tmp_path / name).write_text(code)
  done = run_python('launch.py', '--config=configs/lsgan_ring.py:smoke', cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'runs/lsgan_ring_smoke/samples/0000020_samples.png').exists()


def test_links_and_commands_of_the_docs_name_what_exists():
  for page in [ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')]:
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)
    for target in re.findall(r'\]\(([^)#]+)', text):
      if not target.startswith('http'):
        assert (page.parent / target).exists(), f'{page.name}: {target}'
    for config in re.findall(r'--config=(configs/\w+\.py)', text):
      if 'lsgan' not in config:
        assert (ROOT / config).exists(), f'{page.name}: {config}'
