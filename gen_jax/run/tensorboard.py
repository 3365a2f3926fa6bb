"""Event files of TensorBoard, written where the values arise: a thread that writes later, as
tensorboardX has one, would fail unseen.
"""

import os
import pathlib
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import hparams

from gen_jax.run.workdir import append, make_folder


class Board:
  """An event file in a folder, both made with the first values, and again if they are removed.

  Args:
    folder: of the event files.
    purge_step: TensorBoard hides what earlier files say about this step and later ones.
  """

  def __init__(self, folder, purge_step: int | None = None):
    name = f'events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}'
    self._path = pathlib.Path(folder) / name
    if purge_step is not None:
      start = SessionLog(status=SessionLog.START)
      self._add(Event(step=purge_step, session_log=start))

  def hyperparameters(self, values: Mapping[str, Any], metrics: Iterable[str]) -> None:
    """Adds a row to the table of hyperparameters: {name: value}, beside the values of metrics."""
    shown = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in values.items()}
    self._add(*(Event(summary=summary) for summary in hparams(shown, [*metrics])))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Adds a point for every value."""
    points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    self._add(*(Event(step=step, summary=Summary(value=[point])) for point in points))

  def image(self, step: int, name: str, png: bytes, shape: tuple[int, int, int]) -> None:
    """Adds an image, the bytes of a PNG file of shape (height, width, channels)."""
    height, width, channels = shape
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=png)
    value = Summary.Value(tag=name, image=image)
    self._add(Event(step=step, summary=Summary(value=[value])))

  def _add(self, *events: Event) -> None:
    if not self._path.exists():
      events = (Event(file_version='brain.Event:2'), *events)
    data = b''
    for event in events:
      event.wall_time = time.time()
      data += _record(event.SerializeToString())
    make_folder(self._path.parent)
    append(self._path, data)


def _record(data: bytes) -> bytes:
  """An entry of a TFRecord file: the length and the data, each with a checksum."""
  length = struct.pack('<Q', len(data))
  checksums = (struct.pack('<I', masked_crc32c(part)) for part in (length, data))
  return length + next(checksums) + data + next(checksums)
