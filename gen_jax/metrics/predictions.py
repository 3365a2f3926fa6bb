"""The inception score (Salimans et al. 2016, arXiv 1606.03498, section 4).

It is called so only for the 1,008 classes of the 2015 Inception network.
"""

import numpy as np

from gen_jax.metrics.kernel import Estimate


def inception_score(probabilities, *, splits: int = 10, seed: int | None = 0) -> Estimate:
  """exp(E_x KL(p(y | x) || p(y))) of predictions [n, classes], in splits of the shuffled examples.

  Args:
    probabilities: p(y | x), rows that sum to 1.
    splits: number of equal parts; the remainder is dropped.
    seed: seed of the shuffle, without which a set sorted by class scores too low; None: no shuffle.

  Returns:
    Mean and standard deviation (divisor `splits`) over the splits: between 1, where all predictions
    are equal, and the number of classes.

  Raises:
    ValueError: there are fewer examples than splits, or a row is not a distribution.
  """
  p = np.asarray(probabilities, np.float64)
  if p.ndim != 2 or len(p) < splits:
    raise ValueError(f'predictions of shape {p.shape}: [n, classes] with n >= {splits} is needed')
  if (p < 0).any() or not np.allclose(p.sum(1), 1, atol=1e-3):
    raise ValueError('predictions: every row must be probabilities that sum to 1')
  if seed is not None:
    p = np.random.default_rng(seed).permutation(p)
  scores = []
  for part in p[: len(p) // splits * splits].reshape(splits, -1, p.shape[1]):
    marginal = part.mean(0)
    ratio = np.divide(part, marginal, out=np.ones_like(part), where=part > 0)  # 0 log 0 = 0
    scores.append(np.exp((part * np.log(ratio)).sum(1).mean()))
  return Estimate(float(np.mean(scores)), float(np.std(scores)))
