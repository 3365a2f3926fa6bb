"""Images in .npz and .npy files, as people save them."""

import numpy as np
import pytest
from PIL import Image

from gen_jax import data
from gen_jax.errors import UserError

LEVELS = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), np.uint8)
LABEL = np.arange(12) % 4


def opened(make_config, path, shape=(6, 5, 3), field='data.split', **fields):
  return data.open_source(make_config(name='arrays', path=str(path), shape=shape, **fields), field)


def refusal(make_config, path, **fields) -> str:
  with pytest.raises(UserError) as error:
    opened(make_config, path, **fields)
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize('form', ['uint8', 'float32', 'float64', 'int64', 'bool'])
def test_levels_of_every_type(make_config, tmp_path, form):
  image = LEVELS
  if form.startswith('float'):
    image = LEVELS.astype(form) / 255
  elif form == 'int64':
    image = LEVELS.astype(form)
  elif form == 'bool':
    image = LEVELS > 100
  np.savez(tmp_path / 'a.npz', image=image, label=LABEL, about='where it is from')
  source = opened(make_config, tmp_path / 'a.npz', num_classes=4)
  found = source.arrays()
  expected = np.where(LEVELS > 100, 255, 0) if form == 'bool' else LEVELS
  np.testing.assert_array_equal(found['image'], expected)
  np.testing.assert_array_equal(found['label'], LABEL)
  assert found['image'].dtype == np.uint8 and found['label'].dtype == np.int32
  assert source.num_classes == 4 and source.fingerprint.startswith('arrays/train/12/')


def test_a_single_array_of_grey_images(make_config, tmp_path):
  np.save(tmp_path / 'a.npy', LEVELS[..., 0])
  source = opened(make_config, tmp_path / 'a.npy', shape=(6, 5, 1))
  np.testing.assert_array_equal(source.arrays()['image'], LEVELS[..., :1])
  assert source.num_classes is None and set(source[0]) == {'image'}
  other = LEVELS[..., 0].copy()
  other[3, 2, 1] ^= 1
  np.save(tmp_path / 'b.npy', other)
  changed = opened(make_config, tmp_path / 'b.npy', shape=(6, 5, 1))
  assert changed.fingerprint != source.fingerprint


def test_images_are_cropped_and_resized_as_those_of_folders(make_config, tmp_path):
  np.savez(tmp_path / 'a.npz', image=LEVELS)
  (tmp_path / 'images').mkdir()
  for i, image in enumerate(LEVELS):
    Image.fromarray(image).save(tmp_path / f'images/{i}.png')
  found = opened(make_config, tmp_path / 'a.npz', shape=(8, 8, 3), fit='crop')
  folder = data.open_source(
    make_config(name='folder', path=str(tmp_path / 'images'), shape=(8, 8, 3), fit='crop')
  )
  np.testing.assert_array_equal(found.arrays()['image'], folder.arrays()['image'])


def test_grey_that_was_saved_in_colour_is_grey(make_config, tmp_path):
  np.save(tmp_path / 'a.npy', LEVELS[..., :1].repeat(3, axis=3))
  found = opened(make_config, tmp_path / 'a.npy', shape=(6, 5, 1)).arrays()['image']
  np.testing.assert_array_equal(found, LEVELS[..., :1])
  np.save(tmp_path / 'a.npy', LEVELS)
  message = refusal(make_config, tmp_path / 'a.npy', shape=(6, 5, 1))
  assert message.endswith('is 6x5x3')  # cropping does not help


def test_a_file_for_each_split(make_config, tmp_path):
  for name, rows in (('train', slice(0, 8)), ('test', slice(8, 12))):
    np.savez(tmp_path / f'{name}.npz', image=LEVELS[rows])
  path = tmp_path / '{split}.npz'
  train, test, some = (
    opened(make_config, path, split=split) for split in ('train', 'test', 'train[:50%]')
  )
  np.testing.assert_array_equal(train.arrays()['image'], LEVELS[:8])
  np.testing.assert_array_equal(test.arrays()['image'], LEVELS[8:])
  assert test.fingerprint.startswith('arrays/test/4/') and len(some) == 4
  message = refusal(make_config, path, split='val')
  assert "config.data.split='val'" in message and "val.npz'" in message
  assert "only one split, 'test'" in refusal(make_config, path, split='test[:x]')
  message = refusal(make_config, tmp_path / 'train.npz', split='test')
  assert "only one split, 'train'" in message and '{split}' in message
  assert '{split}' in str(path)


OBJECTS = np.array([{'not': 'unpickled'}] * 12)


@pytest.mark.parametrize(
  ('arrays', 'words'),
  [
    (dict(image=OBJECTS), ['image holds objects']),
    (dict(image=LEVELS, label=OBJECTS), ['label holds objects']),
    (dict(x=LEVELS, y=LABEL), ['holds x, y', "'image'"]),
    (dict(image=LEVELS / 127.5 - 1), ['float64', 'from -1 to 1', '[0, 1]']),
    (dict(image=LEVELS.astype(np.float32)), ['from 0 to 255', '[0, 1]']),
    (dict(image=np.full((2, 6, 5, 3), np.nan)), ['from nan to nan']),
    (dict(image=LEVELS.astype(int) * 8), ['int64', 'integers from 0 to 255']),
    (dict(image=LEVELS.transpose(0, 3, 1, 2)), ['(12, 3, 6, 5), channels first', '(n, height']),
    (dict(image=LEVELS[0, 0]), ['uint8 (5, 3)', '(n, height, width, channels)']),
    (dict(image=LEVELS[:0]), ['(0, 6, 5, 3)']),
    (dict(image=LEVELS[..., [0, 1]]), ['(12, 6, 5, 2)', '1, 3 or 4 channels']),
    (dict(image=np.array(['text'] * 12)), ['<U4', 'integers from 0']),
    (dict(image=LEVELS[..., :1]), ['config.data.shape=(6, 5, 3)', 'is 6x5x1']),
    (dict(image=LEVELS[:, :4]), ['config.data.shape=(6, 5, 3)', 'is 4x5x3']),
    (dict(image=LEVELS, label=LABEL[:5]), ['label is int64 (5,)', '(12,)']),
    (dict(image=LEVELS, label=LABEL / 2), ['label is float64']),
    (dict(image=LEVELS, label=LABEL - 1), ['label holds -1']),
  ],
)
def test_what_is_no_set_of_images_is_refused(make_config, tmp_path, arrays, words):
  np.savez(tmp_path / 'a.npz', **arrays)
  message = refusal(make_config, tmp_path / 'a.npz')
  for word in [*words, 'a.npz']:
    assert word in message


def test_files_that_are_none(make_config, tmp_path):
  (tmp_path / 'a.npz').write_text('no arrays')
  assert 'not a file of NumPy arrays' in refusal(make_config, tmp_path / 'a.npz')
  assert 'cannot be read: No such file' in refusal(make_config, tmp_path / 'b.npz')
  assert 'an .npz or .npy file is needed' in refusal(make_config, tmp_path / 'a.pkl')
  assert 'is a folder' in refusal(make_config, tmp_path)
