"""A cache that cannot be written costs time only."""

import os

import numpy as np
import pytest

from gen_jax.data import sources
from gen_jax.errors import UserError
from gen_jax.metrics import networks, scorer
from gen_jax.run import cache


@pytest.fixture(params=['a file', 'a file above', 'a link to nothing', 'read-only'])
def broken(request, tmp_path, monkeypatch):
  root = tmp_path / 'cache'
  if request.param == 'a file':
    root.touch()
  elif request.param == 'a file above':
    (tmp_path / 'x').touch()
    root = tmp_path / 'x' / 'cache'
  elif request.param == 'a link to nothing':
    root.symlink_to('/nowhere/x')
  else:
    root = '/proc/cache'  # where root may not write either
  monkeypatch.setenv('GEN_JAX_CACHE', str(root))


def test_what_cannot_be_kept_is_used_from_elsewhere(broken, caplog):
  path = cache.cache_folder('weights') / 'a.npz'
  found = cache.keep(path, b'abc')
  assert found != path and found.read_bytes() == b'abc'
  (line,) = (record.getMessage() for record in caplog.records)
  assert line.startswith(f'{path} cannot be written: ') and 'GEN_JAX_CACHE' in line


def test_reference_features_are_computed_without_a_cache(broken, caplog):
  points = np.random.default_rng(0).normal(size=(600, 2)).astype(np.float32)
  source = sources.ArraySource('points', {'image': points}, None, 'points/600')
  network = networks.open_network('auto', source=source)
  found = scorer.reference_features(source, network, 600)
  assert sorted(found.features.tolist()) == sorted(points.tolist())
  assert caplog.records


def test_a_cache_that_works_says_nothing(tmp_path, monkeypatch, caplog):
  monkeypatch.setenv('GEN_JAX_CACHE', str(tmp_path / 'new'))
  path = cache.cache_folder('weights') / 'a.npz'
  assert not (tmp_path / 'new').exists()
  assert cache.keep(path, b'abc') == path and path.read_bytes() == b'abc'
  assert cache.working_folder(path.with_suffix('')) == path.with_suffix('')
  assert not caplog.records and os.listdir(path.parent) == ['a.npz']


def test_no_folder_anywhere_is_one_line(broken, tmp_path, monkeypatch):
  monkeypatch.setattr(cache, '_own', cache._own.__wrapped__)  # not the folder of another test
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'none'))
  with pytest.raises(UserError, match='none cannot be written: No such file or directory'):
    cache.keep(cache.cache_folder('a') / 'b', b'')
