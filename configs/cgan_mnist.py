"""Conditional GAN on MNIST, with the fully connected maxout nets of the paper.

Mirza and Osindero 2014, https://arxiv.org/abs/1411.1784.

    python launch.py --config=configs/cgan_mnist.py

30,000 steps, 27 minutes on two thirds of one of two CPU cores (AMD EPYC).
It writes grids of handwritten digits, in columns by class, to runs/cgan_mnist/samples/.
With the settings of the paper samples hardly depend on z. Four differ, therefore. 1000 units of G
for z and 200 for the label, not the reverse. 30 normal latents, not 100 uniform ones. No dropout in
G, whose masks would supply the variety in training only. Adam, in place of SGD whose momentum grows
while its rate decays.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=2e-4, b1=0.5, b2=0.999)
  config = dict(
    system='cgan',
    data=dict(name='mnist', shape=(28, 28, 1), num_classes=10),
    generator=dict(
      name='cgan.Generator', z_features=1000, label_features=200, features=1200, dropout=0.0
    ),
    discriminator=dict(
      name='cgan.Discriminator',
      **dict(x_features=240, x_pieces=5, label_features=50, label_pieces=5),
      **dict(features=240, pieces=4, dropout=0.5),
    ),
    latent=dict(dim=30, distribution='normal'),
    loss=dict(generator='non_saturating'),
    optim=dict(G=adam, D=adam),
    train=dict(steps=30_000, batch_size=100, sample_steps=5000, checkpoint_steps=5000),
    eval=dict(num_reference=10_000),
  )
  return ConfigDict(config)


SMOKE = {
  **{f'generator.{name}': 16 for name in ('z_features', 'label_features', 'features')},
  **{f'discriminator.{name}': 8 for name in ('x_features', 'label_features', 'features')},
}
