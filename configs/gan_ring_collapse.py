"""GAN on eight Gaussians on a ring, set up to collapse onto one: mode collapse on demand.

Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661; the ring: Metz et al. 2016.

    python launch.py --config=configs/gan_ring_collapse.py

Five updates of D per update of G, a high learning rate and a wide latent: G follows D to the
first Gaussian that it reaches, and stays there. wgan_gp_ring.py, which differs in the loss, reaches
all eight.
3,000 steps, 40 s of CPU time on two cores (AMD EPYC).
It writes plots of real and generated points to runs/gan_ring_collapse/samples/ and, every
500 steps, the modes reached to evaluation.jsonl: at the end one of the eight, for each of five
seeds (docs/results.md).
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=3e-3, b1=0.5, b2=0.9, schedule='linear')
  mlp = dict(features=(128, 128, 128), negative_slope=0.0)
  config = dict(
    system='gan',
    data=dict(name='ring', shape=(2,)),
    generator=dict(mlp, name='mlp.Generator', squash=False),
    discriminator=dict(mlp, name='mlp.Discriminator', dropout=0.0),
    latent=dict(dim=256, distribution='normal'),
    loss=dict(generator='non_saturating', d_steps=5),
    optim=dict(G=adam, D=adam),
    train=dict(steps=3000, batch_size=128, sample_steps=500, checkpoint_steps=1500),
    sample=dict(num_images=1000, batch_size=1000),
    eval=dict(
      metrics=('frechet', 'modes'),
      num_reference=10_000,
      every_steps=500,
      quick_samples=2500,
      best='modes_kl',
    ),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': (16,), 'discriminator.features': (16,)}
