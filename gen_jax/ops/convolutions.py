"""Two-dimensional convolutions.

Accelerators run `lax` and its own derivatives. XLA's CPU backend computes the second-order gradient
of a gradient penalty and the weight gradient of a transposed convolution 10 to 30 times slower than
the convolution itself (docs/performance_notebook.md). On CPU, therefore:

- A convolution, its input gradient and its weight gradient are the three derivatives of one
  trilinear form, so that every derivative of each of them, of any order, is again one of the three.
  A custom_vjp defines this. (It has no forward mode; see `gen_jax.ops.forward_mode`.)
- Each of the three is computed in its fastest form: as matrix products of patches where the kernel
  is larger than the map, or of Winograd's tiles where there are many channels. A convolution of one
  channel is a sum over the kernel positions, and one of upsampled pixels is four convolutions of
  the original pixels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import ops
from gen_jax.ops.not_inlined import not_inlined
from gen_jax.ops.pooling import shifts

WIDE = 128  # number of channels from which Winograd's form is faster


def conv(x: jax.Array, w: jax.Array, stride: int = 1, padding: int | None = None) -> jax.Array:
  """Convolution of x [b, h, w, c] with w [k, k, c, d] -> [b, h', w', d].

  Without `padding` it is SAME, h' = ceil(h / stride); else `padding` zeros are added at every side,
  as in PyTorch.
  """
  if padding is None:
    padding = _same(x.shape[1:3], w.shape[:2], stride)
  else:
    padding = ((padding, padding),) * 2
  if ops.plain():
    return _lax_conv(x, w, stride, padding)
  return _conv(x, w, stride, padding)


def depthwise_conv(x: jax.Array, w: jax.Array, stride: int = 1) -> jax.Array:
  """SAME depthwise convolution: x [b, h, w, c] with w [k, k, 1, c] ->
  [b, ceil(h / stride), ceil(w / stride), c].
  """
  padding = _same(x.shape[1:3], w.shape[:2], stride)
  if ops.plain():
    return _lax_conv(x, w, stride, padding, groups=x.shape[-1])
  # A sum over kernel positions is one fused loop; this backend has no fast depthwise convolution.
  return _positions_conv(x, w, stride, padding)


def transposed_conv(
  x: jax.Array, w: jax.Array, stride: int, padding: int | None = None, extra: int = 0
) -> jax.Array:
  """The transpose of `conv`: x [b, h, w, d] with w [k, k, c, d] -> [b, h', w', c].

  Without `padding` it is that of a SAME convolution, h' = h stride. Else it is PyTorch's
  ConvTranspose2d of that padding, with `extra` as its output_padding:
  h' = (h - 1) stride + k - 2 padding + extra.
  """
  if padding is None:
    hw = (x.shape[1] * stride, x.shape[2] * stride)
    padding = _same(hw, w.shape[:2], stride)
  else:
    hw = tuple((n - 1) * stride + w.shape[0] - 2 * padding + extra for n in x.shape[1:3])
    padding = ((padding, padding),) * 2
  if ops.plain():
    return _transpose_x(_lax_conv, x, w, stride, padding, hw)
  return _input_gradient(x, w, stride, padding, hw)


def upsampled_conv(x: jax.Array, w: jax.Array) -> jax.Array:
  """`conv` of x [b, h, w, c], upsampled by 2 by repeating pixels, with w [3, 3, c, d] ->
  [b, 2 h, 2 w, d].

  Raises:
    ValueError: the kernel is not 3x3.
  """
  if w.shape[:2] != (3, 3):
    raise ValueError(f'a kernel of {w.shape[:2]} over repeated pixels: 3x3 is needed')
  if ops.plain():
    return conv(upsample(x), w)

  # Two of three neighbours are copies of the same pixel: the second and third for even outputs, the
  # first and second for odd ones. This gives four convolutions with 2x2 kernels, 16 products
  # instead of 36.
  def halves(w, axis):
    first, second, third = (jax.lax.index_in_dim(w, i, axis, keepdims=False) for i in range(3))
    return [jnp.stack(pair, axis) for pair in ((first, second + third), (first + second, third))]

  return _interleaved(
    [
      [_conv(x, w, 1, ((1 - i, i), (1 - j, j))) for j, w in enumerate(halves(row, 1))]
      for i, row in enumerate(halves(w, 0))
    ]
  )


def upsample(x: jax.Array) -> jax.Array:
  """Nearest-neighbour upsampling by 2: [b, h, w, c] -> [b, 2 h, 2 w, c]."""
  b, h, w, c = x.shape
  return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def _same(hw, kernel, stride):
  """TensorFlow's SAME: zeros (before, after) that give ceil(size / stride) outputs; an odd number
  has one more after.
  """
  pads = []
  for size, k in zip(hw, kernel, strict=True):
    total = max((-(-size // stride) - 1) * stride + k - size, 0)
    pads.append((total // 2, total - total // 2))
  return tuple(pads)


# --- The trilinear form -------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x, w, stride, padding):
  """y = x * w."""
  form = _positions_conv_once if w.shape[2] == 1 else _form(x, w.shape, stride, padding)
  return form(x, w, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _input_gradient(g, w, stride, padding, hw):
  """The gradient of <g, x * w> with respect to x [b, *hw, c]; also the transposed convolution."""
  form = _form(g, w.shape, stride, padding)
  if form is _winograd_conv:
    return _winograd_input_gradient(g, w)
  return _transpose_x(form, g, w, stride, padding, hw)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _weight_gradient(x, g, stride, padding, kernel):
  """The gradient of <g, x * w> with respect to w [*kernel, c, d]."""
  shape = (*kernel, x.shape[3], g.shape[3])
  form = _weight_form(x, shape, stride, padding)
  # Without the barrier XLA would keep the patches or tiles of the forward pass for this one.
  x, g = jax.lax.optimization_barrier((x, g))
  return form(x, g, stride, padding, shape)


_conv.defvjp(
  lambda x, w, stride, padding: (_conv(x, w, stride, padding), (x, w)),
  lambda stride, padding, saved, g: (
    _input_gradient(g, saved[1], stride, padding, saved[0].shape[1:3]),
    _weight_gradient(saved[0], g, stride, padding, saved[1].shape[:2]),
  ),
)
_input_gradient.defvjp(
  lambda g, w, stride, padding, hw: (_input_gradient(g, w, stride, padding, hw), (g, w)),
  lambda stride, padding, hw, saved, x: (
    _conv(x, saved[1], stride, padding),
    _weight_gradient(x, saved[0], stride, padding, saved[1].shape[:2]),
  ),
)
_weight_gradient.defvjp(
  lambda x, g, stride, padding, kernel: (_weight_gradient(x, g, stride, padding, kernel), (x, g)),
  lambda stride, padding, kernel, saved, w: (
    _input_gradient(saved[1], w, stride, padding, saved[0].shape[1:3]),
    _conv(saved[0], w, stride, padding),
  ),
)


def _transpose_x(form, g, w, stride, padding, hw):
  x = jax.ShapeDtypeStruct((g.shape[0], *hw, w.shape[2]), g.dtype)
  return jax.linear_transpose(lambda x: form(x, w, stride, padding), x)(g)[0]


def _form(x, kernel, stride, padding):
  """The fast form on CPU for a kernel [k, k, c, d] over x, or over g for the input gradient
  (docs/performance_notebook.md).
  """
  _, h, w, _ = x.shape
  if kernel[0] > h or kernel[1] > w:  # XLA would treat the map as the kernel
    return _patches_conv
  same = stride == 1 and kernel[:2] == (3, 3) and padding == ((1, 1), (1, 1))
  if same and min(kernel[2:]) >= WIDE and h % 2 == w % 2 == 0:
    return _winograd_conv
  return _lax_conv


# --- Per kernel position ------------------------------------------------------------------------


def _positions_conv(x, w, stride, padding):
  # Without the barrier the fused loop would check at every entry whether it is in the padding.
  x = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), *padding, (0, 0))))
  seen, _ = shifts(x, w.shape[:2], stride)
  weights = w.reshape(-1, 1, 1, 1, w.shape[3])
  return sum(shift * weight for shift, weight in zip(seen, weights, strict=True))


# In training several derivatives need the sign of the result, or values computed from it.
_positions_conv_once = not_inlined(_positions_conv, static_argnums=(2, 3))


# --- By lax -------------------------------------------------------------------------------------


def _lax_conv(x, w, stride, padding, dilation=1, groups=1):
  return jax.lax.conv_general_dilated(
    x,
    w,
    (stride, stride),
    padding,
    rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )


def _lax_weight_gradient(x, g, stride, padding, shape):
  """As a convolution over the batch, of x with a kernel as large as g [b, h, w, d] ->
  [c, k, k, d].
  """
  k, _, c, d = shape
  # With stride 1 x and g can exchange their roles, which reverses the result: gathering fewer
  # channels per entry of the result is faster. Where g is smaller than x it is up to 70 times
  # slower, because g is then padded.
  swap = stride == 1 and c > d and x.shape[1:3] == g.shape[1:3]
  if swap:
    x, g = g, x
    padding = tuple((k - 1 - before, k - 1 - after) for before, after in padding)
  else:  # the last rows and columns of x that no output depends on are dropped by negative padding
    padding = tuple(
      (before, stride * (n_g - 1) + k - n - before)
      for n, n_g, (before, _) in zip(x.shape[1:3], g.shape[1:3], padding, strict=True)
    )
  w = _lax_conv(x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), 1, padding, dilation=stride)
  return w[:, ::-1, ::-1].transpose(1, 2, 3, 0) if swap else w.transpose(1, 2, 0, 3)


# --- Interleaved maps ----------------------------------------------------------------------------


@not_inlined  # inlined, its consumers would select the part at every entry
def _interleaved(parts):
  """Interleaves maps: parts[i][j], [b, h, w, c], holds the rows i, i + s, ... and the columns j,
  j + s, ... of the result, [b, s h, s w, c].
  """
  b, h, w, c = parts[0][0].shape
  x = jnp.stack([jnp.stack(row, axis=3) for row in parts], axis=2)
  return x.reshape(b, len(parts) * h, len(parts) * w, c)


# --- By patches ---------------------------------------------------------------------------------


def _patches(x, kernel, stride, padding):
  """The patch of x [b, h, w, c] for each output, [b h' w', k k c], and (h', w')."""
  seen, (h, w) = shifts(x, kernel, stride, padding)
  return jnp.concatenate(seen, axis=-1).reshape(x.shape[0] * h * w, -1), (h, w)


def _patches_conv(x, w, stride, padding):
  patches, hw = _patches(x, w.shape[:2], stride, padding)
  return (patches @ w.reshape(-1, w.shape[3])).reshape(x.shape[0], *hw, w.shape[3])


def _patches_weight_gradient(x, g, stride, padding, shape):
  patches, _ = _patches(x, shape[:2], stride, padding)
  # XLA would move the transposition into the product, which would then be slower.
  w = jax.lax.optimization_barrier(g.reshape(-1, shape[3]).T @ patches)
  return w.T.reshape(shape)


# --- By Winograd's F(2x2, 3x3) (Lavin and Gray 2016, arXiv 1509.09308) --------------------------
#
# Each 2x2 block of outputs Y depends on a 4x4 tile d of the input:
# Y = A^T [(G w G^T) . (B^T d B)] A, with 16 products instead of 36. Summed over channels they are
# 16 matrix products.
#
# The three are jitted so that JAX traces them once per shape and not in every layer (XLA inlines
# them), which halves the tracing time.

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def _along_both(f, x, axes):
  """Applies f, which maps an array and an axis to four arrays, along two axes: [16, n, c]."""
  planes = [column for row in f(x, axes[0]) for column in f(row, axes[1])]
  planes = [plane.reshape(1, -1, x.shape[-1]) for plane in planes]
  tiles = jnp.zeros((16, *planes[0].shape[1:]), x.dtype)
  for i, plane in enumerate(planes):  # each is written in place; a stack would copy it
    tiles = jax.lax.dynamic_update_slice(tiles, plane, (i, 0, 0))
  return tiles


@not_inlined  # a fused pad would recompute x, an activation, entry by entry with a bounds check
def _framed(x):
  """x [b, h, w, c] padded with zeros, [b, h + 2, w + 2, c]."""
  return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _input_tiles(x):
  """B^T d B for every tile: [b, h, w, c] -> [16, b h w / 4, c]."""

  def along(x, axis):
    d = [jax.lax.slice_in_dim(x, i, x.shape[axis] - 3 + i, 2, axis) for i in range(4)]
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]

  return _along_both(along, _framed(x), (1, 2))


def _output_tiles(g):
  """A Y A^T for every tile, the transpose of `_from_tiles`: [b, h, w, d] -> [16, b h w / 4, d]."""

  def along(g, axis):
    y = [jax.lax.slice_in_dim(g, 1 + i, g.shape[axis] - 2 + i, 2, axis) for i in range(2)]
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]

  # g needs no padding, but padding materialises it: XLA would recompute it for every plane.
  return _along_both(along, _framed(g), (1, 2))


def _from_tiles(m, shape):
  """A^T M A for every tile: [16, b h w / 4, d] -> shape [b, h, w, d]."""

  def along(m):
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]

  b, h, w, d = shape
  rows = along(m.reshape(4, 4, b, h // 2, w // 2, d))
  return jnp.stack([jnp.stack(along(row), axis=3) for row in rows], axis=2).reshape(shape)


def _kernels(w, flip=False):
  """G w G^T for every pair of channels: [3, 3, c, d] -> [16, c, d]."""
  g = _G[:, ::-1] if flip else _G
  return (jnp.asarray(np.kron(g, g), w.dtype) @ w.reshape(9, -1)).reshape(16, *w.shape[2:])


@functools.partial(jax.jit, static_argnums=(2, 3))
def _winograd_conv(x, w, stride, padding):
  del stride, padding  # 1 and SAME
  products = jnp.einsum('knc,kcd->knd', _input_tiles(x), _kernels(w))
  return _from_tiles(products, (*x.shape[:3], w.shape[3]))


@jax.jit
def _winograd_input_gradient(g, w):
  # With stride 1 this is a convolution with the flipped kernel, its channels exchanged.
  products = jnp.einsum('knd,kcd->knc', _input_tiles(g), _kernels(w, flip=True))
  return _from_tiles(products, (*g.shape[:3], w.shape[2]))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _winograd_weight_gradient(x, g, stride, padding, shape):
  del stride, padding
  u = jnp.einsum('knc,knd->kcd', _input_tiles(x), _output_tiles(g))
  return (jnp.asarray(np.kron(_G, _G).T, u.dtype) @ u.reshape(16, -1)).reshape(shape)


def _weight_form(x, kernel, stride, padding):
  """Like `_form` over x, for the weight gradient."""
  if kernel[0] > x.shape[1] or kernel[1] > x.shape[2]:
    return _patches_weight_gradient
  form = _form(x, kernel, stride, padding)
  if form is _winograd_conv:
    return _winograd_weight_gradient
  return _lax_weight_gradient
