"""The compiled programs of a training run."""

import contextlib
from collections.abc import Callable

from jax.sharding import Mesh

from gen_jax.devices import compilation
from gen_jax.devices.sharding import BatchAxes


class Programs:
  """The initialiser, and a call for each number of steps (few, most often one).

  Args:
    init: `init(host_batch, device_data) -> state`.
    step: `step(state, host_batch, device_data, keys, *, axis_name) -> (state, metrics)`.
    target: the abstract state, with shardings.
    mesh: where they run.
    example: a batch of one step, as the host has it: a tree of arrays [*axes, ...].
    axes: its leading axes, (rows,) or (minibatches, rows); rows of all devices.
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
    example,
    axes: tuple[int, ...],
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
    batch = BatchAxes(self._axes).batch([self._example], self._mesh)
    lowered = compilation.compile_once(self._init, self.target).lower(batch, self._device_data)
    return lambda: lowered.compile()(batch, self._device_data)

  def of(self, steps: int) -> Callable:
    """The call of so many steps, compiled when it is first asked for.

    It takes a state, which is donated, and the batch of each step as the host has it; it returns
    the new state and the metrics, which are arrays [steps] if there are several steps.
    """
    if steps not in self._calls:
      with self._compiling():
        self._calls[steps] = self._compile(steps)
    return self._calls[steps]

  def _compile(self, steps: int) -> Callable:
    axes, mesh, fixed = BatchAxes(self._axes, steps), self._mesh, (self._device_data, self._keys)
    batch = axes.batch([self._example] * steps, mesh)
    program = compilation.compile_step(
      self._step, mesh, self.target, batch, *fixed, mode=self._mode, axes=axes
    )
    return lambda state, host_batches: program(state, axes.batch(host_batches, mesh), *fixed)
