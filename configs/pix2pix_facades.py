"""pix2pix from labels to facades, 256x256: the paper's nets and schedule.

Isola et al. 2017, https://arxiv.org/abs/1611.07004.

    python launch.py --config=configs/pix2pix_facades.py

facades/train, val and test hold the authors' images of 512x256 pixels, a photograph on the left and
its labels on the right; --config.data.x_from=left translates the other way.
400 images, 200 epochs of batches of one, in which batch norm is instance norm.
Not trained here: a step takes 0.53 s on two CPU cores (AMD EPYC with AVX-512), the 80,000 steps
12 hours.
It writes grids of labels, facades and targets to runs/pix2pix_facades/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  few = ('kernel', 'precision_recall', 'density_coverage')  # of few images
  data = dict(name='folder', path='facades/{split}', shape=(256, 256, 3), x_from='right')
  adam = dict(name='adam', lr=2e-4, b1=0.5, b2=0.999)
  config = dict(
    system='pix2pix',
    data=dict(data, load_size=286, flip=0.5),
    generator=dict(name='pix2pix.UNet', features=64, depth=8, norm='batch'),
    discriminator=dict(name='pix2pix.PatchGAN', patch=70, features=64, norm='batch'),
    loss=dict(l1=100.0),
    optim=dict(G=adam, D=adam),
    train=dict(steps=80_000, batch_size=1),
    sample=dict(num_images=16, batch_size=1),
    parallel=dict(data=1),  # a batch of one is not shared
    eval=dict(split='test', num_samples=106, held_out_examples=106, metrics=few),
  )
  return ConfigDict(config)


SMOKE = {
  **{'data.fit': 'crop', 'data.shape': (16, 16, 3), 'data.load_size': 18, 'generator.depth': 4},
  **{'generator.features': 4, 'discriminator.features': 4, 'discriminator.patch': 16},
}
