"""A mean flow on eight Gaussians on a ring: samples in one step.

Geng, Deng, Bai, Kolter and He 2025, https://arxiv.org/abs/2505.13447.

    python launch.py --config=configs/mean_flow_ring.py

20,000 steps, 13 minutes on two busy CPU cores (AMD EPYC).
It writes plots of real and generated points to runs/mean_flow_ring/samples/: 44 % of the generated
ones are on the Gaussians, all eight (docs/results.md).
--config.sample.steps=2 takes two steps; --config.data.name=grid is another toy.
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='mean_flow',
    data=dict(name='ring', shape=(2,)),
    net=dict(name='mlp.Denoiser', features=(256, 256, 256)),
    ema_decay=0.999,
    optim=dict(lr=1e-3, schedule='linear'),
    train=dict(steps=20_000, batch_size=256),
    sample=dict(num_images=1000, batch_size=1000, sampler='mean_flow', steps=1),
    eval=dict(num_reference=10_000),
  )
  return ConfigDict(config)


SMOKE = {'net.features': (16,)}
