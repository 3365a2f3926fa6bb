"""Interpolation between encodings."""

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.diffusion.encoding import slerp


def test_slerp_turns_by_a_share_of_the_angle():
  a, b = jnp.array([[2.0, 0.0], [1.0, 0.0]]), jnp.array([[0.0, 2.0], [0.5, 0.75**0.5]])
  # Rows at 90 and 60 degrees; a third of the way is 30 and 20 degrees.
  angle = np.deg2rad([30, 20])
  wanted = np.array([[2.0], [1.0]]) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
  np.testing.assert_allclose(slerp(a, b, 1 / 3), wanted, atol=1e-6)


def test_slerp_starts_and_ends_at_the_two_and_keeps_the_length_of_images():
  a, b = jax.random.normal(jax.random.key(0), (2, 3, 16, 16, 1))
  np.testing.assert_allclose(slerp(a, b, 0.0), a, atol=1e-5)
  np.testing.assert_allclose(slerp(a, b, 1.0), b, atol=1e-5)
  lengths = jnp.sqrt(jnp.sum(slerp(a, b, 0.5) ** 2, (1, 2, 3)))
  np.testing.assert_allclose(lengths, 16, rtol=0.15)  # of the straight line's middle: 11


def test_slerp_of_parallel_vectors_is_a_straight_line():
  a = jnp.array([[1.0, 2.0, -3.0]])
  np.testing.assert_allclose(slerp(a, a, 0.3), a, rtol=1e-5)
  np.testing.assert_allclose(slerp(a, 3 * a, 0.5), 2 * a, rtol=1e-4)
