"""A classifier of noisy handwritten digits, 8x8, to guide ddpm_digits, without a download.

Dhariwal and Nichol 2021, https://arxiv.org/abs/2105.05233.

    python launch.py --config=configs/noisy_classifier_digits.py

1,000 steps, 2 minutes on two cores of an AMD EPYC. --mode=evaluate measures its accuracy, by time
step. It generates nothing, but guides samples of a diffusion model:

    python launch.py --config=configs/ddpm_digits.py --mode=sample \
        --config.sample.guidance.run=runs/noisy_classifier_digits
"""

from ml_collections import ConfigDict


def get_config():
  config = dict(
    system='noisy_classifier',
    data=dict(name='digits', split='train[:80%]', shape=(8, 8, 1), num_classes=10),
    net=dict(
      name='unet.Classifier', features=32, multipliers=(1, 2), blocks=1, attention=(), groups=8
    ),
    diffusion=dict(steps=1000, schedule='cosine'),  # as in ddpm_digits
    optim=dict(name='adamw', lr=1e-3, weight_decay=0.05, schedule='linear'),
    train=dict(steps=1000, log_steps=50, checkpoint_steps=500),
    eval=dict(held_out_split='train[80%:]', held_out_examples=300),
  )
  return ConfigDict(config)


SMOKE = {'net.features': 8, 'net.groups': 4, 'net.head_channels': 8}
