"""Every model of the zoo loads, samples what it sampled when it was added, and stays small."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

import gen_jax
from gen_jax.run import export_format

ROOT = pathlib.Path(__file__).parent.parent
ZOO = ROOT / 'zoo'
ENTRIES = sorted(path.parent for path in ZOO.glob('*/manifest.json'))
SMALL = 1_500_000  # bytes of weights that are sampled from in seconds
FILES = ('config.json', 'manifest.json', 'metrics.json', export_format.WEIGHTS)

spec = importlib.util.spec_from_file_location('add', ZOO / 'add.py')
add = importlib.util.module_from_spec(spec)
spec.loader.exec_module(add)


def of_entry(path):
  large = (path / export_format.WEIGHTS).stat().st_size > SMALL
  return pytest.param(path, id=path.name, marks=[pytest.mark.slow] if large else [])


@pytest.mark.parametrize('path', [of_entry(path) for path in ENTRIES])
def test_an_entry_samples_what_it_did(path, monkeypatch):
  monkeypatch.chdir(ROOT)
  run = gen_jax.load(f'zoo/{path.name}')
  stored = json.loads((path / 'metrics.json').read_text())['samples']
  samples = run.sample(stored['n'], seed=stored['seed'], **stored['settings'])
  # Rounding differs between machines: a level of 255, or a hundredth of a point's range.
  atol = 0.01 if samples.ndim == 2 else 1.0
  np.testing.assert_allclose(add.summary(samples), stored['summary'], atol=atol)


@pytest.mark.parametrize('path', ENTRIES, ids=lambda path: path.name)
def test_an_entry_is_complete(path):
  manifest = export_format.open_export(path)  # compares every byte with the checksums
  for name in FILES:
    assert (path / name).stat().st_size < add.MOST_BYTES, name
  metrics = json.loads((path / 'metrics.json').read_text())
  assert np.ptp(metrics['samples']['summary']) > 0.01
  assert metrics['samples']['changed'] < add.UNCHANGED
  for row in metrics['evaluation']:
    assert row['step'] == manifest.step and row['label'] and row['version'] == 'full'


def test_the_zoo_is_small_and_its_page_is_up_to_date():
  files = [path / name for path in ENTRIES for name in FILES]
  assert ENTRIES and sum(file.stat().st_size for file in files) < 40_000_000
  assert (ZOO / 'README.md').read_text() == add.readme()
