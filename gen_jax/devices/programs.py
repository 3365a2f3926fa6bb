"""The compiled programs of a training run."""

import contextlib
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from gen_jax.devices import compilation
from gen_jax.devices.sharding import BatchAxes


class Programs:
  """The initialiser, and one compiled call for each number of steps and batch shape, usually one.

  Args:
    init: `init(host_batch, device_data) -> state`.
    step: `step(state, host_batch, device_data, keys, *, axis_name) -> (state, metrics)`.
    target: the abstract state, with shardings.
    mesh: where they run.
    example: `example(step)`, the host batch of a step: a tree of arrays [*axes, ...].
    axes: `axes(step)`, its leading axes, (rows,) or (minibatches, rows); rows of all devices.
    device_data: replicated arrays.
    keys: replicated keys.
    mode: config.parallel.mode.
    compiling: a context around each compilation of a call.
  """

  def __init__(
    self,
    init: Callable,
    step: Callable,
    *,
    target,
    mesh: Mesh,
    example: Callable[[int], Any],
    axes: Callable[[int], tuple[int, ...]],
    device_data,
    keys,
    mode: str,
    compiling: Callable = contextlib.nullcontext,
  ):
    self.target = target
    self._init, self._step, self._mesh, self._mode = init, step, mesh, mode
    self._example, self._axes = example, axes
    self._device_data, self._keys = device_data, keys
    self._compiling, self._calls = compiling, {}

  def initialiser(self) -> Callable:
    """Lowers the initialiser; returns a function that compiles it and returns the state."""
    batch = BatchAxes(self._axes(0)).batch([self._example(0)], self._mesh)
    lowered = compilation.compile_once(self._init, self.target).lower(batch, self._device_data)
    return lambda: lowered.compile()(batch, self._device_data)

  def of(self, done: int, steps: int) -> Callable:
    """The call that does `steps` steps after `done` steps, compiled on first use.

    It takes a state, which is donated, and the host batch of each step; it returns the new state
    and the metrics, which are arrays [steps] if there are several steps.
    """
    key = self._axes(done), steps
    if key not in self._calls:
      with self._compiling():
        self._calls[key] = self._compile(done, steps)
    return self._calls[key]

  def _compile(self, done: int, steps: int) -> Callable:
    axes, mesh = BatchAxes(self._axes(done), steps), self._mesh
    fixed = self._device_data, self._keys
    batch = axes.batch([self._example(done)] * steps, mesh)
    program = compilation.compile_step(
      self._step, mesh, self.target, batch, *fixed, mode=self._mode, axes=axes
    )
    return lambda state, host_batches: program(state, axes.batch(host_batches, mesh), *fixed)
