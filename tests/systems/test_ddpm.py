"""DDPM's loss for nets whose error is known, its moving average, and the choices of its sampler."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from denoisers import Constant, Scaled, Told, assert_minimum, four_points

from gen_jax import config as configs
from gen_jax.diffusion import process
from gen_jax.diffusion.bound import bound
from gen_jax.diffusion.paths import Prediction
from gen_jax.errors import UserError
from gen_jax.systems import ddpm

BETAS = np.linspace(1e-3, 0.3, 12)
BARS = np.cumprod(1 - BETAS)
KINDS = pytest.mark.parametrize('kind', ['eps', 'x_0', 'v'])

# Compiled once for all calls with equal configs.
init_state = jax.jit(ddpm.init_state, static_argnames='config')
train_step = jax.jit(ddpm.train_step, static_argnames='config')
draw_sample = jax.jit(ddpm.sample, static_argnames='config')


def at(table, t):
  return jnp.float32(table)[t.astype(jnp.int32)][:, None]


class Perfect(nn.Module):
  """Knows that x_0 is 0 everywhere, so x_t is noise and nothing else."""

  @nn.compact
  def __call__(self, x, t, label=None, *, train):
    a = self.param('a', nn.initializers.ones, ())
    return a * x / at(np.sqrt(1 - BARS), t)


class Ends(nn.Module):
  """Predicts 10 at the first and at the last time, else 0."""

  @nn.compact
  def __call__(self, x, t, label=None, *, train):
    a = self.param('a', nn.initializers.ones, ())
    end = (t == 0) | (t == len(BETAS) - 1)
    return jnp.zeros_like(x) + (10 * a * end)[:, None]


class Noisy(nn.Module):
  """Dropout of ones; the class as an offset."""

  @nn.compact
  def __call__(self, x, t, label=None, *, train):
    a = self.param('a', nn.initializers.ones, ())
    y = nn.Dropout(0.5, deterministic=not train)(a * jnp.ones_like(x))
    return y if label is None else y + label.astype(jnp.float32)[:, None]


class Expressed(nn.Module):
  """An x_0, a constant or tanh(x), in terms of one of the predictions."""

  kind: str
  constant: bool = False

  @nn.compact
  def __call__(self, x, t, label=None, *, train):
    a = self.param('a', nn.initializers.ones, ())
    x_0 = jnp.zeros_like(x) + a if self.constant else jnp.tanh(a * x)
    alpha, sigma = at(np.sqrt(BARS), t), at(np.sqrt(1 - BARS), t)
    eps = (x - alpha * x_0) / sigma
    return {'x_0': x_0, 'eps': eps, 'v': alpha * eps - sigma * x_0}[self.kind]


class WithVariance(nn.Module):
  """Predicts numbers for eps and for the variance."""

  eps: float = 0.25
  variance: float = 0.0

  @nn.compact
  def __call__(self, x, t, label=None, *, train):
    a = self.param('a', lambda _: jnp.array(self.eps))
    v = self.param('v', lambda _: jnp.array(self.variance))
    return jnp.concatenate([jnp.zeros_like(x) + a, jnp.zeros_like(x) + v], axis=-1)


def make_config(**changes):
  values = {
    'data.shape': (3,),
    'net': {'name': Constant},
    'diffusion': dict(steps=12, beta_min=1e-3, beta_max=0.3),
    'ema_decay': 0.9,
    'optim': dict(lr=0.05, b1=0.5, b2=0.9),
    'sample': dict(sampler='ddim', steps=4, clip=False),
  }
  changes = {name.replace('__', '.'): value for name, value in changes.items()}
  return configs.make('ddpm', values | changes)


def draw(*shape, seed=0):
  return np.float32(np.random.default_rng(seed).standard_normal(shape))


def init(config, batch=None):
  batch = {'image': jnp.zeros((4, 3))} if batch is None else batch
  return init_state(jax.random.key(0), batch, config=config)


def step(state, batch, config, key=0):
  return train_step(state, batch, jax.random.key(key), config=config)


def loss_of(config, x_0, t, eps, label=None, key=0):
  @jax.jit
  def run(params, key):
    how = dict(model=ddpm.build(config), tables=process.build_process(config), config=config)
    return ddpm.loss_fn(params, (x_0, label, t, eps), key, **how)[0]

  return run(init(config).net.params, jax.random.key(key))


def both_losses(config, rows, params=None):
  params = init(config).net.params if params is None else params
  how = dict(model=ddpm.build(config), tables=process.build_process(config), config=config)
  return ddpm.loss_fn(params, rows, jax.random.key(0), **how)


def loss_at(config, rows, a):
  return both_losses(config, rows, {'a': jnp.float32(a)})[0]


class Grey(nn.Module):
  """Predicts one value for all entries of an example."""

  @nn.compact
  def __call__(self, x, t, label=None, *, train):
    return nn.Dense(1)(x)


# --- The loss -------------------------------------------------------------------------------------


def test_the_loss_of_a_constant_prediction():
  eps, t = draw(12, 3), np.arange(12)
  config = make_config(net=dict(name=Constant, start=0.25))
  expected = ((eps - 0.25) ** 2).mean(1).mean()
  np.testing.assert_allclose(loss_of(config, draw(12, 3, seed=1), t, eps), expected, rtol=1e-5)


def test_the_loss_of_the_true_noise_is_0_at_every_time():
  config = make_config(net=dict(name=Perfect))
  eps, t = draw(12, 3), np.arange(12)
  zero = np.zeros((12, 3), np.float32)
  np.testing.assert_allclose(loss_of(config, zero, t, eps), 0, atol=1e-9)
  # The net is shown x_t: a visible x_0 is an error of sqrt(bar / (1 - bar)) x_0.
  expected = 4 * np.mean(BARS / (1 - BARS))
  np.testing.assert_allclose(loss_of(config, zero + 2, t, eps), expected, rtol=1e-4)


def test_a_prediction_of_another_shape_is_refused():
  config = make_config(net=dict(name=Grey))
  state = init(config)
  words = r'config.net: Grey maps \(4, 3\) to \(4, 1\)'
  with pytest.raises(UserError, match=words):
    step(state, {'image': jnp.zeros((4, 3))}, config)
  with pytest.raises(UserError, match=words):
    draw_sample(state, {'index': jnp.arange(4)}, jax.random.key(0), config=config)


def test_the_loss_has_dropout_and_the_label():
  config = make_config(net=dict(name=Noisy))
  zero, t = np.zeros((4, 3), np.float32), np.arange(4)
  first, again, other = (loss_of(config, zero, t, zero, key=k) for k in (0, 0, 7))
  assert first == again
  assert first != other
  label = np.array([10, 20, 30, 40])
  assert loss_of(config, zero, t, zero, label) > 100 + first


def test_a_step_draws_all_times_alike():
  config = make_config(net=dict(name=Ends))
  n = 6000
  _, metrics = step(init(config), {'image': jnp.zeros((n, 3))}, config)
  # 1 for the noise, 100 for each of the two times of 12; the standard error is 0.5.
  np.testing.assert_allclose(metrics['net/loss'], 1 + 200 / 12, atol=2)


def test_a_step_trains_and_reports():
  config = make_config(net=dict(name=Perfect))
  state, metrics = step(init(config), {'image': jnp.zeros((8, 3))}, config)
  # The net is perfect already.
  np.testing.assert_allclose([metrics['net/loss'], metrics['net/grad_norm']], 0, atol=1e-4)
  assert state.step == 1
  config = make_config(net=dict(name=Constant, start=0.5))
  state, metrics = step(init(config), {'image': jnp.zeros((4000, 3))}, config)
  # d/da E (eps - a)^2 = 2 a, and Adam's first step is the rate.
  np.testing.assert_allclose(metrics['net/loss'], 1.25, atol=0.08)
  np.testing.assert_allclose(metrics['net/grad_norm'], 1.0, atol=0.1)
  np.testing.assert_allclose(state.net.params['a'], 0.45, rtol=1e-4)


def test_the_first_average_is_the_first_step_and_the_rest_follow_the_recurrence():
  config = make_config(net=dict(name=Constant, start=0.5))
  state = init(config)
  np.testing.assert_array_equal(state.net.ema['a'], 0.5)
  average = None
  for _ in range(3):
    state, _ = step(state, {'image': jnp.zeros((64, 3))}, config)
    new = float(state.net.params['a'])
    average = new if average is None else 0.9 * average + 0.1 * new
    np.testing.assert_allclose(state.net.ema['a'], average, rtol=1e-6)
  assert abs(average - new) > 0.01


# --- Other predictions and weights, the learned variance ------------------------------------------

SNR = BARS / (1 - BARS)


@KINDS
@pytest.mark.parametrize('weighting', ['simple', 'min_snr'])
def test_an_error_of_x_0_weighs_as_published(kind, weighting):
  """The data are 0, and the net says that x_0 is a number."""
  config = make_config(
    net=dict(name=Expressed, kind=kind, constant=True),
    diffusion__prediction=kind,
    diffusion__weighting=weighting,
    diffusion__gamma=3.0,
  )
  assert SNR.min() < 3 < SNR.max()
  weights = {'x_0': np.ones(12), 'eps': SNR, 'v': SNR + 1}[kind]
  if weighting == 'min_snr':  # Hang et al.: the same for all predictions
    weights = np.minimum(SNR, 3.0)
  eps, t = draw(12, 3), np.arange(12)
  loss = functools.partial(loss_at, config, (np.zeros((12, 3), np.float32), None, t, eps))
  np.testing.assert_allclose(loss(0.5), weights.mean() * 0.25, rtol=1e-4)
  np.testing.assert_allclose(jax.grad(loss)(0.5), weights.mean(), rtol=1e-4)


@KINDS
def test_the_best_linear_net_on_a_gaussian_knows_its_score(kind):
  s, t = 0.7, 5
  alpha, sigma = np.sqrt(BARS[t]), np.sqrt(1 - BARS[t])
  total = alpha**2 * s**2 + sigma**2
  best = {
    'eps': sigma / total,
    'x_0': alpha * s**2 / total,
    'v': alpha * sigma * (1 - s**2) / total,
  }[kind]
  config = make_config(data__shape=(1,), net=dict(name=Scaled), diffusion__prediction=kind)
  x_0, eps = four_points(s)
  rows = (x_0, None, np.full(4, t), eps)
  assert_minimum(lambda params: loss_at(config, rows, params['a']), best)
  x = draw(5, 1)
  denoise = ddpm.denoiser({'a': jnp.float32(best)}, None, config=config)
  found = denoise(x, jnp.full(5, float(t)))
  np.testing.assert_allclose(-found.eps / sigma, -x / total, rtol=1e-4)
  np.testing.assert_allclose(found.x_0, alpha * s**2 / total * x, rtol=1e-4)
  assert found.variance is None


def test_all_predictions_of_one_x_0_have_the_same_samples():
  for sampler in ('ancestral', 'ddim'):
    images = [
      sample(init(config), config, n=20)['image']
      for kind in ('eps', 'x_0', 'v')
      for config in [
        make_config(
          net=dict(name=Expressed, kind=kind),
          diffusion__prediction=kind,
          sample__sampler=sampler,
          sample__steps=6,
        )
      ]
    ]
    assert np.ptp(images[0]) > 0.5
    np.testing.assert_allclose(images[1], images[0], atol=1e-5)
    np.testing.assert_allclose(images[2], images[0], atol=1e-5)


def test_what_the_net_is_told_is_scaled():
  config = make_config(net=dict(name=Told), diffusion__time_scale=0.25)
  eps, t = np.zeros((12, 3), np.float32), np.arange(12)
  np.testing.assert_allclose(loss_of(config, eps, t, eps), np.mean((t / 4) ** 2), rtol=1e-5)


def with_variance(eps=0.25, variance=0.0, **changes):
  net = dict(name=WithVariance, eps=eps, variance=variance)
  return make_config(net=net, diffusion__learned_variance=True, **changes)


@pytest.mark.parametrize('variance', [-1.0, 0.0, 1.0])
def test_the_learned_variance_lies_between_its_bounds(variance):
  """At v = 1 the steps have the variance beta_t, at -1 beta tilde_t."""
  config = with_variance(variance=variance)
  state = init(config)
  prediction = ddpm.denoiser(state.net.params, None, config=config)(draw(12, 3), jnp.arange(12.0))
  np.testing.assert_array_equal(prediction.variance, np.full((12, 3), variance))
  tables = process.build_process(config)
  how = dict(variance='learned', clip=False)
  _, found = process.p_mean_variance(prediction, draw(12, 3), jnp.arange(12), tables, **how)
  tilde = BETAS[1:] * (1 - BARS[:-1]) / (1 - BARS[1:])
  tilde = np.append(tilde[0], tilde)  # as published: the first is replaced by the second
  expected = (1 + variance) / 2 * np.log(BETAS) + (1 - variance) / 2 * np.log(tilde)
  np.testing.assert_allclose(found, np.tile(expected[:, None], 3), rtol=1e-5)
  if variance:
    drawing = dict(sample__sampler='ancestral', sample__steps=12)
    fixed = with_variance(sample__variance='large' if variance > 0 else 'small', **drawing)
    images = sample(init(fixed), fixed, n=50)['image']
    learned = with_variance(variance=variance, sample__variance='learned', **drawing)
    np.testing.assert_allclose(sample(init(learned), learned, n=50)['image'], images, atol=1e-5)
    other = with_variance(variance=-variance, sample__variance='learned', **drawing)
    assert np.abs(sample(init(other), other, n=50)['image'] - images).max() > 0.05


def test_l_hybrid_is_l_simple_and_the_bound_in_bits():
  """With eps = 0 known, the means agree, and each term is the KL of two variances."""
  config = with_variance(eps=0.0, variance=1.0, diffusion__vlb_weight=0.02)
  x_0, t = np.float32(np.tile([[0.5, -0.25, 0.0]], (11, 1))), np.arange(1, 12)
  eps = np.zeros((11, 3), np.float32)
  _, (metrics, _) = both_losses(config, (x_0, None, t, eps))
  ratio = (1 - BARS[:-1]) / (1 - BARS[1:])  # beta tilde / beta
  kl = 0.5 * (ratio - 1 - np.log(ratio))
  vlb = 12 * kl.mean() / np.log(2)
  np.testing.assert_allclose(metrics['net/vlb'], vlb, rtol=1e-3)
  np.testing.assert_allclose(metrics['net/simple'], 0, atol=1e-12)
  np.testing.assert_allclose(metrics['net/loss'], 0.02 * vlb, rtol=1e-3)


def test_the_bound_of_l_hybrid_trains_the_variance_and_nothing_else():
  rows = (draw(12, 3, seed=1), None, np.arange(12), draw(12, 3))
  light, heavy = (
    jax.grad(lambda params, c=config: both_losses(c, rows, params)[0])
    for config in (with_variance(), with_variance(diffusion__vlb_weight=10.0))
  )
  params = {'a': jnp.float32(0.25), 'v': jnp.float32(0.3)}
  np.testing.assert_allclose(light(params)['a'], heavy(params)['a'], rtol=1e-6)
  np.testing.assert_allclose(light(params)['a'], 2 * (0.25 - draw(12, 3).mean()), rtol=1e-4)
  np.testing.assert_allclose(heavy(params)['v'], 1e4 * light(params)['v'], rtol=1e-4)
  assert abs(light(params)['v']) > 1e-6


# --- Sampling -------------------------------------------------------------------------------------


def sample(state, config, n=5, key=0, **conditions):
  batch = {'index': jnp.arange(n)} | conditions
  made = draw_sample(state, batch, jax.random.key(key), config=config)
  return jax.tree.map(np.asarray, made)


def test_sampling_uses_the_weights_that_the_config_names():
  config = make_config()
  state = init(config)
  state = state.replace(
    net=state.net.replace(params={'a': jnp.array(0.0)}, ema={'a': jnp.array(0.2)})
  )
  averaged = sample(state, config)['image']
  raw = sample(state, make_config(sample__weights='raw'))['image']
  assert averaged.shape == (5, 3)
  # A constant eps shifts x_0 by the same amount wherever the result is not cut to [-1, 1].
  inside = (np.abs(averaged) < 1) & (np.abs(raw) < 1)
  assert inside.any()
  times = [0, 3, 6, 9]
  bars = BARS[times]
  shift = 0.0
  for bar, prev in zip(bars[::-1], [*bars[:-1][::-1], 1.0], strict=True):
    shift = np.sqrt(prev / bar) * (shift - np.sqrt(1 - bar) * 0.2) + np.sqrt(1 - prev) * 0.2
  np.testing.assert_allclose((averaged - raw)[inside], shift, rtol=1e-4)


@pytest.mark.parametrize('sampler', ['ancestral', 'ddim'])
def test_samples_and_their_way(sampler):
  config = make_config(sample__sampler=sampler, sample__intermediates=3)
  made = sample(init(config), config)
  assert made['image'].shape == (5, 3) and made['trajectory'].shape == (5, 3, 3)
  np.testing.assert_array_equal(made['trajectory'][:, -1], made['image'])
  assert all(np.abs(v).max() <= 1 and v.dtype == np.float32 for v in made.values())
  again, other = (sample(init(config), config, key=key)['image'] for key in (0, 1))
  np.testing.assert_array_equal(made['image'], again)
  assert (made['image'] != other).any()


def test_the_options_of_the_samplers_arrive():
  state = init(make_config())
  changes = [
    {},
    {'sample__eta': 1.0},
    {'sample__eta': 1.0, 'sample__clip': True},
    {'sample__steps': 12},
    {'sample__spacing': 'quadratic'},
    {'sample__sampler': 'ancestral', 'sample__steps': 12},
    {'sample__sampler': 'ancestral', 'sample__steps': 12, 'sample__variance': 'small'},
  ]
  # Little noise, so that the pictures are seldom cut to [-1, 1].
  tame = dict(diffusion__beta_max=0.02, sample__steps=6)
  images = [sample(state, make_config(**(tame | c)), n=50)['image'] for c in changes]
  for i, a in enumerate(images):
    for b in images[:i]:
      assert np.abs(a - b).max() > 1e-3


def test_sampling_is_without_dropout_and_with_the_label():
  config = make_config(net=dict(name=Noisy))
  state = init(config)
  plain = sample(state, config, n=3)['image']
  labelled = sample(state, config, n=3, label=jnp.array([0, 0, 5]))['image']
  np.testing.assert_array_equal(labelled[:2], plain[:2])
  assert (labelled[2] != plain[2]).any()


def test_the_bound_uses_the_weights_and_the_variance_of_the_config():
  x = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 3)) / 127.5 - 1, jnp.float32)

  def bits(**changes):
    config = make_config(**changes)
    state = init(config)
    state = state.replace(net=state.net.replace(ema={'a': jnp.array(0.5)}))
    out = jax.jit(ddpm.evaluate, static_argnames='config')(
      state, {'image': x}, jax.random.key(0), config=config
    )
    assert out['bits_per_dim'].shape == (4,) and out['terms'].shape == (4, 13)
    np.testing.assert_allclose(out['terms'].sum(1), out['bits_per_dim'], rtol=1e-5)
    np.testing.assert_array_equal(out['L_0'], out['terms'][:, 0])
    np.testing.assert_allclose(out['L_t'], out['terms'][:, 1:12].sum(1), rtol=1e-6)
    np.testing.assert_array_equal(out['L_T'], out['terms'][:, 12])
    return out['bits_per_dim']

  ema, raw = bits(), bits(sample__weights='raw')
  assert (ema != raw).all() and (bits(sample__variance='small') != ema).all()
  tables = process.build_process(make_config())

  def denoise(x_t, t):  # eps = 0
    return Prediction(x_t / at(np.sqrt(BARS), t), jnp.zeros_like(x_t))

  nats = bound(denoise, x, jax.random.key(0), tables)
  np.testing.assert_allclose(raw, nats.sum(0) / np.log(2), rtol=1e-5)
  # Only the decoder depends on the width of a bin.
  narrower = bits(data__dequantize='uniform', sample__weights='raw')
  nats = bound(denoise, x, jax.random.key(0), tables, bin_width=2 / 256)
  np.testing.assert_allclose(narrower, nats.sum(0) / np.log(2), rtol=1e-5)
  assert (narrower > raw).all()


def test_a_class_conditional_unet():
  config = make_config(
    data=dict(shape=(4, 4, 1), num_classes=3),
    net=dict(
      name='unet.UNet',
      features=8,
      groups=4,
      blocks=1,
      multipliers=(1,),
      attention=(),
      num_classes=3,
    ),
    sample__steps=1,
  )
  ddpm.check(config)
  rows = {'image': jax.ShapeDtypeStruct((2, 4, 4, 1), jnp.float32)}
  labelled = rows | {'label': jax.ShapeDtypeStruct((2,), jnp.int32)}
  state = jax.eval_shape(lambda b: init(config, b), labelled)
  assert state.net.params['class']['embedding'].shape == (3, 32)
  after, _ = jax.eval_shape(
    lambda s, b: ddpm.train_step(s, b, jax.random.key(0), config=config), state, labelled
  )
  assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'sample__steps': 13}, 'config.sample.steps=13.*config.diffusion.steps=12'),
    (
      {'net': dict(name='unet.UNet', num_classes=4), 'data__num_classes': 3},
      'config.net.num_classes=4.*config.data.num_classes=3',
    ),
    (
      {'net': dict(name='unet.UNet', num_classes=4)},
      'config.net.num_classes=4.*config.data.num_classes=None',
    ),
    # There are only so many pictures of the way.
    ({'sample__intermediates': 5}, 'config.sample.intermediates=5.*4'),
    (
      {'sample__sampler': 'ancestral', 'sample__steps': 12, 'sample__intermediates': 13},
      'config.sample.intermediates=13.*12',
    ),
    (
      {'sample__sampler': 'ancestral', 'sample__variance': 'learned'},
      "config.sample.variance='learned' with config.diffusion.learned_variance=False",
    ),
  ],
  ids=str,
)
def test_contradictions_are_told_in_one_line(changes, words):
  ddpm.check(make_config())
  with pytest.raises(UserError, match=words):
    ddpm.check(make_config(**changes))
