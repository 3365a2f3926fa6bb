"""PSNR and SSIM of images in closed form."""

import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.ops import similarity


def draw(*shape, seed=0):
  return np.tanh(np.float32(np.random.default_rng(seed).standard_normal(shape)))


def test_psnr_in_closed_form():
  x = jnp.zeros((3, 8, 8, 2))
  # A difference of a tenth of the range everywhere: 20 dB; in one of 128 values: 128 times less.
  y = jnp.stack([x[0] + 0.2, x[0].at[0, 0, 0].set(0.2), x[0]])
  want = [20, 20 + 10 * np.log10(128), 100]
  np.testing.assert_allclose(similarity.psnr(x, y), want, rtol=1e-5)


def test_ssim_of_constant_images_is_the_term_of_luminance():
  a, b = 0.6, -0.2
  x = jnp.full((1, 16, 12, 3), a)
  p, q, c1 = (a + 1) / 2, (b + 1) / 2, 0.01**2
  want = (2 * p * q + c1) / (p**2 + q**2 + c1)
  found = similarity.ssim(x, jnp.full_like(x, b))
  np.testing.assert_allclose(found, want, rtol=1e-4)


def test_ssim_is_the_definition_in_every_window():
  """By the weighted moments of each 11x11 window, one at a time."""
  x, y = draw(1, 14, 13, 2), 0.5 * draw(1, 14, 13, 2) + 0.3 * draw(1, 14, 13, 2, seed=1)
  line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
  weights = np.outer(line, line) / line.sum() ** 2
  values = []
  for c in range(2):
    for i in range(14 - 10):
      for j in range(13 - 10):
        a, b = (np.float64(z[0, i : i + 11, j : j + 11, c] + 1) / 2 for z in (x, y))
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        cov = (weights * (a - mean_a) * (b - mean_b)).sum()
        top = (2 * mean_a * mean_b + 0.0001) * (2 * cov + 0.0009)
        values.append(top / ((mean_a**2 + mean_b**2 + 0.0001) * (var_a + var_b + 0.0009)))
  assert float(similarity.ssim(x, y)[0]) == pytest.approx(np.mean(values), abs=1e-5)


@pytest.mark.parametrize('size', [(16, 16), (8, 8), (3, 30)])
def test_equal_images_are_alike_and_opposite_ones_are_not(size):
  x = draw(2, *size, 1)
  np.testing.assert_allclose(similarity.ssim(x, x), 1, atol=1e-5)
  assert (similarity.ssim(x, -x) < 0.2).all()
  mixed = similarity.ssim(x, x + 0.2 * draw(2, *size, 1, seed=1))
  assert ((mixed > 0.5) & (mixed < 1)).all()


@pytest.mark.parametrize(
  ('channels', 'ssim', 'psnr'), [(1, 0.7477434, 14.9114841), (3, 0.7434125, 14.7662280)]
)
def test_the_numbers_of_scikit_image(channels, ssim, psnr):
  """skimage.metrics of scikit-image 0.26.0 on these images in [0, 1]: structural_similarity with
  data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False.
  """
  x, noise = (draw(24, 19, channels, seed=seed) for seed in (0, 1))
  y = 0.5 * x + 0.3 * noise
  assert float(similarity.ssim(x[None], y[None])[0]) == pytest.approx(ssim, abs=1e-5)
  assert float(similarity.psnr(x[None], y[None])[0]) == pytest.approx(psnr, abs=1e-4)
