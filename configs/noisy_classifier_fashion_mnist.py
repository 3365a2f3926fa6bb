"""A classifier of noisy Fashion-MNIST, 28x28, to guide ddpm_fashion_mnist.

Dhariwal and Nichol 2021, https://arxiv.org/abs/2105.05233.

    python launch.py --config=configs/noisy_classifier_fashion_mnist.py

2,000 steps of 0.3 s on two CPU cores (AMD EPYC with AVX-512), 10 minutes. --mode=evaluate measures
its accuracy, by time step. It generates nothing, but guides samples of a diffusion model:

    python launch.py --config=configs/ddpm_fashion_mnist.py --mode=sample \
        --config.sample.guidance.run=runs/noisy_classifier_fashion_mnist
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='noisy_classifier',
    data=dict(name='fashion_mnist', shape=(28, 28, 1), num_classes=10),
    net=dict(
      name='unet.Classifier',
      features=32,
      multipliers=(1, 2, 2),
      blocks=1,
      attention=(7,),
      groups=8,
    ),
    diffusion=dict(steps=1000, schedule='linear'),  # as in ddpm_fashion_mnist
    optim=dict(name='adamw', lr=1e-3, weight_decay=0.05, schedule='linear'),
    train=dict(steps=2000, batch_size=64, log_steps=50, checkpoint_steps=500),
    eval=dict(held_out_examples=1000),
  )
  return ConfigDict(config)


SMOKE = {
  'net.features': 8,
  'net.groups': 4,
  'net.multipliers': (1, 2),
  'net.attention': (14,),
  'net.head_channels': 8,
}
