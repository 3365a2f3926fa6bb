"""pix2pix from one drawing of an emoji to another, 64x64: pairs side by side in one image.

Isola et al. 2017, https://arxiv.org/abs/1611.07004.

    python launch.py --config=configs/pix2pix_emoji.py

emoji/train and emoji/test hold images of 128x64 pixels, x on the left, y on the right; any other
pairs are used in the same way. Instance norm: a translation does not depend on its batch.
12,000 steps, about 16 minutes of CPU time on two cores (AMD EPYC).
It writes grids of sources, translations and targets to runs/pix2pix_emoji/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  few = ('kernel', 'precision_recall', 'density_coverage')  # of few images
  schedule = dict(schedule='constant_then_linear', constant_steps=6000, decay_steps='train.steps')
  adam = dict(name='adam', lr=2e-4, b1=0.5, b2=0.999, **schedule)
  config = dict(
    system='pix2pix',
    data=dict(
      name='folder', path='emoji/{split}', shape=(64, 64, 3), x_from='left', load_size=70, flip=0.5
    ),
    # The paper's dropout ends at a sixteenth of 256 pixels; with one layer, at an eighth of 64.
    generator=dict(name='pix2pix.UNet', features=32, depth=5, norm='instance', noisy=1),
    discriminator=dict(name='pix2pix.PatchGAN', patch=34, features=32, norm='instance'),
    loss=dict(l1=100.0),
    optim=dict(G=adam, D=adam),
    train=dict(steps=12_000, batch_size=4),
    eval=dict(split='test', num_samples=190, held_out_examples=190, metrics=few),
  )
  return ConfigDict(config)


SMOKE = {
  **{'data.fit': 'crop', 'data.shape': (16, 16, 3), 'data.load_size': 18},
  **{'generator.features': 4, 'generator.depth': 4, 'discriminator.features': 4},
  **{f'optim.{net}.constant_steps': 5 for net in 'GD'},
}
