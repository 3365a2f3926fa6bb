"""Adversarial autoencoder on MNIST: codes in the plane, a mixture of ten Gaussians as the prior.

Makhzani et al. 2015, https://arxiv.org/abs/1511.05644, Figure 4a: D sees labels, so that each digit
fills one of the Gaussians.

    python launch.py --config=configs/aae_mnist.py

25,000 steps, 31 minutes on half of one of two CPU cores (AMD EPYC).
It writes digits by class and reconstructions to runs/aae_mnist/samples/; --mode=evaluate plots the
codes of the test split.
Adam trains here, in place of the paper's SGD with momentum.
"""

from ml_collections import ConfigDict


def get_config():
  adversarial = dict(name='adam', lr=1e-3, b1=0.5, b2=0.999, schedule='linear')
  config = dict(
    system='aae',
    data=dict(name='mnist', shape=(28, 28, 1), num_classes=10),
    encoder=dict(name='aae.Encoder', features=(1000, 1000)),
    decoder=dict(name='aae.Decoder', features=(1000, 1000)),
    discriminator=dict(name='aae.Discriminator', features=(1000, 1000)),
    latent=dict(dim=2, prior='mixture', components=10, labels=True),
    optim=dict(G=dict(lr=3e-4, schedule='linear'), D=adversarial, E=adversarial),
    train=dict(steps=25_000, batch_size=100, sample_steps=5000, checkpoint_steps=5000),
    sample=dict(num_images=100, batch_size=100),
    eval=dict(held_out_examples=10_000, num_reference=10_000),
  )
  return ConfigDict(config)


SMOKE = {
  'encoder.features': (16,),
  'decoder.features': (16,),
  'discriminator.features': (16,),
}
