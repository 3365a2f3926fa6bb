"""The mesh of devices, and how arrays are sharded over it."""

import functools
import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gen_jax import config as configs
from gen_jax.devices import fsdp

AXIS = 'data'  # of the devices that hold the same state


def make_mesh(config) -> Mesh:
  """A mesh with the axes `data` and `fsdp` of config.parallel, over as many devices as their
  product.

  Raises:
    UserError: there are fewer devices, or they do not divide by config.parallel.fsdp.
  """
  devices = jax.devices()
  shape = configs.mesh_shape(config, len(devices))
  return jax.make_mesh(
    shape,
    (AXIS, fsdp.AXIS),
    devices=devices[: math.prod(shape)],
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )


def mesh_of_all(config) -> Mesh:
  """A mesh of all devices there are, whatever config.parallel.data says, with as many of
  config.parallel.fsdp as divide them: for what a run's training is not asked, such as sampling.
  """
  parts = math.gcd(config.parallel.fsdp, jax.device_count())
  return make_mesh(configs.replace(config, {'parallel.data': None, 'parallel.fsdp': parts}))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
  """The batch axis, which comes after `leading` axes of steps and minibatches, is spread over the
  devices of both axes.
  """
  return NamedSharding(mesh, PartitionSpec(*(None,) * leading, (AXIS, fsdp.AXIS)))


def own_rows(mesh: Mesh, batch: int) -> np.ndarray | None:
  """The rows of a batch that lie on devices of this process, ascending; None: all of them."""
  if jax.process_count() == 1:
    return None
  slices = by_rows(mesh).addressable_devices_indices_map((batch,)).values()
  return np.unique(np.concatenate([np.arange(batch)[rows] for (rows,) in slices]))


def shard_batch(host_batch, mesh: Mesh, shape: tuple[int, ...]):
  """What the host feeds, as a step takes it.

  Args:
    host_batch: host arrays; of several processes, each has its `own_rows`.
    mesh: where the step runs.
    shape: leading axes of the whole batch: (steps, minibatches, rows) or the last of them.
  """
  if jax.process_count() == 1:
    return host_batch
  sharding = by_rows(mesh, leading=len(shape) - 1)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x, shape + x.shape[len(shape) :]),
    host_batch,
  )


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
  """The shapes and dtypes of a state with where its leaves lie, by the rule of `fsdp.spec`."""

  def place(leaf):
    sharding = NamedSharding(mesh, fsdp.spec(leaf.shape, mesh.shape[fsdp.AXIS]))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree.map(place, state)
