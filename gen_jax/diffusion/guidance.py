r"""Classifier guidance (Dhariwal and Nichol 2021, arXiv 2105.05233, section 4).

A classifier of noisy images, p(y | x_t), guides samples of p(x) towards a class y. The gradient
g = grad log p(y | x_t), times a scale s, enters the step of a sampler in one of two forms:

    ancestral (Algorithm 1)   mean + s Sigma g, with Sigma the variance of p(x_{t-1} | x_t)
    DDIM      (Algorithm 2)   eps_hat - s sqrt(1 - alpha_bar_t) g

With s = 1 and an exact classifier, samples follow p(x | y). s g is the gradient of
log p(y | x_t)^s, so s > 1 sharpens the classifier: closer to the class, less diverse.

The derivation evaluates g at the mean of p(x_{t-1} | x_t); here it is evaluated at x_t, as in the
released code. Samplers take a function `guide(x, t) -> s g`, [b, ...] for x [b, ...] and t int32
[b].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_jax import fields
from gen_jax.errors import UserError

FIELDS = {
  # The protocol of numbers about the samples has the checksum of the run instead of its path.
  'sample.guidance.run': fields.path(
    optional=True,
    default=None,
    protocol=False,
    meaning='run of a noisy_classifier that guides sampling (but not in training); None: none',
  ),
  'sample.guidance.scale': fields.number(
    0,
    default=1.0,
    when=('.run', fields.GIVEN),
    meaning='scale of the gradient; 1: samples of p(x | y); more: closer to y, less diverse',
  ),
}


def runs(config) -> dict[str, str]:
  """The finished run that guided sampling needs, {field of the state: path}."""
  path = config.sample.guidance.run
  return {} if path is None else {'guide': path}


def check(config, classifier, system: str) -> None:
  """Checks that a classifier can guide a diffusion model.

  Args:
    config: of the diffusion model.
    classifier: the config of the classifier's run.
    system: the system that the run must have.

  Raises:
    UserError: it is a run of another system, or the data or the process differ.
  """
  run = f'config.sample.guidance.run={config.sample.guidance.run!r}'
  if classifier.system != system:
    raise UserError(f'{run} is a run of system {classifier.system!r}: one of {system!r} is needed')
  same = ['data.shape', 'data.num_classes', 'diffusion.steps', 'diffusion.schedule']
  if config.diffusion.schedule == 'linear':
    same += ['diffusion.beta_min', 'diffusion.beta_max']
  for path in same:
    mine, its = config[path], classifier[path]
    if mine != its:
      raise UserError(f'{run} has {path}={its!r}, but config.{path}={mine!r}: they must be equal')


def guided_mean(mean, log_variance, gradient) -> jax.Array:
  """Algorithm 1: the mean of p(x_{t-1} | x_t, y). `gradient` is s g; all [b, ...], or broadcast."""
  return mean + jnp.exp(log_variance) * gradient


def guided_eps(eps, noise, gradient) -> jax.Array:
  """Algorithm 2: the noise prediction given y. `gradient` is s g [b, ...], `noise` the factor
  sqrt(1 - alpha_bar_t).
  """
  return eps - noise * gradient


def make_guide(logits: Callable, label, scale: float) -> Callable:
  """The `guide(x, t)` of a classifier.

  Args:
    logits: maps x [b, ...] and t int32 [b] to logits [b, classes]; rows do not interact.
    label: the class of each row, int32 [b].
    scale: s.
  """

  def log_probability(x, t):
    log_p = jax.nn.log_softmax(logits(x, t).astype(jnp.float32))
    return jnp.take_along_axis(log_p, label[:, None], axis=1).sum()

  return lambda x, t: scale * jax.grad(log_probability)(x, t)
