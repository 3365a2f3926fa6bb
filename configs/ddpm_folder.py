"""DDPM on a folder of your own images, 64x64.

Ho, Jain and Abbeel 2020, https://arxiv.org/abs/2006.11239.

    python launch.py --config=configs/ddpm_folder.py --config.data.path=FOLDER

PNG, JPEG and WebP, centre-cropped and resized; sub-folders, if any, are classes, which the net is
told with --config.data.num_classes=N --config.net.num_classes=N.
Not trained here: the full net needs an accelerator. `:smoke` takes less than 2 minutes on two
CPU cores (AMD EPYC).
It writes grids of samples to runs/ddpm_folder/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='ddpm',
    data=dict(name='folder', shape=(64, 64, 3), fit='crop', flip=0.5),
    net=dict(
      name='unet.UNet',
      features=128,
      multipliers=(1, 2, 2, 2),
      blocks=2,
      attention=(16,),
      dropout=0.1,
      groups=32,
      scale_shift=True,  # as in Nichol and Dhariwal 2021
    ),
    diffusion=dict(steps=1000, schedule='cosine'),
    ema_decay=0.9999,
    optim=dict(name='adam', lr=1e-4, b1=0.9, b2=0.999, warmup_steps=1000, clip_norm=1.0),
    train=dict(steps=200_000, batch_size=64, sample_steps=5000, checkpoint_steps=1000),
    sample=dict(sampler='ddim', steps=100, eta=1.0),
    eval=dict(quick_samples=2500),
  )
  return ConfigDict(config)


SMOKE = {'net.features': 8, 'net.groups': 4, 'net.multipliers': (1, 2), 'net.blocks': 1}
