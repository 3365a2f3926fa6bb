"""Synthetic two-dimensional data, on which every sample of a generative model can be plotted.

The proportions are those of the literature. `ring`: 8 Gaussians on a circle of radius 2 with
standard deviation 0.02 (Metz et al. 2016, Unrolled GANs). `grid`: 25 Gaussians at {-4, -2, 0, 2,
4}^2 with standard deviation 0.05, and `swiss_roll`: the roll seen from above with noise 0.25 (both
Gulrajani et al. 2017, Improved Training of Wasserstein GANs). Each is scaled into [-1, 1] with
a margin, so that a generator that ends in tanh need not saturate.
"""

import dataclasses
import math

import numpy as np

from gen_jax.data.sources import ArraySource, content_hash

NAMES = ('ring', 'grid', 'swiss_roll')
NUM_POINTS = 100_000
# The points are data, not randomness of a run: the same under every `config.seed`.
SEED = 0
_SCALE = {'ring': 0.4, 'grid': 0.2, 'swiss_roll': 1 / 16}


@dataclasses.dataclass(frozen=True)
class Modes:
  """The Gaussians of a mixture; the points with label i are sampled around `centres[i]`.

  In the literature a sample counts as on a mode if it lies within 3 `sd` of its centre.
  """

  centres: np.ndarray  # float32 [modes, 2]
  sd: float


def modes(name: str) -> Modes | None:
  """Returns the modes of `ring` or `grid`, scaled as the points are; `None` for `swiss_roll`."""
  if name == 'ring':
    angle = 2 * math.pi * np.arange(8) / 8
    centres, sd = 2 * np.stack([np.cos(angle), np.sin(angle)], axis=-1), 0.02
  elif name == 'grid':
    ticks = 2.0 * np.arange(-2, 3)
    centres = np.stack(np.meshgrid(ticks, ticks, indexing='ij'), axis=-1).reshape(25, 2)
    sd = 0.05
  elif name == 'swiss_roll':
    return None
  else:
    raise ValueError(f'{name!r} is none of {NAMES}')
  return Modes((_SCALE[name] * centres).astype(np.float32), _SCALE[name] * sd)


def toy(name: str) -> ArraySource:
  """Returns 100,000 points, float32 [2] in [-1, 1]; labels are mode indices, if there are modes."""
  rng = np.random.RandomState(
    SEED
  )  # the only generator whose stream NumPy guarantees across versions
  mixture = modes(name)
  arrays = {}
  if mixture is None:
    t = 1.5 * math.pi * (1 + 2 * rng.uniform(size=NUM_POINTS))
    roll = np.stack([t * np.cos(t), t * np.sin(t)], axis=-1)
    points = _SCALE[name] * (roll + 0.25 * rng.normal(size=roll.shape))
  else:
    label = rng.randint(len(mixture.centres), size=NUM_POINTS)
    points = mixture.centres[label] + mixture.sd * rng.normal(size=(NUM_POINTS, 2))
    arrays['label'] = label.astype(np.int32)
  arrays['image'] = points.astype(np.float32)
  # A hash of the recipe, not of the bits: the last bits of sin and cos depend on the machine.
  content = content_hash(f'{name} {NUM_POINTS} {SEED} {_SCALE[name]} v1'.encode())
  fingerprint = f'{name}/train/{NUM_POINTS}/{content}'
  return ArraySource(name, arrays, len(mixture.centres) if mixture else None, fingerprint)
