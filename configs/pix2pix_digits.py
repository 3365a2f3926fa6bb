"""pix2pix from edges to handwritten digits, 8x8: minutes on a laptop, without a download.

Isola et al. 2017, https://arxiv.org/abs/1611.07004.

    python launch.py --config=configs/pix2pix_digits.py

3,000 steps, 50 s on two busy CPU cores (AMD EPYC).
Labels are for evaluations only.
It writes grids of edges, digits made of them and the real ones to runs/pix2pix_digits/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=2e-4, b1=0.5, b2=0.999)
  config = dict(
    system='pix2pix',
    data=dict(name='digits', split='train[:80%]', shape=(8, 8, 1), x_from='edges', num_classes=10),
    generator=dict(name='pix2pix.UNet', features=32, depth=3, norm='batch'),
    discriminator=dict(name='pix2pix.PatchGAN', patch=16, features=32, norm='batch'),
    loss=dict(l1=100.0),
    optim=dict(G=adam, D=adam),
    train=dict(steps=3000, batch_size=32),
    eval=dict(
      split='train[80%:]', num_samples=359, held_out_split='train[80%:]', held_out_examples=359
    ),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': 4, 'discriminator.features': 4}
