"""SNGAN with a projection discriminator on Fashion-MNIST, small ResNets for 28x28.

Miyato and Koyama 2018, https://arxiv.org/abs/1802.05637.

    python launch.py --config=configs/sngan_fashion_mnist.py

10,000 steps, 57 minutes of CPU time on two cores (AMD EPYC).
It writes grids of clothes, a column for each class, to runs/sngan_fashion_mnist/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=2e-4, b1=0.0, b2=0.9, schedule='linear', decay_steps='train.steps')
  config = dict(
    system='sngan',
    data=dict(name='fashion_mnist', shape=(28, 28, 1), num_classes=10),
    generator=dict(name='sngan.Generator', features=(64, 64, 32)),
    discriminator=dict(name='sngan.Discriminator', features=(32, 64, 64)),
    latent=dict(dim=128, distribution='normal'),
    loss=dict(n_dis=2, g_batch=1),
    optim=dict(G=adam, D=adam),
    train=dict(steps=10_000, batch_size=64),
    eval=dict(num_reference=10_000),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': (8, 8, 8), 'discriminator.features': (8, 8, 8)}
