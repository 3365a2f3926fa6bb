"""Writes fixtures/sngan.npz and fixtures/biggan.npz: what the authors' nets, tiny and with known
weights, compute.

    pip install "setuptools<70" numpy==1.23.5 chainer==7.8.1
    PYTHONPATH=tests python tests/nets/gans_reference.py sngan SNGAN_PROJECTION

and, with torch==2.13.0 instead of Chainer, `biggan BIGGAN_PYTORCH`. The arguments are clones of
pfnet-research/sngan_projection (commit e84b1a5) and ajbrock/BigGAN-PyTorch (9845943). The test
draws the same weights and inputs again, by the names of the authors' parameters.
"""

import pathlib
import sys

import numpy as np
from nets.unets_reference import weight

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'
CLASSES, LATENT = 3, 5
SNGAN_WIDTH = 4
# BigGAN's sizes; that of 64 is the large one's design.
BIGGAN = {
  32: dict(G_ch=1, D_ch=1, G_attn='0', D_attn='0', G_shared=False, dim_z=5),
  64: dict(
    **dict(G_ch=1, D_ch=4, G_attn='16', D_attn='16'),
    **dict(G_shared=True, shared_dim=6, hier=True, dim_z=15),
  ),
}


def average(name: str, size: int) -> np.ndarray:
  """The running mean or variance `name` of a batch norm."""
  value = weight(name, (size,))
  return 1 + np.abs(value) if name.endswith('var') else value


def inputs(size: int, latent: int = LATENT) -> dict[str, np.ndarray]:
  """z [4, latent], x [4, size, size, 3], labels [4]."""
  draw = np.random.RandomState(0).standard_normal
  z, x = np.float32(draw((4, latent))), np.tanh(np.float32(draw((4, size, size, 3))))
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


def biggan(folder):
  sys.path.insert(0, folder)
  import torch
  from BigGAN import Discriminator, Generator

  results = {}
  for size, how in BIGGAN.items():
    how = dict(how, resolution=size, n_classes=CLASSES, skip_init=True)
    G, D = Generator(**how), Discriminator(**how)
    with torch.no_grad():
      for net in (G, D):
        for name, parameter in net.named_parameters():
          parameter.copy_(torch.from_numpy(np.asarray(weight(name, tuple(parameter.shape)))))
        for name, buffer in net.named_buffers():
          if 'stored' in name:
            buffer.copy_(torch.from_numpy(average(name, len(buffer))))
          elif name.endswith('u0'):
            buffer.copy_(torch.from_numpy(weight(name, tuple(buffer.shape))))
      # Theirs has the other side's singular vector: converged, both have one sigma.
      D.embed.u0[0] = torch.linalg.svd(D.embed.weight)[0][:, 0]
      given = {k: torch.from_numpy(v) for k, v in inputs(size, how['dim_z']).items()}
      y, every = G.shared(given['label'].long()), size // 16
      results[f'{size}/eval'] = G.eval()(given['z'], y)[:2, :, ::every, 1::every]
      results[f'{size}/train'] = G.train()(given['z'], y)[:2, :, ::every, 1::every]
      for mode in ('eval', 'train'):
        results[f'{size}/{mode}'] = results[f'{size}/{mode}'].permute(0, 2, 3, 1)
    scores = D(given['x'].permute(0, 3, 1, 2), given['label'].long())
    scores.sum().backward()
    results[f'{size}/scores'] = scores[:, 0].detach()
    results[f'{size}/gradient'] = D.blocks[1][0].conv2.weight.grad.permute(2, 3, 1, 0)
    results[f'{size}/u'] = D.blocks[1][0].conv2.u0[0]
  save('biggan', {name: value.numpy() for name, value in results.items()})


def save(name, results):
  file = FIXTURES / f'{name}.npz'
  np.savez_compressed(file, **{k: np.float32(v) for k, v in results.items()})
  print({k: (v.shape, float(v.std())) for k, v in results.items()}, file.stat().st_size, 'bytes')


if __name__ == '__main__':
  {'sngan': sngan, 'biggan': biggan}[sys.argv[1]](sys.argv[2])
