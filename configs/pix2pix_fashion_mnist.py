"""pix2pix from edges to clothes: Fashion-MNIST, small nets for 28x28.

Isola et al. 2017, https://arxiv.org/abs/1611.07004.

    python launch.py --config=configs/pix2pix_fashion_mnist.py

10,000 steps, about 24 minutes of CPU time on two cores (AMD EPYC).
Labels are for evaluations only.
It writes grids of edges, clothes made of them and the real ones to
runs/pix2pix_fashion_mnist/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=2e-4, b1=0.5, b2=0.999)
  config = dict(
    system='pix2pix',
    data=dict(name='fashion_mnist', shape=(28, 28, 1), x_from='edges', num_classes=10),
    generator=dict(name='pix2pix.UNet', features=64, depth=4, norm='batch'),
    discriminator=dict(name='pix2pix.PatchGAN', patch=34, features=64, norm='batch'),
    loss=dict(l1=100.0),
    optim=dict(G=adam, D=adam),
    train=dict(steps=10_000, batch_size=16),
    eval=dict(split='test', held_out_examples=10_000),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': 4, 'discriminator.features': 4}
