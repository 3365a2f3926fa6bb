"""EfficientNet-Lite0 with its real weights against PyTorch's package."""

import jax
import numpy as np
import pytest
from metrics import efficientnet_reference as reference

from gen_jax.errors import UserError
from gen_jax.metrics import efficientnet
from gen_jax.metrics.weights import read_weights


def test_photographs_have_the_features_of_the_package():
  arrays, checksum = read_weights(efficientnet.weights_path())
  assert checksum == efficientnet.SHA256
  params = efficientnet.from_torch(arrays)
  net = efficientnet.EfficientNetLite0()
  found = jax.jit(lambda x: net.apply({'params': params}, x))(reference.photographs())
  expected = np.load(reference.FIXTURE)
  for name in ('pooled', 'logits'):
    error = np.abs(getattr(found, name) - expected[name]).max() / np.abs(expected[name]).max()
    assert error < 2e-5, f'{name}: {error}'
  assert found.logits[1].argmax() == 985  # daisy; the flower is a dahlia, which ImageNet lacks


def test_pictures_of_other_sizes_are_resized():
  grey = np.full((1, 8, 5, 3), 191, np.uint8)
  np.testing.assert_allclose(efficientnet.preprocess(grey), 0.5, atol=1e-6)
  ramp = np.tile(np.arange(0, 224, 4, dtype=np.float32)[None, :, None, None], (1, 1, 56, 3))
  found = 128 * efficientnet.preprocess(ramp)[0, :, 100, 0] + 127
  np.testing.assert_allclose(found[2:-2], np.arange(224)[2:-2] - 1.5, atol=1e-3)  # centres align


def test_other_weights_are_refused():
  arrays, _ = read_weights(efficientnet.weights_path())
  del arrays['_blocks.3._bn1.bias']
  with pytest.raises(UserError, match='lack _blocks.3._bn1.bias'):
    efficientnet.from_torch(arrays)
