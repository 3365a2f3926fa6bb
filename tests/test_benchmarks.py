"""Benchmarks as programs: what a user gets wrong is one line."""

import subprocess
import sys

from cases import ROOT

GIVEN = {
  'accelerator': ['--config=nowhere.py', '--ceiling=8'],
  'adaptation': ['--usps=x', '--workdir=runs', '--config.train.stesp=1'],
  'evaluation': ['--workdir=nowhere'],
  'guidance': ['--workdir=nowhere', '--out=a.png'],
  'probe': ['--workdir=nowhere'],
  'samplers': ['--workdir=nowhere', '--out=a.png'],
  'truncation': ['--workdir=nowhere'],
}


def test_a_user_error_is_one_line(tmp_path):
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
  children = {
    name: subprocess.Popen([sys.executable, ROOT / f'benchmarks/{name}.py', *flags], **pipes)
    for name, flags in GIVEN.items()
  }
  for name, child in children.items():
    _, err = child.communicate(timeout=120)
    assert child.returncode == 1 and err.startswith('error: ') and err.count('\n') == 1, (name, err)
  assert not any(tmp_path.iterdir())  # nor is anything written
