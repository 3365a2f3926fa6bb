"""EDM on Fashion-MNIST, 28x28, with labels dropped for classifier-free guidance.

Karras, Aittala, Aila and Laine 2022, https://arxiv.org/abs/2206.00364.

    python launch.py --config=configs/edm_fashion_mnist.py

16,000 steps of 0.26 s on two CPU cores (AMD EPYC with AVX-512), 74 minutes.
It writes grids of clothes to runs/edm_fashion_mnist/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='edm',
    data=dict(name='fashion_mnist', shape=(28, 28, 1), num_classes=10),
    net=dict(
      name='unet.UNet',
      features=32,
      multipliers=(1, 2, 2),
      blocks=1,
      attention=(7,),
      dropout=0.0,
      groups=8,
      scale_shift=True,
      num_classes=10,
    ),
    label_drop=0.1,
    ema_decay=0.9995,
    edm=dict(sigma_data=0.7),
    optim=dict(lr=1e-3, schedule='cosine', warmup_steps=200),
    train=dict(steps=16_000, batch_size=32, log_steps=50, checkpoint_steps=500),
    sample=dict(sampler='heun', steps=18),
    eval=dict(num_reference=10_000, held_out_examples=128),
  )
  return ConfigDict(config)


SMOKE = {
  'net.features': 8,
  'net.groups': 4,
  'net.multipliers': (1, 2),
  'net.attention': (14,),
}
