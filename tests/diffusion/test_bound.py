"""The ends of the bound against the values that follow from the formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import bound, process


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


@pytest.mark.parametrize('mean, log_scale', [(0.0, -1.0), (0.97, -3.0), (-2.0, 0.5)])
def test_the_256_levels_have_all_the_mass(mean, log_scale):
  levels = jnp.linspace(-1, 1, 256)
  mass = jnp.exp(bound.decoder_log_likelihood(levels, mean, log_scale))
  np.testing.assert_allclose(mass.sum(), 1, rtol=1e-5)
