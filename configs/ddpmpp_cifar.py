"""DDPM++ (continuous, VP) on CIFAR-10, the score SDE of most likelihoods: 61,804,419 parameters.

Song, Sohl-Dickstein, Kingma, Kumar, Ermon and Poole 2021, https://arxiv.org/abs/2011.13456.

    python launch.py --config=configs/ddpmpp_cifar.py

The paper trained 1,300,000 steps and reports FID 2.55 (predictor-corrector code, 1,000 steps, best
checkpoint; 50,000 samples, against the training set, averaged weights), and by the ODE 3.16
bits/dim and FID 3.93. The net is that of EDM's code in this shape.
Not trained here: a step of 8 images takes 5.3 s on two CPU cores (AMD EPYC).
It writes grids of samples to runs/ddpmpp_cifar/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='score_sde',
    data=dict(name='cifar10', shape=(32, 32, 3), flip=0.5),
    net=dict(
      name='song_unet.SongUNet',
      features=128,
      multipliers=(1, 2, 2, 2),
      blocks=4,
      attention=(16,),
      dropout=0.1,
    ),
    sde=dict(name='vp', beta_min=0.1, beta_max=20.0),
    ema_decay=0.9999,
    optim=dict(name='adam', lr=2e-4, b1=0.9, b2=0.999, warmup_steps=5000, clip_norm=1.0),
    train=dict(steps=1_300_000, batch_size=128, sample_steps=10_000, checkpoint_steps=5000),
    sample=dict(sampler='euler_maruyama', steps=1000),
    eval=dict(held_out_examples=1000, num_samples=50_000, quick_samples=2500),
  )
  return ConfigDict(config)


SMOKE = {'net.features': 8, 'net.multipliers': (1,), 'net.blocks': 1}
