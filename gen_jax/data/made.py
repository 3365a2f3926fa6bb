"""Images x made of images y, for pairs from any set of images (`config.data.x_from`).

    sobel   1 - |grad y| / max |grad y|: dark where the luminance changes (Sobel's operator)
    edges   black lines, one pixel wide, on white (Canny 1986, A computational approach to edge
            detection): smoothing, gradient, its local maxima, and hysteresis between two thresholds
    grey    the luminance, 0.299 R + 0.587 G + 0.114 B
    mask    y with a hole of mid grey: a box, or strokes
    small   means of squares of `data.x.factor` pixels a side, enlarged again (bicubic)

All are functions of levels, 0 to 255, and give levels, as an image file would: a translation of a
file that was saved is the translation of x itself. They run inside the compiled step.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import domains

NUM_UNIFORMS = 16  # random numbers for an image
HOLE = 128  # level
# Of the largest gradient of the image.
_HIGH, _LOW = 0.25, 0.1
_STROKES = 5  # segments of the line, through one more point


def make_x(y, uniforms, config) -> jax.Array:
  """x of images y.

  Args:
    y: levels [..., h, w, c], uint8 or integers in a float array.
    uniforms: in [0, 1), [..., NUM_UNIFORMS]; 'mask' draws its holes from them.
    config: the whole config.

  Returns:
    Levels float32 [..., *domains.x_shape(config)].
  """
  data, y = config.data, jnp.asarray(y).astype(jnp.float32)
  if data.x_from == 'mask':
    form = {'box': _box, 'strokes': _strokes}[data.x.mask]
    hole = functools.partial(form, h=y.shape[-3], w=y.shape[-2])
    for _ in range(y.ndim - 3):
      hole = jax.vmap(hole)
    return jnp.where(hole(uniforms)[..., None], jnp.float32(HOLE), y)
  if data.x_from == 'small':
    return _small(y, data.x.factor, domains.x_shape(config))
  grey = luminance(y)
  if data.x_from == 'sobel':
    grey = 255 * (1 - _relative(jnp.hypot(*_gradient(grey))))
  elif data.x_from == 'edges':
    grey = jnp.where(canny(grey), 0.0, 255.0)
  return jnp.repeat(jnp.rint(grey)[..., None], domains.x_shape(config)[2], axis=-1)


def uniforms(rows) -> np.ndarray:
  """The random numbers of held-out examples, by row of the split: float32 [n, NUM_UNIFORMS]."""
  words = [np.random.Philox(key=int(row)).random_raw(NUM_UNIFORMS) for row in rows]
  return ((np.array(words, np.uint64) >> np.uint64(40)) / 2.0**24).astype(np.float32)


def luminance(y) -> jax.Array:
  """[..., h, w, c] with 1, 3 or 4 channels -> [..., h, w]; alpha is ignored."""
  if y.shape[-1] == 1:
    return y[..., 0]
  return 0.299 * y[..., 0] + 0.587 * y[..., 1] + 0.114 * y[..., 2]


def canny(grey) -> jax.Array:
  """Whether a pixel is on an edge: [..., h, w] -> bool [..., h, w].

  The thresholds are shares of the largest gradient of the image.
  """
  dy, dx = _gradient(_smooth(grey))
  size = _relative(jnp.hypot(dy, dx))
  # The neighbours across the edge, by the direction of the gradient in steps of 45 degrees.
  steep, flat = jnp.abs(dy) > 2.4142 * jnp.abs(dx), jnp.abs(dx) > 2.4142 * jnp.abs(dy)
  rising = dy * dx > 0
  around = functools.partial(_moved, size, mode='constant')

  def pick(at):
    one, other = (1, 1), (1, -1)
    sides = [(1, 0), (0, 1), one, other]
    up, across, diagonal, anti = (around(at * i, at * j) for i, j in sides)
    return jnp.where(steep, up, jnp.where(flat, across, jnp.where(rising, diagonal, anti)))

  # Of two equal neighbours one is kept.
  thin = (size >= pick(1)) & (size > pick(-1))
  strong, weak = thin & (size >= _HIGH), thin & (size >= _LOW)

  def grow(edges):
    shifts = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    near = functools.reduce(jnp.logical_or, (_moved(edges, *s, mode='constant') for s in shifts))
    return near & weak

  def unfinished(pair):
    before, after = pair
    return (before != after).any()

  return jax.lax.while_loop(
    unfinished, lambda pair: (pair[1], grow(pair[1])), (strong, grow(strong))
  )[1]


def _moved(x, i: int, j: int, mode: str) -> jax.Array:
  """[..., h, w] whose pixel (y, x) is that of `x` at (y + i, x + j)."""
  h, w = x.shape[-2:]
  padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 1), (1, 1)], mode=mode)
  return padded[..., 1 + i : 1 + i + h, 1 + j : 1 + j + w]


def _smooth(x) -> jax.Array:
  """Weights 1/4, 1/2, 1/4 along both axes, twice: nearly a Gaussian of variance 1."""
  for axis in ((1, 0), (0, 1)) * 2:
    sides = (_moved(x, sign * axis[0], sign * axis[1], mode='edge') for sign in (-1, 1))
    x = 0.5 * x + 0.25 * sum(sides)
  return x


def _gradient(x) -> tuple[jax.Array, jax.Array]:
  """Sobel's derivatives along the height and the width; edges are repeated."""
  at = functools.partial(_moved, x, mode='edge')
  dy = sum(weight * (at(1, j) - at(-1, j)) for j, weight in ((-1, 1), (0, 2), (1, 1)))
  dx = sum(weight * (at(i, 1) - at(i, -1)) for i, weight in ((-1, 1), (0, 2), (1, 1)))
  return dy, dx


def _relative(size) -> jax.Array:
  """A gradient in units of the largest one of its image; one below a level is 0."""
  largest = size.max((-2, -1), keepdims=True)
  return jnp.where(largest < 1, 0.0, size / jnp.maximum(largest, 1))


def _box(u, h: int, w: int) -> jax.Array:
  """A box of a quarter to half of each side, anywhere inside: u [16] -> bool [h, w]."""
  high, wide = ((0.25 + 0.25 * u[i]) * side for i, side in ((0, h), (1, w)))
  top, left = u[2] * (h - high), u[3] * (w - wide)
  y, x = jnp.arange(h)[:, None] + 0.5, jnp.arange(w)[None, :] + 0.5
  return (top <= y) & (y < top + high) & (left <= x) & (x < left + wide)


def _strokes(u, h: int, w: int) -> jax.Array:
  """A line through six points anywhere, its width 1/16 to 1/8 of the smaller side: u [16] ->
  bool [h, w].
  """
  y, x = jnp.arange(h)[:, None] + 0.5, jnp.arange(w)[None, :] + 0.5
  radius = (1 + u[12]) * min(h, w) / 32
  hole = False
  for i in range(_STROKES):
    ay, ax, by, bx = (u[2 * i + k] * (h, w)[k % 2] for k in range(4))
    dy, dx = by - ay, bx - ax
    along = ((y - ay) * dy + (x - ax) * dx) / jnp.maximum(dy**2 + dx**2, 1e-6)
    along = jnp.clip(along, 0, 1)
    distance = jnp.hypot(y - ay - along * dy, x - ax - along * dx)
    hole |= distance <= jnp.maximum(radius, 0.5)
  return hole


def _small(y, factor: int, shape) -> jax.Array:
  """Means of squares of pixels, enlarged to `shape` where that is larger."""
  *leading, h, w, c = y.shape
  small = jnp.rint(y.reshape(*leading, h // factor, factor, w // factor, factor, c).mean((-4, -2)))
  if tuple(shape) == small.shape[-3:]:
    return small
  return jnp.clip(jnp.rint(jax.image.resize(small, (*leading, *shape), 'cubic')), 0, 255)
