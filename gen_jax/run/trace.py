"""The trace of config.profile_steps for TensorBoard's profiler."""

import contextlib
import pathlib
import shutil

import jax

from gen_jax.errors import UserError


class Trace:
  """Traces the calls that contain the steps `first` to `last` with `jax.profiler`.

  Args:
    steps: (first, last); None traces nothing.
    folder: where the trace is written, a path.
    start: the number of steps done before; these cannot be traced.
  """

  def __init__(self, steps: tuple[int, int] | None, folder, start: int):
    first, self._last = steps or (0, 0)
    self.first = max(first, start + 1)
    self._folder, self._running = folder, False

  @contextlib.contextmanager
  def call(self, number: int):
    """Around a call whose first step is `number`."""
    if self.first <= number <= self._last and not self._running:
      jax.profiler.start_trace(str(self._folder))
      self._running = True
    mark = jax.profiler.StepTraceAnnotation('train', step_num=number)
    with mark if self._running else contextlib.nullcontext():
      yield

  def end(self, number: int, state) -> bool:
    """After the call whose last step is `number` and whose result is `state`: writes the trace if
    all its steps are done, and returns whether it has written it.
    """
    if not self._running or number < self._last:
      return False
    jax.block_until_ready(state)
    self.close()
    return True

  def close(self) -> None:
    """Writes what has been traced so far.

    Raises:
      UserError: it cannot be written.
    """
    if not self._running:
      return
    self._running = False
    before = self._traces()
    try:
      jax.profiler.stop_trace()
    except jax.errors.JaxRuntimeError as error:
      for half in self._traces() - before:
        shutil.rmtree(half, ignore_errors=True)
      cause = str(error).rpartition('; ')[2]
      raise UserError(f'{self._folder}: the trace cannot be written: {cause}') from error

  def _traces(self) -> set[pathlib.Path]:
    return {*self._folder.glob('plugins/profile/*')}
