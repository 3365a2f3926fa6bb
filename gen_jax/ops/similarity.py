"""How alike two images are: PSNR and SSIM of images in [-1, 1], as of the same images in [0, 1]."""

import jax
import jax.numpy as jnp
import numpy as np

_LEAST = 1e-10  # mean squared error: equal images have 100 dB
_TAPS, _SIGMA = 11, 1.5  # of the window of SSIM
_K1, _K2 = 0.01, 0.03


def psnr(x: jax.Array, y: jax.Array) -> jax.Array:
  """Peak signal-to-noise ratio in dB of each pair of images: [b, h, w, c] -> [b], at most 100."""
  error = jnp.mean(((x - y) / 2) ** 2, axis=(1, 2, 3))
  return -10 * jnp.log10(jnp.maximum(error, _LEAST))


def ssim(x: jax.Array, y: jax.Array) -> jax.Array:
  """Structural similarity of each pair of images (Wang et al. 2004, Image quality assessment: from
  error visibility to structural similarity): [b, h, w, c] -> [b], the mean over positions and
  channels; 1 for equal images.

  The window is a Gaussian of 11 pixels with a standard deviation of 1.5, cut off where the images
  are smaller, and lies inside of the image, everywhere.
  """
  x, y = (x + 1) / 2, (y + 1) / 2
  mean_x, mean_y = _windowed(x), _windowed(y)
  var_x, var_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
  cov = _windowed(x * y) - mean_x * mean_y
  c1, c2 = _K1**2, _K2**2
  luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
  structure = (2 * cov + c2) / (var_x + var_y + c2)
  return jnp.mean(luminance * structure, axis=(1, 2, 3))


def _windowed(x):
  """Means over the window, [b, h, w, c] -> [b, h - n + 1, w - m + 1, c]."""
  for axis in (1, 2):
    n = min(_TAPS, x.shape[axis])
    taps = np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / _SIGMA) ** 2)
    end = x.shape[axis] - n + 1
    x = sum(
      float(tap) * jax.lax.slice_in_dim(x, i, i + end, axis=axis)
      for i, tap in enumerate(taps / taps.sum())
    )
  return x
