"""Fetches the metrics of training steps from the device, checks them and logs them."""

import math
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from gen_jax.errors import Diverged, UserError
from gen_jax.run import cadences


class MetricLog:
  """Checks the metrics of every step, and logs those of some.

  Metrics of a call are fetched while the next one runs: `add` holds them until then, or until
  `flush`.

  Args:
    config: of the run.
    writer: `Writers` of the run.
    progress: `Progress` of the run.
    start: number of steps done before.
    players: names of the nets, as a state has them.
    fetched: called with the number of the last step whenever metrics have been fetched.
    saved: returns a text that says which checkpoint there is.
    rates: {metric: step -> learning rate}, noted with the metrics.
  """

  def __init__(
    self,
    config,
    writer,
    progress,
    start: int,
    *,
    players: Iterable[str],
    fetched: Callable[[int], None],
    saved: Callable[[], str],
    rates: Mapping[str, Callable[[int], float]],
  ):
    self._config, self._writer, self._start = config, writer, start
    self._progress = progress
    self._players = {name.lower(): name for name in players}
    self._fetched, self._saved, self._rates = fetched, saved, rates
    self._pending = None

  def add(self, last: int, metrics: dict) -> None:
    """Takes the metrics of the call that ends with step `last`, scalars or arrays [steps]."""
    before, self._pending = self._pending, (last, metrics)
    self._log(before)

  def flush(self) -> None:
    """Waits for the metrics that are not fetched yet, if any.

    Raises:
      Diverged: a metric is not finite.
      UserError: the metrics cannot be written.
    """
    before, self._pending = self._pending, None
    self._log(before)

  def _log(self, pending) -> None:
    rows = self._fetch(pending)
    for i, (step, metrics) in enumerate(rows):
      self._check(step, metrics)
      try:
        self._write(step, metrics)
      except UserError:
        for later in rows[i:]:
          self._check(*later)  # whoever saves the state now must know
        raise

  def _fetch(self, pending) -> list[tuple[int, dict[str, float]]]:
    """The metrics of every step of a call."""
    if pending is None:
      return []
    last, metrics = pending
    metrics = {name: np.atleast_1d(values) for name, values in jax.device_get(metrics).items()}
    self._fetched(last)
    steps = len(next(iter(metrics.values())))
    return [
      (last - steps + 1 + i, {name: float(x[i]) for name, x in metrics.items()})
      for i in range(steps)
    ]

  def _check(self, step: int, metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
      if not math.isfinite(value):
        player, _, what = name.partition('/')
        raise Diverged(
          f'{what} of {self._players.get(player, player)} is {value} at step {step}: training has '
          f'diverged and is stopped ({self._saved()}); a smaller learning rate usually helps'
        )

  def _write(self, step: int, metrics: dict[str, float]) -> None:
    if cadences.is_logged(self._config, step):
      rates = {name: rate(step) for name, rate in self._rates.items()}
      self._writer.scalars(step, metrics | rates, self._progress.rate(step))
    if cadences.is_logged(self._config, step) or step == self._start + 1:
      self._progress.show(step, metrics)
