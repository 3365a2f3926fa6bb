"""Pictures of a run: grids, plots and animations."""

import contextlib
import io
import math
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gen_jax.host.files import read_file
from gen_jax.run.workdir import write_atomic

READABLE_PIXELS = 48
CAPTION = 14  # pixels, height of a line of captions
MOST_FRAMES, FRAME_PIXELS = 60, 600  # of an animation
LARGEST = 2**28  # bytes of a file with a frame
FRAME_MS, LAST_MS = 150, 2000  # how long a frame is shown


# --- Images -------------------------------------------------------------------------------------


def image_grid(
  images, columns: int | None = None, pad: int = 2, captions: Sequence[str] | None = None
) -> np.ndarray:
  """Arranges images row by row on white; returns uint8 [H, W, c].

  Small images are enlarged by an integer factor, so that they are readable.

  Args:
    images: uint8 [n, h, w, c], c = 1, 3 or 4.
    columns: images per row; None makes the grid approximately square.
    pad: pixels between images and around them.
    captions: a short text above each image, [n]. A row with the captions of the row before it has
      none, so that those of columns appear once, as their head.

  Raises:
    ValueError: another dtype or shape.
  """
  images = np.asarray(images)
  if (
    images.dtype != np.uint8
    or images.ndim != 4
    or not images.shape[0]
    or images.shape[3] not in (1, 3, 4)
  ):
    raise ValueError(f'images are {images.dtype} {images.shape}, not uint8 [n, h, w, 1, 3 or 4]')
  factor = max(1, math.ceil(READABLE_PIXELS / max(images.shape[1:3])))
  images = images.repeat(factor, axis=1).repeat(factor, axis=2)
  n, h, w, c = images.shape
  columns = min(n, columns or math.ceil(math.sqrt(n)))
  heads = _heads(captions, n, columns)
  height = len(heads) * (h + pad) + pad + CAPTION * sum(map(bool, heads))
  grid = np.full((height, columns * (w + pad) + pad, c), 255, np.uint8)
  top, texts = pad, []
  for row, head in enumerate(heads):
    texts += [(pad + i * (w + pad) + w // 2, top, text) for i, text in enumerate(head)]
    top += CAPTION * bool(head)
    for i, image in enumerate(images[row * columns : (row + 1) * columns]):
      left = pad + i * (w + pad)
      grid[top : top + h, left : left + w] = image
    top += h + pad
  return _written_on(grid, texts) if texts else grid


def _heads(captions, n: int, columns: int) -> list[list[str]]:
  """The captions to write above each row of a grid; empty: none."""
  if captions is None:
    return [[]] * math.ceil(n / columns)
  rows = [[*captions[i : i + columns]] for i in range(0, n, columns)]
  above = [[], *rows]
  return [
    [] if row == before[: len(row)] else row for row, before in zip(rows, above[:-1], strict=True)
  ]


def _written_on(grid: np.ndarray, texts: Iterable[tuple[int, int, str]]) -> np.ndarray:
  """A grid with texts, each given by the middle of its upper edge (x, y)."""
  image, font = _image(grid), ImageFont.load_default()
  draw = ImageDraw.Draw(image)
  for x, y, text in texts:
    draw.text((x - draw.textlength(text, font) // 2, y), text, 'black', font)
  return np.asarray(image).reshape(grid.shape)


def _image(picture: np.ndarray) -> Image.Image:
  return Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)


def png(picture) -> bytes:
  """The bytes of a PNG file of uint8 [h, w, c], c = 1, 3 or 4."""
  picture = np.asarray(picture)
  if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (1, 3, 4):
    raise ValueError(f'an image is uint8 [h, w, 1, 3 or 4], not {picture.dtype} {picture.shape}')
  _image(picture).save(buffer := io.BytesIO(), 'PNG')
  return buffer.getvalue()


def save_png(path, picture) -> None:
  """Writes uint8 [h, w, c], c = 1, 3 or 4, to a PNG file; the file is never half-written."""
  write_atomic(path, png(picture))


# --- Animations ---------------------------------------------------------------------------------


def some_frames(count: int) -> list[int]:
  """The indices of at most `MOST_FRAMES` of `count` frames, evenly spaced, with the first and the
  last one.
  """
  return np.linspace(0, count - 1, min(count, MOST_FRAMES)).round().astype(int).tolist()


def frame(picture) -> Image.Image:
  """A picture, uint8 [h, w, c] or the bytes of a PNG file, in the colours of an animation and
  reduced to at most `FRAME_PIXELS` pixels each way.
  """
  if isinstance(picture, bytes):
    with Image.open(io.BytesIO(picture), formats=('PNG',)) as file:
      image = file.copy()
  else:
    image = _image(picture)
  if image.mode == 'RGBA':  # on white, like a grid
    image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
  image.thumbnail((FRAME_PIXELS, FRAME_PIXELS))
  return image if image.mode == 'L' else image.convert('RGB').quantize()


def save_gif(path, frames: Iterable[Image.Image]) -> None:
  """Writes an animation that repeats, the last frame of which is shown longer; the file is never
  half-written.

  Args:
    path: the file.
    frames: of `frame`, at least one. Those that are not of the last one's size are left out.
  """
  images = [*frames]
  images = [image for image in images if image.size == images[-1].size]
  times = [FRAME_MS] * (len(images) - 1) + [LAST_MS]
  how = dict(save_all=True, append_images=images[1:], duration=times, loop=0)
  images[0].save(buffer := io.BytesIO(), 'GIF', **how)
  write_atomic(path, buffer.getvalue())


def animate(paths: Iterable, out) -> None:
  """Writes the PNG files among `paths`, in their order, to the animation `out`; see `save_gif`.
  Files that are damaged or gone are left out, and nothing is written where all are.
  """
  paths, frames = [*map(pathlib.Path, paths)], []
  for path in (paths[i] for i in some_frames(len(paths))):
    with contextlib.suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError):
      frames.append(frame(read_file(path, LARGEST)))
  if frames:
    save_gif(out, frames)


# --- Plots --------------------------------------------------------------------------------------


@contextlib.contextmanager
def figure(path, **settings) -> Iterator:
  """A Matplotlib `Figure`, which is written to a PNG file when the block ends. It depends neither
  on the environment nor on the user's settings of Matplotlib, and does not change them.

  Args:
    path: the file, or a binary file object.
    **settings: of the figure.
  """
  matplotlib = _matplotlib()
  from matplotlib.figure import Figure

  defaults = matplotlib.rcParamsDefault.items()
  with matplotlib.rc_context({k: v for k, v in defaults if not k.startswith('backend')}):
    drawn = Figure(**settings)
    yield drawn
    save_figure(drawn, path)


def _matplotlib():
  """Matplotlib, imported only where there is a figure: it takes 0.5 s."""
  if 'matplotlib' in sys.modules:
    return sys.modules['matplotlib']
  # It may name one that is not installed here, as in the terminal of a notebook.
  backend = os.environ.pop('MPLBACKEND', None)
  try:
    import matplotlib
  finally:
    if backend is not None:
      os.environ['MPLBACKEND'] = backend
  if backend:  # for figures of the user's
    with contextlib.suppress(ValueError):
      matplotlib.rcParams['backend'] = backend
  return matplotlib


def save_figure(drawn, path) -> None:
  """Writes a Matplotlib figure to a PNG file; the file is never half-written."""
  drawn.savefig(buffer := io.BytesIO(), format='png')
  if hasattr(path, 'write'):
    path.write(buffer.getvalue())
  else:
    write_atomic(path, buffer.getvalue())


def scatter_plot(real, generated, path, limit: float | None = None) -> None:
  """Plots generated points over real ones; writes a PNG of 600 x 600 pixels.

  Args:
    real: [n, 2].
    generated: [m, 2]; points that fall outside of the axes are counted in the legend.
    path: the file, or a binary file object.
    limit: both axes show [-limit, limit]; None takes it from `real` alone, rounded up to halves,
      so that the axes do not move from one plot to the next.
  """
  real, generated = np.asarray(real), np.asarray(generated)
  if limit is None:
    limit = math.ceil(2 * 1.2 * float(np.abs(real).max(initial=0.1))) / 2
  # NaN compares false, so it counts as outside too.
  outside = int((~(np.abs(generated) <= limit)).any(axis=1).sum())
  label = f'generated ({outside} outside)' if outside else 'generated'
  with figure(path, figsize=(6, 6), dpi=100, layout='tight') as drawn:
    axes = drawn.add_subplot()
    axes.scatter(*real.T, s=8, color='tab:gray', alpha=0.5, linewidths=0, label='real')
    axes.scatter(*generated.T, s=8, color='tab:orange', linewidths=0, label=label)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect='equal')
    axes.legend(loc='upper right')


def points_plot(points, path, *, title: str, labels=None) -> None:
  """Plots points in the plane, in a colour for each label; writes a PNG of 700 x 600 pixels.

  Args:
    points: [n, 2].
    path: the file.
    title: title of the figure.
    labels: int [n], from 0 to 19 in colours of their own, which repeat from there on; None: one
      colour.
  """
  points = np.asarray(points)
  groups = np.zeros(len(points), int) if labels is None else np.asarray(labels)
  with figure(path, figsize=(7, 6), dpi=100, layout='tight') as drawn:
    axes = drawn.add_subplot()
    colours = _matplotlib().colormaps['tab10' if groups.max(initial=0) < 10 else 'tab20']
    for label in np.unique(groups):
      chosen, colour = points[groups == label], colours(label % colours.N)
      axes.scatter(*chosen.T, s=3, color=colour, alpha=0.6, linewidths=0, label=str(label))
    axes.set(title=title, aspect='equal')
    axes.set_adjustable('datalim')
    if labels is not None:
      axes.legend(loc='center left', bbox_to_anchor=(1, 0.5), markerscale=4)


def values_plot(
  values, path, *, title: str, label: str, index: str = 'index', log: bool = False
) -> None:
  """Plots the mean over examples of [n, k] values against their index 0 to k - 1, with the band
  from the 10th to the 90th percentile; writes a PNG of 800 x 500 pixels.

  Args:
    values: [n, k].
    path: the file.
    title: title of the figure.
    label: label of the vertical axis: the name of the values and their unit.
    index: label of the horizontal axis.
    log: both axes are logarithmic; values below 1e-9 are plotted at 1e-9.
  """
  values = np.asarray(values, np.float64)
  if log:
    values = np.maximum(values, 1e-9)  # a logarithmic axis has no zero
  with figure(path, figsize=(8, 5), dpi=100, layout='tight') as drawn:
    axes = drawn.add_subplot()
    k = np.arange(values.shape[1])
    low, high = np.quantile(values, (0.1, 0.9), axis=0)
    axes.fill_between(k, low, high, alpha=0.3, linewidth=0, label='10 to 90 % of the examples')
    axes.plot(k, values.mean(0), linewidth=1, marker='.', markersize=3, label='mean')
    axes.set(title=title, xlabel=index, ylabel=label)
    if log:
      axes.set_yscale('log')
      axes.set_xscale('symlog', linthresh=1)  # shows the index 0 too
      axes.set_xlim(-0.1, values.shape[1])
    axes.legend(loc='best')
