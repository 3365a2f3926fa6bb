"""Writes the notebooks of the course pages: `gans.ipynb` from `gans.md`, and so on.

    python docs/course/renew.py
    python docs/course/renew.py --run gans

`--run` first executes the blocks of a page in the root of the repository, where the runs that it
names must have been trained, and renews what they print and draw.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import shutil
import sys

COURSE = pathlib.Path(__file__).resolve().parent
ROOT = COURSE.parents[1]
PAGES = [COURSE / f'{name}.md' for name in ('gans', 'diffusion', 'translation')]
DRAWN = pathlib.Path('runs/course')  # where the blocks write their pictures

# A block, and what it prints.
BLOCK = re.compile(r'^```python\n(.*?)^```\n(?:\n^```text\n(.*?)^```\n)?', re.M | re.S)


def execute(text: str, page: pathlib.Path):
  """Executes the blocks of a page in order, as one program; yields (block, printed) of each."""
  names = {'__name__': 'course'}
  for match in BLOCK.finditer(text):
    line = text.count('\n', 0, match.start()) + 1
    code = compile('\n' * line + match[1], str(page), 'exec')  # errors name lines of the page
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      exec(code, names)
    yield match, printed.getvalue()


def with_outputs(text: str, page: pathlib.Path) -> str:
  """The page with what its blocks print when they are executed now."""
  parts, end = [], 0
  for match, printed in execute(text, page):
    parts += [text[end : match.start()], f'```python\n{match[1]}```\n']
    parts += [f'\n```text\n{printed}```\n'] * bool(printed)
    end = match.end()
  return ''.join([*parts, text[end:]])


def pictures(text: str) -> set[str]:
  """The names of the pictures that a page shows."""
  return set(re.findall(r'\]\((\w+\.png)\)', text))


def notebook(text: str) -> str:
  """A page as a notebook, the JSON of nbformat 4.5."""
  cells, end = [], 0

  def add(kind, source, **more):
    if source.strip():
      lines = source.strip('\n').splitlines(keepends=True)
      name = f'cell-{len(cells)}'
      cells.append(dict(cell_type=kind, id=name, metadata={}, **more, source=lines))

  for match in BLOCK.finditer(text):
    add('markdown', text[end : match.start()])
    if not end:  # the blocks run in the root of the repository
      add('code', '%cd -q ../..', execution_count=None, outputs=[])
    output = dict(output_type='stream', name='stdout', text=(match[2] or '').splitlines(True))
    add('code', match[1], execution_count=None, outputs=[output] * bool(match[2]))
    end = match.end()
  add('markdown', text[end:])
  kernel = dict(display_name='Python 3', language='python', name='python3')
  book = dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)
  return json.dumps(book, indent=1, ensure_ascii=False) + '\n'


if __name__ == '__main__':
  if sys.argv[1:2] == ['--run']:
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    page = COURSE / f'{sys.argv[2]}.md'
    page.write_text(with_outputs(page.read_text(), page))
    for drawn in pictures(page.read_text()):
      shutil.copy(DRAWN / drawn, COURSE)
  for page in PAGES:
    page.with_suffix('.ipynb').write_text(notebook(page.read_text()))
