"""Our Inception against PyTorch's port, layer by layer, on weights that a seed makes."""

import ast

import jax
import numpy as np
import pytest
from metrics import inception_reference as reference

from gen_jax.errors import UserError
from gen_jax.metrics import inception


@pytest.fixture(scope='module')
def fixture():
  return dict(np.load(reference.FIXTURE))


@pytest.fixture(scope='module')
def weights(fixture):
  shapes = {
    str(name): tuple(ast.literal_eval(str(shape)))
    for name, shape in zip(fixture['names'], fixture['shapes'], strict=True)
  }
  return reference.made_up_weights(shapes)


def test_every_layer_is_that_of_the_port(fixture, weights):
  params = inception.from_torch(weights)
  # The known 23,834,568 of Inception-v3 with 1,000 classes and no auxiliary head; eight classes
  # more, one of batch norm's two vectors left, and no bias at the end.
  count = 23_834_568 + 8 * 2049 - 17_216 - 1008
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
  apply = jax.jit(lambda x: inception.Inception().apply({'params': params}, x, layers=True))
  seen = 0
  for size, pictures in reference.made_up_pictures().items():
    for name, output in apply(pictures).items():
      expected = fixture.get(f'{size}/{name}')
      if expected is None:
        assert size != '32x32', name
        continue
      found = reference.summary(output)
      error = np.abs(found - expected).max() / np.abs(expected).max()
      assert error < 2e-5, f'{size} {name}: {error}'
      seen += 1
  assert seen == len(fixture) - 2


@pytest.mark.parametrize(
  'change, says',
  [
    (lambda w: w.pop('Mixed_6b.branch7x7_2.conv.weight'), 'lack Mixed_6b.branch7x7_2.conv.weight'),
    (lambda w: w.update({'fc.weight': np.zeros((1000, 2048))}), r'fc.weight \(1000, 2048\)'),
    (lambda w: w.update({'AuxLogits.conv0.conv.weight': np.zeros(1)}), 'AuxLogits'),
  ],
)
def test_other_weights_are_refused(weights, change, says):
  changed = dict(weights)
  change(changed)
  with pytest.raises(UserError, match=says):
    inception.from_torch(changed)


def test_the_resize_of_tensorflow_1():
  # 2 -> 4 pixels: read at 0, 0.5, 1, 1.5, the last one beyond the last pixel.
  x = np.array([0.0, 8.0]).reshape(1, 2, 1, 1) * np.ones((1, 2, 2, 1))
  found = inception.resize_as_tensorflow_1(x, 4)
  np.testing.assert_allclose(found[0, :, 0, 0], [0, 4, 8, 8])
