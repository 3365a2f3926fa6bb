"""WGAN-GP on eight Gaussians on a ring: its loss cures the collapse of gan_ring_collapse.py.

Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028; the ring: Metz et al. 2016.

    python launch.py --config=configs/wgan_gp_ring.py

Data, nets, latent, optimisers, batch size and the number of updates are those of
gan_ring_collapse.py. The penalty's weight is the paper's for toys; there the nets are wider, the
latent has two entries and the learning rate is 1e-4 for 100,000 steps.
3,000 steps, 50 s of CPU time on two cores (AMD EPYC).
It writes plots of real and generated points to runs/wgan_gp_ring/samples/ and, every 500
steps, the modes reached to evaluation.jsonl: all eight (docs/results.md).
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=3e-3, b1=0.5, b2=0.9, schedule='linear')
  mlp = dict(features=(128, 128, 128), negative_slope=0.0)
  config = dict(
    system='wgan_gp',
    data=dict(name='ring', shape=(2,)),
    generator=dict(mlp, name='mlp.Generator', squash=False),
    critic=dict(mlp, name='mlp.Discriminator', dropout=0.0),
    latent=dict(dim=256, distribution='normal'),
    loss=dict(penalty=0.1, n_critic=5),
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


SMOKE = {'generator.features': (16,), 'critic.features': (16,)}
