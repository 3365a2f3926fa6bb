"""The examples run as written, from any folder, and stay short."""

import ast
import json
import pathlib
import re

import numpy as np
import pytest
from children import QUICK, run_python
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / 'examples').glob('*.py'))


def run(path, cwd, **env):
  done = run_python(path, cwd=cwd, PYTHONPATH=str(ROOT), **env)
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_an_example_has_under_40_lines_of_code(path):
  _, _, code = path.read_text().split('"""', 2)  # the docstring stands first
  lines = [line for line in code.splitlines() if line.strip()]
  assert len(lines) < 40, len(lines)


@pytest.mark.slow
@pytest.mark.parametrize('name, extra', [('vae_digits', 'arithmetic'), ('edm_digits', 'classes')])
def test_the_latent_space_of_a_run_is_drawn(name, extra, tmp_path):
  path = ROOT / 'examples/latent_space.py'
  done = run_python(path, ROOT / 'zoo' / name, 'out', cwd=tmp_path, PYTHONPATH=str(ROOT))
  assert done.returncode == 0, done.stderr
  drawn = {path.stem for path in (tmp_path / 'out').iterdir()}
  assert drawn == {'strips', 'grid', 'nearest', extra}


def test_gan_example_trains(tmp_path):
  output = run(ROOT / 'examples/train_gan.py', tmp_path)
  losses = dict(re.findall(r"'(\w/\w+)': (-?[\d.]+)", output))
  assert 0 < float(losses['d/loss']) < 1


@pytest.mark.slow
def test_wgan_gp_example_runs_under_pmap(tmp_path):
  flags = f'{QUICK} --xla_force_host_platform_device_count=2'
  assert '(4, 28, 28, 1)' in run(ROOT / 'examples/train_wgan_gp_pmap.py', tmp_path, XLA_FLAGS=flags)


def test_ddpm_example_samples_the_circle(tmp_path):
  distance = float(run(ROOT / 'examples/train_ddpm.py', tmp_path).rsplit(':', 1)[1])
  assert 0.85 < distance < 1.15


def offline_records(path):
  """The records of an offline run of Weights & Biases: a log of blocks, as LevelDB writes them."""
  data, position, parts = path.read_bytes(), 7, []  # after the header of the file
  while position + 7 <= len(data):
    if (left := -position % 2**15) < 7:  # the rest of a block is padding
      position += left
      continue
    size, kind = int.from_bytes(data[position + 4 : position + 6], 'little'), data[position + 6]
    parts.append(data[position + 7 : position + 7 + size])
    position += 7 + size
    if kind in (1, 4):  # whole, or the last part
      yield b''.join(parts)
      parts.clear()


@pytest.mark.slow
def test_weights_and_biases_gets_metrics_and_images(tmp_path):
  pb = pytest.importorskip('wandb.proto.wandb_internal_pb2')
  env = dict(WANDB_MODE='offline', WANDB_SILENT='true', WANDB_DIR=str(tmp_path))
  run(ROOT / 'examples/log_to_wandb.py', tmp_path, **env)
  seen = {}
  for data in offline_records(next(tmp_path.glob('wandb/offline-run-*/*.wandb'))):
    for item in pb.Record.FromString(data).history.item:
      seen.setdefault(item.key or '.'.join(item.nested_key), []).append(item.value_json)
  written = (tmp_path / 'runs/gan_ring_wandb/metrics.jsonl').read_text().splitlines()
  losses = [json.loads(line)['g/loss'] for line in written]
  assert len(losses) == 10 and [float(value) for value in seen['g/loss']] == losses
  pictures = [value for name, values in seen.items() if 'samples' in name for value in values]
  assert sum('.png' in value for value in pictures) == 2, seen.keys()


def test_the_forward_process_is_drawn(tmp_path):
  output = run(ROOT / 'examples/forward_process.py', tmp_path)
  rows = [ast.literal_eval(row) for row in re.findall(r'\{.*\}', output)]
  linear, cosine = (list(row.values()) for row in rows)
  assert linear[0] == pytest.approx(np.log(0.9999 / 0.0001), abs=0.01)  # beta_1 is 1e-4
  assert linear[0] > linear[1] > linear[2] and linear[1] < cosine[1]
  with Image.open(tmp_path / 'forward_process.png') as image:
    assert image.size == (800, 900)


@pytest.mark.slow
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
