r"""The probability-flow ODE, dx/dt = alpha' x_0 + sigma' eps (Song et al. 2021, arXiv 2011.13456,
section 4.3), by an adaptive solver: samples, encodings and likelihoods.

Every path is integrated as the straight one (`paths.Linear`), which it is at another speed and
scale: with tau = sigma / (alpha + sigma) and z = x / (alpha + sigma),

    z = (1 - tau) x_0 + tau eps,  dz/dtau = eps - x_0

There alpha may be 0, x has the scale of the data at all times, and the curves are nearly straight:
on Gaussians and mixtures, solving in the time of VP, VE or EDM takes up to four times as many
evaluations of the net, and none takes fewer than this.

The method is Dormand and Prince's of order 5(4), 'RK45' in the released code of Song et al.; Tsit5
takes about a fifth more evaluations for the same tolerance here. The error of a step is the root
mean square, over all entries of the batch, of the error of each divided by tolerance (1 + |z|): the
batch is one system, whose step sizes, and so its samples to within the tolerance, depend on all of
it.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import fields
from gen_jax.diffusion.bound import BIN_WIDTH
from gen_jax.diffusion.paths import Denoise, Linear, Path, denoise_on
from gen_jax.fields import Measure

MAX_STEPS = 1000
_LEAST_STEP = 1e-6  # of tau; a net that returns NaN reaches it after a few steps


def solve(field: Callable, t_0: float, t_1: float, y, tolerance: float):
  """Solves dy/dt = field(t, y).

  Args:
    field: maps t, a float32 scalar, and y to a tree like y; evaluates a net once.
    t_0: where y is given.
    t_1: where it is wanted; may be less than t_0.
    y: arrays or a tree of arrays, float32.
    tolerance: absolute and relative, see the module.

  Returns:
    y at t_1, NaN where the solver does not reach it in `MAX_STEPS` steps; and the number of
    evaluations of `field`, an int32 scalar.
  """
  import diffrax  # takes a second, which other samplers save

  # The last stage of a step is the first one of the next. A step that is rejected before any was
  # accepted would evaluate it again, and not count it: therefore the solver is given the first one.
  state = jnp.array(False), field(jnp.float32(t_0), y)
  done = diffrax.diffeqsolve(
    diffrax.ODETerm(lambda t, y, _: field(t, y)),
    diffrax.Dopri5(),
    t_0,
    t_1,
    0.01 * (t_1 - t_0),
    y,
    solver_state=state,
    stepsize_controller=diffrax.PIDController(
      rtol=tolerance, atol=tolerance, dtmin=_LEAST_STEP, force_dtmin=False
    ),
    adjoint=diffrax.ForwardMode(),
    max_steps=MAX_STEPS,
    throw=False,
  )
  reached = done.result == diffrax.RESULTS.successful
  y = jax.tree.map(lambda a: jnp.where(reached, a[0], jnp.nan), done.ys)
  return y, 1 + 6 * done.stats['num_steps'].astype(jnp.int32)


# --- Along a path -------------------------------------------------------------------------------


def _velocity(denoise: Denoise, path: Path) -> Callable:
  """dz/dtau as a function of tau and z [b, ...]."""
  straight = denoise_on(Linear(), denoise, path)

  def velocity(tau, z):
    x_0, eps, _ = straight(z, jnp.full(len(z), tau))
    return eps - x_0

  return velocity


def _straight(path: Path, t: float) -> tuple[float, float]:
  """tau at t, and the scale alpha + sigma."""
  alpha, sigma = float(path.alpha(np.float64(t))), float(path.sigma(np.float64(t)))
  return sigma / (alpha + sigma), alpha + sigma


def transport(denoise: Denoise, x, path: Path, t_0: float, t_1: float, tolerance: float):
  """x [b, ...] at t_0 to where the ODE leads at t_1; and the number of evaluations."""
  (tau_0, scale_0), (tau_1, scale_1) = _straight(path, t_0), _straight(path, t_1)
  z, evaluations = solve(_velocity(denoise, path), tau_0, tau_1, x / scale_0, tolerance)
  return scale_1 * z, evaluations


def sample(denoise: Denoise, x, path: Path, tolerance: float) -> tuple[jax.Array, jax.Array]:
  """Samples from noise: the ODE from t_max to t_last, then the predicted x_0.

  Args:
    denoise: the net.
    x: noise at t_max, float32 [b, ...], of the standard deviation path.prior_std(path.t_max).
    path: of the net.
    tolerance: see `solve`.

  Returns:
    The samples [b, ...], NaN if the solver failed, and the number of evaluations, int32 [b], the
    same for all.
  """
  x, evaluations = transport(denoise, x, path, path.t_max, path.t_last, tolerance)
  x_0 = denoise(x, jnp.full(len(x), path.t_last, jnp.float32)).x_0
  return x_0, jnp.full(len(x), evaluations + 1)


def encode(denoise: Denoise, x, path: Path, tolerance: float) -> jax.Array:
  """Noise at t_max from data x [b, ...]: `sample` backwards.

  The predicted x_0, its last step, is inverted by the prediction for the data, told t_last.
  """
  alpha, sigma = (np.float32(a(np.float64(path.t_last))) for a in (path.alpha, path.sigma))
  eps = denoise(x, jnp.full(len(x), path.t_last, jnp.float32)).eps
  return transport(denoise, alpha * x + sigma * eps, path, path.t_last, path.t_max, tolerance)[0]


def log_likelihood(
  denoise: Denoise, x, rng, path: Path, tolerance: float, divergence: str = 'rademacher'
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """log p(x) at t_min, by the instantaneous change of variables (Song et al. 2021, Eq. 39; Chen et
  al. 2018, arXiv 1806.07366):

    log p(z at tau_0) = log p(z at tau_1) + integral of div dz/dtau from tau_0 to tau_1

  Args:
    denoise: the net.
    x: data, float32 [b, ...], taken as those at path.t_min.
    rng: key of the probes.
    path: of the net.
    tolerance: see `solve`; the integral is part of the system.
    divergence: 'rademacher', Hutchinson's estimator with one vector of -1 and 1 for each example,
      fixed for the whole solve; or 'exact', with as many backward passes as there are dimensions.

  Returns:
    log p(x) in nats [b]; the noise at t_max, of unit variance, [b, ...]; and the number of
    evaluations of the net, int32 [b], the same for all. NaN if the solver failed.
  """
  dims, n = tuple(range(1, x.ndim)), math.prod(x.shape[1:])
  (tau_0, scale_0), (tau_1, scale_1) = _straight(path, path.t_min), _straight(path, path.t_max)
  velocity = _velocity(denoise, path)
  probe = jax.random.rademacher(rng, x.shape, jnp.float32)

  def along(pull, vector):  # the derivative of the velocity along a vector, times the vector
    return jnp.sum(pull(vector)[0] * vector, dims)

  def field(tau, y):
    # The net is differentiated backwards: what it needs on CPU has no forward derivative.
    dz, pull = jax.vjp(lambda z: velocity(tau, z), y[0])
    if divergence == 'rademacher':
      return dz, along(pull, probe)
    basis = jnp.eye(n).reshape(n, 1, *x.shape[1:])
    diagonal = jax.lax.map(lambda one: along(pull, jnp.broadcast_to(one, x.shape)), basis)
    return dz, jnp.sum(diagonal, 0)

  (z, integral), evaluations = solve(
    field, tau_0, tau_1, (x / scale_0, jnp.zeros(len(x))), tolerance
  )
  std = float(path.prior_std(path.t_max)) / scale_1  # of z under the prior
  noise = z / std
  prior = -0.5 * jnp.sum(noise**2, dims) - n * (0.5 * math.log(2 * math.pi) + math.log(std))
  return prior + integral - n * math.log(scale_0), noise, jnp.full(len(x), evaluations)


# --- The `evaluate` of a system -----------------------------------------------------------------

FIELDS = {
  'eval.ode_tolerance': fields.number(
    1e-7,  # float32 has 1.2e-7
    0.1,
    default=1e-5,
    meaning='relative and absolute, of the solver of likelihoods',
  ),
  'eval.ode_divergence': fields.one_of(
    'rademacher',
    'exact',
    default='rademacher',
    meaning='in likelihoods: estimated with one random vector of -1 and 1 for each example, or '
    'exact, by as many backward passes as there are dimensions',
  ),
}


def settings(config, path: Path) -> str:
  """The settings that the values of `evaluate` depend on, as text."""
  t_min, c = path.t_min, config.eval
  exact = c.ode_divergence == 'exact'
  text = f'probability-flow ODE, RK45, tolerance {c.ode_tolerance:g}, t_min {t_min:g} '
  text += f'(sigma {float(path.sigma(np.float64(t_min))):.2g}), '
  text += 'exact divergence' if exact else 'Hutchinson with 1 Rademacher vector'
  if len(config.data.shape) == 3:
    text += f', uniform dequantisation, 1 draw, offset {_offset(config):.4g} bits/dim'
  return text + ', given the label' * (config.net.get('num_classes') is not None)


def measures(path_of: Callable) -> dict[str, Measure]:
  """`MEASURES` of a system whose path is path_of(config)."""

  def how(config):
    return settings(config, path_of(config))

  return {
    'bits_per_dim': Measure('bits/dim', 'estimate', how),
    'nats': Measure('-log p(x), nats', 'estimate', how),
    'evaluations': Measure('evaluations of the net for log p(x)', 'exact', how),
  }


def _offset(config) -> float:
  """Bits per dimension from a density of values to the probability of their bins; 0 for points."""
  points = len(config.data.shape) == 1
  return 0.0 if points else -math.log2(BIN_WIDTH[config.data.dequantize])


def evaluate(denoise: Denoise, x_0, rng, path: Path, config) -> dict:
  """-log p of each example, with the settings of config.eval. 8-bit images are dequantised with
  uniform noise, one draw for each example, so that in expectation the probability of an image is at
  least the one found (Theis et al. 2016, arXiv 1511.01844, section 3.1).

  Args:
    denoise: the net.
    x_0: points, or 8-bit images in [-1, 1], the centres of their bins, [b, ...].
    rng: key of noise and probes.
    path: of the net.
    config: the whole config.

  Returns:
    'nats' [b], -log p of points or of 8-bit levels; the same as 'bits_per_dim' [b]; and
    'evaluations' [b].
  """
  noise_key, probe_key = jax.random.split(rng)
  bits, n = _offset(config), math.prod(x_0.shape[1:])
  x = x_0
  if len(config.data.shape) == 3:
    width = BIN_WIDTH[config.data.dequantize]
    x = x + width * jax.random.uniform(noise_key, x.shape, jnp.float32, -0.5, 0.5)
  c = config.eval
  log_p, _, evaluations = log_likelihood(
    denoise, x, probe_key, path, c.ode_tolerance, c.ode_divergence
  )
  nats = n * bits * math.log(2) - log_p
  return {
    'bits_per_dim': nats / (n * math.log(2)),
    'nats': nats,
    'evaluations': evaluations.astype(jnp.float32),
  }
