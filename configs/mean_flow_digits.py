"""A mean flow on handwritten digits, 8x8: minutes, without a download.

Geng, Deng, Bai, Kolter and He 2025, https://arxiv.org/abs/2505.13447.

    python launch.py --config=configs/mean_flow_digits.py

The net is conditional on the digit: the columns of the grids are 0 to 9. A sample takes one
pass of the net; --config.sample.steps=2 takes two.

3,000 steps, 4 minutes on two CPU cores (AMD EPYC).
It writes grids of samples to runs/mean_flow_digits/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='mean_flow',
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
    ema_decay=0.995,
    optim=dict(lr=2e-3, schedule='linear', warmup_steps=100, clip_norm=1.0),
    train=dict(steps=3000, log_steps=50, sample_steps=500, checkpoint_steps=500),
    sample=dict(num_images=100, batch_size=100, sampler='mean_flow', steps=1),
    eval=dict(
      split='train[:80%]',
      num_samples=1400,
      held_out_split='train[80%:]',
      held_out_examples=100,
    ),
  )
  return ConfigDict(config)


SMOKE = {'net.features': 8, 'net.groups': 4, 'net.multipliers': (1,)}
