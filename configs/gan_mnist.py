"""GAN on MNIST with fully connected nets ("StandardGAN").

Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661.

    python launch.py --config=configs/gan_mnist.py

30,000 steps, 31 minutes on two busy CPU cores (AMD EPYC), 27 minutes of CPU time.
It writes grids of handwritten digits to runs/gan_mnist/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=2e-4, b1=0.5, b2=0.999)
  config = dict(
    system='gan',
    data=dict(name='mnist', shape=(28, 28, 1)),
    generator=dict(name='mlp.Generator', features=(256, 512, 1024)),
    discriminator=dict(name='mlp.Discriminator', features=(1024, 512, 256, 128), dropout=0.3),
    latent=dict(dim=30, distribution='normal'),
    loss=dict(generator='non_saturating'),
    optim=dict(G=adam, D=adam),
    # 32 epochs.
    train=dict(steps=30_000, batch_size=64, sample_steps=5000, checkpoint_steps=5000),
    eval=dict(num_reference=10_000),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': (32,), 'discriminator.features': (32,)}
