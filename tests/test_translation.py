"""Translating with a run: `run.translate`, --mode=sample for held-out pictures and --input."""

import functools
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image
from untrained import save_untrained

import gen_jax
import launch
from gen_jax import config as configs
from gen_jax import data, metrics, sampling
from gen_jax.errors import UserError
from gen_jax.metrics import networks
from gen_jax.run import grids
from gen_jax.systems import cyclegan, pix2pix

SIZE = 16


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A run of cyclegan, with random weights."""
  return save_untrained(tmp_path_factory.mktemp('runs') / 'both', 'cyclegan_mnist_usps')


@pytest.fixture(scope='module')
def run(folder):
  return gen_jax.load(folder)


def images(n, height=SIZE, width=SIZE, seed=0, channels=1):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (n, height, width, channels), np.uint8)


def test_translations_are_those_of_the_system_in_both_directions(run):
  for to in ('y', 'x'):
    x = images(3)
    found = run.translate(x, to=to)
    assert found.dtype == np.uint8 and found.shape == x.shape
    translate = jax.jit(
      functools.partial(cyclegan.translate, config=run.config), static_argnames='to'
    )
    want = translate(run.state, data.from_pixels(x, 'none'), to=to, rng=jax.random.key(0))
    difference = np.int32(found) - data.to_pixels(np.asarray(want), 'none')
    assert np.abs(difference).max() <= 1  # of rounding
    # Each is a function of its image: other images of the batch do not matter.
    alone = run.translate(x[1:2], to=to)
    assert np.abs(np.int32(alone[0]) - found[1]).max() <= 1
    as_floats = run.translate(np.asarray(data.from_pixels(x, 'none')), to=to)
    np.testing.assert_array_equal(as_floats, found)
  assert not np.array_equal(run.translate(images(3), to='x'), run.translate(images(3), to='y'))
  assert run.translate(images(1, 10, 15)).shape == (1, 10, 15, 1)


def test_what_cannot_be_translated_is_one_line(run):
  for values, words in (
    (
      dict(images=images(2, channels=3)),
      r'uint8 \(2, 16, 16, 3\); uint8 or float32 \(n, h, w, 1\)',
    ),
    (dict(images=images(2)[0]), r'\(16, 16, 1\)'),
    (dict(images=images(2).astype(int)), 'int64'),
    (dict(images=images(0)), r'\(0, 16, 16, 1\).* n > 0'),
    (dict(images=[*images(1), *images(1, 9)]), 'images of one size is needed'),
    (dict(images=np.float32(images(2))), r'from 0 to 255; values in \[-1, 1\]'),
    (dict(images=np.full((1, 16, 16, 1), np.nan, np.float32)), 'from nan to nan'),
    (dict(images=images(2), to='z'), "to='z': 'y' or 'x' is needed"),
    (dict(images=images(2), steps=3), 'has no such field'),
  ):
    with pytest.raises(UserError, match=words):
      run.translate(**values)


def test_a_system_that_translates_nothing_says_so(tmp_path, capsys):
  plain = save_untrained(tmp_path / 'plain', 'gan_ring')
  with pytest.raises(UserError, match="translate: system 'gan' of .* has no translation"):
    gen_jax.load(plain).translate(images(2))
  assert launch.main(['--mode=sample', f'--workdir={plain}', f'--input={tmp_path}']) == 2
  assert "config.system='gan' does not translate" in capsys.readouterr().err


# --- Folders ------------------------------------------------------------------------------------


def save(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(path)


def translated(folder, place, *flags):
  return launch.main(['--mode=sample', f'--workdir={folder}', f'--input={place}', *flags])


def test_a_folder_is_translated_under_its_own_names(folder, run, tmp_path):
  place = tmp_path / 'pictures'
  square, wide = images(3), images(1, 9, 18, seed=1)
  for name, image in zip(('b.png', 'a.PNG', 'in/c.png'), square, strict=True):
    save(place / name, image)
  save(place / 'wide.png', wide[0])
  for to in ('y', 'x'):
    assert translated(folder, place, f'--config.sample.to={to}') == 0
    out = folder / 'samples' / f'step_0000007_pictures_to_{to}'
    found = {
      str(path.relative_to(out)): np.asarray(Image.open(path)) for path in out.rglob('*.png')
    }
    assert set(found) == {'a.png', 'b.png', 'in/c.png', 'wide.png'}
    assert found['wide.png'].shape == (9, 18)
    want = run.translate(square, to=to)
    for name, image in zip(('b.png', 'a.png', 'in/c.png'), want, strict=True):
      assert np.abs(np.int32(found[name]) - image[..., 0]).max() <= 1
    assert out.with_name(out.name + '_grid.png').exists()


def test_any_name_of_a_folder_and_of_its_pictures_is_kept(folder, tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(gen_jax.run.trained.Run, 'translate', lambda self, images, *_: images)
  place = tmp_path / ('日' * 80)  # 240 of the 255 bytes of a name
  for name in ('é 1.png', 'in/é 1.png'):
    save(place / name, images(1)[0])
  for name in ('scan.001', 'scan.002'):  # PNG files, by what is in them
    save(tmp_path / 'a.png', images(1)[0])
    (tmp_path / 'a.png').rename(place / name)
  (place / 'a.bmp').write_bytes(b'BM')
  assert translated(folder, place) == 0
  assert '1 left out: a.bmp (not PNG, JPEG or WebP)' in caplog.messages[-1]
  (out,) = (folder / 'samples').glob('step_0000007_日*日')
  found = {str(path.relative_to(out)) for path in out.rglob('*.png')}
  assert found == {'é 1.png', 'in/é 1.png', 'scan.001.png', 'scan.002.png'}


def test_a_folder_that_cannot_be_translated_is_one_line(folder, tmp_path, capsys):
  def said(place):
    assert translated(folder, place) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1
    return err

  assert 'is not a folder' in said(tmp_path / 'nowhere')
  (tmp_path / 'empty').mkdir()
  assert 'holds no image' in said(tmp_path / 'empty')
  (tmp_path / 'empty/a.txt').write_text('a')
  assert '1 left out: a.txt (not PNG, JPEG or WebP)' in said(tmp_path / 'empty')
  save(tmp_path / 'colour/a.png', images(1, channels=3)[0])
  assert 'a.png is 16x16x3' in said(tmp_path / 'colour')
  save(tmp_path / 'twice/a.png', images(1)[0])
  Image.fromarray(images(1)[0, ..., 0]).save(tmp_path / 'twice/a.jpg')
  assert '2 images named a' in said(tmp_path / 'twice')
  (tmp_path / 'broken').mkdir()
  (tmp_path / 'broken/a.png').write_bytes(b'\x89PNG\r\n\x1a\n')
  assert 'a.png' in said(tmp_path / 'broken')
  assert not (folder / 'samples/step_0000007_colour_to_y').exists()


def test_alpha_is_laid_over_what_the_config_says(tmp_path):
  run = save_untrained(tmp_path / 'run', 'cyclegan_mnist_usps')
  picture = Image.new('LA', (SIZE, SIZE), (0, 0))
  (tmp_path / 'alpha').mkdir()
  picture.save(tmp_path / 'alpha/a.png')
  config = gen_jax.load(run).config
  with pytest.raises(UserError, match='with alpha'):
    data.Pictures(config, str(tmp_path / 'alpha'), 1, '--input')
  white = configs.replace(config, {'data.background': (255,)})
  read = data.Pictures(white, str(tmp_path / 'alpha'), 1, '--input').read(0)
  np.testing.assert_array_equal(read, np.full((SIZE, SIZE, 1), 255, np.uint8))


def test_grey_may_be_saved_in_colour(folder, tmp_path):
  config = gen_jax.load(folder).config
  (grey,) = images(1)
  for name in ('a.png', 'b.jpg'):
    save(tmp_path / 'grey' / name, grey.repeat(3, -1))
  found = data.Pictures(config, str(tmp_path / 'grey'), 1, '--input')
  np.testing.assert_array_equal(found.read(0), grey)
  assert found.read(1).shape == grey.shape
  save(tmp_path / 'grey/c.png', images(1, channels=3)[0])
  with pytest.raises(
    UserError, match='1 of 3 .* c.png is 16x16x3; grey is needed. Fix them, or set'
  ):
    data.Pictures(config, str(tmp_path / 'grey'), 1, '--input')


def test_a_folder_is_read_as_the_command_line_says(folder, tmp_path, monkeypatch, capsys):
  """What a message advises is possible, although the run was trained on pictures without alpha."""
  monkeypatch.setattr(gen_jax.run.trained.Run, 'translate', lambda self, images, *_: images)
  place = tmp_path / 'clear'
  place.mkdir()
  Image.new('LA', (SIZE, SIZE), (0, 0)).save(place / 'a.png')
  (place / 'b.png').write_bytes(b'\x89PNG\r\n\x1a\n')
  assert translated(folder, place) == 2
  assert 'config.data.background (such as 255,255,255) to lay alpha' in capsys.readouterr().err
  for level in (255, 3):
    flags = (f'--config.data.background={level}', '--config.data.bad_files=skip')
    assert translated(folder, place, *flags) == 0
    found = (folder / 'samples').glob(f'*_clear_to_y_data.background={level}_data.bad_files=skip')
    (out,) = filter(pathlib.Path.is_dir, found)
    assert [path.name for path in out.iterdir()] == ['a.png']
    np.testing.assert_array_equal(np.asarray(Image.open(out / 'a.png')), level)
  assert translated(folder, place, *flags, '--config.data.flip=0.5') == 2
  assert 'was started with' in capsys.readouterr().err


# --- Held-out pictures --------------------------------------------------------------------------


def test_rows_show_the_source_its_translation_and_the_way_back(folder, monkeypatch):
  shown = {}
  draw = grids.translations

  def spy(made):
    shown['made'] = made
    return draw(made)

  monkeypatch.setattr(grids, 'translations', spy)
  assert launch.main(['--mode=sample', f'--workdir={folder}']) == 0
  made = shown['made']
  assert list(name for name in grids.PARTS if name in made) == [
    *('source', 'image', 'back'),
    *('source_y', 'image_x', 'back_y'),
  ]
  config = gen_jax.load(folder).config
  both = data.held_out(config).read(range(8))
  np.testing.assert_array_equal(made['source'], both['x'])
  np.testing.assert_array_equal(made['source_y'], both['y'])
  assert (folder / 'samples/step_0000007_seed_0_grid.png').exists()


def test_a_row_holds_images_of_other_sizes_and_channels():
  made = {'image': images(20, 8, 8, channels=3), 'source': images(20, 6, 8)}
  grid = grids.translations(made)
  assert grid.shape[2] == 3
  assert grid.shape[0] > grids.MOST_ROWS * 48
  made['target'] = made['image']
  assert grids.translations(made).shape[1] > 3 * 48


# --- Evaluation ---------------------------------------------------------------------------------


def brightness(pixels):
  """In place of a classifier: features and class probabilities of digits, by their pixels."""
  flat = np.float32(pixels).reshape(len(pixels), -1) / 255
  return flat[:, :40], np.asarray(jax.nn.softmax(flat[:, 10:20]))


def test_translations_are_scored_beside_their_sources(tmp_path, monkeypatch):
  """As a baseline, images of x themselves; the class of a translation is that of its source."""
  network = networks.Network('classifier', 'by pixels', 'abc', 'none', 40, '', brightness)
  monkeypatch.setattr(networks, 'open_network', lambda *_, **__: network)
  run = gen_jax.load(
    save_untrained(tmp_path / 'run', 'pix2pix_digits', **{'data.num_classes': '10'})
  )
  how = dict(num_samples=50, held_out_examples=8, metrics=('frechet', 'kernel', 'modes'))
  rows = {row.metric: row for row in run.evaluate(out=tmp_path / 'out', **how)}
  assert {'l1', 'psnr', 'ssim'} <= set(rows)
  for name in ('frechet', 'kernel', 'class_accuracy'):
    source = rows[f'source_{name}']
    assert source.samples == '50 of x, untranslated' and rows[name].samples == '50'
    assert source.features == rows[name].features and source.reference == rows[name].reference
    assert source.label == f'source: {rows[name].label}' and source.weights is None
  both = data.held_out(run.config)
  found, real = both.read(range(50)), data.open_source(run.config, 'eval.split').arrays()['image']
  right = np.argmax(brightness(found['x'])[1], axis=1) == found['x_label']
  assert rows['source_class_accuracy'].value == pytest.approx(right.mean())
  made = sampling.make_sampler(run.config, pix2pix)(run.state, jax.random.key(0), 50)['image']
  for name, images in (('source_frechet', found['x']), ('frechet', made)):
    distance = metrics.frechet_distance(brightness(real)[0], brightness(images)[0])
    # The noise of the translations is another one.
    assert rows[name].value == pytest.approx(distance, rel=1e-3 if 'source' in name else 0.5)


def test_a_source_is_translated_once_in_an_evaluation(tmp_path, monkeypatch):
  """Translations of it again would have neighbours at distance 0: recall was 0."""
  network = networks.Network('classifier', 'by pixels', 'abc', 'none', 40, '', brightness)
  monkeypatch.setattr(networks, 'open_network', lambda *_, **__: network)
  run = gen_jax.load(save_untrained(tmp_path / 'run', 'pix2pix_digits'))
  how = dict(num_samples=500, held_out_split='train[:60]', held_out_examples=8)
  rows = {r.metric: r for r in run.evaluate(out=tmp_path / 'out', metrics=('kernel',), **how)}
  assert rows['kernel'].samples == '60' and rows['source_kernel'].samples.startswith('60 of x')


def test_a_size_that_the_nets_do_not_keep_is_one_line(run, monkeypatch):
  for change, words in (
    (lambda x: x[:, ::2], r'images of 16x16 do not fit the nets of .*make \(8, 16\) of it'),
    (lambda x: x.reshape(3, 5), r'images of 16x16 do not fit .*those of config.data.shape='),
  ):
    other = lambda state, images, to, rng, *, config, change=change: change(images)
    monkeypatch.setattr(cyclegan, 'translate', other)
    with pytest.raises(UserError, match=words):
      run.translate(images(2))


def test_the_picture_that_cannot_be_translated_is_named(folder, tmp_path, monkeypatch, capsys):
  def refuse(*_):
    raise UserError('translate: images of 16x16 do not fit')

  monkeypatch.setattr(gen_jax.run.trained.Run, 'translate', refuse)
  save(tmp_path / 'odd/a b.png', images(1)[0])
  assert translated(folder, tmp_path / 'odd') == 2
  assert 'odd/a b.png: translate: images of 16x16 do not fit' in capsys.readouterr().err
