"""The score SDE (VP) on eight Gaussians on a ring: two dimensions, so that it can be plotted.

Song, Sohl-Dickstein, Kingma, Kumar, Ermon and Poole 2021, https://arxiv.org/abs/2011.13456.

    python launch.py --config=configs/score_sde_ring.py

8,000 steps, 6 minutes on two busy CPU cores (AMD EPYC).
It writes plots of real and generated points to runs/score_sde_ring/samples/: 92 % of the
generated ones are on the Gaussians, all eight equally often (docs/results.md).
--config.sde.name=sub_vp is another SDE, --config.data.name=grid another toy.
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='score_sde',
    data=dict(name='ring', shape=(2,)),
    net=dict(name='mlp.Denoiser', features=(256, 256, 256)),
    sde=dict(name='vp'),
    ema_decay=0.999,
    optim=dict(lr=1e-3, schedule='linear'),
    train=dict(steps=8000, batch_size=256),
    sample=dict(num_images=1000, batch_size=1000, sampler='euler_maruyama', steps=500),
    eval=dict(num_reference=10_000),
  )
  return ConfigDict(config)


SMOKE = {'net.features': (16,)}
