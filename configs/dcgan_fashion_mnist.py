"""DCGAN on Fashion-MNIST, small convolutional nets for 28x28, common in courses.

After Radford, Metz and Chintala 2016, https://arxiv.org/abs/1511.06434.

    python launch.py --config=configs/dcgan_fashion_mnist.py

8,000 steps, 8 minutes on two CPU cores (AMD EPYC with AVX-512), 30 to 40 without AVX-512.
It writes grids of clothes to runs/dcgan_fashion_mnist/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  # With Radford's learning rate of 2e-4 this takes twice the steps.
  adam = dict(name='adam', lr=5e-4, b1=0.5, b2=0.999)
  config = dict(
    system='gan',
    data=dict(name='fashion_mnist', shape=(28, 28, 1)),
    generator=dict(name='dcgan.Generator28', features=(128, 64)),
    discriminator=dict(name='dcgan.Discriminator28', features=(64, 128), dropout=0.4),
    latent=dict(dim=100, distribution='normal'),
    loss=dict(generator='non_saturating'),
    optim=dict(G=adam, D=adam),
    train=dict(steps=8000, batch_size=64),  # 9 epochs
    eval=dict(num_reference=10_000),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': (8, 4), 'discriminator.features': (4, 8)}
