"""Pixels as they are on disk."""

import os
import pathlib

import numpy as np
import pytest
from children import run_python
from PIL import Image

from gen_jax.run import pictures
from gen_jax.run.pictures import image_grid, points_plot, save_png, scatter_plot, values_plot

ROOT = pathlib.Path(__file__).parent.parent.parent


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


# points_plot


def test_points_have_the_colours_of_their_labels(tmp_path, monkeypatch):
  figures = []
  monkeypatch.setattr(pictures, 'save_figure', lambda drawn, path: figures.append(drawn))
  points, labels = np.arange(10.0).reshape(5, 2), [3, 0, 3, 7, 0]
  points_plot(points, tmp_path / 'a.png', title='T', labels=labels)
  (axes,) = figures[0].axes
  drawn = {group.get_label(): group for group in axes.collections}
  assert list(drawn) == ['0', '3', '7'] and axes.get_title() == 'T'
  np.testing.assert_array_equal(drawn['3'].get_offsets(), points[[0, 2]])
  assert len({tuple(group.get_facecolor()[0]) for group in drawn.values()}) == 3
  assert [text.get_text() for text in axes.get_legend().get_texts()] == ['0', '3', '7']
  points_plot(points, tmp_path / 'a.png', title='T')
  (axes,) = figures[1].axes
  np.testing.assert_array_equal(axes.collections[0].get_offsets(), points)
  assert axes.get_legend() is None
  points_plot(np.zeros((12, 2)), tmp_path / 'a.png', title='T', labels=range(12))
  assert len({tuple(g.get_facecolor()[0]) for g in figures[2].axes[0].collections}) == 12


# values_plot


@pytest.mark.parametrize('log', [False, True])
def test_values_are_drawn_with_their_band(tmp_path, log, monkeypatch):
  values = np.arange(1, 12)[:, None] * np.array([[0.1, 1.0, 10.0, 1.0]])
  figures = []
  monkeypatch.setattr(pictures, 'save_figure', lambda drawn, path: figures.append(drawn))
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


# Captions


def test_a_grid_has_the_captions_of_its_columns_once():
  images = np.full((5, 48, 48, 1), 200, np.uint8)
  plain = image_grid(images, columns=3)
  grid = image_grid(images, columns=3, captions=['0', '1', '2', '0', '1'])
  head = pictures.CAPTION
  assert grid.shape == (plain.shape[0] + head, *plain.shape[1:])
  np.testing.assert_array_equal(grid[2 + head :], plain[2:])
  drawn = [grid[: 2 + head, 2 + 50 * i : 50 + 50 * i] for i in range(3)]
  assert all((text < 100).any() for text in drawn)
  assert not np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[1], drawn[2])


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_every_row_with_other_captions_has_its_own(channels):
  images = np.full((4, 48, 48, channels), 200, np.uint8)
  grid = image_grid(images, columns=2, captions=['a', 'b', 'c', 'b'])
  lines = (grid[..., 0] < 100).any(axis=1)
  step = 50 + pictures.CAPTION
  assert grid.shape == (2 + 2 * step, 102, channels)
  for top in (2, 2 + step):
    assert lines[top : top + pictures.CAPTION].any()
    assert not lines[top + pictures.CAPTION : top + step].any()


# Animations


def frames_of(path):
  with Image.open(path, formats=('GIF',)) as file:
    for i in range(file.n_frames):
      file.seek(i)
      yield np.asarray(file.convert('RGB')), file.info['duration']


def test_an_animation_shows_the_files_in_their_order(tmp_path):
  for i in range(100):
    save_png(tmp_path / f'{i:03}.png', np.full((700, 10, 3), 2 * i, np.uint8))
  (tmp_path / '000.png').write_bytes(b'no picture')
  (tmp_path / '099.png').unlink()
  os.mkfifo(tmp_path / '099.png')
  (tmp_path / '002.png').write_bytes((tmp_path / '002.png').read_bytes()[:60])
  save_png(tmp_path / '003.png', np.zeros((20, 10, 3), np.uint8))  # of another size
  pictures.animate(sorted(tmp_path.glob('*.png')), tmp_path / 'a.gif')
  frames = [*frames_of(tmp_path / 'a.gif')]
  assert 55 <= len(frames) <= 60 and {image.shape for image, _ in frames} == {(600, 9, 3)}
  levels = [int(image[0, 0, 0]) for image, _ in frames]
  assert levels == sorted(levels) and levels[0] == 10 and levels[-1] > 190
  assert frames[-1][1] > 5 * frames[0][1]
  assert sorted(path.suffix for path in tmp_path.iterdir()) == ['.gif'] + ['.png'] * 100


def test_nothing_is_animated_without_a_picture(tmp_path):
  pictures.animate([tmp_path / 'gone.png'], tmp_path / 'a.gif')
  assert not os.listdir(tmp_path)


# The environment


def drawn_with(tmp_path, settings='', **env):
  """A plot drawn in a fresh process with a `matplotlibrc` of these settings in its folder."""
  tmp_path.mkdir(exist_ok=True)
  (tmp_path / 'matplotlibrc').write_text(settings)
  code = """
import os
import numpy as np
from gen_jax.run.pictures import scatter_plot
before = dict(os.environ)
scatter_plot(np.eye(2), np.eye(2) / 2, 'a.png')
assert dict(os.environ) == before
"""
  done = run_python('-c', code, cwd=tmp_path, PYTHONPATH=str(ROOT), **env)
  assert done.returncode == 0, done.stderr
  return (tmp_path / 'a.png').read_bytes()


def test_plots_depend_neither_on_the_environment_nor_on_settings(tmp_path):
  plain = drawn_with(tmp_path / 'plain')
  theirs = 'savefig.dpi: 20\naxes.facecolor: red\ntext.usetex: True\nfigure.autolayout: True\n'
  assert drawn_with(tmp_path / 'settings', theirs, MPLBACKEND='pdf') == plain
  notebook = 'module://matplotlib_inline.backend_inline'
  assert drawn_with(tmp_path / 'notebook', MPLBACKEND=notebook) == plain


def test_a_plot_leaves_settings_of_the_process_as_they_are(tmp_path):
  import matplotlib

  with matplotlib.rc_context({'figure.dpi': 33, 'axes.facecolor': 'red'}):
    scatter_plot(np.eye(2), np.eye(2), tmp_path / 'a.png')
    assert matplotlib.rcParams['figure.dpi'] == 33
    assert matplotlib.rcParams['axes.facecolor'] == 'red'
  assert Image.open(tmp_path / 'a.png').convert('RGB').getpixel((300, 200)) == (255, 255, 255)
