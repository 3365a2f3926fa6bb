"""Metrics of generated examples, as pure functions of features (or points, or probabilities).

Numbers are comparable only if the feature network, its weights and resize, the reference set and
the number of samples are the same. `gen_jax.metrics.networks` provides the first three.
"""

from gen_jax.metrics.frechet import Moments, frechet_distance
from gen_jax.metrics.kernel import kernel_distance
from gen_jax.metrics.modes import class_coverage, mode_coverage
from gen_jax.metrics.neighbours import density_coverage, precision_recall
from gen_jax.metrics.predictions import inception_score

__all__ = [
  'Moments',
  'class_coverage',
  'density_coverage',
  'frechet_distance',
  'inception_score',
  'kernel_distance',
  'mode_coverage',
  'precision_recall',
]
