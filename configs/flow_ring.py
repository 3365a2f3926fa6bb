"""Flow matching on eight Gaussians on a ring: two dimensions, so that the flow can be plotted.

Lipman, Chen, Ben-Hamu, Nickel and Le 2023, https://arxiv.org/abs/2210.02747.

    python launch.py --config=configs/flow_ring.py

8,000 steps, 6 minutes on two busy CPU cores (AMD EPYC).
It writes plots of real and generated points to runs/flow_ring/samples/: 94 % of the generated
ones are on the Gaussians, all eight equally often (docs/results.md).
--config.data.name=grid and --config.data.name=swiss_roll are the other toys.
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='flow_matching',
    data=dict(name='ring', shape=(2,)),
    net=dict(name='mlp.Denoiser', features=(256, 256, 256)),
    flow=dict(time_scale=1000.0),
    ema_decay=0.999,
    optim=dict(lr=1e-3, schedule='linear'),
    train=dict(steps=8000, batch_size=256),
    sample=dict(num_images=1000, batch_size=1000, sampler='heun', steps=50),
    eval=dict(num_reference=10_000),
  )
  return ConfigDict(config)


SMOKE = {'net.features': (16,)}
