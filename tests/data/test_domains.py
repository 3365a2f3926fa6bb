"""Two domains: pairs as people have them on disk, pairs that are made, and unpaired sources."""

import itertools
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DATA
from ml_collections import FrozenConfigDict
from PIL import Image

from gen_jax import data, domains, draws
from gen_jax.data import made
from gen_jax.errors import UserError

X = dict(
  name='folder', path=None, shape=None, mask='box', factor=2, split=None, held_out_split=None
)


def make(x_from, x=(), seed=0, batch_size=8, **fields):
  """A checked config of two domains."""
  fields = dict(paired=x_from != 'domain', load_size=None, x=FrozenConfigDict(X | dict(x))) | fields
  config = FrozenConfigDict(
    dict(
      system='translator',
      seed=seed,
      data=DATA | dict(x_from=x_from) | fields,
      train=dict(batch_size=batch_size),
      eval=dict(held_out_split=fields.get('split', 'train')),
    )
  )
  domains.check(config)
  return config


def refusal(function, *args, **fields) -> str:
  with pytest.raises(UserError) as error:
    function(*args, **fields)
  assert '\n' not in str(error.value)
  return str(error.value)


def side_by_side(folder, names, height=6, width=5, seed=0):
  """Writes A|B images; returns {name: (left, right)}."""
  rng = np.random.default_rng(seed)
  folder.mkdir(parents=True, exist_ok=True)
  both = {name: rng.integers(0, 256, (height, 2 * width, 3), np.uint8) for name in names}
  for name, image in both.items():
    Image.fromarray(image).save(folder / name)
  return {name: (image[:, :width], image[:, width:]) for name, image in both.items()}


def batches_of(config, steps, storage='auto', minibatches=None):
  """(host batches, batches) of some steps."""
  config = FrozenConfigDict(
    config.to_dict() | {'data': {**config.data.to_dict(), 'storage': storage}}
  )
  batches = data.Batches(data.open_training(config), config, minibatches=minibatches)
  finish = jax.jit(lambda fed, key: data.preprocess(batches.device_data, fed, key, config=config))
  fed = [batches.host_batch(step) for step in steps]
  return fed, [
    jax.device_get(finish(f, jax.random.key(s))) for f, s in zip(fed, steps, strict=True)
  ]


def levels(images) -> np.ndarray:
  return data.to_pixels(images, 'none')


# --- Halves of an image ---------------------------------------------------------------------------


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('storage', ['device', 'stream'])
def test_a_half_each_as_in_facades(tmp_path, side, storage):
  pairs = {
    split: side_by_side(tmp_path / split, [f'{i}.png' for i in range(1, n)], seed=n)
    for split, n in (('train', 13), ('test', 4))
  }
  shape = dict(name='folder', path=str(tmp_path / '{split}'), shape=(6, 5, 3), storage=storage)
  config = make(side, **shape)
  for split, of_split in pairs.items():
    config = make(side, split=split, **shape)
    both = data.held_out(config)
    domain = {d: data.open_domain(config, d) for d in 'xy'}
    assert len(both) == len(domain['x']) == len(domain['y']) == len(of_split)
    for i, (left, right) in enumerate(of_split.values()):
      x, y = (left, right) if side == 'left' else (right, left)
      np.testing.assert_array_equal(both[i]['x'], x)
      np.testing.assert_array_equal(both[i]['y'], y)
      np.testing.assert_array_equal(domain['x'][i]['image'], x)
      np.testing.assert_array_equal(domain['y'].arrays()['image'][i], y)
      np.testing.assert_array_equal(data.open_source(config)[i]['image'], y)
    assert f'/{split}/' in both.fingerprint and domain['x'].shape == (6, 5, 3)
  prints = {data.held_out(make(s, **shape)).fingerprint for s in ('left', 'right')}
  prints |= {data.open_domain(config, d).fingerprint for d in 'xy'}
  assert len(prints) == 4
  assert len(data.open_training(make(side, **shape | dict(split='train[:25%]')))) == 3


def test_each_half_is_cropped_and_resized(tmp_path):
  black, white = np.zeros((40, 60, 3), np.uint8), np.full((40, 60, 3), 255, np.uint8)
  Image.fromarray(np.concatenate([black, white], 1)).save(tmp_path / 'a.png')
  config = make('left', name='folder', path=str(tmp_path), shape=(8, 8, 3), fit='crop')
  pair = data.held_out(config)[0]
  assert (pair['x'] == 0).all() and (pair['y'] == 255).all()  # nothing of the other half
  loaded = data.open_training(
    make('left', name='folder', path=str(tmp_path), shape=(8, 8, 3), fit='crop', load_size=12)
  )
  assert loaded[0]['x'].shape == (12, 12, 3) and (loaded[0]['x'] == 0).all()


def test_halves_that_are_none(tmp_path):
  side_by_side(tmp_path, ['a.png', 'b.png'])
  Image.new('RGB', (11, 6)).save(tmp_path / 'odd.png')
  Image.new('RGB', (12, 6)).save(tmp_path / 'wide.png')
  folder = dict(name='folder', path=str(tmp_path), shape=(6, 5, 3))
  message = refusal(data.open_training, make('left', **folder))
  assert '2 of 4' in message and 'odd.png is 11 pixels wide' in message
  assert 'wide.png is 6x6x3 in each half' in message and 'two images side by side' in message
  assert "config.data.fit='crop' to crop" in message
  assert len(data.open_training(make('left', bad_files='skip', **folder))) == 2
  assert 'odd.png is 11' in refusal(data.open_training, make('left', fit='crop', **folder))
  (tmp_path / 'wide.png').unlink()
  assert "fit='crop'" not in refusal(data.open_training, make('left', **folder)).split('Fix')[1]


# --- Equal names ----------------------------------------------------------------------------------


def two_folders(tmp_path, make_images, x_names, y_names, x_shape=(6, 5, 1), y_shape=(6, 5, 3)):
  x = make_images(tmp_path / 'A', x_names, x_shape, seed=1)
  y = make_images(tmp_path / 'B', y_names, y_shape, seed=2)
  fields = dict(name='folder', path=str(tmp_path / 'B'), shape=y_shape)
  return x, y, dict(x=dict(path=str(tmp_path / 'A'), shape=x_shape), **fields)


@pytest.mark.parametrize('storage', ['device', 'stream'])
def test_pairs_have_one_name(tmp_path, make_images, storage):
  order = ['img1.png', 'img2.png', 'img3.png', 'img10.png']
  x, _, fields = two_folders(tmp_path, make_images, order, ['img10.webp', 'img2.jpg'])
  make_images(tmp_path / 'B', ['img3.png', 'img1.png'], (6, 5, 3), seed=3)
  both = data.held_out(make('names', storage=storage, **fields))
  assert len(both) == 4
  for i, name in enumerate(order):
    np.testing.assert_array_equal(both[i]['x'], x[name])
    np.testing.assert_array_equal(both.arrays()['x'][i], x[name])
  assert both[0]['y'].shape == (6, 5, 3)
  for domain in 'xy':
    found = data.open_domain(make('names', storage=storage, **fields), domain)
    np.testing.assert_array_equal(found.arrays()['image'], both.arrays()[domain])


def test_equal_names_with_accents_of_two_ways_and_without_endings(tmp_path, make_images):
  composed, decomposed = (unicodedata.normalize(form, 'é.png') for form in ('NFC', 'NFD'))
  x, y, fields = two_folders(tmp_path, make_images, [composed, '1.png'], [decomposed, '2.png'])
  for place, name, new in (('A', '1.png', 'scan.001'), ('B', '2.png', 'scan.001')):
    (tmp_path / place / name).rename(tmp_path / place / new)  # an image by what is in it
  make_images(tmp_path / 'A', ['c.png'], (6, 5, 1), seed=3)
  make_images(tmp_path / 'B', ['c.png'], (6, 5, 3), seed=4)
  (tmp_path / 'A/c.png').rename(tmp_path / 'A/scan.002')
  (tmp_path / 'B/c.png').rename(tmp_path / 'B/scan.002')
  both = data.held_out(make('names', **fields))
  assert len(both) == 3
  found = {both[i]['x'].tobytes(): both[i]['y'].tobytes() for i in range(3)}
  assert found[x[composed].tobytes()] == y[decomposed].tobytes()
  assert found[x['1.png'].tobytes()] == y['2.png'].tobytes()


def test_a_name_without_its_partner_is_named_or_left_out(tmp_path, make_images, caplog):
  names = [f'{i}.png' for i in range(5)]
  x, _, fields = two_folders(tmp_path, make_images, names[1:], names[:4])
  message = refusal(data.open_training, make('names', **fields))
  assert '2 of 8 images have no partner' in message
  assert '0.png (no x)' in message and '4.png (no y)' in message and "'skip'" in message
  source = data.open_training(make('names', bad_files='skip', **fields))
  np.testing.assert_array_equal(source.arrays()['x'], [x[f'{i}.png'] for i in (1, 2, 3)])
  assert '0.png (no x); 4.png (no y)' in caplog.messages[-1]
  elsewhere = fields | dict(x=fields['x'] | dict(path=str(tmp_path / '{split}')))
  message = refusal(data.open_training, make('names', **elsewhere))
  assert 'config.data.x.path=' in message and "config.data.split='train'" in message
  make_images(tmp_path / 'A', ['2.jpg'], (6, 5, 1))
  assert 'holds 2.jpg and 2.png' in refusal(data.open_training, make('names', **fields))


def test_pairs_of_different_sizes_are_named(tmp_path, make_images, caplog):
  _, _, fields = two_folders(tmp_path, make_images, ['a.png', 'b.png'], ['a.png', 'b.png'])
  make_images(tmp_path / 'A', ['b.png'], (12, 10, 1))
  message = refusal(data.open_training, make('names', **fields))
  assert 'config.data.x.shape=(6, 5, 1)' in message and 'b.png is 12x10x1' in message
  assert len(data.open_training(make('names', fit='crop', **fields))) == 2  # one aspect ratio
  make_images(tmp_path / 'A', ['b.png'], (12, 14, 1))
  message = refusal(data.open_training, make('names', fit='crop', **fields))
  assert '1 of 2 pairs are of different sizes' in message
  assert 'b.png is 12x14, b.png 6x5' in message
  source = data.open_training(make('names', fit='crop', bad_files='skip', **fields))
  assert len(source) == 1 and 'b.png is 12x14' in caplog.messages[-1]


def test_a_picture_on_its_side_is_turned_before_sizes_are_compared(tmp_path, make_images):
  _, _, fields = two_folders(tmp_path, make_images, ['a.png'], ['a.png'])
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.new('L', (6, 5)).save(tmp_path / 'A/a.png', exif=exif)
  assert len(data.open_training(make('names', fit='crop', **fields))) == 1


# --- Unpaired domains -----------------------------------------------------------------------------


def unpaired(tmp_path, make_images, **fields):
  """x: 20 grey images 4x4; y: 13 colour images 6x5, as in horse2zebra's folders."""
  x = make_images(tmp_path / 'trainA', [f'{i}.png' for i in range(20)], (4, 4, 1), seed=1)
  y = make_images(tmp_path / 'trainB', [f'{i}.png' for i in range(13)], (6, 5, 3), seed=2)
  make_images(tmp_path / 'testA', ['0.png', '1.png', '2.png'], (4, 4, 1), seed=3)
  make_images(tmp_path / 'testB', ['0.png', '1.png'], (6, 5, 3), seed=4)
  config = dict(
    x_from='domain',
    x=dict(path=str(tmp_path / '{split}A'), shape=(4, 4, 1)),
    name='folder',
    path=str(tmp_path / '{split}B'),
    shape=(6, 5, 3),
  )
  return x, y, config | fields


@pytest.mark.parametrize('storage', ['device', 'stream'])
def test_each_domain_has_its_own_epochs(tmp_path, make_images, storage):
  x, y, fields = unpaired(tmp_path, make_images)
  config = make(**fields)
  assert domains.inputs(config) == {'x': (4, 4, 1), 'y': (6, 5, 3)}
  _, made_batches = batches_of(config, range(65), storage)  # 26 epochs of x, 40 of y
  for domain, images in (('x', x), ('y', y)):
    rows = [image.tobytes() for image in images.values()]
    seen = [rows.index(i.tobytes()) for b in made_batches for i in levels(b[domain])]
    for start in range(0, len(seen) - len(rows) + 1, len(rows)):
      assert sorted(seen[start : start + len(rows)]) == list(range(len(rows)))
    assert seen[: len(rows)] != seen[len(rows) : 2 * len(rows)]
  test = make(split='test', **fields)
  both = data.held_out(test)
  assert len(both) == 3 and both[2]['x'].shape == (4, 4, 1)
  np.testing.assert_array_equal(both[2]['y'], both[0]['y'])  # the shorter one is repeated
  assert len(data.open_domain(test, 'x')) == 3 and len(data.open_domain(test, 'y')) == 2


def test_unpaired_batches_do_not_pair_what_could_be(make_config):
  config = make('sobel', paired=False, batch_size=64, num_classes=10)
  fed, (batch,) = batches_of(config, [0])
  assert (fed[0]['x_index'] == fed[0]['y_index']).mean() < 0.1
  # A seed does not give one domain the order of the other.
  again, _ = batches_of(make('sobel', paired=False, batch_size=64, num_classes=10, seed=1), [0])
  assert (again[0]['y_index'] != fed[0]['y_index']).any()
  assert (again[0]['x_index'] != fed[0]['y_index']).any()
  digits = data.open_source(make_config())
  for domain in 'xy':
    rows = digits.read(fed[0][f'{domain}_index'])
    np.testing.assert_array_equal(batch[f'{domain}_label'], rows['label'])
    if domain == 'y':
      np.testing.assert_array_equal(levels(batch['y']), rows['image'])
    else:
      wanted = made.make_x(rows['image'], made.uniforms(range(64)), config)
      np.testing.assert_array_equal(levels(batch['x']), wanted)


def test_two_different_sources_with_labels(tmp_path):
  rng = np.random.default_rng(0)
  image, label = rng.integers(0, 256, (40, 6, 5, 1), np.uint8), np.arange(40) % 10
  np.savez(tmp_path / 'train.npz', image=image, label=label)
  np.savez(tmp_path / 'test.npz', image=image[:9], label=label[:9])
  fields = dict(name='arrays', path=str(tmp_path / '{split}.npz'), shape=(6, 5, 1), num_classes=10)
  x = dict(name='digits', shape=(8, 8, 1), split='train[:80%]', held_out_split='train[80%:]')
  config = make('domain', x=x, **fields)
  assert domains.inputs(config) == dict(x=(8, 8, 1), y=(6, 5, 1), x_label=(), y_label=())
  _, (batch,) = batches_of(config, [3])
  assert {n: (v.shape, v.dtype.name) for n, v in batch.items()} == {
    'x': ((8, 8, 8, 1), 'float32'),
    'y': ((8, 6, 5, 1), 'float32'),
    'x_label': ((8,), 'int32'),
    'y_label': ((8,), 'int32'),
  }
  row = np.flatnonzero((image == levels(batch['y'])[2]).all((1, 2, 3)))
  assert label[row] == batch['y_label'][2]
  both = data.held_out(make('domain', x=x, split='test', **fields))
  assert len(both) == 359  # of digits; those of y repeat
  assert len(data.open_training(config)) == 1438


@pytest.mark.parametrize(
  ('x', 'words'),
  [
    (dict(shape=(4, 4, 3)), ['config.data.x.shape=(4, 4, 3)', 'is 4x4x1', '20 of 20']),
    (dict(path='nowhere/{split}A'), ["config.data.split='train'", "'nowhere/trainA'"]),
    (dict(path='nowhere'), ["config.data.x.path='nowhere' is not a folder"]),
    (dict(name='arrays', path='a.npz'), ["config.data.x.path='a.npz' cannot be read"]),
    (dict(name='digits', path=None), ['config.data.x.shape=(4, 4, 1)', 'digits are (8, 8, 1)']),
    (dict(name='ring', path=None), ['config.data.x.shape', 'ring are (2,)']),
    (dict(split='val'), ["config.data.x.split='val'", 'valA']),
    (dict(split='train[:0]'), ["config.data.x.split='train[:0]' is empty"]),
  ],
)
def test_errors_about_x_name_its_fields(tmp_path, make_images, x, words):
  _, _, fields = unpaired(tmp_path, make_images)
  message = refusal(data.open_training, make(**fields | dict(x=fields['x'] | x)))
  for word in words:
    assert word in message, message


def test_each_domain_needs_a_batch_and_labels(tmp_path, make_images):
  _, _, fields = unpaired(tmp_path, make_images)
  config = make(batch_size=14, **fields)
  source = data.open_training(config)
  message = refusal(data.Batches, source, config, minibatches=None)
  assert 'batch_size=14, but folder (the domain y) has only 13 examples' in message
  few = make(**fields | dict(x=fields['x'] | dict(split='train[:2]')), batch_size=3)
  message = refusal(data.Batches, data.open_training(few), few, minibatches=None)
  assert "folder (the domain x) has only 2 examples in config.data.x.split='train[:2]'" in message
  assert 'no labels' in refusal(data.open_training, make(num_classes=2, **fields))


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    (dict(x_from='grey'), ["x_from='grey'", '(8, 8, 1) are grey already']),
    (dict(x_from='edges', x=dict(shape=(8, 8, 4))), ['x.shape=(8, 8, 4)', 'makes (8, 8, 1) or']),
    (dict(x_from='mask', x=dict(shape=(4, 4, 1))), ['x.shape=(4, 4, 1)', 'makes (8, 8, 1)']),
    (dict(x_from='small', x=dict(factor=3)), ['x.factor=3', 'a divisor']),
    (dict(x_from='left'), ["x_from='left' with config.data.name='digits'", "'folder' is needed"]),
    (dict(x_from='names', name='folder', path='b'), ['config.data.x.path=None']),
    (dict(x_from='domain', paired=True, x=dict(name='digits')), ['no pairs', 'paired=False']),
    (dict(x_from='domain'), ['config.data.x.path=None']),
    (dict(x_from='edges', load_size=7), ['config.data.load_size=7', 'at least', '8']),
    (dict(x_from='edges', shape=(2,), name='ring'), ['config.data.shape=(2,)', 'images']),
    (dict(x_from='edges', binarize='static'), ["config.data.binarize='static'"]),
    (
      dict(x_from='left', name='folder', path='b', shape=(8, 8, 3), x=dict(shape=(8, 8, 1))),
      ['config.data.x.shape=(8, 8, 1)', 'that of y, config.data.shape=(8, 8, 3)'],
    ),
    (
      dict(x_from='names', name='folder', path='b', x=dict(path='a', shape=(4, 8, 1))),
      ['config.data.x.shape=(4, 8, 1)', 'one aspect ratio'],
    ),
  ],
)
def test_fields_that_contradict_each_other(fields, words):
  message = refusal(make, **fields)
  for word in words:
    assert word in message, message


# --- Crops and flips ------------------------------------------------------------------------------

EVERYTHING = dict(flip=0.5, load_size=12, dequantize='uniform')


def twins(tmp_path, names=16):
  """A|B images whose halves are equal."""
  tmp_path.mkdir(exist_ok=True)
  rng = np.random.default_rng(0)
  for i in range(names):
    half = rng.integers(0, 256, (12, 10, 3), np.uint8)
    Image.fromarray(np.concatenate([half, half], 1)).save(tmp_path / f'{i}.png')
  return dict(name='folder', path=str(tmp_path), shape=(6, 5, 3), fit='crop')


def test_a_pair_has_one_crop_and_one_flip(tmp_path):
  fields = twins(tmp_path) | dict(load_size=12, flip=0.5, batch_size=16)
  _, paired = batches_of(make('left', **fields), range(8))
  for batch in paired:
    np.testing.assert_array_equal(batch['x'], batch['y'])
  (x,) = {paired[0]['x'].shape}
  assert x == (16, 6, 5, 3)
  _, apart = batches_of(make('left', paired=False, **fields), [0])
  assert set(apart[0]) == {'x', 'y'} and (apart[0]['x'] != apart[0]['y']).any()
  # Every place and both directions, and nothing that is no part of an image.
  whole = data.open_training(make('left', **fields)).arrays()['x']
  assert whole.shape[1:] == (12, 10, 3)
  places = {
    (whole[n, i : i + 6, j : j + 5][:, ::d].tobytes()): (i, j, d)
    for n, i, j, d in itertools.product(range(16), range(7), range(6), (1, -1))
  }
  found = [places[crop.tobytes()] for batch in paired for crop in levels(batch['x'])]
  assert {p[0] for p in found} == set(range(7)) and {p[1] for p in found} == set(range(6))
  assert abs(np.mean([p[2] for p in found])) < 0.3


def test_a_small_set_is_enlarged_before_it_is_cropped():
  config = make('small', load_size=12)
  loaded = data.open_training(config).arrays()['y']
  digits = data.open_source(config).arrays()['image']
  assert loaded.shape == (1797, 12, 12, 1) and digits.shape == (1797, 8, 8, 1)
  small = Image.fromarray(digits[5, ..., 0]).resize((12, 12), Image.Resampling.BICUBIC)
  np.testing.assert_array_equal(loaded[5, ..., 0], np.asarray(small))


CASES = [
  (None, dict(x_from='edges', **EVERYTHING)),
  (2, dict(x_from='mask', paired=False, **EVERYTHING)),
  (None, dict(x_from='domain', x=dict(name='shapes', shape=(6, 4, 3)), **EVERYTHING)),
]


@pytest.mark.parametrize(('k', 'fields'), CASES, ids=['pairs', 'unpaired', 'domain'])
def test_streamed_or_on_the_device_resumed_and_on_two_devices(k, fields):
  config = make(**fields)
  steps, axis = [0, 1, 300], 0 if k is None else 1
  fed, on_device = batches_of(config, steps, 'device', k)
  assert all(name.endswith('index') for name in fed[0])
  streamed_fed, streamed = batches_of(config, steps, 'stream', k)
  assert all(v.dtype in (np.uint8, np.int32) for v in streamed_fed[0].values())
  _, late = batches_of(config, steps[2:], 'stream', k)
  for a, b in zip([*on_device, on_device[2]], [*streamed, late[0]], strict=True):
    for name in ('x', 'y', 'x_label', 'y_label') if 'x_label' in a else ('x', 'y'):
      np.testing.assert_array_equal(a[name], b[name])
  # The rows of each device, under pmap and as a sharded jit.
  batches = data.Batches(data.open_training(config), config, minibatches=k)

  def finish(fed, axis_name=None):
    return data.preprocess(
      batches.device_data, fed, jax.random.key(1), config=config, axis_name=axis_name
    )

  halves = {name: np.stack(np.split(value, 2, axis)) for name, value in fed[1].items()}
  parts = jax.pmap(lambda fed: finish(fed, 'batch'), axis_name='batch')(halves)
  mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*[None] * axis, 'data'))
  sharded = jax.jit(finish)(jax.device_put(fed[1], rows))
  with jax.debug_key_reuse(True):
    jax.jit(finish)(fed[1])
  for name, value in on_device[1].items():
    np.testing.assert_array_equal(np.concatenate(list(np.asarray(parts[name])), axis), value)
    np.testing.assert_array_equal(sharded[name], value)


# --- Made pairs -----------------------------------------------------------------------------------


def make_x(y, x_from, u=None, **x):
  y = np.asarray(y, np.uint8)
  config = make(x_from, x=x, name='shapes', shape=y.shape[-3:])
  u = np.full((*y.shape[:-3], made.NUM_UNIFORMS), 0.5) if u is None else u
  x = np.asarray(made.make_x(y, u, config))
  assert x.shape == (*y.shape[:-3], *domains.x_shape(config)) and x.dtype == np.float32
  assert (x == np.rint(x)).all() and x.min() >= 0 and x.max() <= 255
  return x


def test_grey_is_the_luminance():
  colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 10, 10], [255, 255, 0]]])
  assert make_x(colours, 'grey').ravel().tolist() == [76, 150, 29, 10, 226]
  assert make_x(colours, 'grey', shape=(1, 5, 3))[0, 1].tolist() == [150] * 3


def test_sobel_of_a_ramp_and_a_step():
  step = np.zeros((6, 6, 1))
  step[:, 3:] = 100
  assert make_x(step, 'sobel')[..., 0].tolist() == [[255, 255, 0, 0, 255, 255]] * 6
  two = step.copy()
  two[:, 5:] = 150  # half as steep
  assert make_x(two, 'sobel')[2, :, 0].tolist() == [255, 255, 0, 0, 128, 128]
  assert (make_x(np.full((4, 4, 1), 7), 'sobel') == 255).all()


def test_edges_of_a_disc_are_a_thin_closed_line():
  y, x = np.mgrid[:32, :32] - 15.5
  radius = np.hypot(y, x)
  line = make_x(np.where(radius < 9, 200, 20)[..., None], 'edges')[..., 0]
  assert set(np.unique(line)) == {0, 255}
  on = line == 0
  assert (abs(radius[on] - 9) < 1.2).all()
  # Closed: the inside is not connected to the outside. Thin: about a pixel for each of the length.
  inside = np.zeros_like(on)
  inside[16, 16] = True
  for _ in range(64):
    grown = inside.copy()
    grown[1:] |= inside[:-1]
    grown[:-1] |= inside[1:]
    grown[:, 1:] |= inside[:, :-1]
    grown[:, :-1] |= inside[:, 1:]
    inside = grown & ~on
  assert not inside[0, 0] and inside.sum() > 150
  assert 40 < on.sum() < 75  # 2 pi 9 = 57
  assert (make_x(np.full((8, 8, 3), 9), 'edges') == 255).all()


def test_faint_edges_are_kept_where_they_touch_strong_ones():
  image = np.zeros((30, 64, 1))
  image[:12] = np.interp(np.arange(64), [10, 50], [200, 30])[:, None]  # down to 15% of the contrast
  image[22:, 40:60] = 30  # of that contrast, alone
  on = make_x(image, 'edges')[..., 0] == 0
  assert on[10:14].any(0).all()
  assert not on[14:].any()


@pytest.mark.parametrize('form', ['box', 'strokes'])
def test_holes(form):
  u = np.random.default_rng(0).uniform(size=(500, made.NUM_UNIFORMS)).astype(np.float32)
  y = np.full((500, 32, 24, 1), 9)
  hole = make_x(y, 'mask', u, mask=form)[..., 0] != 9
  share = hole.mean((1, 2))
  if form == 'box':
    assert 0.05 < share.min() and share.max() < 0.27
    rows, columns = hole.any(2).sum(1), hole.any(1).sum(1)
    assert (hole.sum((1, 2)) == rows * columns).all()  # a box
    assert rows.min() in (8, 7) and rows.max() in (16, 17) and columns.max() in (12, 13)
  else:
    assert 0.02 < share.min() and 0.1 < share.mean() < 0.5 and share.max() < 0.7
  assert hole.any(0).mean() > 0.99, 'holes are everywhere, to the border'
  assert (make_x(y, 'mask', u, mask=form)[..., 0][hole] == 128).all()


def test_small_is_the_mean_of_squares():
  y = np.arange(16).reshape(4, 4, 1) * 10
  small = make_x(y, 'small', shape=(2, 2, 1))
  assert small.ravel().tolist() == [25, 45, 105, 125]
  assert make_x(np.full((2, 8, 8, 3), 77), 'small', factor=4).tolist() == [[[[77] * 3] * 8] * 8] * 2
  assert make_x(y, 'small').shape == (4, 4, 1)


def test_what_is_made_is_the_same_in_training_and_afterwards():
  config = make('edges', num_classes=10, batch_size=16)
  fed, (batch,) = batches_of(config, [2])
  both = data.held_out(config).read(fed[0]['index'])
  for name in ('x', 'y'):
    assert both[name].dtype == np.uint8
    np.testing.assert_array_equal(levels(batch[name]), both[name])
  np.testing.assert_array_equal(batch['x_label'], both['x_label'])
  x = data.open_domain(config, 'x')
  np.testing.assert_array_equal(x.read(fed[0]['index'])['image'], both['x'])
  assert x.num_classes == 10 and x.shape == (8, 8, 1) and len(x) == 1797


def test_holes_are_drawn_in_every_step_and_fixed_in_evaluations():
  config = make('mask', batch_size=1797)
  _, batches = batches_of(config, [0, 1])
  holes = [(levels(b['x']) != levels(b['y'])).sum((1, 2, 3)) for b in batches]
  assert len(np.unique(holes[0])) > 10 and (holes[0] != holes[1]).mean() > 0.5
  both = data.held_out(config)
  np.testing.assert_array_equal(both.read([5, 3])['x'], both.arrays()['x'][[5, 3]])
  # Philox's words are the same in every version of NumPy.
  u = made.uniforms([0, 1, 2**31])
  assert u.shape == (3, made.NUM_UNIFORMS) and (0 <= u).all() and (u < 1).all()
  words = np.random.Philox(key=1).random_raw(1)
  assert u[1, 0] == np.float32((int(words[0]) >> 40) / 2**24)
  many = made.uniforms(range(2000))
  assert abs(many.mean() - 0.5) < 0.01


def test_random_numbers_of_holes_are_those_of_the_whole_batch():
  key = jax.random.key(3)
  whole = draws.uniform(key, (4, made.NUM_UNIFORMS))
  assert jnp.unique(whole).size > 60
