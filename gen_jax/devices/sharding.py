"""The mesh of devices, and how arrays are sharded over it."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gen_jax import config as configs
from gen_jax.devices import fsdp
from gen_jax.errors import UserError

AXIS = 'data'  # mesh axis over which the state is replicated


def find_devices() -> list[jax.Device]:
  """The devices of all processes.

  Raises:
    UserError: JAX finds none, or the environment forbids compiling.
  """
  if jax.config.jax_disable_jit:
    raise UserError('JAX_DISABLE_JIT is set: gen_jax compiles its steps, so it must be unset')
  try:
    return jax.devices()
  except (RuntimeError, AssertionError) as error:  # an assertion: a platform without a plugin
    asked = jax.config.jax_platforms
    raise UserError(
      f'JAX_PLATFORMS={asked}: JAX finds no such device ({str(error) or "no plugin for it"}); '
      'unset it, or set cpu'
      if asked
      else f'JAX finds no device ({error})'
    ) from error


def make_mesh(config) -> Mesh:
  """A mesh with the axes `data` and `fsdp` of config.parallel, over as many devices as their
  product.

  Raises:
    UserError: there are fewer devices, or their number is not divisible by config.parallel.fsdp.
  """
  devices = find_devices()
  shape = mesh_shape(config, len(devices))
  return jax.make_mesh(
    shape,
    (AXIS, fsdp.AXIS),
    devices=devices[: math.prod(shape)],
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )


def mesh_shape(config, devices: int) -> tuple[int, int]:
  """The sizes of the axes `data` and `fsdp` on `devices`, the number of devices of all processes.

  Raises:
    UserError: there are fewer devices than config.parallel asks for, or their number is not
      divisible by its `fsdp`.
  """
  data, fsdp = config.parallel.data, config.parallel.fsdp
  if (data or 1) * fsdp > devices:
    asked = [f'config.parallel.data={data}'] * (data is not None)
    asked += [f'config.parallel.fsdp={fsdp}'] * (fsdp > 1)
    raise UserError(
      f'{" times ".join(asked)}: there are {devices} devices, and at most that many can be used'
    )
  if data is None and devices % fsdp:
    raise UserError(
      f'config.parallel.fsdp={fsdp} does not divide the {devices} devices: a divisor of '
      f'{devices}, or also a config.parallel.data, is needed'
    )
  return data or devices // fsdp, fsdp


def check_devices(config, devices: int) -> None:
  """Checks that a batch divides evenly over `devices`, the number of devices of all processes.

  Raises:
    UserError: it does not, or a device's share is not divisible by config.train.accumulate;
      config.parallel asks for more devices, or for what pmap cannot do.
  """
  used, batch = math.prod(mesh_shape(config, devices)), config.train.batch_size
  if config.parallel.fsdp > 1 and config.parallel.mode == 'pmap':
    raise UserError(
      f"config.parallel.fsdp={config.parallel.fsdp}: config.parallel.mode='pmap' replicates the "
      "state on every device; 'jit' is needed"
    )
  if batch % used:
    near = [n for n in (batch - batch % used, batch - batch % used + used) if n]
    raise UserError(
      f'config.train.batch_size={batch} is not divisible by the {used} devices that share a batch; '
      f'{" or ".join(map(str, near))} would (or set config.parallel.data)'
    )
  if batch // used % config.train.accumulate:
    raise UserError(
      f'config.train.accumulate={config.train.accumulate} does not divide the {batch // used} '
      f'examples of a device (config.train.batch_size={batch} over {used}): a divisor is needed'
    )


def mesh_of_all(config) -> Mesh:
  """A mesh of all devices, regardless of config.parallel.data, with the largest `fsdp` axis that
  divides both their number and config.parallel.fsdp: for sampling and evaluation, which may run on
  other devices than training.
  """
  parts = math.gcd(config.parallel.fsdp, jax.device_count())
  return make_mesh(configs.replace(config, {'parallel.data': None, 'parallel.fsdp': parts}))


def mesh_of(state) -> Mesh | None:
  """The mesh on which all arrays of a state are; None: they are on none, or on several."""
  meshes = {getattr(leaf.sharding, 'mesh', None) for leaf in jax.tree.leaves(state)}
  return meshes.pop() if len(meshes) == 1 else None


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array of which every device has a copy."""
  return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
  """The sharding of an array whose axis of rows, after `leading` others, is divided over the
  devices of both mesh axes.
  """
  return NamedSharding(mesh, PartitionSpec(*(None,) * leading, (AXIS, fsdp.AXIS)))


def own_rows(mesh: Mesh, batch: int) -> np.ndarray | None:
  """The rows of a batch on devices of this process, ascending; None: all of them."""
  if jax.process_count() == 1:
    return None
  slices = by_rows(mesh).addressable_devices_indices_map((batch,)).values()
  return np.unique(np.concatenate([np.arange(batch)[rows] for (rows,) in slices]))


@dataclasses.dataclass(frozen=True)
class BatchAxes:
  """The leading axes of the batch of a call, before those of an example: [steps, minibatches,
  rows]. Only this class knows their order.

  Attributes:
    step: axes of the batch of one step, (rows,) or (minibatches, rows); rows of all devices.
    steps: number of steps that the call does in sequence; there is no such axis if it is 1.
  """

  step: tuple[int, ...]
  steps: int = 1

  @property
  def shape(self) -> tuple[int, ...]:
    """All of them."""
    return self.step if self.steps == 1 else (self.steps, *self.step)

  @property
  def row_axis(self) -> int:
    """The index of the axis of rows."""
    return len(self.shape) - 1

  def sharding(self, mesh: Mesh) -> NamedSharding:
    """The sharding of such a batch: by rows over both mesh axes."""
    return by_rows(mesh, leading=self.row_axis)

  def batch(self, host_batches: Sequence, mesh: Mesh):
    """The batch of a call: a tree of arrays [*shape, ...].

    Args:
      host_batches: a tree of host arrays for each step; with several processes, each passes its
        `own_rows`.
      mesh: where the call runs.
    """
    batch = host_batches[0]
    if self.steps > 1:
      batch = jax.tree.map(lambda *leaves: np.stack(leaves), *host_batches)
    if jax.process_count() == 1:
      return batch
    sharding, axes = self.sharding(mesh), len(self.shape)
    return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(sharding, x, self.shape + x.shape[axes:]),
      batch,
    )

  def by_device(self, batch, devices: int):
    """Arrays [..., rows, ...] as [..., devices, rows / devices, ...], for `jax.pmap` over the axis
    `rows`.
    """
    axis = self.row_axis

    def split(leaf):
      return leaf.reshape(*leaf.shape[:axis], devices, -1, *leaf.shape[axis + 1 :])

    return jax.tree.map(split, batch)


def put(tree, shardings):
  """`jax.device_put` of arrays that all processes hold; `shardings` may be a prefix of the tree."""
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings)

  def place(sharding, x):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(
        place(sharding, jax.random.key_data(x)), impl=jax.random.key_impl(x)
      )
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

  return jax.tree.map(
    lambda sharding, part: jax.tree.map(functools.partial(place, sharding), part), shardings, tree
  )


def abstract_state(state, mesh: Mesh):
  """The shapes, dtypes and shardings of a state, sharded by `fsdp.spec`."""

  def place(leaf):
    sharding = NamedSharding(mesh, fsdp.spec(leaf.shape, mesh.shape[fsdp.AXIS]))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree.map(place, state)
