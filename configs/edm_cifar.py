"""EDM on CIFAR-10, unconditional, the net DDPM++: 55,733,891 parameters.

Karras, Aittala, Aila and Laine 2022, https://arxiv.org/abs/2206.00364.

    python launch.py --config=configs/edm_cifar.py

The paper trained on 200 million images and reports FID 1.97 (18 steps, 35 evaluations; the least of
three times 50,000 samples, against the training set, averaged weights). With
--config.net.num_classes=10 and --config.data.num_classes=10 it is conditional: 1.79.
Not trained here: a step of 8 images takes 5 s on two CPU cores (AMD EPYC).
It writes grids of samples to runs/edm_cifar/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='edm',
    data=dict(name='cifar10', shape=(32, 32, 3)),
    net=dict(
      name='song_unet.SongUNet',
      features=128,
      multipliers=(2, 2, 2),
      blocks=4,
      attention=(16,),
      dropout=0.13,
      augment_dim=9,
    ),
    edm=dict(P_mean=-1.2, P_std=1.2, sigma_data=0.5, ema_rampup=0.05),
    augment=dict(probability=0.12),
    ema_decay=0.99929047,  # a half-life of 500,000 images
    # The rate rises over ten million images.
    optim=dict(name='adam', lr=1e-3, b1=0.9, b2=0.999, warmup_steps=19_531),
    train=dict(steps=390_625, batch_size=512, sample_steps=10_000, checkpoint_steps=5000),
    sample=dict(sampler='heun', steps=18, spacing='karras'),
    eval=dict(held_out_examples=1000, num_samples=50_000, quick_samples=2500),
  )
  return ConfigDict(config)


SMOKE = {'net.features': 8, 'net.multipliers': (1, 2), 'net.blocks': 1}
