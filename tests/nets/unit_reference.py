"""Writes fixtures/unit.npz: what the authors' nets of UNIT, tiny, and of CoGAN compute with known
weights.

    python -m pip install torch==2.13.0
    PYTHONPATH=tests python tests/nets/unit_reference.py UNIT COGAN

The arguments are clones of mingyuliutw/UNIT (branch version_02, commit 96def6b) and
mingyuliutw/CoGAN (f940c28). The test draws the same weights and inputs again, by the names of the
authors' parameters.
"""

import pathlib
import sys
import types

import numpy as np
from nets.gans_reference import average
from nets.unets_reference import weight

FIXTURE = pathlib.Path(__file__).parent / 'fixtures' / 'unit.npz'
# Sizes of the authors' constructors, and the channels of the two domains.
CHANNELS = 3, 1
GEN = dict(ch=2, n_enc_front_blk=3, n_enc_res_blk=2, n_enc_shared_blk=1)
GEN |= dict(n_gen_front_blk=3, n_gen_res_blk=2, n_gen_shared_blk=1)
MULTI_SCALE = dict(ch=2, n_layer=3)
SHARED = dict(ch=2, n_front_layer=2, n_shared_layer=2)
DIGITS_GEN, DIGITS_DIS = 2, 2
LATENT = 5
DEVIATIONS = 0.5  # added to the mean code, in place of noise
LABELS = [7, 0, 3]


def inputs(size: int, channels=CHANNELS) -> tuple[np.ndarray, ...]:
  """x and y, [3, size, size, c] each."""
  draw = np.random.RandomState(size).standard_normal
  return tuple(np.tanh(np.float32(draw((3, size, size, c)))) for c in channels)


def some(images):
  """Part of the pixels of images [n, s, s, c], which the fixture holds."""
  every = images.shape[1] // 7
  return images[:, ::every, 1::every]


def latents() -> np.ndarray:
  """z [3, LATENT]."""
  return np.float32(np.random.RandomState(0).standard_normal((3, LATENT)))


def gradients(torch, filled, images, nets, digits) -> dict:
  """The gradients of one update of D and one of G, by the authors' trainers without their reports,
  in the nets that `filled` gives: of all parameters with one axis.
  """
  import itertools

  from trainer_cogan_mnist2usps import MNIST2USPSCoGanTrainer
  from trainers import cocogan_trainer, cocogan_trainer_da

  # Python 2, NumPy 1 and a GPU.
  itertools.izip, np.int = zip, int
  torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *_: self
  torch.nn.functional.sigmoid = torch.sigmoid
  for initialise in ('xavier_uniform', 'constant'):
    setattr(torch.nn.init, initialise, getattr(torch.nn.init, f'{initialise}_'))
  for module in (cocogan_trainer, cocogan_trainer_da):
    names = [n for n in vars(module) if n.startswith('_compute')]
    vars(module).update({n: lambda *_: 0.0 for n in names})
  places = torch.from_numpy(np.float32(np.mgrid[:32, :32]) / 16 - 1)
  cocogan_trainer_da.COCOGANDAContextTrainer._create_xy_image = lambda self: places
  nets.GaussianNoiseLayer.forward = lambda self, x: x + DEVIATIONS
  labels, found = torch.tensor(LABELS), {}

  def keep(name, net):
    own = {f'{name}/{n}': p.grad for n, p in net.named_parameters() if p.ndim == 1}
    found.update({n: g.detach().clone() for n, g in own.items() if g is not None})

  def run(name, trainer, d_inputs, g_inputs):
    trainer.gpu = None
    filled(trainer.dis), filled(trainer.gen)
    still = torch.optim.SGD(trainer.dis.parameters(), lr=0)
    trainer.dis_opt, trainer.gen_opt = still, still
    trainer.dis.eval()
    for update, inputs, net in (
      (trainer.dis_update, d_inputs, trainer.dis),
      (trainer.gen_update, g_inputs, trainer.gen),
    ):
      try:
        update(*inputs)
      except (IndexError, AttributeError):  # of reports, after the update
        pass
      keep(f'{name}/{"D" if net is trainer.dis else "G"}', net)

  dims = dict(zip(('input_dim_a', 'input_dim_b'), CHANNELS, strict=True))
  how = dict(name='COCOResGen2', **GEN, **dims)
  weights = dict(gan_w=10, ll_direct_link_w=100, ll_cycle_link_w=90)
  weights |= dict(kl_direct_link_w=0.1, kl_cycle_link_w=0.2)
  trainer = cocogan_trainer.COCOGANTrainer(
    dict(lr=1, gen=how, dis=dict(MULTI_SCALE, name='COCOMsDis', **dims))
  )
  pair = images(32)
  run('image', trainer, (*pair, weights), (*pair, weights))

  sizes = dict(gen_ch=DIGITS_GEN, dis_ch=DIGITS_DIS, gen='CoVAE32x32', dis='CoDis32x32')
  trainer = cocogan_trainer_da.COCOGANDAContextTrainer(dict(sizes, batch_size=3, **dims))
  weights = dict(gan_w=1, kl_normalized_direct_w=0.1, ll_normalized_direct_w=0.01)
  weights |= dict(cls_w=10, feature_w=0.1)
  run('digits', trainer, (pair[0], labels, pair[1], weights), (*pair, weights))

  trainer = MNIST2USPSCoGanTrainer(batch_size=3, latent_dims=LATENT)
  pair = [(a + 1) / 2 for a in images(28, (1, 1))]
  z = torch.from_numpy(latents())
  run('cogan', trainer, (pair[0], labels, pair[1], z, 0.02, 10), (z,))
  return found


def main(unit, cogan):
  import torch

  # OpenCV's kernel of three taps is a constant of its own, not a sampled Gaussian.
  taps = types.SimpleNamespace(getGaussianKernel=lambda *_: np.array([[0.25], [0.5], [0.25]]))
  sys.modules['cv2'] = taps
  sys.path[:0] = [f'{unit}/src', f'{cogan}/cogan_pytorch/src']
  from net_cogan_mnist2usps import CoDis28x28, CoGen28x28
  from trainers import cocogan_nets as nets
  from trainers import cocogan_nets_da as digits

  def filled(net):
    with torch.no_grad():
      for name, parameter in net.named_parameters():
        parameter.copy_(torch.from_numpy(np.asarray(weight(name, tuple(parameter.shape)))))
      for name, buffer in net.named_buffers():
        if 'running' in name:
          buffer.copy_(torch.from_numpy(average(name, len(buffer))))
    return net

  def images(size, channels=CHANNELS):
    return [torch.from_numpy(a).permute(0, 3, 1, 2) for a in inputs(size, channels)]

  def smoother(self, x):  # theirs is for three channels, and for Python 2
    padded = torch.nn.functional.pad(x, [1] * 4, mode='replicate')
    kernel = self.blur_kernel[:1].repeat(x.shape[1], 1, 1, 1)
    return torch.nn.functional.conv2d(padded, kernel, groups=x.shape[1])

  nets.GaussianSmoother.forward = smoother
  digits.GaussianVAE2D.sample = lambda self, x: (
    (mean := self.forward(x)[0]) + DEVIATIONS * (sd := self.forward(x)[1]),
    mean,
    sd,
  )
  dims = dict(zip(('input_dim_a', 'input_dim_b'), CHANNELS, strict=True))
  results, translations = {}, ('xx', 'yx', 'xy', 'yy')  # from, to

  def keep(name, values):
    for key, value in values.items():
      value = value.detach()
      value = value.permute(0, 2, 3, 1) if value.ndim == 4 else value
      results[f'{name}/{key}'] = some(value) if key in (*translations, *'xy') else value

  made = filled(nets.COCOResGen2(dict(GEN, **dims))).eval()(*images(16))
  keep('image', dict(zip((*translations, 'z'), made, strict=True)))
  for name, net in (
    ('multi_scale', nets.COCOMsDis(dict(MULTI_SCALE, **dims))),
    ('shared', nets.COCOSharedDis(dict(SHARED, **dims))),
  ):
    judged = filled(net)(*images(32))
    for domain, logits in zip('xy', judged, strict=True):
      keep(name, {f'{domain}{i}': l for i, l in enumerate(logits)})

  # The trainer appends the coordinates.
  places = np.stack(np.mgrid[:32, :32]).astype(np.float32) / 16 - 1
  places = torch.from_numpy(places)[None].repeat(3, 1, 1, 1)
  sizes = [n for c in CHANNELS for n in (c + 2, c)]
  net = filled(digits.CoVAE32x32(DIGITS_GEN, *sizes))
  for mode in ('eval', 'train'):
    *made, codes = net.train(mode == 'train')(
      *(torch.cat([a, places], 1) for a in images(32)), None
    )
    keep(f'digits/{mode}', dict(zip(translations, made, strict=True)))
    keep(f'digits/{mode}', dict(zip(('mean', 'sd'), codes[0], strict=True)))

  cogan_images = images(28, (1, 1))
  for name, net, pair in (
    ('digits', digits.CoDis32x32(DIGITS_DIS, *CHANNELS), images(32)),
    ('cogan', CoDis28x28(), [(a + 1) / 2 for a in cogan_images]),
  ):
    net = filled(net).eval()
    logits, x_features, y_features = net(*pair)
    classes = net.classify_a(pair[0]), net.classify_b(pair[1])
    keep(name, dict(logits=logits, x_classes=classes[0], y_classes=classes[1]))
    keep(name, dict(x_features=x_features.sum((2, 3)), y_features=y_features.sum((2, 3))))

  net = filled(CoGen28x28(LATENT))
  for mode in ('eval', 'train'):
    made = net.train(mode == 'train')(torch.from_numpy(latents()))
    keep(f'cogan/{mode}', dict(zip('xy', made, strict=True)))

  for name, value in gradients(torch, filled, images, nets, digits).items():
    results[f'gradients/{name}'] = value
  np.savez_compressed(FIXTURE, **{k: np.float32(v.numpy()) for k, v in results.items()})
  print({k: (tuple(v.shape), round(float(v.std()), 4)) for k, v in results.items()})
  print(FIXTURE.stat().st_size, 'bytes')


if __name__ == '__main__':
  main(*sys.argv[1:])
