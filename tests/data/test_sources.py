"""Digits and toys, and what `open_source` refuses."""

import math
import time

import numpy as np
import pytest

from gen_jax import data
from gen_jax.data import toys
from gen_jax.data.sources import reading_pool
from gen_jax.errors import UserError


def refusal(config) -> str:
  with pytest.raises(UserError) as error:
    data.open_source(config)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_digits(make_config):
  source = data.open_source(make_config(num_classes=10))
  assert (source.name, source.shape, source.num_classes, len(source)) == (
    'digits',
    (8, 8, 1),
    10,
    1797,
  )
  arrays = source.arrays()
  assert arrays['image'].dtype == np.uint8 and arrays['image'].shape == (1797, 8, 8, 1)
  assert arrays['label'].dtype == np.int32
  assert arrays['image'].min() == 0 and arrays['image'].max() == 255
  assert len(np.unique(arrays['image'])) == 17
  # The first three of scikit-learn's digits are 0, 1, 2; the middle of a 0 is empty, of a 1 is not.
  assert arrays['label'][:3].tolist() == [0, 1, 2]
  assert arrays['image'][0, 3:5, 3:5].sum() < 50 < 500 < arrays['image'][1, 3:5, 3:5].sum()
  example = source[1]
  np.testing.assert_array_equal(example['image'], arrays['image'][1])
  assert example['label'] == 1 and example['label'].dtype == np.int32
  assert source.nbytes == sum(a.nbytes for a in arrays.values())
  with pytest.raises(IndexError):
    source[1797]


@pytest.mark.parametrize(('name', 'count'), [('ring', 8), ('grid', 25)])
def test_mixtures_are_gaussians_around_their_modes(make_config, name, count):
  source = data.open_source(make_config(name=name, shape=(2,), num_classes=count))
  x, y = source.arrays()['image'], source.arrays()['label']
  assert x.dtype == np.float32 and x.shape == (100_000, 2) and abs(x).max() < 1
  mixture = toys.modes(name)
  assert len(np.unique(mixture.centres, axis=0)) == count
  offset = (x - mixture.centres[y]) / mixture.sd
  # 200,000 standard normal numbers: mean 0 +- 0.0022, variance 1 +- 0.0032.
  assert abs(offset.mean()) < 0.01 and abs(offset.var() - 1) < 0.02
  within = (np.square(offset).sum(-1) < 9).mean()
  assert abs(within - (1 - math.exp(-4.5))) < 2e-3
  share = np.bincount(y, minlength=count) / len(y)
  assert abs(share * count - 1).max() < 0.1


def test_mixtures_have_the_proportions_of_the_literature():
  ring, grid = toys.modes('ring'), toys.modes('grid')
  radius = np.linalg.norm(ring.centres, axis=-1)
  np.testing.assert_allclose(ring.sd / radius, 0.02 / 2, rtol=1e-6)
  spacing = grid.centres[1, 1] - grid.centres[0, 1]
  np.testing.assert_allclose(grid.sd / spacing, 0.05 / 2, rtol=1e-6)
  assert toys.modes('swiss_roll') is None


def test_swiss_roll_is_a_spiral(make_config):
  source = data.open_source(make_config(name='swiss_roll', shape=(2,)))
  x = source.arrays()['image']
  assert set(source.arrays()) == {'image'} and source.num_classes is None
  assert x.dtype == np.float32 and abs(x).max() < 1
  radius, angle = np.hypot(*x.T) * 16, np.arctan2(x[:, 1], x[:, 0])
  turns = (radius - angle) / (2 * math.pi)
  # On the spiral the radius is the angle, up to whole turns.
  assert abs(turns - np.rint(turns)).mean() < 0.06


def test_toys_do_not_depend_on_the_seed(make_config):
  a, b = (data.open_source(make_config(name='ring', shape=(2,), seed=s)) for s in (0, 1))
  np.testing.assert_array_equal(a[7]['image'], b[7]['image'])
  assert a.fingerprint == b.fingerprint


def test_parts_of_a_split_are_disjoint_and_hold_every_class(make_config):
  whole, most, rest = (
    data.open_source(make_config(split=split, num_classes=10))
    for split in ('train', 'train[:80%]', 'train[80%:]')
  )
  assert (len(most), len(rest)) == (1438, 359)
  tables = [np.concatenate([s.arrays()['image'].reshape(len(s), -1) for s in (most, rest)])]
  tables.append(whole.arrays()['image'].reshape(len(whole), -1))
  a, b = (sorted(map(bytes, table)) for table in tables)
  assert a == b
  for source in (most, rest):  # each class is a tenth of the whole
    shares = np.bincount(source.arrays()['label']) / len(source)
    assert len(shares) == 10 and abs(shares - 0.1).max() < 0.04
  assert most.fingerprint.startswith('digits/train[:80%]/1438/')
  assert len({whole.fingerprint, most.fingerprint, rest.fingerprint}) == 3
  assert len(data.open_source(make_config(split='train[-100:]'))) == 100
  assert len(data.open_source(make_config(split='train[10:30]'))) == 20


def test_fingerprints_tell_sources_apart(make_config):
  prints = [data.open_source(make_config()).fingerprint] + [
    data.open_source(make_config(name=name, shape=(2,))).fingerprint for name in toys.NAMES
  ]
  assert len(set(prints)) == 4
  assert prints[0].startswith('digits/train/1797/') and len(prints[0]) < 60


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    (dict(shape=(28, 28, 1)), ['config.data.shape=(28, 28, 1)', '(8, 8, 1)']),
    (dict(split='test'), ["config.data.split='test'", "'train'"]),
    (dict(split='train[:x%]'), ["config.data.split='train[:x%]'", "'train[:80%]'"]),
    (dict(split='train[50:50]'), ["config.data.split='train[50:50]' is empty", '1797']),
    (dict(split='train[:1000%]'), ["config.data.split='train[:1000%]' names 1000%", 'has 100%']),
    (dict(split='train[-101%:50%]'), ["config.data.split='train[-101%:50%]' names 101%"]),
    (dict(split='train[:1798]'), ['names 1798, but digits has 1797 examples']),
    (dict(split='train[:' + '9' * 9999 + ']'), ["config.data.split='train[:9", 'only one split']),
    (dict(num_classes=9), ['config.data.num_classes=9', 'digits', '10']),
    (dict(name='swiss_roll', shape=(2,), num_classes=3), ['num_classes=3', 'no labels', 'None']),
    (dict(name='ring', shape=(2,), flip=0.5), ['config.data.flip=0.5', 'points', '0.0']),
    (dict(name='ring', shape=(2,), dequantize='uniform'), ["config.data.dequantize='uniform'"]),
    (dict(name='grid', shape=(2, 2, 1)), ['config.data.shape=(2, 2, 1)', '(2,)']),
  ],
)
def test_refusals(make_config, fields, words):
  message = refusal(make_config(**fields))
  for word in words:
    assert word in message


def test_a_reading_pool_drops_the_waiting_work_when_it_is_interrupted():
  ended = []

  def work(i):
    time.sleep(0.05)
    ended.append(i)

  with pytest.raises(KeyboardInterrupt), reading_pool(1) as pool:
    for i in range(100):
      pool.submit(work, i)
    raise KeyboardInterrupt
  assert len(ended) <= 2
  with reading_pool(1) as pool:
    for i in range(3):
      pool.submit(work, i)
  assert ended[-3:] == [0, 1, 2]
