"""DDPM on Fashion-MNIST, 28x28.

Ho, Jain and Abbeel 2020, https://arxiv.org/abs/2006.11239.

    python launch.py --config=configs/ddpm_fashion_mnist.py

15,000 steps of 0.27 s on two CPU cores (AMD EPYC with AVX-512), an hour and 10 minutes.
It writes grids of clothes to runs/ddpm_fashion_mnist/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='ddpm',
    data=dict(name='fashion_mnist', shape=(28, 28, 1), num_classes=10),
    net=dict(
      name='unet.UNet',
      features=32,
      multipliers=(1, 2, 2),
      blocks=1,
      attention=(7,),
      dropout=0.0,
      groups=8,
      scale_shift=True,  # as in Nichol and Dhariwal 2021
      num_classes=10,
    ),
    diffusion=dict(steps=1000, schedule='linear'),
    ema_decay=0.999,
    optim=dict(lr=1e-3, schedule='linear', warmup_steps=200, clip_norm=1.0),
    train=dict(steps=15_000, batch_size=32, log_steps=50, checkpoint_steps=500),
    # Fresh noise in every step (eta) corrects errors of a net after a short training: with eta=0 a
    # third of the images are broken. For the same reason x_0 is clipped.
    sample=dict(sampler='ddim', steps=50, eta=1.0, clip=True),
    eval=dict(num_reference=10_000, held_out_examples=128),
  )
  return ConfigDict(config)


SMOKE = {
  'net.features': 8,
  'net.groups': 4,
  'net.multipliers': (1, 2),
  'net.attention': (14,),
}
