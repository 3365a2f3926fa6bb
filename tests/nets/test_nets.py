"""Parameter counts, shapes and ranges of the nets; how a config's net is found."""

import functools
import math
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import FILES, load

from gen_jax import config as configs
from gen_jax import nets
from gen_jax.errors import UserError
from gen_jax.nets import acgan, cgan, dcgan, lapgan, layers, mlp, unet, wgan_gp
from gen_jax.ops import convolutions


def draw(*shape, seed=0):
  return np.float32(np.random.default_rng(seed).standard_normal(shape))


def init(module, *inputs):
  return jax.jit(functools.partial(module.init, train=False))(jax.random.key(0), *inputs)


def abstract(module, *shapes, label=False):
  """Parameters and output as shapes; nothing is computed. `label`: labels are the last input."""
  inputs = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  if label:
    inputs.append(jax.ShapeDtypeStruct(shapes[0][:1], jnp.int32))

  def run(*inputs):
    variables = module.init(jax.random.key(0), *inputs, train=False)
    out, _ = module.apply(variables, *inputs, train=False, mutable=['batch_stats'])
    return variables['params'], out

  return jax.eval_shape(run, *inputs)


def count(params):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


# Module, input, output, trainable parameters of the authors' code, or added up by layer.
NETS = {
  'standard_gan_g': (mlp.Generator(shape=(28, 28, 1)), (2, 30), (2, 28, 28, 1), 1_468_432),
  'standard_gan_d': (mlp.Discriminator(), (2, 28, 28, 1), (2,), 1_492_993),
  # Dense 100 x 6,272 + 6,272 = 633,472; batch norm 2 x 6,272 = 12,544; 4 x 4 x 128 x 64 + 64 =
  # 131,136; batch norm 2 x 64 = 128; 4 x 4 x 64 x 1 + 1 = 1,025.
  'dcgan28_g': (dcgan.Generator28(), (2, 100), (2, 28, 28, 1), 778_305),
  'dcgan28_d': (dcgan.Discriminator28(), (2, 28, 28, 1), (2,), 138_561),
  'dcgan64_g': (dcgan.Generator(), (2, 100), (2, 64, 64, 3), 18_885_760),
  'dcgan64_d': (dcgan.Discriminator(), (2, 64, 64, 3), (2,), 17_232_768),
  'wgan_gp28_g': (wgan_gp.Generator28(), (2, 128), (2, 28, 28, 1), 1_554_177),
  'wgan_gp28_d': (wgan_gp.Critic28(), (2, 28, 28, 1), (2,), 1_030_145),
  'wgan_gp_resnet_g': (wgan_gp.ResNetGenerator(), (2, 128), (2, 32, 32, 3), 1_204_483),
  'wgan_gp_resnet_d': (wgan_gp.ResNetCritic(), (2, 32, 32, 3), (2,), 1_053_825),
  'unet': (unet.UNet(), ((2, 32, 32, 3), (2,)), (2, 32, 32, 3), 35_746_307),
  # Convolution 80; time 288 + 1,056; residual blocks 3 x 1,728, each norms 2 x 16, convolutions
  # 2 x 584, time 528; attention 304; norm 16; pooling: positions 17 x 8, q, k and v 3 x 72, out 27.
  'noisy_classifier': (
    unet.Classifier(3, 8, (1,), blocks=1, attention=(), head_channels=8, groups=4),
    ((2, 4, 4, 1), (2,)),
    (2, 3),
    7_307,
  ),
}


@pytest.mark.parametrize('name', NETS)
def test_number_of_parameters_and_shape(name):
  module, inputs, output, number = NETS[name]
  params, out = abstract(module, *(inputs if isinstance(inputs[0], tuple) else (inputs,)))
  assert count(params) == number
  assert out.shape == output and out.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}


# The same for nets with 10 classes; all but the discriminators of acgan take labels.
WITH_CLASSES = {
  # 110 x 1,200 + 1,200; 1,200 x 1,200 + 1,200; 1,200 x 192 + 192.
  'lapgan_coarse_g': (lapgan.CoarseGenerator(10), (2, 100), (2, 8, 8, 3), 1_804_992),
  # 202 x 600 + 600; 600 x 600 + 600; 600 + 1.
  'lapgan_coarse_d': (lapgan.CoarseDiscriminator(10), (2, 8, 8, 3), (2,), 483_001),
  # The map of the label 10 x 1,024 + 1,024; 7x7 convolutions of 5 and 64 channels 15,744 + 200,768;
  # 5x5 to 3 channels 4,803.
  'lapgan_g': (
    lapgan.Generator(10),
    ((2, 32, 32, 1), (2, 32, 32, 3)),
    (2, 32, 32, 3),
    232_579,
  ),
  # The map 11,264; 5x5 convolutions of 4 and 64 channels 6,464 + 102,464; dense 12 x 12 x 64 + 1.
  'lapgan_d': (lapgan.Discriminator(10), (2, 32, 32, 3), (2,), 129_409),
  # 100 x 200 + 200; 10 x 1,000 + 1,000; 1,200 x 1,200 + 1,200; 1,200 x 784 + 784.
  'cgan_g': (cgan.Generator(10), (2, 100), (2, 28, 28, 1), 2_413_984),
  # 784 x 1,200 + 1,200; 10 x 250 + 250; 290 x 960 + 960; 240 + 1.
  'cgan_d': (cgan.Discriminator(10), (2, 28, 28, 1), (2,), 1_224_351),
  # That of dcgan28_g, and 10 more rows of the dense layer, 10 x 6,272.
  'acgan28_g': (acgan.Generator28(10), (2, 100), (2, 28, 28, 1), 841_025),
  # That of dcgan28_d, and 10 more columns of the dense layer, 10 x (6,272 + 1).
  'acgan28_d': (acgan.Discriminator28(10), (2, 28, 28, 1), ((2,), (2, 10)), 201_291),
  # Dense 110 x 49,152 + 49,152 = 5,455,872; 5x5 convolutions 7,373,184 + 2,457,856 + 1,228,992 +
  # 14,403; batch norms 2 x (384 + 256 + 192).
  'acgan128_g': (acgan.Generator(10), (2, 100), (2, 128, 128, 3), 16_531_971),
  # Dense 110 x 6,144 + 6,144 = 681,984; 5x5 convolutions 1,843,392 + 460,896 + 7,203; batch norms
  # 2 x (192 + 96).
  'acgan32_g': (
    acgan.Generator(10, shape=(32, 32, 3), features=(384, 192, 96)),
    (2, 100),
    (2, 32, 32, 3),
    2_994_051,
  ),
  # 3x3 convolutions 448 + 4,640 + 18,496 + 73,856 + 295,168 + 1,180,160; batch norms
  # 2 x (32 + 64 + 128 + 256 + 512); dense 16 x 16 x 512 x 11 + 11, or 4 x 4 x 512 x 11 + 11.
  'acgan128_d': (acgan.Discriminator(10), (2, 128, 128, 3), ((2,), (2, 10)), 3_016_555),
  'acgan32_d': (acgan.Discriminator(10), (2, 32, 32, 3), ((2,), (2, 10)), 1_664_875),
}


@pytest.mark.parametrize('name', WITH_CLASSES)
def test_number_of_parameters_and_shape_with_classes(name):
  module, inputs, output, number = WITH_CLASSES[name]
  inputs = inputs if isinstance(inputs[0], tuple) else (inputs,)
  params, out = abstract(module, *inputs, label=not re.match('acgan.*_d', name))
  assert count(params) == number
  assert jax.tree.map(lambda x: x.shape, out) == output


def test_an_acgan_generator_needs_a_size_that_its_layers_reach():
  module = acgan.Generator(10, shape=(30, 30, 3), features=(4, 2))
  with pytest.raises(UserError, match='multiples of 4'):
    abstract(module, (2, 5), label=True)


def test_the_32_pixel_dcgan_drops_one_stage():
  _, out = abstract(dcgan.Generator(shape=(32, 32, 3), features=(8, 4, 2)), (2, 100))
  assert out.shape == (2, 32, 32, 3)
  params, out = abstract(dcgan.Discriminator(features=(2, 4, 8)), (2, 32, 32, 3))
  assert out.shape == (2,)
  assert params['Dense_0']['kernel'].shape == (4 * 4 * 8, 1)


GENERATORS = {
  'mlp': (mlp.Generator(shape=(3, 2), features=(8,)), 5),
  'dcgan28': (dcgan.Generator28(features=(4, 2)), 5),
  'dcgan': (dcgan.Generator(shape=(16, 16, 1), features=(4, 2)), 5),
  'wgan_gp28': (wgan_gp.Generator28(features=2), 5),
  'resnet': (wgan_gp.ResNetGenerator(shape=(8, 8, 3), features=4, blocks=1), 5),
}


@pytest.mark.parametrize('name', GENERATORS)
def test_generators_fill_the_open_interval(name):
  module, dim = GENERATORS[name]
  z = 3 * draw(8, dim)
  variables = init(module, z)
  # Thirty times the weights saturate every tanh.
  run = jax.jit(functools.partial(module.apply, train=True, mutable=['batch_stats']))
  for scale, low in ((1, 1e-4), (30, 0.5)):
    params = jax.tree.map(lambda p, s=scale: s * np.asarray(p), variables['params'])
    out, _ = run({**variables, 'params': params}, z)
    assert low < np.abs(out).max() <= 1
    assert out.std(axis=0).max() > 1e-5, 'depends on z'


def test_an_mlp_generator_can_go_without_tanh():
  module = mlp.Generator(shape=(2,), features=(8,), squash=False)
  z = 100 * draw(8, 5)
  assert np.abs(module.apply(init(module, z), z, train=True)).max() > 2


def test_mlp_layers_by_hand():
  module = mlp.Discriminator(features=(3,), dropout=0.0)
  x = draw(4, 2, 2)
  variables = init(module, x)
  p = jax.tree.map(np.asarray, variables['params'])
  h = np.asarray(x).reshape(4, 4) @ p['Dense_0']['kernel'] + p['Dense_0']['bias']
  h = np.where(h > 0, h, 0.2 * h)
  expected = (h @ p['Dense_1']['kernel'] + p['Dense_1']['bias'])[:, 0]
  np.testing.assert_allclose(module.apply(variables, x, train=True), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  'module',
  [mlp.Discriminator(features=(64,), dropout=0.3), dcgan.Discriminator28(features=(2, 2))],
  ids=['mlp', 'dcgan28'],
)
def test_discriminators_drop_out_in_training_only(module):
  x = draw(2, 28, 28, 1)
  variables = init(module, x)

  @jax.jit
  def run(key):
    return module.apply(variables, x, train=True, rngs={'dropout': key})

  first, again, other = (np.asarray(run(jax.random.key(seed))) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (first != other).all()
  quiet = jax.jit(lambda: module.apply(variables, x, train=False))()  # asks for no key
  assert (np.asarray(quiet) != first).all()


def test_batch_norm_averages_or_uses_the_batch_as_the_papers_do():
  z = draw(8, 5)

  def difference(module):
    variables = init(module, z)
    run = functools.partial(module.apply, variables, z, mutable=['batch_stats'])
    (a, _), (b, _) = (
      jax.jit(functools.partial(run, train=True))(),
      jax.jit(functools.partial(run, train=False))(),
    )
    return np.abs(a - b).max()

  # Radford's nets and the WGAN-GP ResNet: statistics of the batch, in sampling too.
  assert difference(dcgan.Generator(shape=(8, 8, 1), features=(4,))) == 0
  assert difference(wgan_gp.ResNetGenerator(shape=(8, 8, 3), features=4, blocks=1)) == 0
  # The small nets of courses: running averages.
  assert difference(dcgan.Generator28(features=(4, 2))) > 1e-3


def test_the_first_norm_of_generators_is_per_unit():
  variables = init(dcgan.Generator28(features=(4, 2)), draw(2, 5))
  shapes = [variables['params'][f'BatchNorm_{i}']['scale'].shape for i in range(2)]
  assert shapes == [(7 * 7 * 4,), (2,)]
  assert variables['batch_stats']['BatchNorm_0']['mean'].shape == (7 * 7 * 4,)
  # Every unit has mean 0 over the batch, so that its ReLU is on for some and off for some.
  z = draw(64, 5)
  _, seen = dcgan.Generator28(features=(4, 2)).apply(
    variables, z, train=True, mutable=['batch_stats'], capture_intermediates=True
  )
  (first,) = seen['intermediates']['BatchNorm_0']['__call__']
  assert first.shape == (64, 7 * 7 * 4)
  np.testing.assert_allclose(first.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(first.std(0), 1, rtol=1e-2)


def test_initial_weights():
  params = init(dcgan.Discriminator(features=(16, 64)), jnp.zeros((1, 16, 16, 3)))['params']
  assert set(params) == {'Conv_0', 'Conv_1', '_BatchNorm_0', 'Dense_0'}, 'first without norm'
  for name in ('Conv_0', 'Conv_1', 'Dense_0'):
    assert list(params[name]) == ['kernel'], 'no biases'
    np.testing.assert_allclose(params[name]['kernel'].std(), 0.02, rtol=0.1)
  gamma = params['_BatchNorm_0']['BatchNorm_0']['scale']
  np.testing.assert_allclose([gamma.mean(), gamma.std()], [1, 0.02], atol=0.01)

  # tflib: uniform with variance 4 / (fan_in + fan_out), fan_out of a stride counted per stride^2.
  params = init(wgan_gp.Critic28(features=16), jnp.zeros((1, 28, 28, 1)))['params']
  std = (4 / (25 * 16 + 25 * 32 / 4)) ** 0.5
  np.testing.assert_allclose(params['Conv_1']['kernel'].std(), std, rtol=0.03)
  np.testing.assert_allclose(np.abs(params['Conv_1']['kernel']).max(), 3**0.5 * std, rtol=0.01)
  params = init(wgan_gp.Generator28(features=16), jnp.zeros((1, 8)))['params']
  # Deconvolution of 64 to 32 channels: fan_in per stride^2.
  std = (4 / (25 * 64 / 4 + 25 * 32)) ** 0.5
  np.testing.assert_allclose(params['UpConv_0']['kernel'].std(), std, rtol=0.03)


def test_the_shortcuts_of_the_resnet_are_those_of_the_released_code():
  """Its order, the 1x1 convolution after up-sampling and before the mean, gives the same."""
  x = draw(2, 4, 6, 3)

  def conv(x, params):
    y = jax.lax.conv_general_dilated(
      x, params['kernel'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    return y + params['bias'][None, None, None]

  def norm(x, params):
    x = (x - x.mean((0, 1, 2), keepdims=True)) / (x.var((0, 1, 2), keepdims=True) + 1e-5) ** 0.5
    return x * params['scale'][None, None, None] + params['bias'][None, None, None]

  def params_of(net):
    params = net.init(jax.random.key(0), x)['params']
    return jax.tree.map(lambda p: p + 0.1, params)  # no bias is zero

  net = wgan_gp.UpBlock(5)
  p = params_of(net)
  h = conv(convolutions.upsample(nn.relu(norm(x, p['BatchNorm_0']))), p['conv1'])
  h = conv(nn.relu(norm(h, p['BatchNorm_1'])), p['conv2'])
  expected = h + conv(convolutions.upsample(x), p['shortcut'])
  found, _ = net.apply({'params': p}, x, mutable=['batch_stats'])
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

  for first in (False, True):
    net = wgan_gp.CriticBlock(5, down=True, first=first)
    p = params_of(net)
    h = conv(nn.relu(conv(x if first else nn.relu(x), p['conv1'])), p['conv2'])
    expected = layers.mean_pool(h) + layers.mean_pool(conv(x, p['shortcut']))
    np.testing.assert_allclose(net.apply({'params': p}, x), expected, rtol=1e-4, atol=1e-4)


def test_the_mnist_generator_ends_in_the_sigmoid_of_the_released_code():
  module = wgan_gp.Generator28(features=2)
  params = init(module, jnp.zeros((1, 8)))['params']
  last = params['UpConv_2']
  last['kernel'], last['bias'] = 0 * last['kernel'], 0 * last['bias'] + math.log(3)
  out = module.apply({'params': params}, jnp.zeros((1, 8)), train=False)
  np.testing.assert_allclose((out + 1) / 2, 0.75, rtol=1e-6)  # sigmoid(log 3)


# --- The U-Net ------------------------------------------------------------------------------------

TINY = dict(features=8, groups=4, blocks=1, multipliers=(1,), attention=(), dropout=0.0)


def test_attention_is_at_16_pixels_on_both_ways_and_in_the_middle():
  params, _ = abstract(unet.UNet(), (1, 32, 32, 3), (1,))
  found = {name for name in params if name.endswith('attention')}
  assert found == {
    *(f'down1_{i}_attention' for i in range(2)),
    *(f'up1_{i}_attention' for i in range(3)),
    'mid_attention',
  }


def test_classes_cost_one_vector_each():
  plain, _ = abstract(unet.UNet(**TINY), (1, 4, 4, 3), (1,))
  module = unet.UNet(**TINY, num_classes=10)
  x, t, label = jnp.zeros((1, 4, 4, 3)), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)
  labelled = jax.eval_shape(lambda: module.init(jax.random.key(0), x, t, label, train=False))
  assert count(labelled['params']) == count(plain) + 10 * 4 * 8


def test_a_fresh_unet_predicts_nothing():
  module = unet.UNet(**TINY)
  out, variables = jax.jit(functools.partial(module.init_with_output, train=False))(
    jax.random.key(0), draw(2, 4, 4, 1), np.array([3, 700])
  )
  assert 0 < np.abs(out).max() < 1e-3
  for name, layer in variables['params'].items():
    if 'conv2' in layer:
      assert np.abs(layer['conv2']['kernel']).max() < 1e-4 < np.abs(layer['conv1']['kernel']).max()
    if 'attention' in name:
      assert np.abs(layer['out']['kernel']).max() < 1e-4 < np.abs(layer['q']['kernel']).max()


def test_a_unet_sees_the_picture_the_time_and_the_class_of_each_row():
  module = unet.UNet(**TINY, num_classes=3)
  x, t, label = draw(2, 4, 4, 1), np.array([3, 700]), np.array([0, 2])
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, t, label, train=False))
  awake = jax.tree.map(lambda p: 0.2 * draw(*p.shape), shapes)
  run = jax.jit(functools.partial(module.apply, train=False))
  out = np.asarray(run(awake, x, t, label))
  for changed in (
    (x + np.float32([1, 0]).reshape(2, 1, 1, 1), t, label),
    (x, t + np.array([1, 0]), label),
    (x, t, np.array([1, 2])),
  ):
    other = np.asarray(run(awake, *changed))
    assert np.abs(other[0] - out[0]).max() > 1e-4
    np.testing.assert_array_equal(other[1], out[1], 'rows do not meet')


# --- The classifier of noisy images ---------------------------------------------------------------


def test_a_denoiser_of_points_sees_the_point_the_time_and_the_class_of_each_row():
  net = mlp.Denoiser(features=(16, 16), time_features=8, octaves=2, num_classes=3)
  x, t, label = draw(4, 2), jnp.array([0, 5, 9, 9]), jnp.array([0, 1, 2, 2])
  params = init(net, x, t, label)['params']
  # 2 + 2 * 2 * 2 inputs. Two layers of t; two hidden layers, each with one of t; the output.
  widths = [(8, 16), (16, 16), (10, 16), (16, 16), (16, 16), (16, 16), (16, 2)]
  assert count(params) == sum((a + 1) * b for a, b in widths) + 3 * 16
  eps = lambda *rows: net.apply({'params': params}, *rows, train=False)
  fresh = eps(x, t, label)
  assert fresh.shape == (4, 2) and np.abs(fresh).max() < 1e-3
  params = jax.tree.map(lambda leaf: leaf + 0.1, params)
  out = eps(x, t, label)
  for other in ((x[::-1], t, label), (x, t + 1, label), (x, t, (label + 1) % 3)):
    assert np.all(np.any(eps(*other) != out, axis=-1))


@pytest.mark.parametrize(
  'module, classes',
  [
    (unet.UNet(**TINY, num_classes=3, drop_labels=True, out_channels=4), 'class'),
    (
      mlp.Denoiser((16,), time_features=8, num_classes=3, drop_labels=True, out_channels=4),
      'Embed_0',
    ),
  ],
  ids=['unet', 'mlp'],
)
def test_a_null_label_a_variance_and_a_second_time(module, classes):
  x, t, label = draw(2, 4, 4, 2), np.float32([0.3, 700]), np.array([3, 3])
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, t, label, t, train=False))
  assert shapes['params'][classes]['embedding'].shape[0] == 4
  awake = jax.tree.map(lambda p: 0.2 * draw(*p.shape), shapes)
  out = module.apply(awake, x, t, label, t, train=False)
  assert out.shape == (2, 4, 4, 4)
  other = module.apply(awake, x, t, label, t + np.float32([0.1, 0]), train=False)
  assert np.abs(other[0] - out[0]).max() > 1e-4
  np.testing.assert_allclose(other[1], out[1], rtol=1e-6)


def test_times_stay_float32_in_a_net_that_computes_in_bfloat16():
  seen = []

  class Spy(nn.Module):
    @nn.compact
    def __call__(self, x, t, label, *, train):
      seen.extend(
        [x.dtype, t.dtype, label is None, self.param('p', nn.initializers.ones, ()).dtype]
      )
      return x

  net = nets.Net(Spy(), 'bfloat16')
  x, t = draw(2, 3), np.float32([998.3, 998.4])
  out = net.apply({'params': {'p': jnp.ones(())}}, x, t, None, train=False)
  assert seen == [jnp.bfloat16, jnp.float32, True, jnp.bfloat16] and out.dtype == jnp.float32


def test_attention_pooling_is_what_the_mean_token_attends_to():
  module = unet.AttentionPool(features=3, head_channels=2)
  x = draw(2, 2, 3, 4)
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x))
  params = jax.tree.map(lambda p: draw(*p.shape, seed=1), shapes)['params']
  tokens = np.float64(x).reshape(2, 6, 4)
  tokens = np.concatenate([tokens.mean(1, keepdims=True), tokens], 1) + params['positions']
  q, k, v = (tokens @ params[name]['kernel'] + params[name]['bias'] for name in 'qkv')
  pooled = np.zeros((2, 4))
  for row in range(2):
    for head in (slice(0, 2), slice(2, 4)):
      weights = np.exp(k[row, :, head] @ q[row, 0, head] / np.sqrt(2))
      pooled[row, head] = weights / weights.sum() @ v[row, :, head]
  expected = pooled @ params['out']['kernel'] + params['out']['bias']
  np.testing.assert_allclose(module.apply({'params': params}, x), expected, rtol=1e-4, atol=1e-4)


def test_a_fresh_classifier_has_a_gradient_and_a_scale_of_its_own():
  module = unet.Classifier(3, 8, (1, 2), blocks=1, attention=(2,), head_channels=8, groups=4)
  x, t = draw(2, 4, 4, 1), np.array([3, 700])
  variables = init(module, x, t)
  assert 'down1_0_attention' in variables['params']
  assert np.abs(variables['params']['pool']['out']['kernel']).max() > 0.1
  run = jax.jit(functools.partial(module.apply, train=False))
  out = np.asarray(run(variables, x, t))
  other = np.asarray(run(variables, x + np.float32([1, 0]).reshape(2, 1, 1, 1), t))
  assert np.abs(other[0] - out[0]).max() > 1e-3
  np.testing.assert_array_equal(other[1], out[1], 'rows do not meet')


def test_heads_of_the_pooling_must_divide_the_last_width():
  module = unet.Classifier(3, 8, (1,), blocks=1, attention=(), head_channels=5, groups=4)
  with pytest.raises(UserError, match=r'config.net.head_channels=5 does not divide 8'):
    abstract(module, (2, 4, 4, 1), (2,))


# XLA:CPU's default order of operations gives up the memory that rematerialisation saves.
SERIAL = {'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED'}


def test_rematerialised_blocks_give_the_same_for_less_memory():
  size = dict(features=16, groups=4, blocks=2, multipliers=(1, 2), attention=(8,), dropout=0.2)
  x, t = draw(16, 16, 16, 1), np.arange(16)
  plain, again = unet.UNet(**size), unet.UNet(**size, remat=True)
  shapes = jax.eval_shape(lambda: plain.init(jax.random.key(0), x, t, train=False))
  awake = jax.tree.map(lambda p: 0.1 * draw(*p.shape), shapes)
  found, memory = [], []
  for module in (plain, again):

    def loss(params, module=module):
      out = module.apply(params, x, t, train=True, rngs={'dropout': jax.random.key(1)})
      return (out**2).mean()

    step = jax.jit(jax.value_and_grad(loss)).lower(awake).compile(SERIAL)
    found.append(step(awake))
    memory.append(step.memory_analysis().temp_size_in_bytes)
  (value, gradient), (value_again, gradient_again) = found
  np.testing.assert_allclose(value_again, value, rtol=1e-5)
  chex.assert_trees_all_close(gradient_again, gradient, rtol=1e-3, atol=1e-5)
  assert memory[1] < 0.7 * memory[0]


def test_attention_by_hand():
  module = unet.Attention(groups=2)
  x = draw(2, 2, 3, 4)
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)['params']
  params = jax.tree.map(lambda p: draw(*p.shape, seed=math.prod(p.shape)), shapes)
  p = jax.tree.map(np.asarray, params)

  def dense(name, y):
    return y @ p[name]['kernel'] + p[name]['bias']

  for found, picture in zip(jax.jit(module.apply)({'params': params}, x), x, strict=True):
    groups = picture.reshape(6, 2, 2)  # [positions, groups, channels of a group]
    centred = groups - groups.mean((0, 2), keepdims=True)
    normed = centred / np.sqrt(centred.var((0, 2), keepdims=True) + 1e-6)
    y = normed.reshape(6, 4) * p['norm']['scale'] + p['norm']['bias']
    q, k, v = (dense(name, y) for name in 'qkv')
    weights = np.exp(q @ k.T / np.sqrt(4))
    weights /= weights.sum(1, keepdims=True)
    expected = picture.reshape(6, 4) + dense('out', weights @ v)
    np.testing.assert_allclose(found.reshape(6, 4), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('scale_shift', [False, True])
def test_res_block_by_hand(scale_shift):
  # On one pixel a SAME 3x3 convolution is its centre, and a norm of one channel gives its bias.
  module = unet.ResBlock(features=4, groups=2, dropout=0.0, scale_shift=scale_shift, axis_name=None)
  x, temb = draw(1, 1, 1, 2), draw(1, 5, seed=1)
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, temb, False))['params']
  params = jax.tree.map(lambda p: draw(*p.shape, seed=math.prod(p.shape)), shapes)
  p = jax.tree.map(np.asarray, params)

  def swish(y):
    return y / (1 + np.exp(-y))

  h = swish(p['norm1']['bias'])
  h = h @ p['conv1']['kernel'][1, 1] + p['conv1']['bias']
  time = swish(np.asarray(temb)[0]) @ p['temb']['kernel'] + p['temb']['bias']
  scale, shift = (time[:4], time[4:]) if scale_shift else (0, 0)
  pairs = (h if scale_shift else h + time).reshape(2, 2)
  normed = (pairs - pairs.mean(1, keepdims=True)) / np.sqrt(pairs.var(1, keepdims=True) + 1e-6)
  h = normed.reshape(4) * p['norm2']['scale'] + p['norm2']['bias']
  h = swish(h * (1 + scale) + shift)
  h = h @ p['conv2']['kernel'][1, 1] + p['conv2']['bias']
  expected = np.asarray(x)[0, 0, 0] @ p['shortcut']['kernel'] + p['shortcut']['bias'] + h
  found = jax.jit(lambda p: module.apply({'params': p}, x, temb, False))(params)
  np.testing.assert_allclose(found[0, 0, 0], expected, rtol=1e-4, atol=1e-4)


# --- Nets by name ---------------------------------------------------------------------------------


class Mine(nn.Module):
  """A net of a user's own."""

  width: int
  shape: tuple = ()

  @nn.compact
  def __call__(self, x, *, train):
    return nn.Dense(self.width)(x)


class NoNet:
  """Not a Flax module."""


def test_names_of_this_package_dotted_paths_and_classes_are_found():
  assert nets.find('dcgan.Generator') is dcgan.Generator
  assert nets.find('gen_jax.nets.mlp.Discriminator') is mlp.Discriminator
  assert nets.find('flax.linen.Dense') is nn.Dense
  assert nets.find(Mine) is Mine
  assert {'unet.UNet', 'wgan_gp.Critic28', 'mlp.Generator'} <= set(nets.known())


def test_every_attribute_of_the_nets_of_configs_has_a_meaning():
  for path in FILES:
    about = configs.describe(load(path)).splitlines()
    missing = [line for line in about if 'attribute of' in line]
    assert not missing, path.name


def test_the_meaning_of_an_attribute_may_be_in_a_base_class():
  assert nets.about('improved.Generator', 'norm') == nets.about('improved.ConvGenerator', 'norm')
  assert 'virtual or reference batch norm' in nets.about('improved.Generator', 'norm')


def test_make_sets_what_the_module_declares():
  offered = dict(shape=(4, 4, 1), axis_name='batch')
  made = nets.make(dict(name='mlp.Generator', features=(8,)), **offered)
  assert made.module == mlp.Generator(shape=(4, 4, 1), features=(8,))
  assert nets.make(dict(name=Mine, width=3), **offered).module == Mine(width=3, shape=(4, 4, 1))
  # The spec wins.
  assert nets.make(dict(name=Mine, width=3, shape=(7,)), **offered).module.shape == (7,)


@pytest.mark.parametrize(
  'spec, words',
  [
    (dict(name='dcgan.Generater'), ["config.generator.name='dcgan.Generater'", 'dcgan.Generator']),
    (dict(name='unet'), ["config.generator.name='unet'", 'did you mean unet.UNet?']),
    (dict(name='no_such_package.Net'), ["'no_such_package.Net'", 'No module named', 'one of']),
    (dict(name='.relative.Net'), ["config.generator.name='.relative.Net'"]),
    (dict(name=''), ["config.generator.name=''"]),
    (dict(name=NoNet), ['config.generator.name=', 'not a subclass of flax.linen.Module']),
    (dict(name='math.sqrt'), ["config.generator.name='math.sqrt'", 'no module of nets']),
    (dict(name='flax.linen.relu'), ["config.generator.name='flax.linen.relu'", 'not a subclass']),
    (
      dict(name='dcgan.Generator', feature=3),
      ['config.generator.feature is not an attribute', 'did you mean config.generator.features?'],
    ),
    (
      dict(name='dcgan.Generator', zzz=3),
      ['config.generator.zzz is not an attribute', 'shape, features, axis_name'],
    ),
    (dict(name=Mine), ['config.generator', 'width']),
  ],
  ids=lambda v: str(v.get('name', '')) if isinstance(v, dict) else '',
)
def test_what_a_user_can_get_wrong_is_told_in_one_line(spec, words):
  with pytest.raises(UserError) as raised:
    nets.make(spec, 'config.generator')
  message = str(raised.value)
  assert '\n' not in message
  for word in words:
    assert word in message, message
