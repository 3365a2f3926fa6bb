"""Orbax, which writes and reads arrays, on its own in each process, quiet, and with the cause of a
failure in one line.
"""

import functools
import logging
import os
import pathlib
import re
import shutil
import sys
import time
import traceback

import jax
import orbax.checkpoint as ocp

LATE_SECONDS = 10.0  # for threads that still write when a save has failed


def arrays_of_this_process(handler=ocp.StandardCheckpointHandler) -> ocp.Checkpointer:
  """Orbax for arrays on disk; with several processes, without waiting for the others."""
  mute()
  if jax.process_count() == 1:
    return ocp.Checkpointer(handler())
  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me, active_processes={me}, barrier_sync_key_prefix=f'process{me}'
  )
  return ocp.Checkpointer(handler(multiprocessing_options=alone), multiprocessing_options=alone)


@functools.cache
def mute() -> None:
  """Where a save or a restore fails, Orbax raises the error of one array and leaves those of others
  to the event loop, logs the tracebacks of its threads, and leaves callbacks for an event loop that
  it has closed, each of which Python reports, even later.
  """

  def is_new(record):
    if not record.exc_info:
      return True
    # asyncio reports an exception that nobody fetched without saying which code raised it, and
    # TensorStore's have no frames.
    frames = traceback.walk_tb(record.exc_info[2])
    files = (frame.f_code.co_filename for frame, _ in frames)
    said = ' '.join((record.pathname, record.getMessage(), *files))
    return 'orbax' not in said and 'tensorstore' not in said

  for name in ('absl', 'asyncio'):
    logging.getLogger(name).addFilter(is_new)
  report = sys.unraisablehook

  def report_new(unraisable):
    if str(unraisable.exc_value) != 'Event loop is closed':
      report(unraisable)

  sys.unraisablehook = report_new


def storage_cause(error: Exception) -> str | None:
  """Why the storage failed, as text; None if `error` is not about storage."""
  if isinstance(error, OSError):
    return error.strerror or str(error)
  # TensorStore raises ValueError with a paragraph; only the system's error code is useful.
  if code := re.search(r"os_error_code='(\d+)'", str(error)):
    return os.strerror(int(code.group(1)))
  if re.match('[A-Z_]+: ', str(error)):
    return str(error)[:300]
  return None


def remove(folder: pathlib.Path) -> None:
  """Removes the folder of a failed save: other threads of TensorStore may still write to it."""
  deadline, absent = time.monotonic() + LATE_SECONDS, 0
  while absent < 5 and time.monotonic() < deadline:
    shutil.rmtree(folder, ignore_errors=True)
    absent = 0 if folder.exists() else absent + 1
    time.sleep(0.02)
