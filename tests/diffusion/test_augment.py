"""Augmentations against the authors' code (augment_reference.py), and their draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion import augment_reference as reference
from ml_collections import ConfigDict

from gen_jax.diffusion import augment
from gen_jax.diffusion.augment import KINDS, Transforms
from gen_jax.errors import UserError

transformed = jax.jit(augment.transformed)
MEAN_FLOW = ('x_flip', 'scale', 'anisotropy', 'translation')


def zeros(b, **changed):
  shapes = {field: (b, 2) if field == 'translation' else (b,) for field in Transforms._fields}
  return Transforms(**{f: jnp.float32(changed.get(f, np.zeros(s))) for f, s in shapes.items()})


def test_images_and_labels_are_those_of_the_authors():
  with np.load(reference.FIXTURE) as expected:
    given = Transforms(**{k: jnp.asarray(v) for k, v in reference.transforms().items()})
    np.testing.assert_allclose(
      transformed(reference.images(), given), expected['images'], atol=2e-5
    )
    np.testing.assert_allclose(augment.labels_of(given), expected['labels'], atol=1e-6)


def test_without_transforms_images_come_back():
  x = reference.images()
  np.testing.assert_allclose(transformed(x, zeros(8)), x, atol=1e-5)
  never = augment.draw_transforms(jax.random.key(0), 8, 0.0, KINDS)._replace(axis=jnp.zeros(8))
  assert not any(map(np.any, never))


def test_shifts_by_pixels_and_quarter_turns_are_exact():
  x = np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 1)).astype(np.float32)
  # A shift of 1/8 of 8 pixels; what comes in is the reflection.
  right = transformed(x, zeros(1, translation=[[1, 0]]))
  np.testing.assert_allclose(right[:, :, 1:], x[:, :, :-1], atol=1e-5)
  np.testing.assert_allclose(right[:, :, 0], x[:, :, 1], atol=1e-5)
  down = transformed(x, zeros(1, translation=[[0, 1]]))
  np.testing.assert_allclose(down[:, 1:], x[:, :-1], atol=1e-5)
  turned = transformed(x, zeros(1, rotation=[np.pi / 2]))
  # The filter is not symmetric, so that a turn is not exact; it is nearest to a turn to the left.
  apart = [float(np.abs(turned - np.rot90(x, k, (1, 2))).mean()) for k in range(4)]
  assert apart[1] < 0.5 * min(apart[0], apart[2], apart[3])


def test_labels_tell_what_happened_and_how_often():
  b = 20_000
  t = augment.draw_transforms(jax.random.key(0), b, 0.12, KINDS)
  labels = np.asarray(augment.labels_of(t))
  assert labels.shape == (b, 9) == (b, augment.label_dim())
  shares = [(np.asarray(column) != 0).mean() for column in labels.T]
  # Coins: 1/2 for horizontal flips, 1/2 of 0.12 for vertical ones. The axis is turned for half.
  expected = [0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.06, 0.12, 0.12]
  np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(0.25 / b))
  for values in (t.scale, t.anisotropy, t.translation[:, 0], t.translation[:, 1]):
    values = np.asarray(values)[np.asarray(values) != 0]
    np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=0.08)
  angles = np.asarray(t.rotation)[np.asarray(t.rotation) != 0]
  assert angles.min() < -3 and angles.max() > 3 and np.abs(angles).max() <= np.pi
  np.testing.assert_allclose(angles.std(), np.pi / np.sqrt(3), rtol=0.05)
  # Both directions of a shift have one gate.
  assert np.array_equal(labels[:, 7] != 0, labels[:, 8] != 0)


def test_kinds_can_be_left_out_and_the_others_keep_their_draws():
  every = augment.labels_of(augment.draw_transforms(jax.random.key(0), 100, 0.5, KINDS))
  some = augment.draw_transforms(jax.random.key(0), 100, 0.5, MEAN_FLOW)
  assert not np.any(some.y_flip) and not np.any(some.rotation)
  assert augment.label_dim(MEAN_FLOW) == 6
  np.testing.assert_array_equal(
    augment.labels_of(some, MEAN_FLOW), every[:, jnp.array([0, 2, 5, 6, 7, 8])]
  )


def test_the_draws_do_not_depend_on_the_number_of_devices():
  key = jax.random.key(1)
  kinds = ('y_flip', 'rotation', 'translation')
  draw = lambda b, axis_name=None: augment.draw_transforms(key, b, 0.5, kinds, axis_name)
  parts = jax.pmap(lambda _: draw(4, 'batch'), axis_name='batch')(jnp.zeros(2))
  for a, b in zip(parts, draw(8), strict=True):
    np.testing.assert_allclose(a.reshape(b.shape), b, atol=1e-6)


@pytest.mark.parametrize(
  'shape, net, words',
  [
    ((8, 8, 1), dict(augment_dim=9), 'config.net.augment_dim=9: 6 is needed'),
    ((8, 8, 1), dict(), 'net.Net has no augment_dim'),
    ((2,), dict(augment_dim=6), r'config.data.shape=\(2,\)'),
  ],
)
def test_the_net_must_be_told(shape, net, words):
  net = dict(name='net.Net', **net)
  config = ConfigDict(
    dict(augment=dict(probability=0.5, kinds=MEAN_FLOW), data=dict(shape=shape), net=net)
  )
  with pytest.raises(UserError, match=words) as raised:
    augment.check(config)
  assert '\n' not in str(raised.value)
  config.augment.probability = 0.0
  augment.check(config)


def test_the_config_decides():
  config = ConfigDict(dict(augment=dict(probability=0.0, kinds=MEAN_FLOW)))
  x, key = reference.images(), jax.random.key(0)
  same, labels = augment.apply(x, key, config)
  assert same is x and labels is None
  config.augment.probability = 1.0
  other, labels = jax.jit(lambda x: augment.apply(x, key, config))(x)
  assert labels.shape == (8, 6) and np.abs(other - x).max() > 0.1
