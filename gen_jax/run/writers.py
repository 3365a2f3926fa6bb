"""The readable outputs of a run: metrics, images, progress."""

import io
import json
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping

import numpy as np
import tensorboardX
import tqdm
from PIL import Image

from gen_jax.run import records
from gen_jax.run.workdir import Workdir, write_atomic

READABLE_PIXELS = 48
_log = logging.getLogger(__name__)


class Writers:
  """The outputs of a run: `metrics.jsonl`, TensorBoard, `samples/`, and progress on stderr.

  A run that resumes at `start_step` first drops what a killed run wrote about later steps, so that
  an interrupted run leaves the same metrics as an uninterrupted one.

  Args:
    workdir: a `Workdir` whose folder exists.
    total_steps: the step at which the run ends.
    images_per_step: size of the global batch.
    start_step: number of steps done before, 0 for a fresh run.
    process_is_primary: if False, no method has an effect (with several hosts, one writes).
  """

  def __init__(
    self,
    workdir: Workdir,
    *,
    total_steps: int,
    images_per_step: int,
    start_step: int,
    process_is_primary: bool = True,
  ):
    self._workdir = workdir
    self._primary = process_is_primary
    self._total_steps = total_steps
    self._images_per_step = images_per_step
    self._bar = None
    if not self._primary:
      return
    workdir.samples.mkdir(exist_ok=True)
    _forget(workdir.metrics, start_step)
    self._metrics = open(workdir.metrics, 'a', encoding='utf-8')
    # TensorBoard hides what earlier event files say about this step and later ones.
    self._board = tensorboardX.SummaryWriter(str(workdir.tensorboard), purge_step=start_step + 1)
    if _has_terminal():
      self._bar = tqdm.tqdm(
        total=total_steps,
        initial=start_step,
        file=sys.stderr,
        dynamic_ncols=True,
        bar_format='{n_fmt}/{total_fmt} |{bar}| {postfix}',
      )
    self._first = None
    self._last = (start_step, time.monotonic())

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one line of `metrics.jsonl` and one point per value to TensorBoard.

    NaN and infinity, which JSON cannot represent, become null.
    """
    if not self._primary:
      return
    values = {name: float(value) for name, value in values.items()}
    line = dict(step=step, time=time.time())
    line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
    self._metrics.write(json.dumps(line, allow_nan=False) + '\n')
    self._metrics.flush()
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def progress(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows step, images per second, losses and time left: a bar on a terminal, else one line.

    Call it every config.train.log_steps, and once after the first step: the time of that first call
    includes the compilation and is excluded from the rates that follow.
    """
    if not self._primary:
      return
    now = time.monotonic()
    last_step, last_time = self._last
    first_step, first_time = self._first or self._last
    rate = (step - last_step) * self._images_per_step / max(now - last_time, 1e-9)
    left = (now - first_time) / max(step - first_step, 1) * (self._total_steps - step)
    self._last = (step, now)
    self._first = self._first or self._last
    losses = [f'{name} {float(metrics[name]):.4g}' for name in metrics if 'loss' in name][:4]
    text = '  '.join([f'{rate:.1f} img/s', *losses, f'left {_clock(left)}'])
    if self._bar is None:
      print(f'step {step}/{self._total_steps}  {text}', file=sys.stderr, flush=True)
    else:
      self._bar.n = step
      self._bar.set_postfix_str(text, refresh=False)
      self._bar.refresh()

  def evaluation(self, step: int, values: Mapping[str, float]) -> None:
    """Writes a quick evaluation: a point per value to TensorBoard, and a line to the console."""
    if not self._primary:
      return
    for name, value in values.items():
      self._board.add_scalar(f'quick/{name}', value, step)
    numbers = '  '.join(f'{name} {value:.4g}' for name, value in values.items())
    with tqdm.tqdm.external_write_mode(file=sys.stderr):
      print(f'step {step}  quick evaluation  {numbers}', file=sys.stderr, flush=True)

  def image_path(self, step: int, name: str) -> pathlib.Path:
    """The path of the image `name` of `step`."""
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
    if isinstance(picture, str | os.PathLike):
      with Image.open(picture, formats=('PNG',)) as file:
        picture, source = np.asarray(file.convert('RGB')), pathlib.Path(picture)
      if source != path:
        write_atomic(path, source.read_bytes())
    else:
      save_png(path, picture)
    self._board.add_image(name, picture, step, dataformats='HWC')
    return path

  def close(self) -> None:
    """Flushes everything."""
    if not self._primary:
      return
    if self._bar is not None:
      self._bar.close()
    self._metrics.close()
    self._board.close()


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


def save_png(path, picture) -> None:
  """Writes uint8 [h, w, c], c = 1, 3 or 4, to a PNG file; the file is never half-written."""
  picture = np.asarray(picture)
  if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (1, 3, 4):
    raise ValueError(f'an image is uint8 [h, w, 1, 3 or 4], not {picture.dtype} {picture.shape}')
  buffer = io.BytesIO()
  Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(buffer, 'PNG')
  write_atomic(path, buffer.getvalue())


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
  """Drops lines about steps after `start_step`, and those that are no records; a fresh run keeps no
  lines, not even of step 0.
  """
  if not metrics.is_file():
    return
  lines = records.lines_of(metrics, records.is_metrics)
  kept = b''.join(line + b'\n' for line, value in lines if 0 < start_step >= value['step'])
  if kept != metrics.read_bytes():
    _log.info('%s: lines after step %d dropped', metrics, start_step)
    write_atomic(metrics, kept)


def _has_terminal() -> bool:
  try:
    # An unattended pseudo-terminal may have zero columns, into which no bar fits.
    return os.get_terminal_size(sys.stderr.fileno()).columns > 0
  except (OSError, ValueError, AttributeError):
    return False


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours:02d}:{minutes:02d}:{seconds:02d}'
