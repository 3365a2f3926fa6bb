"""WGAN with weight clipping on MNIST, with the small critic of WGAN-GP.

Arjovsky, Chintala and Bottou 2017, https://arxiv.org/abs/1701.07875.

    python launch.py --config=configs/wgan_mnist.py

Not trained here: a step takes 0.6 s of CPU time, the 5,000 steps about 30 minutes on two CPU cores
(AMD EPYC with AVX-512).
It writes grids of handwritten digits to runs/wgan_mnist/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  rmsprop = dict(name='rmsprop', lr=5e-5, decay=0.99, eps=1e-8)
  config = dict(
    system='wgan',
    data=dict(name='mnist', shape=(28, 28, 1)),
    generator=dict(name='dcgan.Generator28', features=(128, 64)),
    critic=dict(name='wgan_gp.Critic28', features=32, negative_slope=0.2),
    latent=dict(dim=100, distribution='normal'),
    # 100 at the start in the paper. On CPU they are unrolled, and XLA compiles 2 s for each.
    loss=dict(clip=0.01, n_critic=5, n_critic_start=20, start_steps=25, start_every=500),
    optim=dict(G=rmsprop, D=rmsprop),
    train=dict(steps=5000, batch_size=64, log_steps=50, sample_steps=1000, checkpoint_steps=1000),
    eval=dict(num_reference=10_000),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': (8, 4), 'critic.features': 4}
