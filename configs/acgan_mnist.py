"""Auxiliary-classifier GAN on MNIST, with small convolutional nets for 28x28.

Odena, Olah and Shlens 2017, https://arxiv.org/abs/1610.09585.

    python launch.py --config=configs/acgan_mnist.py

16,000 steps, 30 minutes on one of two busy CPU cores (AMD EPYC).
It writes grids of handwritten digits, in columns by class, to runs/acgan_mnist/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=2e-4, b1=0.5, b2=0.999)
  config = dict(
    system='acgan',
    data=dict(name='mnist', shape=(28, 28, 1), num_classes=10),
    generator=dict(name='acgan.Generator28', features=(128, 64)),
    discriminator=dict(name='acgan.Discriminator28', features=(64, 128), dropout=0.4),
    latent=dict(dim=100, distribution='normal'),
    loss=dict(generator='non_saturating'),
    optim=dict(G=adam, D=adam),
    train=dict(steps=16_000, batch_size=64),  # 17 epochs
    eval=dict(num_reference=10_000),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': (8, 4), 'discriminator.features': (4, 8)}
