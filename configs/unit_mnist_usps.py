"""UNIT with a class head: MNIST with labels to USPS without, 16x16.

Liu, Breuel and Kautz 2017, https://arxiv.org/abs/1703.00848.

    python launch.py --config=configs/unit_mnist_usps.py

usps/train.npz and test.npz hold `image` uint8 [n, 16, 16, 1] and `label`; --mode=evaluate measures
the accuracy on USPS's test split. From USPS to MNIST: see classifier_mnist_usps.
8,000 steps, about 20 minutes on one of two CPU cores (AMD EPYC): 0.936. The authors have wider nets
of 32x32, ends that start apart, and 200,000 steps at 2e-4: see docs/results.md.
It writes grids of translations to runs/unit_mnist_usps/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  schedule = dict(schedule='constant_then_linear', constant_steps=4000, decay_steps='train.steps')
  adam = dict(name='adam', lr=1e-3, b1=0.5, b2=0.999, l2=5e-4, **schedule)
  config = dict(
    system='unit_adaptation',
    data=dict(
      name='arrays',
      path='usps/{split}.npz',
      x=dict(name='mnist', held_out_split='test[:2007]'),  # one for each of USPS
      shape=(16, 16, 1),
      fit='crop',
      num_classes=10,
    ),
    generator=dict(name='unit_digits.Generator', features=16),
    discriminator=dict(name='unit_digits.Discriminator', features=16, dropout=(0.0, 0.1, 0.2, 0.2)),
    init=dict(tied=True),
    # The authors': 10, and 1e-4, 1e-3 and 1e-4, which are 1.6e-3, 4e-3 and 6e-4 for the fewer
    # features, pixels and entries of a code that are summed over here.
    loss=dict(classes=1.0, features=1.6e-3, reconstruction=0.1, kl=0.01),
    optim=dict(G=adam, D=adam),
    train=dict(steps=8000, batch_size=32),
    eval=dict(split='test', held_out_examples=2007),  # all of the test split of USPS
  )
  return ConfigDict(config)


SMOKE = {
  **{'generator.features': 2, 'discriminator.features': 2},
  **{f'optim.{net}.constant_steps': 5 for net in 'GD'},
}
