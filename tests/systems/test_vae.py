"""The bounds of VAEs whose likelihood is known, the likelihoods of pixels, and the pictures."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gen_jax import config as configs
from gen_jax import data, sample, sampling, train
from gen_jax.errors import UserError
from gen_jax.run import trained
from gen_jax.systems import vae

ROOT = pathlib.Path(__file__).parent.parent.parent
SHAPE = (2, 3, 1)
LEVELS = (np.arange(256) - 127.5) / 127.5
Z = np.linspace(-12, 12, 48_001)  # a grid for integrals over z
SLOPES = np.array([1.5, -2.0, 0.7, 0.0, 3.0, -1.0]).reshape(SHAPE)
OFFSETS = np.array([0.2, -0.5, 1.0, -1.5, 0.0, 0.3]).reshape(SHAPE)
X = np.where(np.random.RandomState(0).rand(5, *SHAPE) < 0.5, -1.0, 1.0).astype(np.float32)


# Compiled once for all calls with equal configs and shapes.
evaluate = jax.jit(vae.evaluate, static_argnames='config')
draw_sample = jax.jit(vae.sample, static_argnames='config')


class Fixed(nn.Module):
  """q(z|x) = N(mean, sd^2), whatever x is."""

  latent_dim: int
  mean: float = 0.0
  sd: float = 1.0

  @nn.compact
  def __call__(self, x):
    zeros = jnp.zeros((len(x), self.latent_dim)) + 0 * self.param('a', nn.initializers.ones, ())
    return zeros + self.mean, zeros + 2 * jnp.log(self.sd)


class Linear(nn.Module):
  """Logits that are linear in z[0], or constant."""

  slope: float = 1.0

  @nn.compact
  def __call__(self, z):
    a = self.param('a', nn.initializers.ones, ())
    z = a * self.slope * z[:, 0, None, None, None]
    return jnp.float32(SLOPES)[None] * z + jnp.float32(OFFSETS)[None]


def make_config(encoder=None, decoder=None, dim=1, k=7, **fields):
  return configs.make(
    'vae',
    {
      'data': dict(name='shapes', shape=SHAPE, binarize='static'),
      'encoder': encoder or dict(name=Fixed),
      'decoder': decoder or dict(name=Linear),
      'latent.dim': dim,
      'likelihood': 'bernoulli',
      'optim.lr': 1e-2,
      'eval.importance_samples': k,
    }
    | fields,
  )


def make_state(config, x=X):
  return vae.init_state(jax.random.key(0), {'image': jnp.asarray(x)}, config=config)


def measure(config, x=X, key=1):
  batch = {'image': jnp.asarray(x)}
  out = evaluate(make_state(config), batch, jax.random.key(key), config=config)
  return {name: np.asarray(value, np.float64) for name, value in out.items()}


def log_density(z, mean=0.0, sd=1.0):
  return -0.5 * ((z - mean) / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi))


def bernoulli(x, logits):
  """log p(x) of each image of X, in float64: the sum over its pixels."""
  p = 1 / (1 + np.exp(-logits))
  return np.log(np.where(x > 0, p, 1 - p)).sum((-3, -2, -1))


def on_grid(x):
  """log p(x|z) for the decoder `Linear` on the grid of z: [b, grid]."""
  logits = SLOPES * Z[:, None, None, None] + OFFSETS
  return np.stack([bernoulli(image, logits) for image in x])


def integral(values):
  return np.trapezoid(values, Z, axis=-1)


# --- The bound ----------------------------------------------------------------------------------


@pytest.mark.parametrize(('mean', 'sd'), [(0.0, 1.0), (1.5, 0.3), (-2.0, 1.7)])
def test_the_kl_is_that_of_an_integral(mean, sd):
  q, p = log_density(Z, mean, sd), log_density(Z)
  wanted = integral(np.exp(q) * (q - p))
  found = vae.kl(jnp.full((1, 3), mean), jnp.full((1, 3), 2 * np.log(sd)))
  np.testing.assert_allclose(found, [3 * wanted], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('images_per_pass', [10, 11, 4096])
def test_the_bounds_are_exact_for_a_decoder_that_ignores_z(monkeypatch, images_per_pass):
  """With q(z|x) = p(z) every weight is p(x), for any k and however the draws are split."""
  monkeypatch.setattr(vae, 'PASS', images_per_pass)
  evaluate.clear_cache()
  found = measure(make_config(decoder=dict(name=Linear, slope=0.0), dim=3, k=7))
  wanted = -bernoulli(X, OFFSETS)
  for name in ('nats', 'negative_elbo', 'reconstruction'):
    np.testing.assert_allclose(found[name], wanted, rtol=1e-5, err_msg=name)
  np.testing.assert_allclose(found['kl'], 0, atol=1e-6)
  np.testing.assert_allclose(found['bits_per_dim'], wanted / np.log(2) / 6, rtol=1e-5)


def test_the_elbo_is_that_of_an_integral():
  encoder = dict(name=Fixed, mean=0.4, sd=0.8)
  found = measure(make_config(encoder=encoder, k=4000))
  q, p = log_density(Z, 0.4, 0.8), log_density(Z)
  reconstruction = -integral(np.exp(q) * on_grid(X))
  kl = integral(np.exp(q) * (q - p))
  np.testing.assert_allclose(found['reconstruction'], reconstruction, rtol=0.02)
  np.testing.assert_allclose(found['kl'], kl, rtol=1e-5)
  np.testing.assert_allclose(found['negative_elbo'], reconstruction + kl, rtol=0.02)


def test_more_draws_tighten_the_bound_to_the_likelihood():
  encoder = dict(name=Fixed, mean=0.4, sd=1.2)
  wanted = -np.log(integral(np.exp(on_grid(X) + log_density(Z))))
  many = measure(make_config(encoder=encoder, k=4000))
  np.testing.assert_allclose(many['nats'], wanted, atol=0.1)
  means = []
  for k in (1, 4, 16):
    config = make_config(encoder=encoder, k=k)
    means.append(measure(config, np.repeat(X, 2000, 0))['nats'].mean())
  assert means[0] > means[1] + 0.02 > means[2] + 0.03 and means[2] > wanted.mean()
  # One draw: the mean over draws is -ELBO.
  np.testing.assert_allclose(means[0], many['negative_elbo'].mean(), rtol=0.02)


def test_a_step_descends_the_negative_elbo():
  config = make_config(encoder=dict(name=Fixed, mean=0.4, sd=0.8))
  state = make_state(config)
  batch = {'image': jnp.asarray(np.repeat(X, 2000, 0))}
  after, metrics = vae.train_step(state, batch, jax.random.key(3), config=config)
  metrics = {name: float(value) for name, value in metrics.items()}
  bounds = {name: value.mean() for name, value in measure(config, X, key=5).items()}
  many = measure(make_config(encoder=dict(name=Fixed, mean=0.4, sd=0.8), k=4000))
  np.testing.assert_allclose(metrics['net/loss'], many['negative_elbo'].mean(), rtol=0.02)
  np.testing.assert_allclose(metrics['net/kl'], bounds['kl'], rtol=1e-5)
  np.testing.assert_allclose(
    metrics['net/loss'], metrics['net/reconstruction'] + metrics['net/kl'], rtol=1e-6
  )
  assert int(after.step) == 1
  # d(-ELBO) / da, the slope of all logits in z: by an integral.
  q, step = np.exp(log_density(Z, 0.4, 0.8)), 1e-3
  by_slope = []
  for a in (1 - step, 1 + step):
    logits = SLOPES * a * Z[:, None, None, None] + OFFSETS
    by_slope.append(-integral(q * np.stack([bernoulli(x, logits) for x in X])).mean())
  slope = (by_slope[1] - by_slope[0]) / (2 * step)
  moved = float(after.net.params['decoder']['a'] - state.net.params['decoder']['a'])
  np.testing.assert_allclose(moved, -0.01 * np.sign(slope), rtol=1e-3)  # Adam's first step
  np.testing.assert_allclose(metrics['net/grad_norm'], abs(slope), rtol=0.05)


# --- Likelihoods --------------------------------------------------------------------------------


def test_the_bernoulli_is_that_of_its_logit():
  logits = np.linspace(-30, 30, 61)
  p = [np.exp(vae.bernoulli_log_prob((jnp.float32(logits),), x)) for x in (-1.0, 1.0)]
  np.testing.assert_allclose(p[0] + p[1], 1, rtol=1e-6)
  np.testing.assert_allclose(p[1], 1 / (1 + np.exp(-logits)), rtol=2e-5)
  far = vae.bernoulli_log_prob((jnp.float32(300.0),), -1.0)
  np.testing.assert_allclose(far, -300)


@pytest.mark.parametrize('mean', [-1.3, -1.0, -0.31, 0.0, 0.777, 1.0, 2.0])
@pytest.mark.parametrize('log_scale', [-9.0, -7.0, -5.0, -3.0, -1.0, 1.0])
def test_the_logistic_is_a_distribution_over_256_levels(mean, log_scale):
  theta = jnp.float32(mean), jnp.float32(log_scale)
  found = np.asarray(vae.logistic_log_prob(theta, jnp.float32(LEVELS)), np.float64)
  assert np.isfinite(found).all()
  np.testing.assert_allclose(np.exp(found).sum(), 1, rtol=3e-4)
  scale = np.exp(max(log_scale, -7.0))
  edges = np.concatenate([[-np.inf], (LEVELS[1:] + LEVELS[:-1]) / 2, [np.inf]])
  cdf = 1 / (1 + np.exp(-np.clip((edges - np.float32(mean)) / scale, -700, 700)))
  mass = np.diff(cdf)
  tells = mass > 1e-9  # less is lost in the difference, here and not there
  np.testing.assert_allclose(found[tells], np.log(mass[tells]), rtol=2e-3, atol=2e-3)


def test_gradients_of_the_logistic_are_finite_in_every_tail():
  mean, log_scale = jnp.meshgrid(jnp.linspace(-30, 30, 13), jnp.linspace(-12, 8, 11))

  def total(theta, x):
    return vae.logistic_log_prob(theta, x).sum()

  for x in (-1.0, LEVELS[1], 0.0, LEVELS[254], 1.0):
    for leaf in jax.grad(total)((mean, log_scale), jnp.float32(x)):
      assert np.isfinite(leaf).all()


@pytest.mark.parametrize('mean', [-0.99, 0.1])
def test_draws_follow_the_likelihood(mean):
  n = 200_000
  likelihood = vae.LIKELIHOODS['discretised_logistic']
  theta = jnp.full((n,), mean), jnp.full((n,), -4.0)
  levels = np.asarray(likelihood.draw(theta, jax.random.key(0)))
  index = np.rint(levels * 127.5 + 127.5).astype(int)
  np.testing.assert_allclose(levels, LEVELS[index], atol=1e-6)
  p = np.exp(vae.logistic_log_prob((jnp.float32(mean), jnp.float32(-4.0)), jnp.float32(LEVELS)))
  share = np.bincount(index, minlength=256) / n
  assert (np.abs(share - p) < 5 * np.sqrt(p / n) + 1e-4).all()

  theta = (jnp.full((n,), 0.8),)
  found = np.asarray(vae.LIKELIHOODS['bernoulli'].draw(theta, jax.random.key(0)))
  assert set(found.tolist()) == {-1.0, 1.0}
  mean = 2 / (1 + np.exp(-0.8)) - 1
  assert abs(found.mean() - mean) < 0.01
  np.testing.assert_allclose(vae.LIKELIHOODS['bernoulli'].mean(theta), mean, rtol=1e-5)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'data.binarize': 'none'}, ('config.likelihood', 'config.data.binarize', 'static')),
    ({'data.dequantize': 'uniform'}, ('config.data.dequantize', "'none'")),
  ],
)
def test_a_likelihood_of_other_data_is_refused(change, words):
  with pytest.raises(UserError) as error:
    vae.check(configs.replace(make_config(), change))
  assert all(word in str(error.value) for word in words) and '\n' not in str(error.value)
  logistic = {'data.binarize': 'none', 'likelihood': 'discretised_logistic'}
  vae.check(configs.replace(make_config(), logistic))


# --- Pictures -----------------------------------------------------------------------------------


class Brightness(nn.Module):
  """q(z|x) around the mean of x."""

  latent_dim: int

  @nn.compact
  def __call__(self, x):
    mean = self.param('a', nn.initializers.ones, ()) * x.mean((1, 2, 3))[:, None]
    return jnp.tile(mean, (1, self.latent_dim)), jnp.zeros((len(x), self.latent_dim))


def test_reconstructions_and_interpolations_are_decoded_from_the_codes_of_given_images():
  config = make_config(encoder=dict(name=Brightness), **{'sample.interpolation': 4})
  state = make_state(config)
  given = {'index': jnp.arange(5), 'image': jnp.asarray(X)}
  made = draw_sample(state, given, jax.random.key(0), config=config)
  code = X.mean((1, 2, 3))

  def decoded(z):
    z = z.reshape(*z.shape, 1, 1, 1)
    return np.tanh((SLOPES * z + OFFSETS) / 2)  # 2 sigmoid - 1

  np.testing.assert_array_equal(made['reconstruction'][:, 0], X)
  np.testing.assert_allclose(made['reconstruction'][:, 1], decoded(code), rtol=1e-4, atol=1e-5)
  assert made['interpolation'].shape == (5, 4, *SHAPE)
  following = np.roll(code, -1)
  line = code[:, None] + (following - code)[:, None] * (np.arange(4)[None] / 3)
  np.testing.assert_allclose(made['interpolation'], decoded(line), rtol=1e-4, atol=1e-5)

  coded = vae.encode(state, given, jax.random.key(0), config=config)
  np.testing.assert_allclose(coded['z'], code[:, None], rtol=1e-6)
  np.testing.assert_array_equal(coded['reconstruction'], made['reconstruction'][:, 1])

  without = configs.replace(config, {'sample.interpolation': 0})
  made = draw_sample(state, given, jax.random.key(0), config=without)
  assert set(made) == {'image', 'reconstruction'}
  made = draw_sample(state, {'index': jnp.arange(5)}, jax.random.key(0), config=config)
  assert set(made) == {'image'}


def test_samples_come_from_the_prior():
  config = make_config()
  state, given = make_state(config), {'index': jnp.arange(20_000)}
  logit = 2 * np.arctanh(draw_sample(state, given, jax.random.key(0), config=config)['image'])
  z = (logit[:, 0, 0, 0] - OFFSETS[0, 0, 0]) / SLOPES[0, 0, 0]
  assert abs(z.mean()) < 0.04 and abs(z.std() - 1) < 0.03
  drawn = configs.replace(config, {'sample.pixels': 'draw'})
  images = draw_sample(state, given, jax.random.key(0), config=drawn)['image']
  assert set(np.unique(images)) == {-1.0, 1.0}
  means = draw_sample(state, given, jax.random.key(0), config=config)['image']
  np.testing.assert_allclose(images.mean(0), means.mean(0), atol=0.04)


def test_verbs_give_it_rows_of_the_held_out_split_by_number(tmp_path, monkeypatch):
  shown = []

  def keep(state, given, rng, *, config):
    made = sample_once(state, given, rng, config=config)
    # Inside of the compiled sampler: `given` is seen through what is returned.
    shown.append(set(given))
    return made

  sample_once = vae.sample
  monkeypatch.setattr(vae, 'sample', keep)
  config = configs.load(
    f'{ROOT}/configs/vae_digits.py:smoke', [('train.steps', '2'), ('sample.num_images', '10')]
  )
  assert train.run(config, tmp_path) == 0
  assert {'index', 'image'} in shown
  for name in ('samples', 'reconstruction', 'interpolation'):
    assert (tmp_path / f'samples/0000002_{name}.png').exists(), name

  held_out = data.open_source(config, 'eval.held_out_split')
  given = sampling.held_out_conditions(config, vae)(len(held_out) + 3, 5)
  rows = held_out.read((5 + np.arange(len(held_out) + 3)) % len(held_out))['image']
  np.testing.assert_allclose(given['image'], rows / 127.5 - 1, atol=1e-6)
  np.testing.assert_array_equal(given['index'], 5 + np.arange(len(held_out) + 3))

  assert sample.run(config, tmp_path) == 0
  folder = tmp_path / 'samples/step_0000002_seed_0'
  assert len(list(folder.glob('*.png'))) == 10
  with Image.open(folder.with_name(f'{folder.name}_reconstruction.png')) as grid:
    pixels = np.asarray(grid.convert('L'))
  assert pixels.shape == (8 * 50 + 2, 2 * 50 + 2)  # 8x8 pixels, each 6 wide, and frames of 2
  for i, image in enumerate(held_out.read(range(8))['image'][..., 0]):
    np.testing.assert_array_equal(pixels[2 + 50 * i :, 2:][:48:6, :48:6], image)

  shown.clear()
  run = trained.load(tmp_path)
  assert run.sample(4).shape == (4, 8, 8, 1) and set(shown.pop()) == {'index'}
  coded = run.encode(held_out.read(range(3))['image'])
  assert coded['z'].shape == (3, 8) and coded['reconstruction'].dtype == np.uint8
