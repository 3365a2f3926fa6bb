"""Synthetic images of any size, for trying a config whose data are not available."""

import numpy as np

from gen_jax.data.sources import ArraySource, check_image_shape, content_hash

NUM_IMAGES = 1024


def shapes(shape) -> ArraySource:
  """Returns 1,024 images uint8 [h, w, c] of a bright disc (label 0) or square (label 1) on black.

  Args:
    shape: (h, w, c), as in config.data.shape.

  Raises:
    UserError: `shape` is not that of an image.
  """
  check_image_shape(tuple(shape))
  h, w, c = shape
  rng = np.random.RandomState(0)  # the only generator whose stream NumPy guarantees across versions
  label = rng.randint(2, size=NUM_IMAGES).astype(np.int32)
  radius = rng.uniform(0.15, 0.35, NUM_IMAGES) * min(h, w)
  y, x = (rng.uniform(0.35, 0.65, NUM_IMAGES) * size for size in (h, w))
  color = rng.randint(128, 256, size=(NUM_IMAGES, 1, 1, c))
  dy = np.abs(np.arange(h)[None, :, None] + 0.5 - y[:, None, None])
  dx = np.abs(np.arange(w)[None, None, :] + 0.5 - x[:, None, None])
  r = radius[:, None, None]
  inside = np.where(label[:, None, None] == 0, dy**2 + dx**2 < r**2, np.maximum(dy, dx) < r)
  image = (inside[..., None] * color).astype(np.uint8)
  content = content_hash(f'shapes {h}x{w}x{c} {NUM_IMAGES} v1'.encode())
  return ArraySource(
    'shapes', {'image': image, 'label': label}, 2, f'shapes/train/{NUM_IMAGES}/{content}'
  )
