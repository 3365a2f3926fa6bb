"""Latents: paths between them, arithmetic, truncation."""

import jax
import numpy as np
import pytest
import scipy.stats

from gen_jax import latent
from gen_jax.errors import UserError
from gen_jax.latent import lerp, slerp


def noise(seed, shape=(3, 4, 4, 1)):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_lerp_is_a_line():
  a, b = noise(0), noise(1)
  np.testing.assert_allclose(lerp(a, b, 0.25), 0.75 * a + 0.25 * b, atol=1e-6)
  assert lerp(a, b, [0, 0.5, 1]).shape == (3, 3, 4, 4, 1)
  np.testing.assert_allclose(lerp(a, b, [0, 0.5, 1])[:, 1], (a + b) / 2, atol=1e-6)


def test_slerp_is_an_arc():
  a, b = np.float32([[2, 0]]), np.float32([[0, 2]])
  angles = np.linspace(0, np.pi / 2, 4)
  arc = 2 * np.stack([np.cos(angles), np.sin(angles)], 1)
  np.testing.assert_allclose(slerp(a, b, np.linspace(0, 1, 4))[0], arc, atol=1e-6)
  # Each pair has an angle of its own.
  both = slerp(np.float32([[1, 0], [1, 0]]), np.float32([[0, 1], [-0.6, 0.8]]), 0.5)
  half = np.arccos(-0.6) / 2
  np.testing.assert_allclose(
    both, [[np.sqrt(0.5), np.sqrt(0.5)], [np.cos(half), np.sin(half)]], atol=1e-6
  )


def test_slerp_keeps_the_length_of_noise():
  a, b = noise(0, (2, 64, 64)), noise(1, (2, 64, 64))
  assert np.std(slerp(a, b, 0.5)) == pytest.approx(1, abs=0.03)
  assert np.std(lerp(a, b, 0.5)) == pytest.approx(np.sqrt(0.5), abs=0.03)


def test_slerp_of_parallel_latents_is_lerp():
  a = noise(0)
  np.testing.assert_allclose(slerp(a, 3 * a, 0.5), 2 * a, rtol=1e-3)
  assert np.isfinite(slerp(a, -a, 0.5)).all() and not np.any(slerp(0 * a, 0 * a, 0.5))


def test_slerp_between_latents_that_are_almost_opposite():
  """The arc cosine of -1 + 1e-8 has no digit left; the arc is half a circle of radius 1."""
  angle = np.pi - 1e-3
  a, b = np.float32([[1, 0]]), np.float32([[np.cos(angle), np.sin(angle)]])
  np.testing.assert_allclose(slerp(a, b, 0.5)[0], [np.cos(angle / 2), np.sin(angle / 2)], atol=2e-4)


def test_a_grid_has_its_corners_and_straight_or_round_edges():
  corners = noise(0, (4, 6))
  for between in (lerp, slerp):
    z = np.asarray(latent.grid(corners, 3, 5, between))
    assert z.shape == (3, 5, 6)
    np.testing.assert_allclose(z[[0, 0, -1, -1], [0, -1, 0, -1]], corners, atol=1e-5)
    np.testing.assert_allclose(z[0, 2], between(corners[:1], corners[1:2], 0.5)[0], atol=1e-5)
  middle = latent.grid(corners, 3, 5, lerp)[1, 2]
  np.testing.assert_allclose(middle, corners.mean(0), atol=1e-5)


def test_means_and_directions():
  z = np.float32([[1, 0], [3, 0], [0, 5], [0, 7]])
  means = latent.class_means(z, [4, 4, 9, 9])
  assert set(means) == {4, 9}
  np.testing.assert_array_equal(means[4], [2, 0])
  np.testing.assert_array_equal(means[9], [0, 6])
  np.testing.assert_array_equal(latent.direction(z, [True, True, False, False]), [2, -6])


def test_truncation_draws_again_and_does_not_clip():
  z = np.asarray(latent.truncated_normal(jax.random.key(0), (20_000,), 0.7))
  assert np.abs(z).max() < 0.7
  expected = scipy.stats.truncnorm(-0.7, 0.7)
  assert scipy.stats.kstest(z, expected.cdf).pvalue > 1e-3
  assert scipy.stats.kstest(np.clip(z / z.std(), -0.7, 0.7), expected.cdf).pvalue < 1e-3


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: slerp(noise(0), noise(0)[:2], 0.5), r'latents \(3, 4, 4, 1\) and \(2, 4, 4, 1\)'),
    (lambda: latent.grid(noise(0), 3, 3), 'from 3 corners: four corners'),
    (lambda: latent.grid(noise(0, (4, 2)), 1, 3), '1 x 3 latents'),
    (lambda: latent.class_means(noise(0), [1]), 'one label each'),
    (lambda: latent.direction(noise(0), [True] * 3), 'all 3 latents are with the attribute'),
    (lambda: latent.truncated_normal(jax.random.key(0), (2,), -1), 'truncation=-1: a number above'),
  ],
)
def test_a_user_error_is_one_line(call, message):
  with pytest.raises(UserError, match=message) as caught:
    call()
  assert '\n' not in str(caught.value)
