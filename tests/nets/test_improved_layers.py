"""The layers of Salimans et al. against loops in numpy, and against the authors' own
(improved_reference.py).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import improved_reference as reference

from gen_jax.errors import UserError
from gen_jax.nets import improved
from gen_jax.nets import improved_layers as layers

KEYS = dict(zip(('params', 'dropout'), jax.random.split(jax.random.key(0)), strict=True))


def draw(*shape, seed=0):
  return np.float32(np.random.default_rng(seed).standard_normal(shape))


def moved(x, row):
  return np.where(np.arange(len(x))[:, None] == row, x + 1, x)


def on_two_devices(module, variables, x, **kwargs):
  """The output of `module`, with axis_name='batch', for x sharded over two devices."""
  apply = jax.pmap(lambda x: module.apply(variables, x, **kwargs), axis_name='batch')
  y = apply(x.reshape(2, -1, *x.shape[1:]))
  return y.reshape(-1, *y.shape[2:])


def test_noise_is_added_in_training_only_and_is_the_same_on_two_devices():
  x = draw(400, 50)
  y = layers.Noise(0.3).apply({}, x, train=True, rngs=KEYS)
  np.testing.assert_allclose([(y - x).mean(), (y - x).std()], [0, 0.3], atol=0.01)
  np.testing.assert_array_equal(layers.Noise(0.3).apply({}, x, train=False), x)
  parts = on_two_devices(layers.Noise(0.3, 'batch'), {}, x, train=True, rngs=KEYS)
  np.testing.assert_allclose(parts, y, atol=1e-6)


# --- Weight norm ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('module', 'shape'),
  [
    (layers.Dense(7, sd=0.5), (200, 5)),
    (layers.Conv(7, stride=2, sd=0.5), (50, 6, 6, 3)),
    (layers.UpConv(7, sd=0.5), (50, 4, 4, 3)),
  ],
)
def test_weight_norm_starts_with_the_moments_it_is_asked_for(module, shape):
  x = 3 + 2 * draw(*shape)
  first, variables = module.init_with_output(KEYS, x)
  y = module.apply(variables, x)
  np.testing.assert_allclose(first, y, rtol=1e-4, atol=1e-5)
  axes = tuple(range(y.ndim - 1))
  np.testing.assert_allclose(y.mean(axes), 0, atol=1e-5)
  np.testing.assert_allclose(y.std(axes), 0.5, rtol=1e-4)
  # The length of v does not matter.
  params = variables['params'] | {'kernel': 5 * variables['params']['kernel']}
  np.testing.assert_allclose(module.apply(variables | {'params': params}, x), y, atol=5e-4)


def test_weight_norm_by_hand():
  x, v = draw(4, 3), draw(3, 2, seed=1)
  variables = {
    'params': {'kernel': v, 'bias': jnp.array([0.1, 0.2])},
    'batch_stats': {'scale': jnp.array([2.0, 3.0])},
  }
  expected = x @ (np.array([2.0, 3.0]) * v / np.linalg.norm(v, axis=0)) + np.array([0.1, 0.2])
  np.testing.assert_allclose(layers.Dense(2).apply(variables, x), expected, rtol=1e-5)


def test_g_is_a_parameter_only_where_it_is_trained():
  x = draw(9, 3)
  fixed, trained = (layers.Dense(2, train_scale=t).init(KEYS, x) for t in (False, True))
  assert set(fixed['params']) == {'kernel', 'bias'} and set(fixed['batch_stats']) == {'scale'}
  assert set(trained['params']) == {'kernel', 'bias', 'scale'} and 'batch_stats' not in trained
  plain = layers.Dense(2, sd=None, train_scale=True).init(KEYS, x)['params']
  np.testing.assert_array_equal(plain['scale'], [1, 1])
  np.testing.assert_array_equal(plain['bias'], [0, 0])


def test_a_batch_of_one_row_leaves_weight_norm_at_scale_1():
  stats = layers.Dense(2).init(KEYS, draw(1, 3))['batch_stats']
  np.testing.assert_array_equal(stats['scale'], [1, 1])


# --- Minibatch discrimination ---------------------------------------------------------------------


def minibatch_features(x, params):
  """f [b, kernels] by the definition."""
  theta = np.asarray(params['kernel'], np.float64)
  t = theta * np.exp(params['log_scale']) / np.sqrt((theta**2).sum(0))
  m = np.einsum('bn,nkd->bkd', x, t)
  f = np.zeros((len(x), theta.shape[1]))
  for i in range(len(x)):
    for j in range(len(x)):
      if i != j:
        f[i] += np.exp(-np.abs(m[i] - m[j]).sum(-1))
  return f + np.asarray(params['bias'])


def test_minibatch_discrimination_by_hand():
  module, x = layers.MinibatchDiscrimination(kernels=4, dims=3), draw(6, 5)
  params = module.init(KEYS, x)['params']
  params = params | {'log_scale': 0.3 * draw(4, 3, seed=1)}
  y = module.apply({'params': params}, x)
  np.testing.assert_array_equal(y[:, :5], x)
  np.testing.assert_allclose(y[:, 5:], minibatch_features(x, params), rtol=1e-4, atol=1e-5)


def test_identical_rows_have_the_same_largest_features():
  module, x = layers.MinibatchDiscrimination(kernels=4, dims=3), draw(6, 5)
  params = module.init(KEYS, x)['params']
  y = np.asarray(module.apply({'params': params}, np.repeat(x[:1], 6, axis=0)))
  # Every other row is at distance 0; itself does not count.
  np.testing.assert_allclose(y[:, 5:] - np.asarray(params['bias']), 5, rtol=1e-6)
  changed = module.apply({'params': params}, moved(x, 3))
  assert (np.abs(changed - module.apply({'params': params}, x))[:3, 5:] > 0).all()


def test_minibatch_discrimination_starts_scaled_to_its_batch():
  module, x = layers.MinibatchDiscrimination(kernels=4, dims=3), draw(30, 5)
  y, variables = module.init_with_output(KEYS, x)
  np.testing.assert_allclose(y, module.apply(variables, x), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(y[:, 5:].mean(0), 0, atol=1e-5)
  # Half of the mean distance to the nearest other row is 1.
  theta, log_scale = (np.asarray(variables['params'][name]) for name in ('kernel', 'log_scale'))
  m = np.einsum('bn,nkd->bkd', x, theta * np.exp(log_scale) / np.sqrt((theta**2).sum(0)))
  d = np.abs(m[:, None] - m[None]).sum(-1) + 1e6 * np.eye(30)[..., None]
  np.testing.assert_allclose(d.min(1).mean(0), 2, rtol=1e-4)


def test_minibatch_discrimination_need_not_scale_itself():
  module, x = layers.MinibatchDiscrimination(kernels=4, dims=3, scaled=False), draw(30, 5)
  params = module.init(KEYS, x)['params']
  np.testing.assert_array_equal(params['log_scale'], np.zeros((4, 3)))
  np.testing.assert_array_equal(params['bias'], -np.ones(4))


def test_rows_of_all_devices_meet():
  module, x = layers.MinibatchDiscrimination(kernels=4, dims=3), draw(6, 5)
  variables = module.init(KEYS, x)
  parts = on_two_devices(layers.MinibatchDiscrimination(4, 3, axis_name='batch'), variables, x)
  np.testing.assert_allclose(parts, module.apply(variables, x), rtol=1e-5, atol=1e-6)


def test_the_gradient_crosses_devices():
  x = draw(6, 5)
  variables = layers.MinibatchDiscrimination(4, 3).init(KEYS, x)

  def gradient(x, axis_name=None):
    module = layers.MinibatchDiscrimination(4, 3, axis_name=axis_name)
    loss = lambda params: jnp.mean(jnp.sin(module.apply({'params': params}, x)))
    g = jax.grad(loss)(variables['params'])
    return g if axis_name is None else jax.lax.pmean(g, axis_name)

  whole = gradient(x)
  parts = jax.pmap(lambda x: gradient(x, 'batch'), axis_name='batch')(x.reshape(2, 3, 5))
  for name, value in whole.items():
    np.testing.assert_allclose(parts[name][0], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_one_row_has_no_others_to_compare_with():
  with pytest.raises(UserError, match='at least 2 are needed, not 1'):
    layers.MinibatchDiscrimination().init(KEYS, draw(1, 3))


# --- Virtual batch norm ---------------------------------------------------------------------------


@pytest.mark.parametrize('virtual', [True, False])
@pytest.mark.parametrize('shape', [(5,), (3, 2, 5)])
def test_virtual_batch_norm_by_hand(shape, virtual):
  n, x = 6, 2 + draw(9, *shape)
  module = layers.VirtualBatchNorm(n, virtual)
  params = dict(scale=draw(5, seed=1), bias=draw(5, seed=2))
  reference, live = np.split(np.float64(x), [n])
  rest, positions = tuple(range(len(shape))), tuple(range(len(shape) - 1))
  mean_r, square_r = reference.mean(rest), (reference**2).mean(rest)
  rows = [(r - mean_r) / np.sqrt(square_r - mean_r**2 + 1e-5) for r in reference]
  w = virtual / (n + 1)
  for r in live:
    mean = w * r.mean(positions) + (1 - w) * mean_r
    square = w * (r**2).mean(positions) + (1 - w) * square_r
    rows.append((r - mean) / np.sqrt(square - mean**2 + 1e-5))
  expected = np.stack(rows) * params['scale'] + params['bias']
  np.testing.assert_allclose(module.apply({'params': params}, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('virtual', [True, False])
def test_live_rows_do_not_influence_one_another(virtual):
  x, module = draw(9, 5), layers.VirtualBatchNorm(6, virtual)
  variables = module.init(KEYS, x)
  y, changed = (module.apply(variables, x) for x in (x, moved(x, 7)))
  np.testing.assert_array_equal(np.delete(changed, 7, 0), np.delete(y, 7, 0))
  assert (changed[7] != y[7]).any()
  # The reference batch influences all.
  assert (module.apply(variables, moved(x, 0)) != y).any(1).all()


def test_a_large_reference_batch_leaves_the_row_no_weight():
  reference, live = draw(20_000, 3), draw(2, 3, seed=1)
  x = np.concatenate([reference, live])
  found = [layers.VirtualBatchNorm(20_000, v, use_scale=False) for v in (True, False)]
  variables = {'params': {'bias': jnp.zeros(3)}}
  virtual, plain = (module.apply(variables, x)[-2:] for module in found)
  np.testing.assert_allclose(virtual, plain, atol=1e-3)
  assert (virtual != plain).any()


class Normed(nn.Module):
  """A layer and virtual batch norm behind a reference batch of 4."""

  @nn.compact
  def __call__(self, x):
    x = layers.with_reference(self, x, 4)
    return layers.VirtualBatchNorm(4)(nn.Dense(3)(x))[4:]


def test_the_reference_batch_is_the_start_of_the_first_batch_and_stays():
  x = draw(6, 2)
  variables = Normed().init(KEYS, x)
  np.testing.assert_array_equal(variables['batch_stats']['reference'], x[:4])
  y, after = Normed().apply(variables, x[4:], mutable=['batch_stats'])
  np.testing.assert_array_equal(after['batch_stats']['reference'], x[:4])
  one_by_one = [Normed().apply(variables, row[None])[0] for row in x[4:]]
  np.testing.assert_allclose(y, np.stack(one_by_one), atol=1e-6)


def test_a_reference_batch_larger_than_the_first_batch_is_one_line():
  with pytest.raises(UserError, match='reference=4 of Normed: .* of 1 to 3 rows'):
    Normed().init(KEYS, draw(3, 2))


# --- The authors' numbers -------------------------------------------------------------------------


@pytest.fixture(scope='module')
def authors():
  return dict(np.load(reference.FIXTURE)) | reference.inputs()


def close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_minibatch_discrimination_is_the_authors(authors):
  x, module = authors['x'], layers.MinibatchDiscrimination(reference.KERNELS, reference.DIMS)
  params = {
    'kernel': authors['theta'],
    'log_scale': np.zeros((reference.KERNELS, reference.DIMS)),
    'bias': -np.ones(reference.KERNELS),
  }
  close(module.apply({'params': params}, x), authors['minibatch_plain'])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(nn.initializers, 'normal', lambda sd: lambda *_: jnp.asarray(authors['theta']))
    first, variables = module.init_with_output(KEYS, x)
  close(first, authors['minibatch_first'])
  close(variables['params']['log_scale'], authors['minibatch_log_weight_scale'])
  close(variables['params']['bias'], authors['minibatch_b'])


def test_weight_norm_is_the_authors(authors):
  def given(name):
    return lambda *_: jnp.asarray(authors[name])

  dense = layers.Dense(reference.UNITS, kernel_init=given('dense'))
  first, variables = dense.init_with_output(KEYS, authors['x'])
  close(first, authors['dense_first'])
  close(variables['batch_stats']['scale'], authors['dense_weight_scale'])
  close(variables['params']['bias'], authors['dense_b'])

  weights = []

  class Conv(layers._WeightNorm):
    """Keeps its weights, and passes on what is convolved already."""

    @nn.compact
    def __call__(self, y):
      kernel = self.param('kernel', self.kernel_init)
      return self.weighted(kernel, -1, lambda w: [weights.append(w), y][1])

  conv = Conv(4, sd=0.1, kernel_init=given('conv'))
  variables = conv.init(KEYS, authors['images'])
  close(weights[0], authors['conv_weight'])
  close(variables['batch_stats']['scale'], authors['conv_g'])
  close(variables['params']['bias'], authors['conv_b'])


def test_virtual_batch_norm_is_the_authors(authors):
  module = layers.VirtualBatchNorm(reference.REFERENCE)
  params = {'scale': authors['gamma'], 'bias': authors['beta']}
  y = module.apply({'params': params}, authors['images'])
  close(y[: reference.REFERENCE], authors['vbn_reference'])
  close(y[reference.REFERENCE :], authors['vbn_live'])


# --- The nets -------------------------------------------------------------------------------------


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  ('module', 'shape', 'parameters', 'fixed'),
  [
    # Sums over the layers of the released code, whose G has a trained length of each weight vector.
    (improved.Generator(), (100,), 50_500 + 250_500 + 784 * 502, None),
    (improved.Discriminator(10), (28, 28, 1), 784_000 + 627_260 + 125_000 + 2520 - 10, 2250),
    (improved.ConvGenerator(), (100,), 827_392 + 3_277_056 + 819_328 + 9606, None),
    (improved.ConvDiscriminator(10), (32, 32, 3), 1_403_424 + 1440 + 1940, 1440),
    (improved.ConvDiscriminator(10, kernels=100), (32, 32, 3), 1_406_804 + 97_600, 1440),
  ],
)
def test_number_of_parameters(module, shape, parameters, fixed):
  init = lambda x: module.init(KEYS, x, train=True)
  made = jax.eval_shape(init, jnp.zeros((4, *shape)))
  assert count(made['params']) == parameters
  assert fixed is None or count(made['batch_stats']) == fixed


@pytest.mark.parametrize('name', ['Generator', 'ConvGenerator'])
def test_generators_of_every_norm_fill_the_interval(name):
  make, z = getattr(improved, name), draw(5, 6)
  features = (8, 8, 8) if name == 'ConvGenerator' else (8, 8)
  for norm in ('batch', 'virtual', 'reference', 'none')[:: 1 if name == 'Generator' else 3]:
    module = make(features=features, norm=norm, reference=3)
    variables = module.init(KEYS, z, train=True)
    x, _ = module.apply(variables, z, train=True, mutable=['batch_stats'])
    assert x.shape == (5, *module.shape) and 0 < np.abs(x).max() < 1, norm
    one, _ = module.apply(variables, z[:1], train=True, mutable=['batch_stats'])
    alone = np.abs(one[0] - x[0]).max() < 1e-5
    assert alone == (norm != 'batch'), norm


def test_the_output_is_the_sigmoid_of_the_released_code():
  module, z = improved.Generator(shape=(3,), features=(4,)), draw(5, 6)
  variables = module.init(KEYS, z, train=True)
  linear = improved.Generator(shape=(3,), features=(4,), squash=False)
  x, a = (m.apply(variables, z, train=True, mutable=['batch_stats'])[0] for m in (module, linear))
  np.testing.assert_allclose(x, 2 * nn.sigmoid(a) - 1, atol=1e-6)


def test_discriminators_return_logits_and_the_last_hidden_layer():
  x = draw(6, 12, 12, 3)
  for module in (
    improved.Discriminator(10, features=(8, 5), unit_range=True, kernels=3),
    improved.ConvDiscriminator(10, features=(4, 5), kernels=3),
    improved.Discriminator(None, features=(8, 5)),
  ):
    variables = module.init(KEYS, x, train=True)
    logits, features = module.apply(variables, x, train=False)
    assert logits.shape == (6, module.num_classes or 1) and features.shape == (6, 5)
    noisy, _ = module.apply(variables, x, train=True, rngs=KEYS)
    assert (noisy != logits).any()
  plain = improved.Discriminator(None, features=(8, 5), unit_range=True)
  shown, _ = plain.apply(variables, x, train=False)
  np.testing.assert_allclose(shown, module.apply(variables, (x + 1) / 2, train=False)[0], atol=1e-5)
