"""Every form of a convolution against lax's, in value and two orders of derivatives."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gen_jax.ops import convolutions


def draw(*shape, seed=0):
  return jnp.float32(np.random.default_rng(seed).standard_normal(shape))


def lax_conv(x, w, stride):
  return jax.lax.conv_general_dilated(
    x, w, (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def lax_transpose(x, w, stride):
  return jax.lax.conv_transpose(
    x,
    w,
    (stride, stride),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    transpose_kernel=True,
  )


def derivatives(conv, x, w, g):
  """Value, gradient of a nonlinear function, and of a penalty on that gradient."""

  def scalar(x, w):
    return jnp.sum(g * jnp.tanh(conv(x, w)))

  def penalty(x, w):
    g_x, g_w = jax.grad(scalar, (0, 1))(x, w)
    return jnp.sum(g_x**2) + jnp.sum(g_w**2)

  return conv(x, w), jax.grad(scalar, (0, 1))(x, w), jax.grad(penalty, (0, 1))(x, w)


def assert_same_derivatives(ours, reference, x, w):
  g = draw(*jax.eval_shape(reference, x, w).shape, seed=2)
  found, expected = jax.jit(
    lambda x, w: (derivatives(ours, x, w, g), derivatives(reference, x, w, g))
  )(x, w)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert a.shape == b.shape
    # Relative to the largest entry: single ones are sums that cancel.
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


# form, b, h, w, kernel, stride, channels in and out
CASES = [
  ('lax', 2, 7, 7, 5, 2, 16, 17),  # its input gradient by patches: 5 entries over 4 outputs
  ('lax', 1, 5, 8, 4, 2, 17, 16),
  ('patches', 2, 4, 7, 5, 2, 2, 3),
  ('patches', 2, 7, 4, 5, 2, 16, 17),
  ('patches', 2, 2, 2, 3, 1, 16, 17),
  ('patches', 2, 1, 1, 3, 1, 17, 16),
  ('lax', 2, 3, 3, 3, 1, 16, 17),
  ('lax', 2, 14, 14, 3, 2, 16, 17),
  ('lax', 2, 4, 4, 1, 1, 17, 16),
  ('lax', 2, 28, 28, 5, 2, 2, 3),
  ('lax', 2, 19, 28, 4, 2, 2, 3),
  ('lax', 2, 16, 16, 3, 1, 2, 3),
  ('lax', 1, 17, 16, 3, 1, 128, 128),  # an odd number of rows
  ('winograd', 2, 4, 6, 3, 1, 129, 128),
  ('lax', 12, 18, 17, 3, 1, 20, 17),
  ('lax', 2, 16, 17, 3, 1, 1, 5),  # one channel: forward per kernel position
  ('lax', 2, 19, 28, 4, 2, 1, 5),
  ('winograd', 1, 16, 18, 3, 1, 128, 129),
  ('lax', 2, 7, 7, 3, 3, 16, 16),
  ('lax', 2, 9, 8, 2, 3, 16, 18),  # a stride larger than the kernel
  ('lax', 1, 6, 5, 1, 2, 16, 16),
  ('lax', 16, 9, 8, 3, 2, 20, 17),
  ('lax', 16, 7, 6, 5, 1, 33, 16),
  ('lax', 16, 6, 7, 5, 2, 16, 17),
  ('lax', 32, 28, 28, 3, 1, 16, 17),
  ('lax', 32, 28, 28, 3, 1, 17, 16),
]


def form_of(x, w, stride, padding=None):
  padding = padding or convolutions._same(x.shape[1:3], w.shape[:2], stride)
  return convolutions._form(x, w.shape, stride, padding).__name__.strip('_').removesuffix('_conv')


def weight_form_of(x, w, stride):
  padding = convolutions._same(x.shape[1:3], w.shape[:2], stride)
  form = convolutions._weight_form(x, w.shape, stride, padding)
  return form.__name__.strip('_').removesuffix('_weight_gradient')


@pytest.mark.parametrize('form, b, height, width, kernel, stride, c, d', CASES)
def test_conv_is_laxs_in_value_and_two_derivatives(form, b, height, width, kernel, stride, c, d):
  x, w = draw(b, height, width, c), draw(kernel, kernel, c, d, seed=1) / (kernel * c**0.5)
  assert form_of(x, w, stride) == form
  assert_same_derivatives(
    lambda x, w: convolutions.conv(x, w, stride), lambda x, w: lax_conv(x, w, stride), x, w
  )


@pytest.mark.parametrize(
  'height, stride, padding, c, d',
  [(8, 2, 1, 3, 5), (7, 2, 1, 16, 17), (6, 1, 2, 1, 4), (4, 1, 2, 128, 128), (5, 1, 0, 16, 3)],
)
def test_a_padded_conv_is_laxs_in_value_and_two_derivatives(height, stride, padding, c, d):
  x, w = draw(2, height, 6, c), draw(3, 3, c, d, seed=1) / (3 * c**0.5)
  assert form_of(x, w, stride, ((padding, padding),) * 2) == 'lax'

  def reference(x, w):
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return jax.lax.conv_general_dilated(
      x, w, (stride, stride), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  assert_same_derivatives(lambda x, w: convolutions.conv(x, w, stride, padding), reference, x, w)


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
@pytest.mark.parametrize('height, kernel, stride', [(16, 3, 1), (15, 5, 2), (16, 5, 2)])
def test_a_depthwise_conv_is_laxs(height, kernel, stride, backend, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  x, w = draw(2, height, 11, 6), draw(kernel, kernel, 1, 6, seed=1)
  expected = jax.lax.conv_general_dilated(
    x,
    w,
    (stride, stride),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=6,
  )
  found = convolutions.depthwise_conv(x, w, stride)
  assert found.shape == expected.shape
  np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize('channels', [2, 16])
@pytest.mark.parametrize('size, kernel', [(4, 3), (4, 5), (7, 4), (7, 5), (14, 3)])
def test_transposed_conv_is_laxs_in_value_and_two_derivatives(size, kernel, channels):
  x, w = draw(2, size, size, 17), draw(kernel, kernel, channels, 17, seed=1) / kernel
  assert_same_derivatives(
    lambda x, w: convolutions.transposed_conv(x, w, 2), lambda x, w: lax_transpose(x, w, 2), x, w
  )


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
@pytest.mark.parametrize(
  'b, height, width, c, d',
  [(2, 7, 4, 3, 5), (2, 1, 2, 2, 3), (1, 8, 8, 130, 1), (2, 4, 3, 1, 2), (2, 5, 4, 16, 17)],
)
def test_a_conv_of_repeated_pixels_is_laxs(b, height, width, c, d, backend, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  x, w = draw(b, height, width, c), draw(3, 3, c, d, seed=1) / (3 * c**0.5)
  assert_same_derivatives(
    convolutions.upsampled_conv,
    lambda x, w: lax_conv(x.repeat(2, 1).repeat(2, 2), w, 1),
    x,
    w,
  )


def test_a_conv_of_repeated_pixels_has_a_3x3_kernel():
  with pytest.raises(ValueError, match='3x3'):
    convolutions.upsampled_conv(draw(1, 4, 4, 2), draw(5, 5, 2, 3))


@pytest.mark.parametrize('size, times', [(7, 1), (9, 0)])
def test_an_input_gradient_over_a_map_smaller_than_the_kernel_is_by_patches(
  size, times, monkeypatch
):
  # XLA would take the map for the kernel, 30 times slower.
  used = []
  by_patches = convolutions._patches_conv

  def count(*args):
    used.append(args)
    return by_patches(*args)

  monkeypatch.setattr(convolutions, '_patches_conv', count)
  x, w = draw(1, size, size, 16), draw(5, 5, 16, 17)
  jax.grad(lambda x: convolutions.conv(x, w, 2).sum())(x)
  assert len(used) == times


def test_a_conv_may_be_mapped():
  x, w = draw(3, 2, 7, 6, 16), draw(3, 3, 3, 16, 17, seed=1)
  for axes in ((0, 0), (0, None), (None, 0)):
    args = [a if axis == 0 else a[0] for a, axis in zip((x, w), axes, strict=True)]
    found, expected = (
      jax.vmap(jax.grad(lambda x, w, conv=conv: jnp.sum(conv(x, w, 2) ** 2), (0, 1)), axes)(*args)
      for conv in (convolutions.conv, lax_conv)
    )
    for a, b in zip(found, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_winograd_is_as_exact_as_float32_allows():
  x, w = draw(2, 16, 16, 128), draw(3, 3, 128, 128, seed=1)
  patches = np.lib.stride_tricks.sliding_window_view(
    np.pad(np.float64(x), ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), axis=(1, 2)
  )
  exact = np.einsum('bhwcij,ijcd->bhwd', patches, np.float64(w))
  assert form_of(x, w, 1) == 'winograd'
  error = np.abs(convolutions.conv(x, w) - exact).max()
  assert error < 4e-6 * np.abs(exact).max()


def test_winograd_over_two_devices_leaves_the_batch_split():
  x, w = draw(4, 4, 6, 128), draw(3, 3, 128, 128, seed=1)

  def step(x, w):
    return jax.value_and_grad(lambda x, w: jnp.sum(jnp.tanh(convolutions.conv(x, w))), (0, 1))(x, w)

  mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (('data',), ()))
  jitted = jax.jit(step, in_shardings=(rows, whole), out_shardings=(whole, (rows, whole)))
  compiled = jitted.lower(x, w).compile()
  found = compiled(jax.device_put(x, rows), jax.device_put(w, whole))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(jax.jit(step)(x, w)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
  # Only the loss and the weight gradient are added up; no tile is fetched from the other device.
  communication = set(re.findall(r' (all-[a-z]+|collective-[a-z]+)\(', compiled.as_text()))
  assert communication == {'all-reduce'}


@pytest.mark.parametrize(('kernel', 'stride', 'padding', 'size'), [(3, 2, 1, 10), (4, 1, 0, 4)])
def test_transposed_conv_with_padding_has_laxs_derivatives(kernel, stride, padding, size):
  x, w = draw(2, 5 if size == 10 else 1, 5 if size == 10 else 1, 4), draw(kernel, kernel, 3, 4)
  larger = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)

  def reference(x, w):
    def conv(y):
      how = dict(dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
      return jax.lax.conv_general_dilated(y, w, (stride,) * 2, [(padding,) * 2] * 2, **how)

    return jax.linear_transpose(conv, larger)(x)[0]

  def ours(x, w):
    return convolutions.transposed_conv(x, w, stride, padding, extra=int(size == 10))

  assert_same_derivatives(ours, reference, x, w)


def test_the_sides_of_a_transposed_conv_may_differ():
  w = draw(4, 4, 2, 3)
  assert convolutions.transposed_conv(draw(1, 5, 8, 3), w, 2).shape == (1, 10, 16, 2)


@pytest.mark.parametrize(
  'form, b, size, kernel, stride, c, d',
  [
    ('patches', 16, 4, 5, 2, 16, 17),
    ('lax', 16, 7, 5, 2, 16, 17),
    ('lax', 16, 9, 3, 4, 16, 17),
    ('winograd', 16, 16, 3, 1, 128, 129),
    ('lax', 2, 16, 1, 1, 16, 17),
  ],
)
def test_the_form_of_a_weight_gradient(form, b, size, kernel, stride, c, d):
  assert weight_form_of(draw(b, size, size, c), draw(kernel, kernel, c, d), stride) == form
