"""Paths between latents: those that `Run.encode` gives and `Run.decode` turns into images."""

import jax
import jax.numpy as jnp


def lerp(a, b, t) -> jax.Array:
  """The straight line from a to b, (1 - t) a + t b.

  Args:
    a: latents, float [n, ...].
    b: latents of the same shape.
    t: a number, or [m] of them; 0 is a, 1 is b.

  Returns:
    float32 [n, ...], or [n, m, ...] for several t.
  """
  return _between(a, b, t, lambda t, angle: (1 - t, t))


def slerp(a, b, t) -> jax.Array:
  """The arc from a to b in the plane of both, at constant angular speed (Shoemake 1985, Animating
  rotation with quaternion curves; for encodings: Song, Meng and Ermon 2020, appendix D.5):

    sin((1 - t) angle) / sin(angle) a + sin(t angle) / sin(angle) b

  Between two draws of Gaussian noise in many dimensions all points have the length of noise; those
  of `lerp` are shorter. Where a and b are parallel it is `lerp`. Arguments and result as there.
  """

  def weights(t, angle):
    sin = jnp.sin(angle)
    arc = sin > 1e-4
    safe = jnp.where(arc, sin, 1.0)
    a, b = jnp.sin((1 - t) * angle) / safe, jnp.sin(t * angle) / safe
    return jnp.where(arc, a, 1 - t), jnp.where(arc, b, t)

  return _between(a, b, t, weights)


def _between(a, b, t, weights) -> jax.Array:
  a, b, t = (jnp.asarray(x, jnp.float32) for x in (a, b, t))
  n, shape = len(a), a.shape[1:]
  a, b = a.reshape(n, 1, -1), b.reshape(n, 1, -1)
  lengths = jnp.linalg.norm(a, axis=2) * jnp.linalg.norm(b, axis=2)
  cosine = jnp.sum(a * b, 2) / jnp.maximum(lengths, 1e-30)
  angle = jnp.arccos(jnp.clip(cosine, -1, 1))[..., None]
  u, v = weights(t.reshape(1, -1, 1), angle)
  return (u * a + v * b).reshape(n, *t.shape, *shape)
