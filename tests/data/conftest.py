"""A config of `config.data` alone, and small folders of images."""

import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from PIL import Image

DATA = dict(
  name='digits',
  path=None,
  split='train',
  shape=(8, 8, 1),
  num_classes=None,
  flip=0.0,
  dequantize='none',
  binarize='none',
  storage='auto',
  bad_files='error',
  fit='exact',
  classes=None,
  background=None,
  read_threads=4,
  prefetch=4,
)


@pytest.fixture
def make_config():
  """make_config(batch_size=16, seed=0, **fields of config.data)."""

  def make(batch_size=16, seed=0, **data):
    assert data.keys() <= DATA.keys()
    return FrozenConfigDict(dict(seed=seed, data=DATA | data, train=dict(batch_size=batch_size)))

  return make


@pytest.fixture
def make_images():
  """make_images(folder, names, shape): writes random images in the format of each name."""

  def make(folder, names, shape=(6, 5, 3), seed=0):
    rng = np.random.default_rng(seed)
    pixels = {}
    for name in names:
      path = folder / name
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels[name] = rng.integers(0, 256, shape, np.uint8)
      Image.fromarray(pixels[name].squeeze()).save(path)
    return pixels

  return make
