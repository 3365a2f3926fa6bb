"""Scores images against a data set by functions of features, in a script of your own.

    python examples/score_pictures.py

It compares a hundred of scikit-learn's digits with another hundred under increasing noise: the
distance rises, and coverage falls.
"""

import numpy as np
from sklearn.datasets import load_digits

from gen_jax import metrics
from gen_jax.metrics import networks

digits = np.uint8(np.rint(load_digits().images * 255 / 16))[..., None]  # uint8 [1797, 8, 8, 1]
rng = np.random.default_rng(0)
real, other = np.split(digits[rng.permutation(200)], 2)

network = networks.open_network('efficientnet_lite0')  # or 'inception', whose numbers are FID


def features(pictures):
  blocks = np.array_split(pictures, -(-len(pictures) // 64))
  return np.concatenate([seen for seen, _ in networks.features(network, iter(blocks))])


reference = features(real)
for noise in (0, 40, 80):
  noisy = np.uint8(np.clip(other + noise * rng.standard_normal(other.shape), 0, 255))
  made = features(noisy)
  kernel, error = metrics.kernel_distance(reference, made, subset_size=50)
  _, coverage = metrics.density_coverage(reference, made)
  print(f'noise {noise:3}: KD {kernel:7.4f} +- {error:.4f}, coverage {coverage:.3f}')
