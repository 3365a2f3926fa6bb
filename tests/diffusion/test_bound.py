"""The bound and its terms against the values that follow from the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.data import from_pixels, to_pixels
from gen_jax.diffusion import bound, process
from gen_jax.diffusion.predictions import to_prediction


@pytest.mark.parametrize('x_0, bits', [(0.5, 7.2787e-6), (1.0, 2.9113e-5)])
def test_the_prior_term_of_the_papers_schedule(x_0, bits):
  paper = process.make_process(process.linear_betas(1000, 1e-4, 0.02))
  nats = bound.prior_kl(paper, jnp.full((2, 3), x_0))
  assert nats.shape == (2, 3)
  np.testing.assert_allclose(nats / np.log(2), bits, rtol=1e-4)


@pytest.mark.parametrize(
  'x, mean, log_scale, expected',
  [
    (0.0, 0.0, -9.8167251 / 2, -0.9050180),
    (-1.0, -1.0, -3.0, -0.6322576),
    (1.0, 0.9, -3.0, -3.6194609),
    (0.0, 0.1, 0.0, -5.7720820),
  ],
)
def test_the_decoder(x, mean, log_scale, expected):
  found = bound.decoder_log_likelihood(jnp.float32(x), mean, log_scale)
  np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize('dequantize', ['none', 'uniform'])
@pytest.mark.parametrize('mean, log_scale', [(0.0, -1.0), (0.97, -3.0), (-2.0, 0.5), (0.99, -4.0)])
def test_the_256_levels_have_all_the_mass(mean, log_scale, dequantize):
  levels = from_pixels(np.arange(256), dequantize)
  width = bound.BIN_WIDTH[dequantize]
  mass = jnp.exp(bound.decoder_log_likelihood(levels, mean, log_scale, width))
  np.testing.assert_allclose(mass.sum(), 1, rtol=1e-5)


@pytest.mark.parametrize('dequantize', ['none', 'uniform'])
def test_the_bins_of_the_decoder_are_those_of_the_pixels(dequantize):
  """A narrow Gaussian has its mass in the bin of the level that its mean is written as."""
  levels = np.asarray(from_pixels(np.arange(256), dequantize), np.float64)
  width = bound.BIN_WIDTH[dequantize]
  for offset in (-0.49, 0, 0.49):
    means = np.clip(levels + offset * width, -1, 1)
    written = to_pixels(means, dequantize)
    np.testing.assert_array_equal(written, np.arange(256))
    nats = bound.decoder_log_likelihood(
      jnp.float32(levels[written]), jnp.float32(means), np.log(1e-3 * width), width
    )
    np.testing.assert_allclose(nats, 0, atol=1e-5)


PAPER = process.make_process(process.linear_betas(1000, 1e-4, 0.02))


def tables(t):
  """sqrt(alpha_bar) and sqrt(1 - alpha_bar) at times that are whole numbers."""
  return (jnp.asarray(table)[t.astype(jnp.int32)] for table in (PAPER.signal, PAPER.noise))


def terms(eps, x_0, **options):
  """The terms of the bound for a function that predicts eps from x, alpha and sigma."""

  def denoise(x, t):
    assert t.dtype == jnp.float32
    alpha, sigma = tables(t)
    output = eps(x, *(a.reshape(-1, *[1] * (x.ndim - 1)) for a in (alpha, sigma)))
    return to_prediction('eps', output, x, alpha, sigma)._replace(variance=options.get('v'))

  how = {name: value for name, value in options.items() if name != 'v'}
  run = jax.jit(lambda x, key: bound.bound(denoise, x, key, PAPER, **how))
  found = run(jnp.float32(x_0), jax.random.key(0))
  assert found.shape == (1001, len(x_0))
  return np.asarray(found, np.float64)


@pytest.mark.parametrize('variance', ['small', 'large'])
def test_the_bound_of_a_net_that_knows_the_data(variance):
  # The means agree, so that what is left are the decoder, the variances and the prior.
  levels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1)) / 127.5 - 1

  def eps(x, signal, noise):
    return (x - signal * jnp.float32(levels)) / noise

  found = terms(eps, levels, variance=variance)
  ratio = PAPER.posterior_variance[1:].astype(np.float64) / PAPER.betas[1:]
  expected = 0.5 * (ratio - 1 - np.log(ratio)) if variance == 'large' else np.zeros(999)
  np.testing.assert_allclose(found[1:-1], np.tile(expected[:, None], 3), atol=2e-4)
  scale = 0.5 * PAPER.log_variance_small[0]  # index 0 has the same variance in both
  decoder = -bound.decoder_log_likelihood(jnp.float32(levels), jnp.float32(levels), scale)
  np.testing.assert_allclose(found[0], decoder.mean((1, 2, 3)), rtol=1e-3)
  np.testing.assert_allclose(found[-1], bound.prior_kl(PAPER, levels).mean((1, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize('v', [-1.0, 0.0, 1.0])
def test_the_bound_with_a_learned_variance(v):
  levels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1)) / 127.5 - 1
  found = terms(
    lambda x, signal, noise: (x - signal * jnp.float32(levels)) / noise,
    levels,
    variance='learned',
    v=v,
  )
  # log sigma^2 is that far from log beta tilde to log beta (Nichol and Dhariwal 2021, Eq. 15).
  log_ratio = np.log(PAPER.posterior_variance[1:].astype(np.float64) / PAPER.betas[1:])
  log_ratio *= (v + 1) / 2
  expected = 0.5 * (np.exp(log_ratio) - 1 - log_ratio)
  np.testing.assert_allclose(found[1:-1], np.tile(expected[:, None], 2), atol=2e-4)


def test_a_wrong_prediction_costs_what_equation_12_says():
  # Off by d in eps at all times: beta^2 / (2 sigma^2 alpha (1 - alpha_bar)) d^2 more.
  d = 0.1

  def eps(x, signal, noise):
    return x / noise + d  # right for x_0 = 0, but for d

  zero = np.zeros((2, 5))
  exact = terms(lambda *of: eps(*of) - d, zero, clip=False)
  found = terms(eps, zero, clip=False)
  sigma2 = np.exp(PAPER.log_variance_large.astype(np.float64))
  weight = PAPER.betas**2 / (2 * sigma2 * PAPER.alphas * (1 - PAPER.alpha_bars))
  np.testing.assert_allclose(
    (found - exact)[1:-1], np.tile((weight * d**2)[1:, None], 2), rtol=2e-3, atol=1e-6
  )


@pytest.mark.parametrize('variance', ['small', 'large'])
def test_the_bound_of_gaussian_data(variance):
  # x_0 ~ N(0, s^2) and the best net: what is left of eps is what x_t does not tell of x_0.
  s = 0.2
  x_0 = np.clip(np.rint((s * np.random.default_rng(1).normal(size=(4000, 4)) + 1) * 127.5), 0, 255)

  def eps(x, signal, noise):  # E[eps | x_t]
    return x * noise / (signal**2 * s**2 + noise**2)

  found = terms(eps, x_0 / 127.5 - 1, variance=variance).mean(1)
  tables = {name: np.float64(table) for name, table in PAPER._asdict().items()}
  left = s**2 * tables['noise'] ** 2 / (tables['signal'] ** 2 * s**2 + tables['noise'] ** 2)
  model = np.exp(tables[f'log_variance_{variance}'])
  ratio = tables['posterior_variance'] / model
  with np.errstate(divide='ignore'):
    kl = 0.5 * (ratio - 1 - np.log(ratio) + tables['posterior_coef_x0'] ** 2 * left / model)
  np.testing.assert_allclose(found[1:-1], kl[1:], rtol=0.1, atol=1e-4)
  np.testing.assert_allclose(found[1:-1].sum(), kl[1:].sum(), rtol=3e-3)
  # No code is shorter than the entropy of the 256 levels, log2(127.5 s sqrt(2 pi e)) bits.
  entropy = np.log2(127.5 * s * np.sqrt(2 * np.pi * np.e))
  assert entropy < found.sum() / np.log(2) < entropy + {'small': 1, 'large': 0.3}[variance]
