"""The examples run as written, from any folder, and stay short."""

import pathlib
import re

import pytest
from children import QUICK, run_python

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / 'examples').glob('*.py'))


def run(path, cwd, **env):
  done = run_python(path, cwd=cwd, PYTHONPATH=str(ROOT), **env)
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_an_example_has_under_40_lines_of_code(path):
  lines = [line for line in path.read_text().splitlines() if line.strip()]
  assert len(lines) < 40, len(lines)


def test_gan_example_trains(tmp_path):
  output = run(ROOT / 'examples/train_gan.py', tmp_path)
  losses = dict(re.findall(r"'(\w/\w+)': (-?[\d.]+)", output))
  assert 0 < float(losses['d/loss']) < 1


def test_wgan_gp_example_runs_under_pmap(tmp_path):
  flags = f'{QUICK} --xla_force_host_platform_device_count=2'
  assert '(4, 28, 28, 1)' in run(ROOT / 'examples/train_wgan_gp_pmap.py', tmp_path, XLA_FLAGS=flags)


def test_ddpm_example_samples_the_circle(tmp_path):
  distance = float(run(ROOT / 'examples/train_ddpm.py', tmp_path).rsplit(':', 1)[1])
  assert 0.85 < distance < 1.15


def test_the_scores_of_pictures_follow_the_noise(tmp_path):
  output = run(
    ROOT / 'examples/score_pictures.py', tmp_path, XLA_FLAGS=''
  )  # as users compile: much faster
  rows = re.findall(r'KD +(-?[\d.]+) \+- ([\d.]+), coverage ([\d.]+)', output)
  (none, _, covered), (some, _, fewer), (much, _, fewest) = (map(float, row) for row in rows)
  assert abs(none) < 0.01 and covered > 0.9
  assert 0.02 < some < much and covered > fewer > fewest


@pytest.mark.parametrize('module', ['gen_jax.train', 'gen_jax.data', '__main__'])
def test_a_deprecated_call_of_ours_ends_a_child_process(module):
  warn = f'warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, {module!r})'
  done = run_python('-c', f'import warnings; {warn}', cwd=ROOT)
  assert done.returncode == 1 and 'DeprecationWarning: old' in done.stderr
