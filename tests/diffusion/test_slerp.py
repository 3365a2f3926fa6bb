"""Paths between latents."""

import numpy as np
import pytest

from gen_jax.diffusion.encoding import lerp, slerp


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
