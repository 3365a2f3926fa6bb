"""Which modes of the data a generator covers: a measure of mode collapse."""

from typing import NamedTuple

import numpy as np


class ModeCoverage(NamedTuple):
  modes: int  # modes with at least one good sample
  good: float  # share of samples within three standard deviations of a mode
  kl: float  # KL divergence of the good samples' histogram over modes to the uniform one, nats


class ClassCoverage(NamedTuple):
  classes: int  # classes with at least one sample
  kl: float  # KL divergence of the samples' histogram over classes to the reference one, nats


def mode_coverage(points, centres, sigma: float) -> ModeCoverage:
  """Modes of a mixture of Gaussians that points cover (Srivastava et al. 2017, VEEGAN, arXiv
  1705.07761, section 4.1).

  Args:
    points: generated points, [n, d].
    centres: centres of the modes, [m, d].
    sigma: standard deviation of every mode.

  Returns:
    Modes covered, share of good samples, and KL, which is infinite without good samples.
  """
  points, centres = np.asarray(points, np.float64), np.asarray(centres, np.float64)
  distances = np.linalg.norm(points[:, None] - centres[None], axis=-1)
  good = distances.min(1) <= 3 * sigma
  counts = np.bincount(distances.argmin(1)[good], minlength=len(centres))
  uniform = np.full(len(centres), 1 / len(centres))
  return ModeCoverage(int((counts > 0).sum()), float(good.mean()), _kl(counts, uniform))


def class_coverage(labels, reference) -> ClassCoverage:
  """Classes that generated examples cover, by a classifier's labels.

  Args:
    labels: labels of the generated examples, int [n].
    reference: share (or number) of every class among the data, [classes].
  """
  reference = np.asarray(reference, np.float64)
  counts = np.bincount(np.asarray(labels), minlength=len(reference))
  return ClassCoverage(int((counts > 0).sum()), _kl(counts, reference / reference.sum()))


def _kl(counts, reference) -> float:
  """KL divergence of a histogram to reference probabilities, nats."""
  if not counts.sum():
    return float('inf')
  p = counts / counts.sum()
  seen = p > 0
  with np.errstate(divide='ignore'):
    return float((p[seen] * np.log(p[seen] / reference[seen])).sum())
