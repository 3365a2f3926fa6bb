"""Latents: the paths between them, arithmetic on them, truncation.

Functions of arrays alone. A trained run draws, encodes and decodes latents: `gen_jax.load(...)` has
`latents`, `encode` and `decode`, and `nearest` for the training examples closest to images.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.errors import UserError

# --- Paths --------------------------------------------------------------------------------------


def lerp(a, b, t) -> jax.Array:
  """The straight line from a to b, (1 - t) a + t b.

  Args:
    a: latents, float [n, ...].
    b: latents of the same shape.
    t: a number, or [m] of them; 0 is a, 1 is b.

  Returns:
    float32 [n, ...], or [n, m, ...] for several t.

  Raises:
    UserError: a and b differ in shape.
  """
  return _between(a, b, t, lambda t, angle: (1 - t, t))


def slerp(a, b, t) -> jax.Array:
  """The arc from a to b in the plane of both, at constant angular speed (Shoemake 1985, Animating
  rotation with quaternion curves; for encodings: Song, Meng and Ermon 2020, arXiv 2010.02502,
  appendix D.5; for GANs: White 2016, arXiv 1609.04468):

    sin((1 - t) angle) / sin(angle) a + sin(t angle) / sin(angle) b

  Between two draws of Gaussian noise in many dimensions all points have the length of noise; those
  of `lerp` are shorter. Where a and b are parallel, or opposite, which leaves the plane open, it is
  `lerp`. Arguments and result as there.
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
  if a.shape != b.shape or a.ndim < 2 or t.ndim > 1:
    raise UserError(
      f'latents {a.shape} and {b.shape} at t {t.shape}: [n, ...] twice, and [] or [m], are needed'
    )
  n, shape = len(a), a.shape[1:]
  a, b = a.reshape(n, 1, -1), b.reshape(n, 1, -1)
  unit = [x / jnp.maximum(jnp.linalg.norm(x, axis=2, keepdims=True), 1e-30) for x in (a, b)]
  # Exact for small angles and for those close to pi, where the arc cosine has half of the digits.
  apart, along = (jnp.linalg.norm(unit[0] + sign * unit[1], axis=2) for sign in (-1, 1))
  angle = 2 * jnp.arctan2(apart, along)[..., None]
  u, v = weights(t.reshape(1, -1, 1), angle)
  return (u * a + v * b).reshape(n, *t.shape, *shape)


def grid(corners, rows: int, columns: int, between=slerp) -> jax.Array:
  """Latents over a rectangle: along its left and right edges first, then along each row.

  Args:
    corners: [4, ...]: top left, top right, bottom left, bottom right.
    rows: number of rows, at least 2.
    columns: number of columns, at least 2.
    between: `slerp` or `lerp`.

  Returns:
    float32 [rows, columns, ...].

  Raises:
    UserError: there are not four corners, or fewer than two rows or columns.
  """
  corners = jnp.asarray(corners, jnp.float32)
  if len(corners) != 4 or min(rows, columns) < 2:
    raise UserError(
      f'a grid of {rows} x {columns} latents from {len(corners)} corners: four corners and at '
      'least 2 x 2 are needed'
    )
  left, right = between(corners[:2], corners[2:], jnp.linspace(0, 1, rows))
  return between(left, right, jnp.linspace(0, 1, columns))


# --- Arithmetic ---------------------------------------------------------------------------------


def class_means(z, labels) -> dict[int, np.ndarray]:
  """The mean latent of each class, {label: [...]}, of z [n, ...] and labels int [n].

  Radford et al. 2016 (arXiv 1511.06434, section 6.3.2) compute with such means, those of three
  examples: a mean is closer to the middle of its class than single latents are.
  """
  z, labels = np.asarray(z, np.float32), np.asarray(labels)
  if labels.shape != (len(z),):
    raise UserError(f'{len(z)} latents with labels {labels.shape}: one label each is needed')
  return {int(label): z[labels == label].mean(0) for label in np.unique(labels)}


def direction(z, has) -> np.ndarray:
  """The direction of an attribute [...]: the mean of the latents z [n, ...] that have it, bool [n],
  minus the mean of those that do not. z + direction is z with the attribute.
  """
  means = class_means(z, np.asarray(has, bool))
  if len(means) < 2:
    raise UserError(
      f'all {len(z)} latents are {"with" if 1 in means else "without"} the attribute: both kinds '
      'are needed'
    )
  return means[1] - means[0]


# --- Truncation ---------------------------------------------------------------------------------


def truncated_normal(rng, shape, threshold: float) -> jax.Array:
  """N(0, 1) whose entries beyond +-threshold are drawn again: float32 of `shape` (Brock et al.
  2019, arXiv 1809.11096, section 3.1). Scaling z, or clipping it, gives other distributions.

  Raises:
    UserError: threshold is not above 0.
  """
  if not threshold > 0:
    raise UserError(f'truncation={threshold!r}: a number above 0 is needed')
  return jax.random.truncated_normal(rng, -threshold, threshold, shape)
