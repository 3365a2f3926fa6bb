"""What a system declares about itself: here, the values that its `evaluate` returns."""

import dataclasses
from collections.abc import Callable
from typing import Any

KINDS = ('exact', 'lower bound', 'upper bound', 'estimate')


@dataclasses.dataclass(frozen=True)
class Measure:
  """What one value of `evaluate` is, for tables and plots."""

  label: str  # name and unit, e.g. 'bits/dim'
  kind: str  # what the value is, compared with the quantity that the label names: one of KINDS
  how: Callable[[Any], str] | None = None  # config -> settings of the measurement, in words
  index: str = 'index'  # of values [b, k]: what their last axis is
  log: bool = False  # of values [b, k]: plot both axes on a logarithmic scale

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f'kind={self.kind!r}: one of {KINDS} is needed')
