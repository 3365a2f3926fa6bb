"""Coupled GANs with a class head: MNIST with labels to USPS without, 28x28.

Liu and Tuzel 2016, https://arxiv.org/abs/1606.07536.

    python launch.py --config=configs/cogan_mnist_usps.py

usps/train.npz and test.npz hold `image` uint8 [n, 16, 16, 1] and `label`. --mode=evaluate measures
the accuracy on the test split of USPS. From USPS to MNIST:

    --config.data.name=mnist --config.data.path=None --config.data.x.name=arrays
    --config.data.x.path='usps/{split}.npz' --config.eval.held_out_examples=10_000

Not trained here: 10,000 steps of 0.2 s on one of two CPU cores (AMD EPYC), 32 minutes.
It writes grids of USPS and, of the same latents, of MNIST to runs/cogan_mnist_usps/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=2e-4, b1=0.5, b2=0.999, l2=5e-4)
  config = dict(
    system='cogan',
    data=dict(
      name='arrays',
      path='usps/{split}.npz',
      x=dict(name='mnist', held_out_split='test[:2007]'),  # one for each of USPS
      shape=(28, 28, 1),
      fit='crop',
      num_classes=10,
    ),
    # An eighth of the authors' channels in G, so that it trains on a CPU; D is theirs.
    generator=dict(name='cogan.Generator', features=(128, 64, 32, 16)),
    discriminator=dict(name='cogan.Discriminator', features=(20, 50, 500)),
    init=dict(tied=True),  # the authors' start apart
    latent=dict(dim=100, distribution='normal'),
    loss=dict(classes=10.0, features=0.01),
    optim=dict(G=adam, D=adam),
    train=dict(steps=10_000, batch_size=64),
    eval=dict(split='test', held_out_examples=2007),  # all of the test split of USPS
  )
  return ConfigDict(config)


SMOKE = {'generator.features': (8, 4, 4, 2), 'discriminator.features': (2, 3, 8)}
