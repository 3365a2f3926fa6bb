"""GAN on 25 Gaussians on a grid, set up to collapse: mode collapse, measured.

Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661; the grid: Gulrajani et al. 2017.

    python launch.py --config=configs/gan_grid.py

5,000 steps, 2.5 minutes on two busy CPU cores (AMD EPYC), 1.2 minutes of CPU time.
It writes plots to runs/gan_grid/samples/ and, every 500 steps, the number of modes reached to
runs/gan_grid/evaluation.jsonl: G jumps from one small group of modes to the next. A larger D and
less momentum reach more of the 25, but not all (docs/results.md):
--config.discriminator.features="(128,128)" --config.optim.G.b1=0.5 --config.optim.D.b1=0.5
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=1e-3, b1=0.9, b2=0.999)
  config = dict(
    system='gan',
    data=dict(name='grid', shape=(2,)),
    generator=dict(name='mlp.Generator', features=(128, 128), squash=False),
    discriminator=dict(name='mlp.Discriminator', features=(32,), dropout=0.0),  # low capacity
    latent=dict(dim=2, distribution='normal'),
    loss=dict(generator='non_saturating'),
    optim=dict(G=adam, D=adam),
    train=dict(steps=5000, batch_size=256, sample_steps=500, checkpoint_steps=2500),
    sample=dict(num_images=1000, batch_size=1000),
    eval=dict(num_reference=2500, num_samples=2500, every_steps=500, quick_samples=2500),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': (16,), 'discriminator.features': (16,)}
