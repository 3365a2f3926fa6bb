"""BigGAN on CIFAR-10, the class-conditional model of BigGAN-PyTorch.

Brock, Donahue and Simonyan 2019, https://arxiv.org/abs/1809.11096.

    python launch.py --config=configs/biggan_cifar.py

The paper reports an Inception score of 9.22 and a FID of 14.73. Samples have standing statistics of
batch norm, as there; those of BigGAN-PyTorch have the statistics of their batch.
Not trained here: a step takes 10.5 s on two CPU cores (AMD EPYC).
It writes grids of samples, a column for each class, to runs/biggan_cifar/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=2e-4, b1=0.0, b2=0.999)
  config = dict(
    system='biggan',
    data=dict(name='cifar10', shape=(32, 32, 3), num_classes=10),
    generator=dict(name='biggan.Generator', features=(256, 256, 256, 256)),
    discriminator=dict(name='biggan.Discriminator', features=(256, 256, 256, 256)),
    latent=dict(dim=128, distribution='normal'),
    loss=dict(d_steps=4),
    ema=dict(decay=0.9999, start=1000),
    optim=dict(G=adam, D=adam),
    train=dict(steps=125_000, batch_size=50, sample_steps=5000, checkpoint_steps=2500),
    sample=dict(batch_size=1000),
    eval=dict(num_samples=50_000, quick_samples=2500),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': (8, 8, 8, 8), 'discriminator.features': (8, 8, 8, 8)}
