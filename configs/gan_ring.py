"""GAN on eight Gaussians on a ring: two dimensions, so that training can be plotted.

Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661.

    python launch.py --config=configs/gan_ring.py

8,000 steps, 1 minute on two CPU cores (AMD EPYC).
It writes plots of real and generated points to runs/gan_ring/samples/: about half of the generated
ones are on the Gaussians, covering all eight, the others between them (docs/results.md).
gan_ring_collapse.py is the game on these data that collapses onto one.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=2e-4, b1=0.5, b2=0.999)
  config = dict(
    system='gan',
    data=dict(name='ring', shape=(2,)),
    generator=dict(name='mlp.Generator', features=(128, 128), squash=False),
    discriminator=dict(name='mlp.Discriminator', features=(128, 128), dropout=0.0),
    latent=dict(dim=2, distribution='normal'),
    loss=dict(generator='non_saturating', real_target=0.9),
    optim=dict(G=adam, D=adam),
    train=dict(steps=8000, batch_size=256),
    sample=dict(num_images=1000, batch_size=1000),
    eval=dict(num_reference=10_000),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': (16,), 'discriminator.features': (16,)}
