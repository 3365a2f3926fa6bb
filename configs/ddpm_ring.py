"""DDPM on eight Gaussians on a ring: two dimensions, so that the process can be plotted.

Ho, Jain and Abbeel 2020, https://arxiv.org/abs/2006.11239.

    python launch.py --config=configs/ddpm_ring.py

8,000 steps, 1 minute on two CPU cores (AMD EPYC).
It writes plots of real and generated points to runs/ddpm_ring/samples/: 99 % of the generated ones
are on the Gaussians, all eight equally often (docs/results.md).
--config.data.name=grid and --config.data.name=swiss_roll are the other toys.
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='ddpm',
    data=dict(name='ring', shape=(2,)),
    net=dict(name='mlp.Denoiser', features=(256, 256, 256)),
    diffusion=dict(steps=200, schedule='cosine'),
    ema_decay=0.999,
    optim=dict(lr=1e-3, schedule='linear'),
    train=dict(steps=8000, batch_size=256),
    sample=dict(num_images=1000, batch_size=1000, sampler='ancestral', variance='small'),
    eval=dict(num_reference=10_000),
  )
  return ConfigDict(config)


SMOKE = {'net.features': (16,)}
