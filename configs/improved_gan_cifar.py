"""Semi-supervised improved GAN on CIFAR-10: 400 labels of each class, and all other images.

Salimans et al. 2016, https://arxiv.org/abs/1606.03498: nets, rates and steps of the released code.

    python launch.py --config=configs/improved_gan_cifar.py

600,000 steps, 1,200 epochs, for an accelerator. Not trained here: a step has 0.8 TFLOP, by which it
would take 10 seconds on two CPU cores (AMD EPYC). The version with minibatch discrimination:

    --config.loss.generator=minimax --config.loss.g_steps=3 --config.discriminator.kernels=100
    --config.discriminator.noise=0.2 --config.discriminator.input_dropout=0

It writes grids of images to runs/improved_gan_cifar/samples/; --mode=evaluate measures the error of
classification on the test set.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=3e-4, b1=0.5, b2=0.999, eps=1e-4)
  adam |= dict(schedule='constant_then_linear', constant_steps=400_000)
  config = dict(
    system='improved_gan',
    data=dict(name='cifar10', shape=(32, 32, 3), num_classes=10),
    labels=dict(per_class=400),
    generator=dict(name='improved.ConvGenerator', norm='batch'),
    discriminator=dict(name='improved.ConvDiscriminator', input_dropout=0.2, dropout=0.5),
    latent=dict(dim=100, distribution='uniform'),
    loss=dict(generator='feature_matching', feature_distance='absolute'),
    first=dict(minibatches=50),
    optim=dict(G=adam, D=adam),
    train=dict(steps=600_000, batch_size=100, sample_steps=10_000, checkpoint_steps=10_000),
    eval=dict(held_out_examples=10_000),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': (8, 8, 8), 'discriminator.features': (4, 8)} | {
  'labels.per_class': 1,
  'optim.G.constant_steps': 5,
  'optim.D.constant_steps': 5,
}
