"""Improved DDPM on CIFAR-10: learned variance, cosine schedule; 52,546,438 parameters.

Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672.

    python launch.py --config=configs/iddpm_cifar.py

The paper trained 500,000 steps and reports 3.17 bits/dim and FID 3.19 for L_hybrid, with all 4,000
steps of sampling (50,000 samples, against the training set, averaged weights).
Not trained here: a step of 8 images takes 4.2 s on two CPU cores (AMD EPYC).
It writes grids of samples to runs/iddpm_cifar/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='ddpm',
    data=dict(name='cifar10', shape=(32, 32, 3)),
    net=dict(
      name='adm.ADM',
      features=128,
      multipliers=(1, 2, 2, 2),
      blocks=3,
      attention=(16, 8),
      heads=4,
      dropout=0.3,
    ),
    diffusion=dict(steps=4000, schedule='cosine', learned_variance=True, time_scale=0.25),
    ema_decay=0.9999,
    optim=dict(name='adam', lr=1e-4, b1=0.9, b2=0.999),
    train=dict(steps=500_000, batch_size=128, sample_steps=10_000, checkpoint_steps=5000),
    sample=dict(sampler='ancestral', variance='learned'),
    eval=dict(held_out_examples=1000, num_samples=50_000, quick_samples=2500),
  )
  return ConfigDict(config)


SMOKE = {
  'net.features': 8,
  'net.groups': 4,
  'net.multipliers': (1,),
  'net.blocks': 1,
  'diffusion.steps': 100,
}
