"""Fully sharded data parallelism: what the state of a run is spread over devices by, and how a net
gets its parameters whole while it runs (Rajbhandari et al. 2020, ZeRO, arXiv 1910.02054; Zhao et
al. 2023, PyTorch FSDP, arXiv 2304.11277).

Parameters, optimiser state and moving averages lie in parts on the devices of the mesh axis `fsdp`.
A net gathers a parameter where it uses it, and the gradient of that is again a part: the sum over
the devices, of which each keeps its own share. The optimiser sees parts only.
"""

import jax
from jax.sharding import PartitionSpec

AXIS = 'fsdp'


def spec(shape, parts: int) -> PartitionSpec:
  """How an array of this shape is spread over `parts` devices: along its largest axis that divides
  by them (of equals the last: output channels), or not at all if none does.
  """
  axes = [i for i, n in enumerate(shape) if n and n % parts == 0]
  if parts == 1 or not axes:
    return PartitionSpec()
  chosen = max(axes, key=lambda i: (shape[i], i))
  return PartitionSpec(*(AXIS if i == chosen else None for i in range(len(shape))))


def replicated(tree):
  """The arrays of a tree, each gathered from the devices that hold parts of it; the gradient comes
  back in parts. Where no mesh with an axis `fsdp` is set (`jax.set_mesh`), the tree as it is.
  """
  parts = jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)
  return tree if parts == 1 else jax.tree.map(_gather, tree)


@jax.custom_vjp
def _gather(x):
  # A barrier, as XLA would gather float32 and convert to bfloat16 after that: twice the traffic.
  x = jax.lax.optimization_barrier(x)
  return jax.lax.with_sharding_constraint(x, PartitionSpec())


def _split(_, gradient):
  parts = jax.sharding.get_abstract_mesh().shape[AXIS]
  return (jax.lax.with_sharding_constraint(gradient, spec(gradient.shape, parts)),)


_gather.defvjp(lambda x: (_gather(x), None), _split)
