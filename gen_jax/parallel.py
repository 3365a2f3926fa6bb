"""Devices: how many, what lies where, and how a step is compiled for them."""

import functools
import os
from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gen_jax.errors import UserError

AXIS = 'data'


def make_mesh(config) -> Mesh:
  """A mesh with the axis `data` over config.parallel.data devices (None: all).

  Raises:
    UserError: there are fewer devices.
  """
  devices = jax.devices()
  wanted = config.parallel.data or len(devices)
  if wanted > len(devices):
    raise UserError(
      f'config.parallel.data={wanted} but this machine has {len(devices)} {devices[0].platform} '
      f'device(s); at most {len(devices)} is possible'
    )
  return jax.make_mesh(
    (wanted,), (AXIS,), devices=devices[:wanted], axis_types=(jax.sharding.AxisType.Auto,)
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh, *, minibatches: bool = False) -> NamedSharding:
  """The batch axis, the first or, after a minibatch axis, the second,
  is spread over the devices.
  """
  return NamedSharding(mesh, PartitionSpec(None, AXIS) if minibatches else PartitionSpec(AXIS))


def compiler_options(level: int) -> dict | None:
  """Options for `jax.jit` on CPU: how far LLVM optimises, where the user's XLA_FLAGS do not say.

  Level 1 makes a training step as fast as the default, 3, and compiles in two thirds of the time
  (docs/performance.md); level 0 is for what runs once.
  """
  return _on_cpu(xla_backend_optimization_level=level)


@functools.cache
def forward_options() -> dict | None:
  """Options for `jax.jit` on CPU of what takes no gradients, such as a sampler: convolutions by
  Eigen, where XLA's default, YNNPACK, takes up to four times as long (docs/performance.md).
  """
  eigen = _on_cpu(xla_cpu_experimental_ynn_fusion_type='')
  try:
    jax.jit(lambda: 0, compiler_options=eigen).lower().compile()
  except jax.errors.JaxRuntimeError:  # the option is experimental: other releases may lack it
    return compiler_options(1)
  return {**(eigen or {}), **(compiler_options(1) or {})} or None


def _on_cpu(**options) -> dict | None:
  """The options if they are for this backend and the user's XLA_FLAGS do not name them."""
  said = os.environ.get('XLA_FLAGS', '')
  if jax.default_backend() != 'cpu' or any(name in said for name in options):
    return None
  return options


def compile_once(f: Callable, mesh: Mesh) -> Callable:
  """Compiles a function that runs once, such as an initialiser; its result is whole on every
  device.

  On CPU it is compiled quickly rather than well: with full optimisation the random draws of a
  U-Net's parameters take longer to compile than its whole training step.
  """
  return jax.jit(f, out_shardings=replicated(mesh), compiler_options=compiler_options(0))


def compile_step(step: Callable, mesh: Mesh, *args, mode: str, minibatches: bool) -> Callable:
  """Compiles `step(state, fed, resident, rng, *, axis_name) -> (state, metrics)` for the mesh.

  Args:
    step: pure; `state` is donated, `fed` has the global batch, `resident` and `rng` are whole
      everywhere.
    mesh: where to run.
    *args: state, fed, resident and rng, or their shapes and dtypes: what the step is compiled for.
    mode: 'jit', one program on global arrays, or 'pmap', one program per device on its own rows.
    minibatches: leaves of `fed` have a minibatch axis before the batch axis.
  """
  if mode == 'jit':
    whole, rows = replicated(mesh), by_rows(mesh, minibatches=minibatches)
    jitted = jax.jit(
      functools.partial(step, axis_name=None),
      in_shardings=(whole, rows, whole, whole),
      out_shardings=whole,
      donate_argnums=0,
      compiler_options=compiler_options(1),
    )
    return jitted.lower(*args).compile()

  axis = 1 if minibatches else 0
  devices = mesh.size
  mapped = jax.pmap(
    functools.partial(step, axis_name=AXIS),
    axis_name=AXIS,
    in_axes=(None, axis, None, None),
    out_axes=(None, None),
    devices=list(mesh.devices.flat),
  )

  def split(state, fed, resident, rng):
    def by_device(leaf):
      rows = leaf.shape[axis] // devices
      return leaf.reshape(*leaf.shape[:axis], devices, rows, *leaf.shape[axis + 1 :])

    return state, jax.tree.map(by_device, fed), resident, rng

  compiled = mapped.lower(*split(*args)).compile()
  return lambda *args: compiled(*split(*args))
