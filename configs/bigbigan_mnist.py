"""BigBiGAN on MNIST: a generator and an encoder of 28x28 digits, small nets.

After Donahue and Simonyan 2019, https://arxiv.org/abs/1907.02544: the paper's game, with nets,
latents, rates and batches of a DCGAN for digits.

    python launch.py --config=configs/bigbigan_mnist.py

15,000 steps, 73 minutes on three fifths of one of two CPU cores (AMD EPYC).
It writes digits and reconstructions G(E(x)) to runs/bigbigan_mnist/samples/;
`python benchmarks/probe.py --workdir=runs/bigbigan_mnist` classifies digits by E(x).
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=2e-4, b1=0.5, b2=0.999)
  config = dict(
    system='bigbigan',
    data=dict(name='mnist', shape=(28, 28, 1)),
    generator=dict(name='dcgan.Generator28', features=(128, 64)),
    encoder=dict(name='bigbigan.Encoder', features=(64, 128), hidden=(512,)),
    discriminator=dict(
      name='bigbigan.Discriminator',
      features=(64, 128),
      latent_features=(256, 256),
      joint_features=(512, 512),
    ),
    latent=dict(dim=64, distribution='normal'),
    optim=dict(G=adam, E=adam, D=adam),
    train=dict(steps=15_000, batch_size=64, sample_steps=2500, checkpoint_steps=2500),
    eval=dict(held_out_examples=10_000, num_reference=10_000),
  )
  return ConfigDict(config)


SMOKE = {
  'generator.features': (8, 4),
  'encoder.features': (4, 8),
  'encoder.hidden': (16,),
  'discriminator.features': (4, 8),
  'discriminator.latent_features': (8,),
  'discriminator.joint_features': (8,),
}
