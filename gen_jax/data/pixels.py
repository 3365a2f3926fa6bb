"""From 8-bit images to [-1, 1] and back, as `config.data.dequantize` says.

    none      level v is at v / 127.5 - 1: bins of width 2 / 255, from -1 - 1/255 to 1 + 1/255
    uniform   v is anywhere in [2 v / 256 - 1, 2 (v + 1) / 256 - 1): bins of width 2 / 256

Training, evaluation and everything that writes images use these two functions; likelihoods use the
bins (`gen_jax.diffusion.bound.BIN_WIDTH`).
"""

import jax
import jax.numpy as jnp
import numpy as np


def from_pixels(images, dequantize: str, noise=None) -> jax.Array:
  """Levels 0 to 255 of any shape -> float32 in [-1, 1].

  Args:
    images: uint8, or integers in a float array.
    dequantize: 'none' or 'uniform'.
    noise: for 'uniform', values in [0, 1], of the shape of `images`; None: the centres of the bins.
  """
  x = jnp.asarray(images).astype(jnp.float32)
  if dequantize == 'none':
    return (x - 127.5) / 127.5  # x / 127.5 - 1 gives 1 + 1e-7: XLA multiplies by the reciprocal.
  if noise is None:
    noise = 0.5
  # With larger noise, float32 rounds 255 + noise, and other sums, up to the next level.
  return 2 * (x + jnp.minimum(noise, 1 - 2**-16)) / 256 - 1


def to_pixels(images, dequantize: str) -> np.ndarray:
  """The levels whose bins contain the float values: uint8 of the same shape. Other values are
  clipped.

  Raises:
    ValueError: a value is NaN.
  """
  images = np.asarray(images, np.float64)
  if bad := int(np.isnan(images).sum()):
    raise ValueError(f'{bad} of {images.size} values are NaN')
  # A bin contains its lower edge: a half is rounded up.
  levels = (images + 1) * 128 if dequantize == 'uniform' else images * 127.5 + 128
  return np.floor(np.clip(levels, 0, 255)).astype(np.uint8)
