"""DCGAN on CIFAR-10: Radford's nets for 64 pixels without one stage, the common design for 32.

Radford, Metz and Chintala 2016, https://arxiv.org/abs/1511.06434.

    python launch.py --config=configs/dcgan_cifar.py

The paper has no nets for 32 pixels, and no CIFAR-10 samples to compare with.
Not trained here: a step takes 4.3 s on two CPU cores (AMD EPYC), the 50,000 steps 60 hours.
It writes grids of samples to runs/dcgan_cifar/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=2e-4, b1=0.5, b2=0.999)
  config = dict(
    system='gan',
    data=dict(name='cifar10', shape=(32, 32, 3)),
    generator=dict(name='dcgan.Generator', features=(512, 256, 128)),
    discriminator=dict(name='dcgan.Discriminator', features=(128, 256, 512), negative_slope=0.2),
    latent=dict(dim=100, distribution='uniform'),
    loss=dict(generator='non_saturating'),
    # D's loss is half of the paper's, and so is its weight decay.
    optim=dict(G=dict(adam, l2=1e-5), D=dict(adam, l2=5e-6)),
    # 128 epochs.
    train=dict(steps=50_000, batch_size=128, sample_steps=2500, checkpoint_steps=2500),
    eval=dict(num_samples=50_000, quick_samples=2500),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': (16, 8, 4), 'discriminator.features': (4, 8, 16)}
