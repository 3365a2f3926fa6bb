"""Flow matching on CIFAR-10, unconditional: 55,676,419 parameters.

Lipman et al. 2024, https://arxiv.org/abs/2412.06264, and its code.

    python launch.py --config=configs/flow_cifar.py

The authors trained 3,000 epochs on 8 GPUs and report FID 2.07 after 1,800 (50 steps of Heun on
EDM's noise levels; 50,000 samples, against the training set, averaged weights, whose decay was
(1 + n) / (10 + n) in the first 9,000 steps).
Not trained here: a step of 8 images takes 6.5 s on two CPU cores (AMD EPYC).
It writes grids of samples to runs/flow_cifar/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='flow_matching',
    data=dict(name='cifar10', shape=(32, 32, 3), flip=0.5),
    net=dict(
      name='adm.ADM',
      features=128,
      multipliers=(2, 2, 2),
      blocks=4,
      attention=(16,),
      heads=1,
      dropout=0.3,
      conv_resample=False,
    ),
    flow=dict(times='logit_normal', mean=-1.2, std=1.2),
    ema_decay=0.999,
    optim=dict(name='adamw', lr=1e-4, b1=0.9, b2=0.95, weight_decay=0.01),
    train=dict(steps=292_969, batch_size=512, sample_steps=10_000, checkpoint_steps=5000),
    sample=dict(sampler='heun', steps=50, spacing='karras'),
    eval=dict(held_out_examples=1000, num_samples=50_000, quick_samples=2500),
  )
  return ConfigDict(config)


SMOKE = {
  **{'net.features': 8, 'net.groups': 4, 'net.multipliers': (1,), 'net.blocks': 1},
  **{'net.attention': ()},
}
