"""Writes fixtures/translation.npz: what the authors' nets of pix2pix and CycleGAN, tiny and with
known weights, compute.

    python -m pip install torch==2.13.0 numpy
    PYTHONPATH=tests python tests/nets/translation_reference.py PYTORCH_CYCLEGAN_AND_PIX2PIX

The argument is a clone of junyanz/pytorch-CycleGAN-and-pix2pix (commit c941617). The test draws the
same weights and inputs again. Weights are named by the kind of layer and its number, as the
authors' modules are nested.
"""

import pathlib
import sys

import numpy as np
from nets.unets_reference import weight

FIXTURE = pathlib.Path(__file__).parent / 'fixtures' / 'translation.npz'
WIDTH = 4
# Net, norm, its blocks, halvings or layers, height and width of the images.
CASES = {
  'unet_batch': ('unet', 'batch', 5, (32, 64)),
  'unet_instance': ('unet', 'instance', 6, (64, 128)),
  'resnet': ('resnet', 'instance', 2, (16, 28)),
  'patch_1': ('pixel', 'batch', 0, (5, 6)),
  'patch_1_instance': ('pixel', 'instance', 0, (5, 6)),
  'patch_16': ('patch', 'batch', 1, (17, 20)),
  'patch_70': ('patch', 'batch', 3, (45, 56)),
  'patch_70_instance': ('patch', 'instance', 3, (45, 56)),
  'patch_286': ('patch', 'batch', 5, (128, 161)),
}


def images(size, channels: int = 3) -> np.ndarray:
  """Inputs, float32 [2, h, w, channels] in (-1, 1)."""
  return np.tanh(np.float32(np.random.RandomState(0).standard_normal((2, *size, channels))))


def kept(name: str, y: np.ndarray) -> np.ndarray:
  """The entries of a result [2, h, w, c] that the fixture has."""
  every = {'unet': 7, 'resnet': 3}.get(CASES[name][0], 1)
  return y[:, ::every, ::every]


def main(folder):
  sys.path.insert(0, folder)
  import torch
  from models import networks

  def make(kind, norm, number):
    norm = networks.get_norm_layer(norm)
    if kind == 'unet':
      return networks.UnetGenerator(3, 2, number, WIDTH, norm_layer=norm)
    if kind == 'resnet':
      return networks.ResnetGenerator(3, 2, WIDTH, norm_layer=norm, n_blocks=number)
    if kind == 'pixel':
      return networks.PixelDiscriminator(3, WIDTH, norm_layer=norm)
    return networks.NLayerDiscriminator(3, WIDTH, n_layers=number, norm_layer=norm)

  results = {}
  for name, (kind, norm, number, size) in CASES.items():
    net, seen = make(kind, norm, number).train(), {}
    with torch.no_grad():
      for module in net.modules():
        layer = type(module).__name__
        parameters = list(module.named_parameters(recurse=False))
        for part, value in parameters:
          drawn = weight(f'{layer}_{seen.get(layer, 0)}.{part}', tuple(value.shape))
          value.copy_(torch.from_numpy(np.asarray(drawn)))
        seen[layer] = seen.get(layer, 0) + bool(parameters)
      y = net(torch.from_numpy(images(size)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    results[name] = np.float32(kept(name, y.numpy()))
  np.savez_compressed(FIXTURE, **results)
  shown = {name: (value.shape, float(value.std())) for name, value in results.items()}
  print(shown, FIXTURE.stat().st_size, 'bytes')


if __name__ == '__main__':
  main(sys.argv[1])
