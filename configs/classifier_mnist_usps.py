"""A LeNet trained on MNIST, measured on USPS: the baseline of domain adaptation, 28x28.

As in Tzeng et al. 2017, https://arxiv.org/abs/1702.05464.

    python launch.py --config=configs/classifier_mnist_usps.py

usps/train.npz and test.npz hold `image` uint8 [n, 16, 16, 1] and `label`. --mode=evaluate measures
the accuracy on both test splits; it writes to runs/classifier_mnist_usps. --config.loss.domain=y
trains on USPS: the ceiling. From USPS to MNIST:

    --config.data.name=mnist --config.data.path=None --config.data.x.name=arrays
    --config.data.x.path='usps/{split}.npz' --config.eval.held_out_examples=10_000

10,000 steps, 5 minutes on one of two CPU cores (AMD EPYC).
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='image_classifier',
    data=dict(
      name='arrays',
      path='usps/{split}.npz',
      x=dict(name='mnist', held_out_split='test[:2007]'),  # one for each of USPS
      shape=(28, 28, 1),
      fit='crop',
      num_classes=10,
    ),
    net=dict(name='lenet.Classifier', features=(20, 50), hidden=500),
    loss=dict(domain='x'),
    optim=dict(name='adam', lr=1e-3),
    train=dict(steps=10_000, batch_size=128),
    eval=dict(held_out_examples=2007),  # all of the test split of USPS
  )
  return ConfigDict(config)


SMOKE = {'net.features': (2, 3), 'net.hidden': 8, 'net.dropout': 0.5}
