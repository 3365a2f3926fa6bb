"""Images x made of images y, for pairs from any set of images (`config.data.x_from`).

    sobel   1 - |grad y| / max |grad y|: dark where the luminance changes (Sobel's operator)
    edges   black lines, one pixel wide, on white (Canny 1986, A computational approach to edge
            detection): smoothing, gradient, its local maxima, and hysteresis between two thresholds
    grey    the luminance, 0.299 R + 0.587 G + 0.114 B
    mask    y with a hole of mid grey: a box, or strokes
    small   means of squares of `data.x.factor` pixels a side, enlarged again (bicubic)

All are functions of levels, 0 to 255, and give levels, as an image file would: a translation of a
file that was saved is the translation of x itself. They run inside the compiled step, mostly in
integers, so that the same levels come out of every program.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import domains

NUM_UNIFORMS = 16  # random numbers for an image
HOLE = 128  # level
_HIGH, _LOW = 4, 10  # thresholds of edges: a fourth and a tenth of the largest gradient
_STROKES = 5  # segments of the line, through one more point


def make_x(y, uniforms, config) -> jax.Array:
  """x of images y.

  Args:
    y: levels [..., h, w, c], uint8.
    uniforms: in [0, 1), [..., NUM_UNIFORMS]; 'mask' draws its holes from them.
    config: the whole config.

  Returns:
    Levels float32 [..., *domains.x_shape(config)].
  """
  data, y = config.data, jnp.asarray(y).astype(jnp.int32)
  if data.x_from == 'mask':
    form = {'box': _box, 'strokes': _strokes}[data.x.mask]
    hole = functools.partial(form, h=y.shape[-3], w=y.shape[-2])
    for _ in range(y.ndim - 3):
      hole = jax.vmap(hole)
    x = jnp.where(hole(uniforms)[..., None], HOLE, y)
  elif data.x_from == 'small':
    x = _small(y, data.x.factor, domains.x_shape(config))
  else:
    x = {'grey': lambda grey: grey, 'sobel': _sobel, 'edges': _edges}[data.x_from](luminance(y))
    x = jnp.repeat(x[..., None], domains.x_shape(config)[2], axis=-1)
  return x.astype(jnp.float32)


def uniforms(rows) -> np.ndarray:
  """The random numbers of held-out examples, by row of the split: float32 [n, NUM_UNIFORMS]."""
  words = [np.random.Philox(key=int(row)).random_raw(NUM_UNIFORMS) for row in rows]
  return ((np.array(words, np.uint64) >> np.uint64(40)) / 2.0**24).astype(np.float32)


def luminance(y) -> jax.Array:
  """int32 [..., h, w, c] with 1, 3 or 4 channels -> int32 [..., h, w]; alpha is ignored."""
  if y.shape[-1] == 1:
    return y[..., 0]
  return (299 * y[..., 0] + 587 * y[..., 1] + 114 * y[..., 2] + 500) // 1000


def _sobel(grey) -> jax.Array:
  """int32 [..., h, w] -> levels float32 [..., h, w]; a constant image becomes white."""
  dy, dx = _gradient(grey)
  square = dy**2 + dx**2
  largest = square.max((-2, -1), keepdims=True)
  return jnp.rint(255 - 255 * jnp.sqrt(square / jnp.maximum(largest, 1)))


def _edges(grey) -> jax.Array:
  """int32 [..., h, w] -> levels int32 [..., h, w].

  The size of a gradient is |dy| + |dx|, the thresholds are shares of the largest one of the image.
  """
  dy, dx = map(jnp.abs, gradient := _gradient(_smooth(grey)))
  size = dy + dx
  largest = size.max((-2, -1), keepdims=True)

  def beyond(sign):
    """The size one pixel further in the direction of the gradient, in steps of 45 degrees."""
    vertical, horizontal, diagonal, other = (
      _moved(size, sign * i, sign * j, mode='constant')
      for i, j in ((1, 0), (0, 1), (1, 1), (1, -1))
    )
    steep, flat = 5 * dy > 12 * dx, 5 * dx > 12 * dy  # tan(67.5 degrees) = 2.41
    falling = (gradient[0] > 0) == (gradient[1] > 0)
    return jnp.select([steep, flat, falling], [vertical, horizontal, diagonal], other)

  thin = (size >= beyond(1)) & (size > beyond(-1))  # of two equal neighbours one is kept
  strong, weak = thin & (_HIGH * size >= largest), thin & (_LOW * size >= largest)

  def grow(edges):
    around = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return weak & functools.reduce(
      jnp.logical_or, (_moved(edges, i, j, mode='constant') for i, j in around)
    )

  _, edges = jax.lax.while_loop(
    lambda last_two: (last_two[0] != last_two[1]).any(),
    lambda last_two: (last_two[1], grow(last_two[1])),
    (strong, grow(strong)),
  )
  return jnp.where(edges, 0, 255)


def _moved(x, i: int, j: int, mode: str) -> jax.Array:
  """[..., h, w] whose pixel (y, x) is that of `x` at (y + i, x + j)."""
  h, w = x.shape[-2:]
  padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 1), (1, 1)], mode=mode)
  return padded[..., 1 + i : 1 + i + h, 1 + j : 1 + j + w]


def _smooth(x) -> jax.Array:
  """Weights 1, 2, 1 along both axes, twice: 256 times nearly a Gaussian of variance 1."""
  for i, j in ((1, 0), (0, 1)) * 2:
    x = 2 * x + _moved(x, i, j, mode='edge') + _moved(x, -i, -j, mode='edge')
  return x


def _gradient(x) -> tuple[jax.Array, jax.Array]:
  """Sobel's derivatives along the height and the width; edges are repeated."""
  at = functools.partial(_moved, x, mode='edge')
  dy = sum(weight * (at(1, j) - at(-1, j)) for j, weight in ((-1, 1), (0, 2), (1, 1)))
  dx = sum(weight * (at(i, 1) - at(i, -1)) for i, weight in ((-1, 1), (0, 2), (1, 1)))
  return dy, dx


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
  sums = y.reshape(*leading, h // factor, factor, w // factor, factor, c).sum((-4, -2))
  small = (2 * sums + factor**2) // (2 * factor**2)
  if tuple(shape) == small.shape[-3:]:
    return small
  enlarged = jax.image.resize(small.astype(jnp.float32), (*leading, *shape), 'cubic')
  return jnp.clip(jnp.rint(enlarged), 0, 255)
