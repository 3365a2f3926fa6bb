"""LAPGAN on Fashion-MNIST: a pyramid of 7, 14 and 28 pixels with small nets.

After Denton et al. 2015, https://arxiv.org/abs/1506.05751, with Adam in place of SGD.

    python launch.py --config=configs/lapgan_fashion_mnist.py

6,000 steps, 62 minutes on a third of one of two CPU cores (AMD EPYC).
It writes grids of clothes, in columns by class, and of all levels of the pyramid to
runs/lapgan_fashion_mnist/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=2e-4, b1=0.5, b2=0.999)
  config = dict(
    system='lapgan',
    data=dict(name='fashion_mnist', shape=(28, 28, 1), num_classes=10),
    generator=dict(name='lapgan.Generator', features=(32, 32), kernels=(5, 5, 5)),
    discriminator=dict(name='lapgan.Discriminator', features=(32, 64), dropout=0.5),
    coarse_generator=dict(name='lapgan.CoarseGenerator', features=(600, 600)),
    coarse_discriminator=dict(name='lapgan.CoarseDiscriminator', features=(600, 600), dropout=0.5),
    latent=dict(dim=100, distribution='uniform'),
    optim={f'{net}{k}': adam for net in 'GD' for k in range(3)},
    train=dict(steps=6000, batch_size=64),  # 6 epochs
    eval=dict(num_reference=10_000),
  )
  return ConfigDict(config)


SMOKE = {
  **{'generator.features': (4, 4), 'discriminator.features': (4, 8)},
  **{'coarse_generator.features': (16,), 'coarse_discriminator.features': (16,)},
}
