"""Static binarisation: its probabilities, and that an image has one binarised form."""

import numpy as np
import pytest

from gen_jax import data
from gen_jax.data.binarize import binarize
from gen_jax.errors import UserError


def test_a_value_is_the_probability_of_white():
  images = np.tile(np.arange(256, dtype=np.uint8), (4000, 16, 1))
  images[:, 0, :12] = np.random.RandomState(0).randint(0, 256, (4000, 12))  # no two are the same
  found = binarize(images)
  assert found.dtype == np.uint8 and set(np.unique(found)) == {0, 255}
  share = found[:, 1:].mean((0, 1)) / 255
  p = np.arange(256) / 255
  assert share[0] == 0 and share[255] == 1
  assert (np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / 60_000)).all()
  # The draws of two values are independent.
  left, right = found[:, 1:, 128] > 0, found[:, 1:, 129] > 0
  assert abs((left & right).mean() - left.mean() * right.mean()) < 0.01


def test_an_image_has_one_binarised_form(make_config):
  config = make_config(binarize='static')
  source, grey = data.open_source(config), data.open_source(make_config())
  assert len(source) == len(grey) and source.shape == grey.shape
  whole = source.arrays()
  np.testing.assert_array_equal(whole['label'], grey.arrays()['label'])
  images = grey.arrays()['image']
  assert set(np.unique(whole['image'])) == {0, 255}
  assert (whole['image'][images == 255] == 255).all() and not whole['image'][images == 0].any()
  rows = [7, 1200, 3, 7]
  np.testing.assert_array_equal(source.read(rows)['image'], whole['image'][rows])
  np.testing.assert_array_equal(source[9]['image'], whole['image'][9])
  other = data.open_source(make_config(binarize='static', seed=5))
  np.testing.assert_array_equal(other.arrays()['image'], whole['image'])
  forms = {x.tobytes(): y for x, y in zip(images, whole['image'], strict=True)}
  part = data.open_source(make_config(binarize='static', split='train[:30%]'))
  for x, y in zip(
    data.open_source(make_config(split='train[:30%]')).arrays()['image'],
    part.arrays()['image'],
    strict=True,
  ):
    np.testing.assert_array_equal(forms[x.tobytes()], y)


def test_the_fingerprint_tells_binarised_images(make_config):
  config = make_config(binarize='static')
  source, grey = data.open_source(config), data.open_source(make_config())
  assert source.fingerprint != grey.fingerprint
  name, split, length, content = source.fingerprint.split('/')
  assert (name, length) == ('digits', '1797') and 'binarised' in split
  assert content != grey.fingerprint.split('/')[-1]


def test_points_are_not_binarised(make_config):
  with pytest.raises(UserError, match=r"config\.data\.binarize='static'.*'none'"):
    data.open_source(make_config(name='ring', shape=(2,), binarize='static'))
