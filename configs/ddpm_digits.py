"""DDPM on handwritten digits, 8x8: a diffusion model in minutes, without a download.

Ho, Jain and Abbeel 2020, https://arxiv.org/abs/2006.11239.

    python launch.py --config=configs/ddpm_digits.py

The net is conditional on the digit: the columns of the grids are 0 to 9.

1,000 steps; 1.5 to 4 minutes on two cores of an AMD EPYC, the first step after 12 to 28 s.
It writes grids of legible digits to runs/ddpm_digits/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='ddpm',
    data=dict(name='digits', split='train[:80%]', shape=(8, 8, 1), num_classes=10),
    net=dict(
      name='unet.UNet',
      features=32,
      multipliers=(1, 2),
      blocks=1,
      attention=(),
      dropout=0.0,
      groups=8,
      num_classes=10,
    ),
    diffusion=dict(steps=1000, schedule='cosine'),
    ema_decay=0.995,
    optim=dict(lr=2e-3, schedule='linear', warmup_steps=100, clip_norm=1.0),
    train=dict(steps=1000, log_steps=50, sample_steps=500, checkpoint_steps=500),
    # Fresh noise in every step (eta) corrects errors of a net after a short training.
    sample=dict(num_images=100, batch_size=100, sampler='ddim', steps=100, eta=1.0),
    eval=dict(
      split='train[:80%]',
      num_samples=1400,
      held_out_split='train[80%:]',
      held_out_examples=100,
    ),
  )
  return ConfigDict(config)


SMOKE = {'net.features': 8, 'net.groups': 4, 'net.multipliers': (1,)}
