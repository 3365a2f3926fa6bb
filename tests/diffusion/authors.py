"""What the scripts <name>_reference.py and the tests that read their numbers share.

Each script runs the authors' released code outside of this repository and writes its numbers to
fixtures/<name>.npz. In place of trained nets are the functions below, elementwise and the same in
NumPy, JAX and PyTorch (`xp` is the module); times and labels broadcast against x. Inputs are
float32 numbers, so that both sides start from the same ones; the authors' code computes in float64.
"""

import pathlib
import types

import numpy as np

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'


def eps_net(x, label, xp=np):
  """Noise prediction of a variance-preserving process, from a label of 0 to 1000."""
  s = label / 1000
  return s**0.5 * x + 0.1 * (1 - s) * xp.sin(3 * x + 10 * s)


def sigma_net(x, label, xp=np):
  """The v in [-1, 1], about, that a learned variance is interpolated with."""
  return 0.9 * xp.cos(2 * x - label / 300)


def score_net(x, sigma, xp=np):
  """Score of a variance-exploding process; its label is sigma."""
  return -(x + 0.1 * xp.sin(3 * x + sigma)) / (sigma**2 + 0.25)


def raw_net(x, label, xp=np):
  """F of EDM's preconditioning, also of its VP and VE forms."""
  return 0.3 * x + 0.1 * xp.sin(3 * x + label)


def velocity_net(x, t, xp=np):
  """Velocity of a linear path, t = 1 is noise."""
  return 0.5 * x * t + 0.1 * xp.sin(3 * x + 2 * t)


def mean_velocity_net(z, t, h, xp=np):
  """u(z, t, h) of MeanFlow, h = t - r."""
  return 0.5 * z * t + 0.2 * h * xp.sin(3 * z + 2 * t) - 0.1 * h**2


def inputs(seed, *shapes):
  """Standard normal arrays of the shapes, float32 numbers as float64."""
  rng = np.random.default_rng(seed)
  return [rng.standard_normal(shape).astype(np.float32).astype(np.float64) for shape in shapes]


def load(name) -> types.SimpleNamespace:
  """The arrays of fixtures/<name>.npz as attributes."""
  with np.load(FIXTURES / f'{name}.npz') as arrays:
    return types.SimpleNamespace(**arrays)


def save(name, **arrays):
  """Writes fixtures/<name>.npz."""
  FIXTURES.mkdir(exist_ok=True)
  path = FIXTURES / f'{name}.npz'
  np.savez_compressed(path, **{key: np.asarray(value) for key, value in arrays.items()})
  print(path, path.stat().st_size, 'bytes')


def in_float64(path, name, **replaced):
  """The authors' file as a module, computing in float64 where it says float32.

  Args:
    path: of the file.
    name: of the module, also for the imports of others.
    replaced: further replacements in the text.
  """
  import sys

  text = path.read_text().replace('float32', 'float64').replace('.float()', '.double()')
  for old, new in replaced.items():
    text = text.replace(old, new)
  module = types.ModuleType(name)
  module.__file__, module.__package__ = str(path), name.rpartition('.')[0]
  sys.modules[name] = module
  exec(compile(text, str(path), 'exec'), module.__dict__)
  return module


class Queue:
  """Stands for torch.randn_like and its kin: hands out the given arrays, one per call."""

  def __init__(self, *arrays):
    self.arrays = list(arrays)

  def __call__(self, *args, **kwargs):
    import torch

    return torch.as_tensor(self.arrays.pop(0))
