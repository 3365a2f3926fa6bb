"""The two ends of the variational bound on -log p(x_0) (Ho et al. 2020, Eq. 5), in nats:
L_T, the prior term, and L_0, the decoder for 8-bit data.
"""

import jax
import jax.numpy as jnp

from gen_jax.diffusion.process import Process


def prior_kl(process: Process, x_0) -> jax.Array:
  """L_T = KL(q(x_T | x_0) || N(0, I)) in each dimension: x_0 [b, ...] -> nats [b, ...]."""
  alpha_bar = process.alpha_bars[-1]
  return 0.5 * (alpha_bar * x_0**2 - alpha_bar - jnp.log1p(-alpha_bar))


def decoder_log_likelihood(x, mean, log_scale) -> jax.Array:
  """log p(x | mean) of the discretised Gaussian decoder (Ho et al. 2020, Eq. 13), in nats.

  The Gaussian's mass in the bin of width 2 / 255 around x; the outermost bins reach to infinity. As
  in the released code, the normal CDF is the approximation by tanh, and a mass is at least 1e-12.

  Args:
    x: 8-bit data scaled to [-1, 1], [b, ...].
    mean: [b, ...].
    log_scale: logarithm of the standard deviation, broadcast against x.

  Returns:
    An array like x.
  """

  def cdf(edge):
    z = (edge - mean) * jnp.exp(-log_scale)
    return 0.5 * (1 + jnp.tanh(jnp.sqrt(2 / jnp.pi) * (z + 0.044715 * z**3)))

  below = jnp.where(x > -0.999, cdf(x - 1 / 255), 0)
  above = jnp.where(x < 0.999, cdf(x + 1 / 255), 1)
  return jnp.log(jnp.maximum(above - below, 1e-12))
