"""Fully sharded data parallelism: how the state of a run is sharded over devices, and how a net
gathers its parameters while it runs (Rajbhandari et al. 2020, ZeRO, arXiv 1910.02054; Zhao et
al. 2023, PyTorch FSDP, arXiv 2304.11277).

Parameters, optimiser state and moving averages are sharded over the devices of the mesh axis
`fsdp`. A net all-gathers a parameter where it uses it; the gradient is reduce-scattered, that is,
each device keeps its shard of the sum over devices. The optimiser works on shards only.
"""

import jax
from jax.sharding import PartitionSpec

AXIS = 'fsdp'


def spec(shape, parts: int) -> PartitionSpec:
  """How an array of this shape is sharded over `parts` devices: along its first or its last axis,
  the larger of those that are divisible by their number (ties: the last axis, output channels);
  replicated if none is.
  """
  # Not along others: convolutions of images [n, h, w, c] divided along w, as examples kept in a
  # state, are wrong on a mesh of two axes (XLA's partitioner in jax 0.10.2).
  ends = {0, len(shape) - 1} if shape else ()
  axes = [i for i in ends if shape[i] and shape[i] % parts == 0]
  if parts == 1 or not axes:
    return PartitionSpec()
  chosen = max(axes, key=lambda i: (shape[i], i))
  return PartitionSpec(*(AXIS if i == chosen else None for i in range(len(shape))))


def replicated(tree):
  """The arrays of a tree, each gathered from the devices that hold its shards; the gradient is
  sharded again. Where no mesh with an axis `fsdp` is set (`jax.set_mesh`), the tree unchanged.
  """
  parts = jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)
  return tree if parts == 1 else jax.tree.map(_gather, tree)


@jax.custom_vjp
def _gather(x):
  # Without the barrier XLA would gather float32 and convert to bfloat16 later: twice the traffic.
  x = jax.lax.optimization_barrier(x)
  return jax.lax.with_sharding_constraint(x, PartitionSpec())


def _split(_, gradient):
  parts = jax.sharding.get_abstract_mesh().shape[AXIS]
  return (jax.lax.with_sharding_constraint(gradient, spec(gradient.shape, parts)),)


_gather.defvjp(lambda x: (_gather(x), None), _split)
