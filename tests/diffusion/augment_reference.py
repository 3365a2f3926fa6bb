"""Writes fixtures/augment.npz: images transformed by EDM's own code, and their labels.

    python -m pip install torch==2.14.1 requests
    python tests/diffusion/augment_reference.py EDM

EDM is a clone of NVlabs/edm (commit 008a4e5). Its random draws are replaced by the transforms of
`transforms()`, which the test gives to our code.
"""

import pathlib
import sys

import numpy as np

FIXTURE = pathlib.Path(__file__).parent / 'fixtures' / 'augment.npz'


def images() -> np.ndarray:
  """Images [8, 8, 6, 2] between -1 and 1."""
  return np.float32(np.random.RandomState(0).uniform(-1, 1, (8, 8, 6, 2)))


def transforms() -> dict[str, np.ndarray]:
  """The fields of our `Transforms`: one kind for each image, and all of them for the last two."""
  of = lambda *values: np.float32(values)
  translation = np.zeros((8, 2), np.float32)
  translation[5:] = [[0.7, -1.1], [-0.4, 0.3], [0.9, 1.3]]
  return dict(
    x_flip=of(0, 1, 0, 0, 0, 0, 1, 0),
    y_flip=of(0, 0, 1, 0, 0, 0, 0, 1),
    scale=of(0, 0, 0, 1.3, 0, 0, -0.8, 0.6),
    rotation=of(0, 0, 0, 0, 0.9, 0, -2.4, 0.3),
    anisotropy=of(0, 0, 0, 0, 1.1, 0, 1.2, -0.7),
    axis=of(0, 0, 0, 0, 0, 0, 0.8, -2.1),
    translation=translation,
  )


def main(edm):
  import torch

  sys.path.insert(0, edm)
  from training.augment import AugmentPipe

  draw = {name: torch.from_numpy(value) for name, value in transforms().items()}
  # In the order in which the code draws; it compares `gate` with a probability, here 1.
  gate, as_uniform = torch.zeros(8), lambda angle: (angle / np.pi + 1) / 2
  integers = iter([draw['x_flip'].reshape(8, 1, 1, 1), draw['y_flip'].reshape(8, 1, 1, 1)])
  normals = iter([draw['scale'], draw['anisotropy'], draw['translation'].T])
  uniforms = iter(
    [gate.reshape(8, 1, 1, 1), gate.reshape(8, 1, 1, 1), gate, as_uniform(draw['rotation']), gate]
    # The last gate of anisotropy lets the angle pass with probability 1/2.
    + [as_uniform(draw['axis']), gate, gate, gate.reshape(1, 8)]
  )
  torch.randint = lambda *args, **kwargs: next(integers)
  torch.randn = lambda *args, **kwargs: next(normals)
  torch.rand = lambda *args, **kwargs: next(uniforms)
  pipe = AugmentPipe(p=1, xflip=1, yflip=1, scale=1, rotate_frac=1, aniso=1, translate_frac=1)
  found, labels = pipe(torch.from_numpy(images()).permute(0, 3, 1, 2))
  FIXTURE.parent.mkdir(exist_ok=True)
  np.savez(FIXTURE, images=found.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
  print(found.std(), labels, FIXTURE.stat().st_size, 'bytes')


if __name__ == '__main__':
  main(*sys.argv[1:])
