"""CycleGAN between two drawings of emoji, 64x64, without pairs.

Zhu et al. 2017, https://arxiv.org/abs/1703.10593.

    python launch.py --config=configs/cyclegan_emoji.py

The folders google and twitter, each with train and test, hold the images of x and y; any other two
domains are used in the same way. Half of the rate's steps are constant, the others fall to 0.
10,000 steps, about 30 minutes of CPU time on two cores (AMD EPYC).
It writes grids of emoji, their translations and the way back, in both directions, to
runs/cyclegan_emoji/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  few = ('kernel', 'precision_recall', 'density_coverage')  # of few images
  schedule = dict(schedule='constant_then_linear', constant_steps=5000, decay_steps='train.steps')
  adam = dict(name='adam', lr=2e-4, b1=0.5, b2=0.999, **schedule)
  data = dict(name='folder', path='twitter/{split}', shape=(64, 64, 3))
  config = dict(
    system='cyclegan',
    data=dict(data, x=dict(name='folder', path='google/{split}')),
    generator=dict(name='cyclegan.ResNet', features=16, blocks=4),
    discriminator=dict(name='pix2pix.PatchGAN', patch=34, features=32, norm='instance'),
    loss=dict(gan='least_squares', cycle=10.0, identity=0.5),
    optim=dict(G=adam, D=adam),
    train=dict(steps=10_000, batch_size=2),
    eval=dict(split='test', num_samples=190, held_out_examples=190, metrics=few),
  )
  return ConfigDict(config)


SMOKE = {
  **{'data.fit': 'crop', 'data.shape': (16, 16, 3), 'generator.features': 4, 'generator.blocks': 1},
  **{'discriminator.features': 4, 'discriminator.patch': 16},
  **{f'optim.{net}.constant_steps': 5 for net in 'GD'},
}
