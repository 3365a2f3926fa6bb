"""The outputs of a run while it trains: metrics and images."""

import io
import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from gen_jax.run import records
from gen_jax.run.pictures import png
from gen_jax.run.tensorboard import Board
from gen_jax.run.workdir import Workdir, append, make_folder, write_atomic

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


def _forget(metrics: pathlib.Path, start_step: int) -> None:
  """Drops lines about steps after `start_step`, and those that are no records; a fresh run keeps no
  lines, not even of step 0.
  """
  if not metrics.is_file():
    return
  data, lines = metrics.read_bytes(), records.lines_of(metrics, records.is_metrics)
  if lines and not data.endswith(b'\n') and data.endswith(lines[-1][0]):
    lines.pop()  # torn: the process was killed
  kept = b''.join(line + b'\n' for line, value in lines if 0 < start_step >= value['step'])
  if kept != data:
    _log.info('%s: lines after step %d dropped', metrics, start_step)
    write_atomic(metrics, kept)
