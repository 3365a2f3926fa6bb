"""DDPM on CIFAR-10, the configuration of the paper: 35,746,307 parameters.

Ho, Jain and Abbeel 2020, https://arxiv.org/abs/2006.11239.

    python launch.py --config=configs/ddpm_cifar.py

The paper trained 800,000 steps on 8 TPU v3 cores and reports FID 3.17 (50,000 samples, against the
training set, ancestral sampling with 1000 steps, averaged weights). It clips the gradient of each
core's 16 images to norm 1 and averages; here the gradient of the whole batch is clipped.
Not trained here: a step takes 26 s and 14 GB on two CPU cores (AMD EPYC); 1.6 s and 4 GB at batch
8. One H100 would take 4.5 hours in bfloat16 (docs/performance.md).
It writes grids of samples to runs/ddpm_cifar/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='ddpm',
    data=dict(name='cifar10', shape=(32, 32, 3), flip=0.5),
    net=dict(
      name='unet.UNet',
      features=128,
      multipliers=(1, 2, 2, 2),
      blocks=2,
      attention=(16,),
      dropout=0.1,
      groups=32,
    ),
    diffusion=dict(steps=1000, schedule='linear', beta_min=1e-4, beta_max=0.02),
    ema_decay=0.9999,
    optim=dict(name='adam', lr=2e-4, b1=0.9, b2=0.999, warmup_steps=5000, clip_norm=1.0),
    train=dict(steps=800_000, batch_size=128, sample_steps=10_000, checkpoint_steps=5000),
    sample=dict(sampler='ancestral', variance='large'),
    eval=dict(held_out_examples=1000, num_samples=50_000, quick_samples=2500),
  )
  return ConfigDict(config)


SMOKE = {'net.features': 8, 'net.groups': 4, 'net.multipliers': (1, 2), 'net.blocks': 1}
