"""Pixels, lines and events as they are on disk."""

import glob
import json
import math
import os
import pathlib

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2, plugin_hparams_pb2

from gen_jax.run import writers
from gen_jax.run.workdir import Workdir
from gen_jax.run.writers import Writers, image_grid, save_png, scatter_plot, values_plot


@pytest.fixture
def workdir(tmp_path):
  return Workdir(tmp_path)


def make(workdir, start=0, callbacks=()):
  return Writers(workdir, start_step=start, callbacks=callbacks)


def lines(workdir):
  found = [json.loads(line) for line in workdir.metrics.read_text().splitlines()]
  for line in found:
    assert line.pop('time') > 1.7e9
    assert line.pop('rate', None) is None
  return found


def events(workdir):
  found = []
  for path in sorted(glob.glob(f'{workdir.tensorboard}/events*')):
    data = pathlib.Path(path).read_bytes()
    while data:
      size = int.from_bytes(data[:8], 'little')
      found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
  return found


# image_grid, save_png


def test_the_grid_is_laid_out_by_rows_on_white():
  want = [0, 51, 102, 153, 204]
  images = np.ones((5, 64, 60, 3), np.uint8) * np.uint8(want)[:, None, None, None]
  images[..., 2] = 0
  grid = image_grid(images)
  assert grid.dtype == np.uint8 and grid.shape == (2 * 66 + 2, 3 * 62 + 2, 3)
  for i, level in enumerate(want):
    top, left = 2 + i // 3 * 66, 2 + i % 3 * 62
    cell = grid[top : top + 64, left : left + 60]
    assert (cell == [level, level, 0]).all()
  painted = sum(64 * 60 for _ in want)
  assert (grid == 255).all(axis=2).sum() == grid.shape[0] * grid.shape[1] - painted
  assert image_grid(images, columns=5, pad=0).shape == (64, 300, 3)
  assert image_grid(images, columns=9, pad=1).shape == (66, 306, 3)
  transparent = np.concatenate([images, np.zeros((5, 64, 60, 1), np.uint8)], axis=3)
  assert image_grid(transparent)[0, 0].tolist() == [255] * 4
  assert image_grid(transparent)[2, 2].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
  'side, factor', [(8, 6), (16, 3), (28, 2), (32, 2), (47, 2), (48, 1), (64, 1)]
)
def test_small_images_are_enlarged_by_a_whole_factor(side, factor):
  image = np.random.default_rng(0).integers(0, 256, (1, side, side, 1), np.uint8)
  grid = image_grid(image, pad=0)
  assert grid.shape == (side * factor, side * factor, 1)
  blocks = grid.reshape(side, factor, side, factor)
  assert (blocks == image.reshape(side, 1, side, 1)).all()


def test_wrong_images_are_named():
  with pytest.raises(ValueError, match=r'\(2, 8, 8\)'):
    image_grid(np.zeros((2, 8, 8), np.uint8))
  with pytest.raises(ValueError, match=r'\(2, 8, 8, 2\)'):
    image_grid(np.zeros((2, 8, 8, 2), np.uint8))
  with pytest.raises(ValueError, match='float64'):
    image_grid(np.zeros((3, 8, 8, 1)))


@pytest.mark.parametrize('c, mode', [(1, 'L'), (3, 'RGB'), (4, 'RGBA')])
def test_png_holds_the_pixels(tmp_path, c, mode):
  picture = np.random.default_rng(0).integers(0, 256, (7, 9, c), np.uint8)
  save_png(tmp_path / 'a.png', picture)
  file = Image.open(tmp_path / 'a.png')
  assert (file.format, file.mode, file.size) == ('PNG', mode, (9, 7))
  assert np.array_equal(np.asarray(file).reshape(picture.shape), picture)
  assert os.listdir(tmp_path) == ['a.png']
  with pytest.raises(ValueError, match='float64'):
    save_png(tmp_path / 'a.png', picture / 2)


# scatter_plot


def colour_at(path, x, y, limit):
  """The pixel at data point (x, y), from the frame of the axes as it is drawn."""
  pixels = np.asarray(Image.open(path).convert('RGB')).astype(int)
  black = (pixels < 60).all(axis=2)
  # The frame is the longest dark line in each direction.
  columns = np.flatnonzero(black.sum(axis=0) > 400)
  rows = np.flatnonzero(black.sum(axis=1) > 400)
  left, right, top, bottom = columns[0], columns[-1], rows[0], rows[-1]
  i = bottom - (y + limit) / (2 * limit) * (bottom - top)
  j = left + (x + limit) / (2 * limit) * (right - left)
  return pixels[round(i), round(j)]


def test_points_are_drawn_where_they_are(tmp_path):
  real = np.array([[1.0, 0.0], [0.0, -1.0]])
  generated = np.array([[-1.0, -1.0], [0.5, 0.25]])
  scatter_plot(real, generated, tmp_path / 'a.png')
  with Image.open(tmp_path / 'a.png') as plot:
    assert plot.size == (600, 600)
  for x, y in generated:
    assert abs(colour_at(tmp_path / 'a.png', x, y, 1.5) - [255, 127, 14]).max() < 40
  for x, y in real:
    red, green, blue = colour_at(tmp_path / 'a.png', x, y, 1.5)
    assert red < 230 and abs(red - blue) < 20
  assert (colour_at(tmp_path / 'a.png', -0.5, 0.5, 1.5) == 255).all()


def test_axes_do_not_depend_on_what_is_generated(tmp_path):
  real = np.array([[1.0, 0.0], [0.0, -1.0]])
  for generated in ([[0.5, 0.5]], [[0.5, 0.5], [100.0, 0.0], [np.nan, 0.0]]):
    scatter_plot(real, np.array(generated), tmp_path / 'a.png')
    assert abs(colour_at(tmp_path / 'a.png', 0.5, 0.5, 1.5) - [255, 127, 14]).max() < 40
  scatter_plot(real, np.array([[0.5, 0.5]]), tmp_path / 'a.png', limit=4.0)
  assert abs(colour_at(tmp_path / 'a.png', 0.5, 0.5, 4.0) - [255, 127, 14]).max() < 40


# values_plot


@pytest.mark.parametrize('log', [False, True])
def test_values_are_drawn_with_their_band(tmp_path, log, monkeypatch):
  values = np.arange(1, 12)[:, None] * np.array([[0.1, 1.0, 10.0, 1.0]])
  figures = []
  monkeypatch.setattr(writers, 'save_figure', lambda figure, path: figures.append(figure))
  values_plot(values, tmp_path / 'a.png', title='T', label='bits', index='term', log=log)
  (axes,) = figures[0].axes
  assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ('T', 'term', 'bits')
  assert axes.get_yscale() == ('log' if log else 'linear')
  (line,), (band,) = axes.lines, axes.collections
  np.testing.assert_allclose(line.get_xdata(), range(4))
  np.testing.assert_allclose(line.get_ydata(), [0.6, 6, 60, 6])
  corners = band.get_paths()[0].vertices
  for k, scale in enumerate([0.1, 1, 10, 1]):  # the 10th and the 90th percentile of 1 to 11
    heights = corners[corners[:, 0] == k][:, 1]
    np.testing.assert_allclose([heights.min(), heights.max()], [2 * scale, 10 * scale])


# Writers


def test_scalars_reach_both_files(workdir):
  w = make(workdir)
  w.scalars(1, {'g/loss': np.float32(0.5), 'd/loss': -2})
  w.scalars(2, {'g/loss': math.nan, 'd/loss': math.inf})
  assert lines(workdir) == [
    {'step': 1, 'g/loss': 0.5, 'd/loss': -2.0},
    {'step': 2, 'g/loss': None, 'd/loss': None},
  ]
  points = [(e.step, v.tag, v.simple_value) for e in events(workdir) for v in e.summary.value]
  assert points[:2] == [(1, 'g/loss', 0.5), (1, 'd/loss', -2.0)]
  assert len(points) == 4


def test_an_interrupted_run_leaves_the_metrics_of_an_uninterrupted_one(tmp_path):
  whole, cut = Workdir(tmp_path / 'a'), Workdir(tmp_path / 'b')
  for workdir in (whole, cut):
    workdir.path.mkdir()
  w = make(whole)
  for step in range(1, 9):
    w.scalars(step, {'loss': 1 / step})
  w = make(cut)
  for step in range(1, 7):
    w.scalars(step, {'loss': 1 / step})
  # The process dies in the middle of a line; its last checkpoint was that of step 4.
  with open(cut.metrics, 'a') as file:
    file.write('{"step": 7, "ti')
  w = make(cut, start=4)
  for step in range(5, 9):
    w.scalars(step, {'loss': 1 / step})
  assert lines(cut) == lines(whole)
  starts = [e.step for e in events(cut) if e.HasField('session_log')]
  assert 5 in starts


def test_a_torn_line_alone_is_dropped(workdir):
  workdir.metrics.write_text('{"step": 1, "time": 2e9}\n{"step": 2, "time": 2e9}')
  make(workdir, start=4)
  assert lines(workdir) == [{'step': 1}]


def test_a_fresh_run_has_no_past(workdir):
  workdir.metrics.write_text('{"step": 0, "time": 2e9}\n{"step": 2, "time": 2e9}\n')
  make(workdir)
  assert lines(workdir) == []


def test_images_reach_both_places(workdir):
  w = make(workdir)
  grid = np.random.default_rng(0).integers(0, 256, (20, 30, 1), np.uint8)
  path = w.image(3, 'samples/ema', grid)
  assert path == workdir.samples / '0000003_samples_ema.png'
  assert np.array_equal(np.asarray(Image.open(path)), grid[:, :, 0])
  plot = w.image_path(3, 'points')
  scatter_plot(np.eye(2), np.eye(2), plot)
  before = plot.read_bytes()
  assert w.image(3, 'points', plot) == plot and plot.read_bytes() == before
  assert w.image(4, 'copy', plot).read_bytes() == before
  images = [(e.step, v) for e in events(workdir) for v in e.summary.value]
  assert [(step, v.tag) for step, v in images] == [(3, 'samples/ema'), (3, 'points'), (4, 'copy')]
  assert (images[0][1].image.height, images[0][1].image.width) == (20, 30)
  (workdir.path / 'tb.png').write_bytes(images[0][1].image.encoded_image_string)
  shown = np.asarray(Image.open(workdir.path / 'tb.png').convert('L'))
  assert np.array_equal(shown, grid[:, :, 0])


def test_callbacks_get_what_is_written(workdir):
  class Metrics:
    def __init__(self):
      self.seen = []

    def on_metrics(self, step, metrics):
      self.seen.append((step, metrics))

  class Images:
    def __init__(self):
      self.seen = []

    def on_images(self, step, name, path):
      self.seen.append((step, name, path.read_bytes()[:4]))

  metrics, images = Metrics(), Images()
  w = make(workdir, callbacks=[metrics, images])
  w.scalars(1, {'g/loss': np.float32(0.5)}, rate=10.0)
  w.evaluation(2, {'frechet': 3.0})
  w.image(2, 'samples', np.zeros((4, 4, 1), np.uint8))
  assert metrics.seen == [(1, {'g/loss': 0.5, 'rate': 10.0}), (2, {'quick/frechet': 3.0})]
  assert images.seen == [(2, 'samples', b'\x89PNG')]


def test_hyperparameters_reach_the_table_of_tensorboard(workdir):
  make(workdir).hyperparameters({'optim.lr': 0.5, 'system': 'gan', 'clip': None}, ['g/loss'])
  found = [v for e in events(workdir) for v in e.summary.value]
  data = {v.tag: v.metadata.plugin_data for v in found}
  assert data and {plugin.plugin_name for plugin in data.values()} == {'hparams'}
  start = plugin_hparams_pb2.HParamsPluginData.FromString(
    data['_hparams_/session_start_info'].content
  )
  values = start.session_start_info.hparams
  assert values['optim.lr'].number_value == 0.5 and values['system'].string_value == 'gan'
  assert values['clip'].string_value == 'None'


def test_other_processes_write_nothing(workdir, capsys):
  w = Writers(workdir, start_step=0, process_is_primary=False, callbacks=[None])
  w.scalars(1, {'loss': 1.0})
  w.hyperparameters({'seed': 0}, [])
  w.evaluation(1, {'frechet': 1.0})
  w.image(1, 'samples', np.zeros((4, 4, 1), np.uint8))
  assert os.listdir(workdir.path) == [] and capsys.readouterr().err == ''
