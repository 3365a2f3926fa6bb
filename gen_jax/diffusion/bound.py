r"""The variational bound on -log p(x_0) (Ho et al. 2020, Eq. 5), in nats:

L = L_T + \sum_{t>1} L_{t-1} + L_0
L_T = KL(q(x_T | x_0) || p(x_T)),  L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)),
L_0 = -log p(x_0 | x_1), a discretised Gaussian for 8-bit data
"""

import jax
import jax.numpy as jnp

from gen_jax.diffusion.paths import Denoise, Prediction, per_row
from gen_jax.diffusion.process import Process, at, p_mean_variance, posterior_mean, q_sample
from gen_jax.errors import UserError
from gen_jax.fields import Measure

# Width of the bin of an 8-bit level, by config.data.dequantize (see gen_jax/data/pixels.py).
BIN_WIDTH = {'none': 2 / 255, 'uniform': 2 / 256}


def bound(
  denoise: Denoise,
  x_0,
  rng,
  process: Process,
  *,
  variance: str = 'large',
  clip: bool = True,
  bin_width: float = BIN_WIDTH['none'],
) -> jax.Array:
  """All terms of the bound for each example, means over dimensions: nats [T + 1, b], in the order
  L_0, L_1, ..., L_{T-1}, L_T.

  Each term is estimated from one sample of x_t, as in the released code (calc_bpd_loop); the sum
  over terms, in bits, is the number of bits per dimension.

  Args:
    denoise: the net.
    x_0: 8-bit data in [-1, 1], the centres of their bins, [b, ...].
    rng: key of the noise of all steps.
    process: tables of the T steps.
    variance: of p(x_{t-1} | x_t), see `process.p_mean_variance`.
    clip: clip the predicted x_0 to [-1, 1], as in the released code.
    bin_width: a value of `BIN_WIDTH`.
  """

  def one(_, t):
    times = jnp.full(x_0.shape[0], t)
    noise = jax.random.normal(jax.random.fold_in(rng, t), x_0.shape)
    x_t = q_sample(process, x_0, times, noise)
    how = dict(variance=variance, clip=clip, bin_width=bin_width)
    return None, term(denoise(x_t, jnp.float32(times)), x_0, x_t, times, process, **how)

  _, terms = jax.lax.scan(one, None, jnp.arange(len(process.betas)))
  last = prior_kl(process, x_0).mean(tuple(range(1, x_0.ndim)))
  return jnp.concatenate([terms, last[None]])


def term(
  prediction: Prediction, x_0, x_t, t, process: Process, *, variance: str, clip: bool, bin_width
) -> jax.Array:
  """L_t of each example, the mean over dimensions, in nats: float32 [b] for t int32 [b] in 0..T-1.

  Arguments as in `bound` and `process.p_mean_variance`.
  """
  mean, log_var = p_mean_variance(prediction, x_t, t, process, variance=variance, clip=clip)
  true_mean = posterior_mean(process, x_0, x_t, t)
  kl = normal_kl(true_mean, at(process.log_variance_small, t, x_0.ndim), mean, log_var)
  decoder = -decoder_log_likelihood(x_0, mean, 0.5 * log_var, bin_width)
  return jnp.where(per_row(t == 0, x_0.ndim), decoder, kl).mean(tuple(range(1, x_0.ndim)))


def normal_kl(mean_1, log_variance_1, mean_2, log_variance_2) -> jax.Array:
  """KL(N(mean_1, variance_1) || N(mean_2, variance_2)), elementwise, nats."""
  ratio = log_variance_1 - log_variance_2
  distance = (mean_1 - mean_2) ** 2 * jnp.exp(-log_variance_2)
  return 0.5 * (jnp.exp(ratio) - 1 - ratio + distance)


def prior_kl(process: Process, x_0) -> jax.Array:
  """L_T = KL(q(x_T | x_0) || N(0, I)) in each dimension: x_0 [b, ...] -> nats [b, ...]."""
  alpha_bar = process.alpha_bars[-1]
  return 0.5 * (alpha_bar * x_0**2 - alpha_bar - jnp.log1p(-alpha_bar))


def decoder_log_likelihood(x, mean, log_scale, bin_width=BIN_WIDTH['none']) -> jax.Array:
  """log p(x | mean) of the discretised Gaussian decoder (Ho et al. 2020, Eq. 13), in nats.

  The Gaussian's mass in the bin around x; the outermost bins extend to infinity. As in the released
  code, the normal CDF is approximated by tanh, and masses are clipped to at least 1e-12.

  Args:
    x: 8-bit data in [-1, 1], the centres of their bins, [b, ...].
    mean: [b, ...].
    log_scale: logarithm of the standard deviation, broadcast against x.
    bin_width: a value of `BIN_WIDTH`.

  Returns:
    An array of the shape of x.
  """

  def cdf(edge):
    z = (edge - mean) * jnp.exp(-log_scale)
    return 0.5 * (1 + jnp.tanh(jnp.sqrt(2 / jnp.pi) * (z + 0.044715 * z**3)))

  inner = 127 * bin_width  # inner edge of the last bin; bins are symmetric about 0
  below = jnp.where(x > -inner, cdf(x - bin_width / 2), 0)
  above = jnp.where(x < inner, cdf(x + bin_width / 2), 1)
  return jnp.log(jnp.maximum(above - below, 1e-12))


# --- The `evaluate` of a system -----------------------------------------------------------------


def settings(config) -> str:
  """The settings that the values of `evaluate` depend on, as text."""
  text = f'variational bound, {config.diffusion.steps} steps, variance {config.sample.variance}'
  return text + ', given the label' * (config.net.get('num_classes') is not None)


# Each term of the bound but L_T is estimated from one sample of x_t.
MEASURES = {
  'bits_per_dim': Measure('bits/dim', 'upper bound', settings),
  'L_0': Measure('L_0, bits/dim', 'estimate', settings),
  'L_t': Measure('sum of L_1 to L_{T-1}, bits/dim', 'estimate', settings),
  'L_T': Measure('L_T, bits/dim', 'exact', settings),
  'terms': Measure('L_t, bits/dim', 'estimate', settings, index='term L_t, t = 0 to T', log=True),
}


def check(config) -> None:
  """Checks that the bound is defined for the data.

  Raises:
    UserError: the data are points.
  """
  examples = config.eval.held_out_examples
  if len(config.data.shape) == 1 and examples is not None:
    raise UserError(
      f'config.eval.held_out_examples={examples}: the bound is defined for 8-bit images; for '
      'points None is needed'
    )


def evaluate(denoise: Denoise, x_0, rng, process: Process, config) -> dict:
  """The variational bound of each example in bits per dimension, with the variance that
  config.sample names. T forward passes of the net.

  Args:
    denoise, rng, process: as in `bound`.
    x_0: 8-bit data in [-1, 1], the centres of their bins, [b, ...].
    config: the whole config.

  Returns:
    'bits_per_dim' [b], the bound; its summands 'L_0', 'L_t' (the sum of L_1 to L_{T-1}) and 'L_T'
    [b]; and 'terms' [b, T + 1], L_0 to L_T.
  """
  width = BIN_WIDTH[config.data.dequantize]
  nats = bound(denoise, x_0, rng, process, variance=config.sample.variance, bin_width=width)
  terms = nats / jnp.log(2)
  return {
    'bits_per_dim': nats.sum(0) / jnp.log(2),
    'L_0': terms[0],
    'L_t': terms[1:-1].sum(0),
    'L_T': terms[-1],
    'terms': terms.T,
  }
