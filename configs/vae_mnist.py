"""VAE on MNIST, statically binarised: convolutional nets and a Bernoulli likelihood.

Kingma and Welling 2013, https://arxiv.org/abs/1312.6114.

    python launch.py --config=configs/vae_mnist.py

24,000 steps (51 epochs), 25 minutes on two busy CPU cores (AMD EPYC), 15 minutes of CPU time.
-log p(x) of the test split is then at most 89.6 nats, -ELBO 94.4.
It writes digits, reconstructions and interpolations to runs/vae_mnist/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='vae',
    data=dict(name='mnist', shape=(28, 28, 1), binarize='static'),
    encoder=dict(name='vae.Encoder', features=(16, 32), hidden=(256,)),
    decoder=dict(name='vae.Decoder', features=(32, 16), hidden=(256,)),
    latent=dict(dim=32),
    likelihood='bernoulli',
    optim=dict(lr=2e-3, schedule='linear'),
    train=dict(steps=24_000, batch_size=128, sample_steps=4000),
    eval=dict(held_out_examples=10_000, importance_samples=128),
  )
  return ConfigDict(config)


SMOKE = {
  'encoder.features': (4, 8),
  'encoder.hidden': (16,),
  'decoder.features': (8, 4),
  'decoder.hidden': (16,),
}
