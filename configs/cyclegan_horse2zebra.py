"""CycleGAN between horses and zebras, 256x256: the paper's nets and schedule.

Zhu et al. 2017, https://arxiv.org/abs/1703.10593.

    python launch.py --config=configs/cyclegan_horse2zebra.py

horse2zebra/trainA, trainB, testA and testB are the authors' folders, 1,067 horses and 1,334 zebras
to learn from. 200 epochs of batches of one, each as long as the larger domain: 266,800 steps.
Not trained here: a step takes 6.8 s on two CPU cores (AMD EPYC with AVX-512), all of them 21 days.
It writes grids of horses, zebras, translations and the way back to
runs/cyclegan_horse2zebra/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  few = ('kernel', 'precision_recall', 'density_coverage')  # of few images
  decay = dict(constant_steps=133_400, decay_steps=266_800)
  adam = dict(name='adam', lr=2e-4, b1=0.5, b2=0.999, schedule='constant_then_linear', **decay)
  data = dict(name='folder', path='horse2zebra/{split}B', shape=(256, 256, 3))
  config = dict(
    system='cyclegan',
    data=dict(data, x=dict(path='horse2zebra/{split}A'), load_size=286, flip=0.5),
    generator=dict(name='cyclegan.ResNet', features=64, blocks=9),
    discriminator=dict(name='pix2pix.PatchGAN', patch=70, features=64, norm='instance'),
    loss=dict(gan='least_squares', cycle=10.0, identity=0.5),
    buffer=dict(size=50),
    optim=dict(G=adam, D=adam),
    train=dict(steps=266_800, batch_size=1),
    sample=dict(num_images=16, batch_size=1),
    parallel=dict(data=1),  # a batch of one is not shared
    eval=dict(split='test', num_samples=120, held_out_examples=120, metrics=few),
  )
  return ConfigDict(config)


SMOKE = {
  **{'data.fit': 'crop', 'data.shape': (16, 16, 3), 'data.load_size': 18, 'generator.features': 4},
  **{'generator.blocks': 1, 'discriminator.features': 4, 'discriminator.patch': 16},
}
