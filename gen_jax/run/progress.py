"""How far training is, on stderr, and how fast."""

import collections
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping

from gen_jax.host import console


class Progress:
  """Step, rate, losses and time left: a bar on a terminal, elsewhere a line each time.

  The rate is that of training alone: what happens between steps, such as saving, is timed apart and
  counts in the time left only.

  Args:
    start_step: number of steps done before, 0 for a fresh run.
    total_steps: the step at which the run ends.
    examples_per_step: size of the global batch.
    unit: of the rate, e.g. 'img'.
    to_come: (event, step) -> how often an event of that name happens after the step.
    shown: if False, nothing is shown (with several hosts, one shows).
  """

  def __init__(
    self,
    start_step: int,
    total_steps: int,
    examples_per_step: int,
    unit: str = 'img',
    to_come: Callable[[str, int], int] = lambda name, step: 0,
    shown: bool = True,
  ):
    self._total, self._examples, self._unit = total_steps, examples_per_step, unit
    self._to_come, self._shown = to_come, shown
    self._aside = 0.0
    self._events = collections.defaultdict(list)  # name -> seconds of each
    self._first = self._last = None  # (step, seconds of training)
    self._bar = None
    if shown and _has_terminal():
      bar_format = '{n_fmt}/{total_fmt} |{bar}| {postfix}'
      self._bar = console.bar(total=total_steps, initial=start_step, bar_format=bar_format)

  @contextlib.contextmanager
  def aside(self, name: str) -> Iterator[None]:
    """The time of the block is not that of training but of an event of this name."""
    started = time.monotonic()
    try:
      yield
    finally:
      seconds = time.monotonic() - started
      self._aside += seconds
      self._events[name].append(seconds)

  def rate(self, step: int) -> float | None:
    """Examples per second since the last call of `show`; None before the first one, whose time is
    that of the compilation.
    """
    if self._last is None or step == self._last[0]:
      return None
    return (step - self._last[0]) * self._examples / max(self._now() - self._last[1], 1e-9)

  def show(self, step: int, metrics: Mapping[str, float]) -> None:
    """Call it every config.train.log_steps, and once after the first step."""
    rate, now = self.rate(step), self._now()
    parts = [] if rate is None else [f'{rate:.1f} {self._unit}/s']
    parts += [f'{name} {float(metrics[name]):.4g}' for name in metrics if 'loss' in name][:4]
    if self._first is None:
      self._first = step, now
    elif step > self._first[0]:
      parts.append(f'left {_clock(self._left(step, now))}')
    self._last = step, now
    if not self._shown:
      return
    text = '  '.join(parts)
    if self._bar is None:
      console.tell(f'step {step}/{self._total}  {text}')
    else:
      self._bar.n = step
      self._bar.set_postfix_str(text, refresh=False)
      self._bar.refresh()

  def tell(self, line: str) -> None:
    """Shows a line, above the bar."""
    if not self._shown:
      return
    if self._bar is None:
      console.tell(line)
    else:
      with self._bar.external_write_mode(file=console.STDERR):
        console.tell(line)

  def close(self) -> None:
    """Ends the bar."""
    if self._bar is not None:
      self._bar.close()

  def _now(self) -> float:
    return time.monotonic() - self._aside

  def _left(self, step: int, now: float) -> float:
    per_step = (now - self._first[1]) / (step - self._first[0])
    events = sum(
      self._to_come(name, step) * sum(seconds) / len(seconds)
      for name, seconds in self._events.items()
    )
    return per_step * (self._total - step) + events


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
