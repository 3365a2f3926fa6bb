"""WGAN-GP on CIFAR-10, the unconditional ResNet of the paper.

Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028.

    python launch.py --config=configs/wgan_gp_cifar.py

The paper reports an Inception score of 7.86 +- 0.07.
Not trained here: a step takes 21 s on two CPU cores (AMD EPYC), the 100,000 steps 25 days.
It writes grids of samples to runs/wgan_gp_cifar/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=2e-4, b1=0.0, b2=0.9, schedule='linear', decay_steps='train.steps')
  config = dict(
    system='wgan_gp',
    data=dict(name='cifar10', shape=(32, 32, 3), dequantize='uniform'),
    generator=dict(name='wgan_gp.ResNetGenerator', features=128, blocks=3),
    critic=dict(name='wgan_gp.ResNetCritic', features=128),
    latent=dict(dim=128, distribution='normal'),
    loss=dict(penalty=10.0, n_critic=5, g_batch=2),
    optim=dict(G=adam, D=adam),
    train=dict(steps=100_000, batch_size=64, sample_steps=5000, checkpoint_steps=2500),
    eval=dict(num_samples=50_000, quick_samples=2500),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': 8, 'critic.features': 8}
