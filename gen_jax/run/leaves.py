"""A state as arrays by their paths, which checkpoints and exports hold, and back."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util
from jax.experimental import multihost_utils

from gen_jax.errors import UserError
from gen_jax.run.manifest import Manifest


def _flatten(state) -> dict:
  # A None or an empty node holds no array but is part of the structure.
  return traverse_util.flatten_dict(serialization.to_state_dict(state), keep_empty_nodes=True)


def state_leaves(state) -> dict:
  """`{path: array}` with paths as tuples of strings."""
  found = {}
  for key, leaf in _flatten(state).items():
    if leaf is None or leaf is traverse_util.empty_node:
      continue
    if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
      raise TypeError(f'{"/".join(key)} is a {type(leaf).__name__}; a state is made of arrays')
    found[key] = leaf
  return found


def rebuild(target, arrays: dict):
  """The pytree `target` with these arrays, `{path: array}`, in place of its leaves."""
  nodes = _flatten(target)
  return serialization.from_state_dict(target, traverse_util.unflatten_dict(nodes | arrays))


def has_data(leaf) -> bool:
  # Orbax rejects arrays of size zero; shape and dtype in the manifest determine them.
  return 0 not in leaf.shape


def table(leaves: dict) -> dict[str, tuple[tuple[int, ...], str]]:
  """`Manifest.leaves` of arrays by path, as `state_leaves` gives them."""
  return {'/'.join(key): (tuple(x.shape), str(x.dtype)) for key, x in leaves.items()}


def shape_text(leaf) -> str:
  """A shape and dtype of `Manifest.leaves` as text: 'float32[3,4]'."""
  shape, dtype = leaf
  return f'{dtype}[{",".join(map(str, shape))}]'


def check_fits(manifest: Manifest, target) -> None:
  """Compares the leaves of a checkpoint with those of `target`, as for `Checkpointer.restore`.

  Raises:
    UserError: a leaf is missing or unexpected, or its shape or dtype differs.
  """
  found, wanted = manifest.leaves, table(state_leaves(target))
  where = f'checkpoint {manifest.path} does not fit this model'
  if missing := sorted(wanted.keys() - found.keys()):
    raise UserError(f'{where}: it lacks {_some(missing)}')
  if extra := sorted(found.keys() - wanted.keys()):
    raise UserError(f'{where}: the model lacks {_some(extra)}')
  for leaf, new in wanted.items():
    if found[leaf] != new:
      raise UserError(
        f'{where}: {leaf} is {shape_text(found[leaf])} in it and {shape_text(new)} in the model'
      )


def _some(names: list[str]) -> str:
  return names[0] if len(names) == 1 else f'{names[0]} and {len(names) - 1} more'


@jax.jit
def _all_finite(arrays: list) -> jax.Array:
  return jnp.stack([jnp.isfinite(x).all() for x in arrays])


def check_finite(leaves: dict) -> None:
  floats = {k: x for k, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
  if not floats:
    return
  for key, finite in zip(floats, np.asarray(_all_finite(list(floats.values()))), strict=True):
    if not finite:
      raise ValueError(f'{"/".join(key)} holds NaN or infinity; such a state is not saved')


def whole(x) -> np.ndarray:
  """An array sharded over several processes, gathered on the host of each."""
  if not isinstance(x, jax.Array):
    return np.array(x)
  if x.is_fully_replicated:
    return np.asarray(x.addressable_data(0))
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def place(x: np.ndarray, spec):
  """Shards an array that every process holds as `spec` says; a numpy array for a numpy spec."""
  if isinstance(spec, np.ndarray):
    return x
  if spec.sharding is None:
    return jnp.asarray(x)
  return jax.make_array_from_callback(x.shape, spec.sharding, lambda index: x[index])
