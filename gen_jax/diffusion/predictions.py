"""What a net may predict of x_t = alpha x_0 + sigma eps, and how each follows from the others.

    eps        the noise (Ho et al. 2020, arXiv 2006.11239)
    x_0        the data
    v          alpha eps - sigma x_0 (Salimans and Ho 2022, arXiv 2202.00512, appendix D)
    score      grad log p(x_t) = -eps / sigma (Song et al. 2021, arXiv 2011.13456)
    velocity   eps - x_0, dx_t/dt on the straight path (Lipman et al. 2023, arXiv 2210.02747)

Each is linear in (x_0, eps); together with x_t it determines both.
"""

import jax

from gen_jax.diffusion.paths import Prediction, per_row

KINDS = ('eps', 'x_0', 'v', 'score', 'velocity')


def target(kind: str, x_0, eps, alpha, sigma) -> jax.Array:
  """The prediction of this kind that is right for x_0 and eps [b, ...]; alpha, sigma [b]."""
  alpha, sigma = per_row(alpha, x_0.ndim), per_row(sigma, x_0.ndim)
  return {
    'eps': lambda: eps,
    'x_0': lambda: x_0,
    'v': lambda: alpha * eps - sigma * x_0,
    'score': lambda: -eps / sigma,
    'velocity': lambda: eps - x_0,
  }[kind]()


def to_prediction(kind: str, output, x, alpha, sigma) -> Prediction:
  """x_0 and eps from a net's output of this kind for x, both [b, ...]; alpha and sigma [b].

  'x_0' needs sigma > 0, 'eps' and 'score' need alpha > 0.
  """
  alpha, sigma = per_row(alpha, x.ndim), per_row(sigma, x.ndim)
  if kind == 'score':
    kind, output = 'eps', -sigma * output
  if kind == 'eps':
    return Prediction((x - sigma * output) / alpha, output)
  if kind == 'x_0':
    return Prediction(output, (x - alpha * output) / sigma)
  if kind == 'v':  # for alpha^2 + sigma^2 = 1 the paper's x_0 = alpha x - sigma v
    norm = alpha**2 + sigma**2
    return Prediction((alpha * x - sigma * output) / norm, (sigma * x + alpha * output) / norm)
  norm = alpha + sigma
  return Prediction((x - sigma * output) / norm, (x + alpha * output) / norm)
