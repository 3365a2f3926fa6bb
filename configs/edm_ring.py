"""EDM on eight Gaussians on a ring: two dimensions, so that the process can be plotted.

Karras, Aittala, Aila and Laine 2022, https://arxiv.org/abs/2206.00364.

    python launch.py --config=configs/edm_ring.py

8,000 steps, 6 minutes on two busy CPU cores (AMD EPYC).
It writes plots of real and generated points to runs/edm_ring/samples/: 98 % of the generated
ones are on the Gaussians, all eight equally often (docs/results.md).
--config.data.name=grid and --config.data.name=swiss_roll are the other toys.
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='edm',
    data=dict(name='ring', shape=(2,)),
    net=dict(name='mlp.Denoiser', features=(256, 256, 256)),
    ema_decay=0.999,
    optim=dict(lr=1e-3, schedule='linear'),
    train=dict(steps=8000, batch_size=256),
    sample=dict(num_images=1000, batch_size=1000, sampler='heun', steps=18),
    eval=dict(num_reference=10_000),
  )
  return ConfigDict(config)


SMOKE = {'net.features': (16,)}
