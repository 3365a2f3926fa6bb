"""curves.png: a panel for every metric of the lines that are records."""

import json

import numpy as np
import pytest
from PIL import Image

from gen_jax.run import curves, records
from gen_jax.run.records import Row
from gen_jax.run.workdir import Workdir


@pytest.fixture
def folder(tmp_path):
  return Workdir(tmp_path)


def test_a_run_without_metrics_has_no_curves(folder):
  curves.draw(folder)
  folder.metrics.write_text('null\n5\n{"step": 1}\n{"time": 3, "loss": 2}\n[1]\nbroken')
  curves.draw(folder)
  assert not folder.curves.exists()


def test_every_metric_has_a_panel(folder):
  lines = [
    {'step': n, 'time': 2e9 + n, 'rate': 5.0, 'g/loss': 1 / n, 'd/loss': None if n == 2 else n}
    for n in range(1, 9)
  ]
  folder.metrics.write_text('\n'.join(map(json.dumps, lines)))
  assert {name for _, name, _ in curves._metrics(folder)} == {'g/loss', 'd/loss'}
  assert [step for step, name, _ in curves._metrics(folder) if name == 'd/loss'] == [
    1, 3, 4, 5, 6, 7, 8
  ]  # fmt: skip
  curves.draw(folder)
  first = np.asarray(Image.open(folder.curves).convert('L'))
  for step, value in ((4, 3.0), (8, 2.0)):
    quick = [Row('frechet', 'FD-points', value, version='quick')]
    records.append(folder, step, [*quick, Row('frechet', 'FD-points', 9.0)])
  assert [*curves._evaluations(folder)] == [
    (4, 'FD-points, quick', 3.0),
    (8, 'FD-points, quick', 2.0),
  ]
  curves.draw(folder)
  second = np.asarray(Image.open(folder.curves).convert('L'))
  width = first.shape[1] // curves.ACROSS
  ink = lambda picture, i: (picture[:, i * width : (i + 1) * width] < 128).sum()
  assert ink(first, 0) and ink(first, 1) and not ink(first, 2)
  assert ink(second, 2) and not ink(second, 3)
