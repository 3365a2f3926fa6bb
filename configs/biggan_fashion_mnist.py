"""BigGAN on Fashion-MNIST, small ResNets for 28x28.

Brock, Donahue and Simonyan 2019, https://arxiv.org/abs/1809.11096.

    python launch.py --config=configs/biggan_fashion_mnist.py

6,000 steps, 63 minutes on one of two CPU cores (AMD EPYC).
It writes grids of clothes, a column for each class, to runs/biggan_fashion_mnist/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', b1=0.0, b2=0.999)
  config = dict(
    system='biggan',
    data=dict(name='fashion_mnist', shape=(28, 28, 1), num_classes=10),
    generator=dict(
      name='biggan.Generator', features=(64, 64, 32), shared=32, hierarchical=True, attention=(14,)
    ),
    discriminator=dict(name='biggan.Discriminator', features=(32, 64, 64), attention=(14,)),
    latent=dict(dim=60, distribution='normal'),
    loss=dict(d_steps=2, orthogonal=1e-4),
    ema=dict(decay=0.999, start=1000),
    optim=dict(G=dict(lr=2e-4, **adam), D=dict(lr=4e-4, **adam)),
    train=dict(steps=6000, batch_size=64),
    sample=dict(batch_size=500, standing_batches=50),
    eval=dict(num_reference=10_000),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': (8, 8, 8), 'discriminator.features': (8, 8, 8)}
