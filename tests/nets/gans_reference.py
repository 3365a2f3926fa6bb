"""Writes fixtures/sngan.npz and fixtures/biggan.npz: what the authors' nets, tiny and with known
weights, compute.

    pip install "setuptools<70" numpy==1.23.5 chainer==7.8.1
    PYTHONPATH=tests python tests/nets/gans_reference.py sngan SNGAN_PROJECTION

SNGAN_PROJECTION is a clone of pfnet-research/sngan_projection (commit e84b1a5), which runs on
Chainer. The test draws the same weights and inputs again, by the names of the authors' parameters.
"""

import pathlib
import sys

import numpy as np
from nets.unets_reference import weight

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'
CLASSES, LATENT = 3, 5
SNGAN_WIDTH = 4


def average(name: str, size: int) -> np.ndarray:
  """The running mean or variance `name` of a batch norm."""
  value = weight(name, (size,))
  return 1 + np.abs(value) if name.endswith('var') else value


def inputs(size: int) -> dict[str, np.ndarray]:
  """z [4, d], x [4, size, size, 3], labels [4]."""
  draw = np.random.RandomState(0).standard_normal
  z, x = np.float32(draw((4, LATENT))), np.tanh(np.float32(draw((4, size, size, 3))))
  return dict(z=z, x=x, label=np.array([2, 0, 1, 2], np.int32))


def sngan(folder):
  sys.path.insert(0, folder)
  import chainer
  from dis_models.snresnet_32 import SNResNetProjectionDiscriminator
  from gen_models.resnet_32 import ResNetGenerator
  from source.functions import max_sv

  # Theirs is written for GPUs only.
  max_sv._l2normalize = lambda v, eps=1e-12: v / (np.sqrt((v * v).sum()) + eps)
  results, given = {}, inputs(32)
  for classes in (0, CLASSES):
    y = given['label'] if classes else None
    name = 'conditional' if classes else 'unconditional'
    G = ResNetGenerator(ch=SNGAN_WIDTH, dim_z=LATENT, n_classes=classes)
    D = SNResNetProjectionDiscriminator(ch=SNGAN_WIDTH, n_classes=classes)
    for net in (G, D):
      for path, parameter in net.namedparams():
        parameter.data[...] = weight(path, parameter.shape)
      for path, link in net.namedlinks():
        if hasattr(link, 'avg_mean'):
          for kind in ('mean', 'var'):
            value = average(f'{path}/avg_{kind}', link.avg_mean.size)
            getattr(link, f'avg_{kind}')[...] = value
        if hasattr(link, 'u'):
          link.u[...] = weight(f'{path}/u', link.u.shape)
    if classes:  # theirs has the other side's singular vector: converged, both have one sigma
      D.l_y.u[...] = np.linalg.svd(D.l_y.W.data)[0][None, :, 0]
    with chainer.using_config('train', False):
      results[f'{name}/eval'] = G(z=given['z'], y=y, batchsize=4).data
    results[f'{name}/train'] = G(z=given['z'], y=y, batchsize=4).data
    scores = D(chainer.Variable(given['x'].transpose(0, 3, 1, 2)), y)
    results[f'{name}/scores'] = scores.data[:, 0]
    D.cleargrads()
    chainer.functions.sum(scores).backward()
    results[f'{name}/gradient'] = D.block2.c2.W.grad.transpose(2, 3, 1, 0)
    results[f'{name}/u'] = D.block2.c2.u[0]
    for mode in ('eval', 'train'):
      results[f'{name}/{mode}'] = results[f'{name}/{mode}'].transpose(0, 2, 3, 1)[:2]
  save('sngan', results)


def save(name, results):
  file = FIXTURES / f'{name}.npz'
  np.savez_compressed(file, **{k: np.float32(v) for k, v in results.items()})
  print({k: (v.shape, float(v.std())) for k, v in results.items()}, file.stat().st_size, 'bytes')


if __name__ == '__main__':
  {'sngan': sngan}[sys.argv[1]](sys.argv[2])
