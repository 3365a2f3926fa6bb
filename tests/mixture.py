"""A mixture of two Gaussians in one dimension, whose components are the classes: exact predictions
and an exact classifier, on any path.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.diffusion.predictions import to_prediction

MEANS, SPREADS = np.array([-0.6, 0.5]), np.array([0.2, 0.15])
PRIORS = np.array([0.7, 0.3])


def log_joint(path, spreads=SPREADS):
  """`logits(x, t)`, log p(x_t, y) up to a constant: [b, 2] for x [b, 1] and t float32 [b]."""
  means, priors, squares = (jnp.float32(a)[None] for a in (MEANS, PRIORS, np.square(spreads)))

  def logits(x, t):
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    variance = alpha**2 * squares + sigma**2
    return jnp.log(priors / jnp.sqrt(variance)) - (x - alpha * means) ** 2 / (2 * variance)

  return logits


def exact(path, label=None, spreads=SPREADS):
  """The best `denoise` for the mixture, or for the component of each row's label."""

  def log_p(x, t):
    both = log_joint(path, spreads)(x, t)
    if label is None:
      return jax.nn.logsumexp(both, axis=1).sum()
    return jnp.take_along_axis(both, label[:, None], axis=1).sum()

  def denoise(x, t):
    score = jax.grad(log_p)(x, t)
    alpha, sigma = path.alpha(t), path.sigma(t)
    eps = -sigma[:, None] * score
    # Where alpha is 0, x says nothing of x_0.
    prior = (PRIORS * MEANS).sum() if label is None else jnp.float32(MEANS)[label][:, None]
    safe = jnp.where(alpha > 0, alpha, 1.0)
    found = to_prediction('eps', eps, x, safe, sigma)
    return found._replace(x_0=jnp.where((alpha > 0)[:, None], found.x_0, prior))

  return denoise
