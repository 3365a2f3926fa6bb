"""Flow matching on handwritten digits, 8x8: minutes, without a download.

Lipman, Chen, Ben-Hamu, Nickel and Le 2023, https://arxiv.org/abs/2210.02747.

    python launch.py --config=configs/flow_digits.py

The net is conditional on the digit: the columns of the grids are 0 to 9. Labels are dropped now
and then, so --config.sample.guidance.w=1 asks for classifier-free guidance.
2,000 steps, 2 minutes on two CPU cores (AMD EPYC).
It writes grids of legible digits to runs/flow_digits/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='flow_matching',
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
    flow=dict(times='logit_normal', time_scale=1000.0),
    label_drop=0.1,
    ema_decay=0.995,
    optim=dict(lr=2e-3, schedule='linear', warmup_steps=100, clip_norm=1.0),
    train=dict(steps=2000, log_steps=50, sample_steps=500, checkpoint_steps=500),
    sample=dict(num_images=100, batch_size=100, sampler='heun', steps=18),
    eval=dict(
      split='train[:80%]',
      num_samples=1400,
      held_out_split='train[80%:]',
      held_out_examples=100,
    ),
  )
  return ConfigDict(config)


SMOKE = {'net.features': 8, 'net.groups': 4, 'net.multipliers': (1,)}
