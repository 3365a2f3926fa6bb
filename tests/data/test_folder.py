"""Real image files of every kind, good and bad."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gen_jax import data
from gen_jax.data import folder, pipeline
from gen_jax.errors import UserError

NAMES = ['img10.png', 'img2.png', 'img1.png', 'b.jpeg', 'c.webp', 'D.JPG']


def open_folder(make_config, path, shape=(6, 5, 3), **fields):
  return data.open_source(make_config(name='folder', path=str(path), shape=shape, **fields))


def refusal(make_config, path, **fields) -> str:
  with pytest.raises(UserError) as error:
    open_folder(make_config, path, **fields)
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize('storage', ['device', 'stream'])
def test_flat_folder(make_config, make_images, tmp_path, storage):
  pixels = make_images(tmp_path, NAMES)
  (tmp_path / '.hidden.png').write_bytes(b'no image')
  (tmp_path / '.cache').mkdir()
  (tmp_path / '.cache/x.png').write_bytes(b'no image')
  (tmp_path / 'notes.txt').write_text('no image')
  source = open_folder(make_config, tmp_path, storage=storage)
  assert source.num_classes is None and len(source) == 6 and source.shape == (6, 5, 3)
  order = ['D.JPG', 'b.jpeg', 'c.webp', 'img1.png', 'img2.png', 'img10.png']
  for i, name in enumerate(order):
    assert set(source[i]) == {'image'}
    if name.endswith('png'):
      np.testing.assert_array_equal(source[i]['image'], pixels[name])
    else:
      with Image.open(tmp_path / name) as image:
        np.testing.assert_array_equal(source[i]['image'], np.asarray(image))
  np.testing.assert_array_equal(source.arrays()['image'][3], pixels['img1.png'])


def test_sub_folders_are_classes(make_config, make_images, tmp_path):
  names = ['dog/1.png', 'cat/2.png', 'cat/deep/1.png', 'dog/0.png', 'bird10/x.png', 'bird9/x.png']
  pixels = make_images(tmp_path, names)
  (tmp_path / 'empty').mkdir()
  source = open_folder(make_config, tmp_path, num_classes=5)
  assert source.classes == ('bird9', 'bird10', 'cat', 'dog') and source.num_classes == 4
  assert source.arrays()['label'].tolist() == [0, 1, 2, 2, 3, 3]
  assert source.arrays()['label'].dtype == np.int32
  np.testing.assert_array_equal(source[4]['image'], pixels['dog/0.png'])
  assert source[4]['label'] == 3
  assert 'config.data.num_classes=3' in refusal(make_config, tmp_path, num_classes=3)


def test_a_class_without_a_good_image_keeps_its_number(make_config, make_images, tmp_path):
  make_images(tmp_path, ['bird/1.png', 'cat/1.png', 'dog/1.png'])
  damage(tmp_path / 'cat/1.png', 'truncated')
  source = open_folder(make_config, tmp_path, bad_files='skip')
  assert source.classes == ('bird', 'cat', 'dog') and source.num_classes == 3
  assert source.arrays()['label'].tolist() == [0, 2]


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch, make_images):
  make_images(tmp_path, ['a/2.png', 'a/10.png', 'b/1.png', 'B/1.png', 'b/01.png'])
  expected = folder.find_images(tmp_path)
  walk = os.walk

  def reversed_walk(top, **kwargs):
    for root, folders, files in sorted(walk(top, **kwargs), reverse=True):
      yield root, folders[::-1], files[::-1]

  monkeypatch.setattr(os, 'walk', reversed_walk)
  assert folder.find_images(tmp_path) == expected
  assert [str(p) for p in expected] == ['B/1.png', 'a/2.png', 'a/10.png', 'b/01.png', 'b/1.png']


def test_links_are_followed_but_not_in_circles(tmp_path, make_images):
  make_images(tmp_path, ['elsewhere/1.png', 'images/a/1.png'])
  (tmp_path / 'images/b').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'images/a/up').symlink_to(tmp_path / 'images')
  found = [str(path) for path in folder.find_images(tmp_path / 'images')]
  assert found == ['a/1.png', 'b/1.png']


def test_fingerprint_covers_names_and_content(make_config, make_images, tmp_path):
  make_images(tmp_path / 'a', NAMES)
  make_images(tmp_path / 'copy', NAMES)
  first = open_folder(make_config, tmp_path / 'a').fingerprint
  assert first == open_folder(make_config, tmp_path / 'copy', storage='stream').fingerprint
  make_images(tmp_path / 'copy', ['img2.png'], seed=1)
  assert first != open_folder(make_config, tmp_path / 'copy').fingerprint
  (tmp_path / 'a/img1.png').rename(tmp_path / 'a/img0.png')
  assert first != open_folder(make_config, tmp_path / 'a').fingerprint


def damage(path, kind):
  content = path.read_bytes()
  if kind == 'truncated':
    path.write_bytes(content[: len(content) * 2 // 3])
  elif kind == 'flipped':
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
  elif kind == 'empty':
    path.write_bytes(b'')
  elif kind == 'text':
    path.write_text('not an image')


@pytest.mark.parametrize(
  ('name', 'kind'),
  [(f'x.{suffix}', kind) for suffix in ('png', 'jpg', 'webp') for kind in ('truncated', 'empty')]
  + [('x.png', 'flipped'), ('x.png', 'text')],
)
def test_damaged_file_is_named_or_skipped(make_config, make_images, tmp_path, caplog, name, kind):
  make_images(tmp_path, ['a.png', name, 'z.png'], shape=(32, 32, 3))
  damage(tmp_path / name, kind)
  message = refusal(make_config, tmp_path, shape=(32, 32, 3))
  assert name in message and '1 of 3' in message and 'a.png' not in message
  source = open_folder(make_config, tmp_path, shape=(32, 32, 3), bad_files='skip')
  (told,) = caplog.messages
  assert '1 of 3' in told and name in told
  assert len(source) == 2 and len(source.arrays()['image']) == 2
  assert source.fingerprint.startswith('folder/train/2/')


def test_unreadable_file_is_named(make_config, make_images, tmp_path):
  make_images(tmp_path, ['a.png', 'z.png'])
  (tmp_path / 'gone.png').symlink_to(tmp_path / 'nowhere.png')
  assert 'gone.png' in refusal(make_config, tmp_path)


def test_many_bad_files_are_counted(make_config, make_images, tmp_path):
  make_images(tmp_path, [f'{i}.png' for i in range(9)], shape=(5, 6, 3))
  make_images(tmp_path, ['good.png'])
  message = refusal(make_config, tmp_path)
  assert '9 of 10' in message and '0.png is 5x6x3' in message and 'and 6 more' in message
  assert '3.png' not in message
  assert 'config.data.shape=(6, 5, 3)' in message and "config.data.fit='crop'" in message
  (tmp_path / 'good.png').unlink()
  assert '9 of 9' in refusal(make_config, tmp_path, bad_files='skip')


def save_mode(path, mode, **kwargs):
  rng = np.random.default_rng(0)
  if mode == 'I;16':
    image = Image.fromarray(rng.integers(0, 2**16, (6, 5), np.uint16))
  else:
    image = Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).convert(mode)
  if mode.endswith('A'):
    image.putalpha(Image.fromarray(rng.integers(0, 256, (6, 5), np.uint8)))
  image.save(path, **kwargs)
  return image


@pytest.mark.parametrize(
  ('mode', 'suffix', 'channels'),
  [
    ('1', 'png', 1),
    ('L', 'png', 1),
    ('L', 'jpg', 1),
    ('P', 'png', 3),
    ('RGB', 'webp', 3),
    ('LA', 'png', 4),
    ('RGBA', 'png', 4),
    ('RGBA', 'webp', 4),
  ],
)
def test_pixel_types_that_are_read(make_config, tmp_path, mode, suffix, channels):
  lossless = {'lossless': True, 'exact': True} if suffix == 'webp' else {}
  image = save_mode(tmp_path / f'a.{suffix}', mode, **lossless)
  source = open_folder(make_config, tmp_path, shape=(6, 5, channels))
  got = source[0]['image']
  assert got.shape == (6, 5, channels) and got.dtype == np.uint8
  if suffix != 'jpg':
    expected = np.asarray(image.convert({1: 'L', 3: 'RGB', 4: 'RGBA'}[channels]))
    np.testing.assert_array_equal(got, expected.reshape(6, 5, channels))


def test_transparent_palette_is_rgba(make_config, tmp_path):
  image = Image.new('P', (5, 6), 1)
  image.putpalette([0, 0, 0, 200, 100, 50])
  image.putpixel((0, 0), 0)
  image.save(tmp_path / 'a.png', transparency=0)
  got = open_folder(make_config, tmp_path, shape=(6, 5, 4))[0]['image']
  assert got[0, 0, 3] == 0 and got[1, 1].tolist() == [200, 100, 50, 255]
  assert 'a.png is 6x5x4' in refusal(make_config, tmp_path, shape=(6, 5, 3))


@pytest.mark.parametrize(
  ('mode', 'name', 'word'), [('CMYK', 'a.jpg', 'CMYK'), ('I;16', 'a.png', 'I;16')]
)
def test_pixel_types_that_are_refused(make_config, tmp_path, mode, name, word):
  save_mode(tmp_path / name, mode)
  for channels in (1, 3, 4):
    assert f'{name} has pixels of type {word}' in refusal(
      make_config, tmp_path, shape=(6, 5, channels), fit='crop'
    )


@pytest.mark.parametrize('name', ['a.png', 'a.webp'])
def test_animation_is_refused(make_config, tmp_path, name):
  frames = [Image.new('RGB', (5, 6), colour) for colour in ('red', 'blue')]
  frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
  assert f'{name} is animated' in refusal(make_config, tmp_path)


@pytest.mark.parametrize('side', [9_000, 12_000, 40_000])
@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_bomb_is_refused_without_decoding(make_config, tmp_path, side):
  def chunk(kind, content):
    check = struct.pack('>I', zlib.crc32(kind + content))
    return struct.pack('>I', len(content)) + kind + content + check

  header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
  png = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', b'') + chunk(b'IEND', b'')
  (tmp_path / 'bomb.png').write_bytes(png)
  message = refusal(make_config, tmp_path, fit='crop')
  assert 'bad_files' in message and "fit='crop' to" not in message
  assert 'bomb.png' in message and ('limit' in message or 'bomb attack' in message)


def test_exif_orientation_is_respected(make_config, tmp_path):
  upright = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
  exif = Image.Exif()
  exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it"
  stored = np.rot90(upright)  # 5 high, 6 wide
  Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / 'a.png', exif=exif)
  got = open_folder(make_config, tmp_path)[0]['image']
  np.testing.assert_array_equal(got, upright)


def test_crop_takes_the_middle_and_resizes(make_config, tmp_path):
  wide = np.zeros((40, 100, 3), np.uint8)
  wide[:, 30:50, 0] = 255  # the left half of the 40x40 middle is red
  Image.fromarray(wide).save(tmp_path / 'wide.png')
  grey = np.full((50, 20), 77, np.uint8)
  Image.fromarray(grey).save(tmp_path / 'grey.png')
  source = open_folder(make_config, tmp_path, shape=(10, 10, 3), fit='crop')
  rgba = open_folder(make_config, tmp_path, shape=(10, 10, 4), fit='crop')
  np.testing.assert_array_equal(rgba[1]['image'][..., :3], source[1]['image'])
  assert (rgba[1]['image'][..., 3] == 255).all()
  assert 'wide.png is 40x100x3' in refusal(make_config, tmp_path, shape=(10, 10, 1), fit='crop')
  assert (source[0]['image'] == 77).all()  # grey.png, repeated into RGB
  crop = source[1]['image']
  assert (crop[:, :4, 0] > 220).all() and (crop[:, 6:, 0] < 35).all() and (crop[..., 1] == 0).all()


def test_crop_is_antialiased(make_config, tmp_path):
  lines = np.zeros((64, 64), np.uint8)
  lines[:, ::2] = 255
  Image.fromarray(lines).save(tmp_path / 'a.png')
  small = open_folder(make_config, tmp_path, shape=(16, 16, 1), fit='crop')[0]['image']
  assert abs(small.astype(int) - 127).max() < 30


def test_folder_mistakes(make_config, make_images, tmp_path):
  assert 'config.data.path=' in refusal(make_config, tmp_path / 'nowhere')
  (tmp_path / 'empty').mkdir()
  assert 'holds no image' in refusal(make_config, tmp_path / 'empty')
  make_images(tmp_path, ['mixed/a.png', 'mixed/b/a.png'])
  assert 'both directly (such as a.png) and in sub-folders' in refusal(
    make_config, tmp_path / 'mixed'
  )
  message = refusal(make_config, tmp_path / 'mixed/b', shape=(6, 5, 2))
  assert 'config.data.shape=(6, 5, 2)' in message
  with pytest.raises(UserError, match='config.data.path=None'):
    data.open_source(make_config(name='folder'))
  config = make_config(name='folder', path=str(tmp_path / 'mixed/b'), shape=(6, 5, 3))
  with pytest.raises(UserError, match='config.train.batch_size=16, but folder has only 1 '):
    pipeline.Batches(data.open_source(config), config, minibatches=None)


def test_file_that_vanishes_during_training_is_named(make_config, make_images, tmp_path):
  make_images(tmp_path, [f'{i}.png' for i in range(8)])
  config = make_config(
    4, name='folder', path=str(tmp_path), shape=(6, 5, 3), storage='stream', prefetch=1
  )
  batches = pipeline.Batches(data.open_source(config), config, minibatches=None)
  stream = batches.iterate(0)
  next(stream)
  for path in tmp_path.glob('*.png'):
    path.unlink()
  with pytest.raises(UserError, match=r'\.png was good when the run started'):
    for _ in range(8):
      next(stream)
  stream.close()


def test_decode_reads_what_pillow_wrote():
  pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  np.testing.assert_array_equal(folder.decode(file.getvalue(), (4, 4, 3), 'exact'), pixels)
