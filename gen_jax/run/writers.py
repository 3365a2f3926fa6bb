"""The readable outputs of a run: metrics and images."""

import io
import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from gen_jax.run.tensorboard import Board
from gen_jax.run.workdir import Workdir, append, make_folder, write_atomic

READABLE_PIXELS = 48
_log = logging.getLogger(__name__)


class Writers:
  """The outputs of a run: `metrics.jsonl`, TensorBoard and `samples/`.

  A run that resumes at `start_step` first drops what a killed run wrote about later steps, so that
  an interrupted run leaves the same metrics as an uninterrupted one.

  Args:
    workdir: a `Workdir` whose folder exists.
    start_step: number of steps done before, 0 for a fresh run.
    callbacks: see `gen_jax.train.run`.
    process_is_primary: if False, no method has an effect (with several hosts, one writes).
  """

  def __init__(
    self,
    workdir: Workdir,
    *,
    start_step: int,
    callbacks: Sequence[Any] = (),
    process_is_primary: bool = True,
  ):
    self._workdir = workdir
    self._primary = process_is_primary
    self._callbacks = callbacks
    if not self._primary:
      return
    _forget(workdir.metrics, start_step)
    self._board = Board(workdir.tensorboard, purge_step=start_step + 1)

  def hyperparameters(self, values: Mapping[str, Any], metrics: Iterable[str]) -> None:
    """Writes {name: value} to TensorBoard's table of hyperparameters, which shows these metrics."""
    if self._primary:
      self._board.hyperparameters(values, metrics)

  def scalars(self, step: int, values: Mapping[str, float], rate: float | None = None) -> None:
    """Writes one line of `metrics.jsonl` and one point per value to TensorBoard.

    NaN and infinity, which JSON cannot represent, become null. `rate`, in examples per second, is
    noted beside the time: like that, it differs from one machine to the next.
    """
    if not self._primary:
      return
    values = {name: float(value) for name, value in values.items()}
    line = dict(step=step, time=time.time(), rate=rate and float(f'{rate:.4g}'))
    line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
    append(self._workdir.metrics, f'{json.dumps(line, allow_nan=False)}\n'.encode())
    points = values if rate is None else values | {'rate': rate}
    self._board.scalars(step, points)
    self._call('on_metrics', step, points)

  def evaluation(self, step: int, values: Mapping[str, float]) -> None:
    """Writes a quick evaluation to TensorBoard, a point per value."""
    if not self._primary:
      return
    values = {f'quick/{name}': value for name, value in values.items()}
    self._board.scalars(step, values)
    self._call('on_metrics', step, values)

  def image_path(self, step: int, name: str) -> pathlib.Path:
    """The path of the image `name` of `step`, whose folder exists."""
    if self._primary:
      make_folder(self._workdir.samples)
    return self._workdir.image_path(step, name)

  def image(self, step: int, name: str, picture) -> pathlib.Path:
    """Writes an image to `samples/` and to TensorBoard; returns its path.

    Args:
      step: number of finished steps.
      name: what it shows, e.g. 'samples'.
      picture: uint8 [h, w, c] with c = 1, 3 or 4, or the path of a PNG.
    """
    path = self.image_path(step, name)
    if not self._primary:
      return path
    source = pathlib.Path(picture) if isinstance(picture, str | os.PathLike) else None
    if source is None:
      data, shape = png(picture), picture.shape
    else:
      data = source.read_bytes()
      with Image.open(io.BytesIO(data), formats=('PNG',)) as file:
        shape = (file.height, file.width, len(file.getbands()))
    if source != path:
      write_atomic(path, data)
    self._board.image(step, name, data, shape)
    self._call('on_images', step, name, path)
    return path

  def _call(self, method: str, *arguments) -> None:
    for callback in self._callbacks:
      if function := getattr(callback, method, None):
        function(*arguments)


def image_grid(images, columns: int | None = None, pad: int = 2) -> np.ndarray:
  """Arranges images row by row on white; returns uint8 [H, W, c].

  Small images are enlarged by an integer factor, so that they are readable.

  Args:
    images: uint8 [n, h, w, c], c = 1, 3 or 4.
    columns: images per row; None makes the grid approximately square.
    pad: pixels between images and around them.

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
  rows = math.ceil(n / columns)
  grid = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, c), 255, np.uint8)
  for i, image in enumerate(images):
    top = pad + i // columns * (h + pad)
    left = pad + i % columns * (w + pad)
    grid[top : top + h, left : left + w] = image
  return grid


def png(picture) -> bytes:
  """The bytes of a PNG file of uint8 [h, w, c], c = 1, 3 or 4."""
  picture = np.asarray(picture)
  if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (1, 3, 4):
    raise ValueError(f'an image is uint8 [h, w, 1, 3 or 4], not {picture.dtype} {picture.shape}')
  buffer = io.BytesIO()
  Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(buffer, 'PNG')
  return buffer.getvalue()


def save_png(path, picture) -> None:
  """Writes uint8 [h, w, c], c = 1, 3 or 4, to a PNG file; the file is never half-written."""
  write_atomic(path, png(picture))


def scatter_plot(real, generated, path, limit: float | None = None) -> None:
  """Plots generated points over real ones; writes a PNG of 600 x 600 pixels.

  Args:
    real: [n, 2].
    generated: [m, 2]; points that fall outside of the axes are counted in the legend.
    path: the file.
    limit: both axes show [-limit, limit]; None takes it from `real` alone, rounded up to halves,
      so that the axes do not move from one plot to the next.
  """
  from matplotlib.figure import Figure  # 0.5 s that only runs on points need.

  real, generated = np.asarray(real), np.asarray(generated)
  if limit is None:
    limit = math.ceil(2 * 1.2 * float(np.abs(real).max(initial=0.1))) / 2
  # NaN compares false, so it counts as outside too.
  outside = int((~(np.abs(generated) <= limit)).any(axis=1).sum())
  label = f'generated ({outside} outside)' if outside else 'generated'
  figure = Figure(figsize=(6, 6), dpi=100, layout='tight')
  axes = figure.add_subplot()
  axes.scatter(*real.T, s=8, color='tab:gray', alpha=0.5, linewidths=0, label='real')
  axes.scatter(*generated.T, s=8, color='tab:orange', linewidths=0, label=label)
  axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect='equal')
  axes.legend(loc='upper right')
  save_figure(figure, path)


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
  from matplotlib.figure import Figure

  values = np.asarray(values, np.float64)
  if log:
    values = np.maximum(values, 1e-9)  # a logarithmic axis has no zero
  figure = Figure(figsize=(8, 5), dpi=100, layout='tight')
  axes = figure.add_subplot()
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
  save_figure(figure, path)


def save_figure(figure, path) -> None:
  """Writes a Matplotlib figure to a PNG file; the file is never half-written."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png')
  write_atomic(path, buffer.getvalue())


def _forget(metrics: pathlib.Path, start_step: int) -> None:
  """Drops lines about steps after `start_step`, and incomplete ones."""
  if not metrics.exists():
    return
  lines = metrics.read_bytes().splitlines(keepends=True)
  kept = [line for line in lines if line.endswith(b'\n') and _is_of(line, start_step)]
  if len(kept) != len(lines):
    _log.info('%s: %d lines after step %d dropped', metrics, len(lines) - len(kept), start_step)
    write_atomic(metrics, b''.join(kept))


def _is_of(line: bytes, start_step: int) -> bool:
  try:
    # A fresh run keeps no lines, not even of step 0.
    return start_step > 0 and json.loads(line)['step'] <= start_step
  except (ValueError, KeyError, TypeError):
    return False
