"""CycleGAN between the digits of MNIST and of USPS, 28x28, without pairs.

Zhu et al. 2017, https://arxiv.org/abs/1703.10593.

    python launch.py --config=configs/cyclegan_mnist_usps.py

x is MNIST, y is USPS: files usps/train.npz and usps/test.npz with `image` uint8 [n, 16, 16, 1] and
`label`, which are resized. Labels are for evaluations only: the accuracy of a classifier of USPS on
translations of the test digits of MNIST.
10,000 steps, about 22 minutes of CPU time on two cores (AMD EPYC).
It writes grids of digits, their translations and the way back, in both directions, to
runs/cyclegan_mnist_usps/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  schedule = dict(schedule='constant_then_linear', constant_steps=5000, decay_steps='train.steps')
  adam = dict(name='adam', lr=2e-4, b1=0.5, b2=0.999, **schedule)
  config = dict(
    system='cyclegan',
    data=dict(
      name='arrays',
      path='usps/{split}.npz',
      shape=(28, 28, 1),
      fit='crop',
      num_classes=10,
      x=dict(name='mnist', split='train'),
    ),
    generator=dict(name='cyclegan.ResNet', features=16, blocks=3),
    discriminator=dict(name='pix2pix.PatchGAN', patch=34, features=32, norm='instance'),
    loss=dict(gan='least_squares', cycle=10.0, identity=0.5),
    optim=dict(G=adam, D=adam),
    train=dict(steps=10_000, batch_size=8),
    eval=dict(split='test', num_samples=10_000, held_out_examples=2000),
  )
  return ConfigDict(config)


SMOKE = {
  **{'data.shape': (16, 16, 1), 'generator.features': 4, 'generator.blocks': 1},
  **{'discriminator.features': 4, 'discriminator.patch': 16},
  **{f'optim.{net}.constant_steps': 5 for net in 'GD'},
}
