"""WGAN with weight clipping on a folder of your own images, 64x64: the nets of the released code.

Arjovsky, Chintala and Bottou 2017, https://arxiv.org/abs/1701.07875.

    python launch.py --config=configs/wgan_folder.py --config.data.path=FOLDER

The released code trains 25 epochs of LSUN bedrooms, about 200,000 steps. Not trained here: the full
nets need an accelerator. `:smoke` takes less than 2 minutes on two CPU cores (AMD EPYC).
It writes grids of samples to runs/wgan_folder/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  rmsprop = dict(name='rmsprop', lr=5e-5, decay=0.99, eps=1e-8)
  config = dict(
    system='wgan',
    data=dict(name='folder', shape=(64, 64, 3), fit='crop'),
    generator=dict(name='wgan.Generator', features=(512, 256, 128, 64)),
    critic=dict(name='wgan.Critic', features=(64, 128, 256, 512), negative_slope=0.2),
    latent=dict(dim=100, distribution='normal'),
    loss=dict(clip=0.01, n_critic=5, n_critic_start=100, start_steps=25, start_every=500),
    optim=dict(G=rmsprop, D=rmsprop),
    train=dict(steps=200_000, batch_size=64, sample_steps=1000, checkpoint_steps=1000),
    eval=dict(quick_samples=2500),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': (32, 16, 8, 4), 'critic.features': (4, 8, 16, 32)}
