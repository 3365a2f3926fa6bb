"""LAPGAN on CIFAR-10: a pyramid of 8, 16 and 32 pixels, with classes and the nets of the paper.

Denton et al. 2015, https://arxiv.org/abs/1506.05751.

    python launch.py --config=configs/lapgan_cifar.py

Not trained here: a step takes 1.1 s on two CPU cores (AMD EPYC).
It writes grids of images, in columns by class, and of all levels of the pyramid to
runs/lapgan_cifar/samples/.
Images are scaled to [-1, 1] where the authors normalise each pixel. Their momentum starts at 0 and
grows by 0.0008 an epoch, and the rate decays; here both stay.
"""

from ml_collections import ConfigDict


def get_config():
  sgd = dict(name='sgd', lr=0.02, momentum=0.0)
  config = dict(
    system='lapgan',
    data=dict(name='cifar10', shape=(32, 32, 3), num_classes=10),
    generator=dict(name='lapgan.Generator', features=(64, 64), kernels=(7, 7, 5)),
    discriminator=dict(name='lapgan.Discriminator', features=(64, 64), dropout=0.5),
    coarse_generator=dict(name='lapgan.CoarseGenerator', features=(1200, 1200)),
    coarse_discriminator=dict(name='lapgan.CoarseDiscriminator', features=(600, 600), dropout=0.5),
    latent=dict(dim=100, distribution='uniform'),
    optim={f'{net}{k}': sgd for net in 'GD' for k in range(3)},
    train=dict(steps=200_000, batch_size=64, sample_steps=5000, checkpoint_steps=5000),
  )
  return ConfigDict(config)


SMOKE = {
  **{'generator.features': (4, 4), 'discriminator.features': (4, 8)},
  **{'coarse_generator.features': (16,), 'coarse_discriminator.features': (16,)},
}
