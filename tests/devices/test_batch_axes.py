"""The leading axes of a batch, [steps, minibatches, rows]; nothing here is compiled."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gen_jax.devices.sharding import BatchAxes

ROWS = ('data', 'fsdp')
CASES = [  # axes of a step, steps, all axes, how they are sharded
  ((4,), 1, (4,), (ROWS,)),
  ((4,), 3, (3, 4), (None, ROWS)),
  ((2, 4), 1, (2, 4), (None, ROWS)),
  ((2, 4), 3, (3, 2, 4), (None, None, ROWS)),
]


def host_batch(step, shape):
  """Examples of two values, which say step, minibatch and row in decimal digits."""
  number = sum(10**i * index for i, index in enumerate(reversed(np.indices(shape))))
  return {'index': 100 * step + number, 'image': np.stack([100 * step + number] * 2, -1)}


@pytest.mark.parametrize('step, steps, shape, spec', CASES)
def test_order_and_sharding(step, steps, shape, spec):
  axes = BatchAxes(step, steps)
  assert axes.shape == shape and axes.shape[axes.row_axis] == 4
  mesh = jax.sharding.AbstractMesh((2, 2), ROWS)
  assert axes.sharding(mesh).spec == PartitionSpec(*spec)


@pytest.mark.parametrize('step, steps, shape, spec', CASES)
def test_the_batch_of_a_call_holds_those_of_its_steps_in_order(step, steps, shape, spec):
  batch = BatchAxes(step, steps).batch([host_batch(i, step) for i in range(steps)], mesh=None)
  assert batch['index'].shape == shape and batch['image'].shape == (*shape, 2)
  for i in range(steps):
    part = batch if steps == 1 else jax.tree.map(lambda leaf, i=i: leaf[i], batch)
    jax.tree.map(np.testing.assert_array_equal, part, host_batch(i, step))


def test_a_device_has_rows_that_follow_one_another_of_every_step_and_minibatch():
  axes = BatchAxes((2, 4), 3)
  split = axes.by_device(axes.batch([host_batch(i, (2, 4)) for i in range(3)], None), devices=2)
  assert split['index'].shape == (3, 2, 2, 2) and split['image'].shape == (3, 2, 2, 2, 2)
  # [steps, minibatches, devices, rows of a device]: step 2, minibatch 1, device 1.
  assert split['index'][2, 1, 1].tolist() == [212, 213]
  assert split['image'][2, 1, 0].tolist() == [[210, 210], [211, 211]]
