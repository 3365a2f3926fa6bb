"""UNIT between two folders of images, 256x256, such as streets by day and by night.

Liu, Breuel and Kautz 2017, https://arxiv.org/abs/1703.00848.

    python launch.py --config=configs/unit_folder.py --config.data.x.path=day \
        --config.data.path=night

The authors' nets and losses for street scenes, on crops of 256x256; they trained for up to 500,000
steps. With one folder for each split, a path holds {split}.
Not trained here: a step takes 4.3 s on two CPU cores (AMD EPYC with AVX-512).
It writes grids of translations both ways to runs/unit_folder/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=1e-4, b1=0.5, b2=0.999, l2=1e-4)
  config = dict(
    system='unit',
    data=dict(
      name='folder',
      x=dict(name='folder', path='x'),
      shape=(256, 256, 3),
      fit='crop',
      load_size=286,
      flip=0.5,
    ),
    generator=dict(name='unit.Generator', features=64, downs=2, blocks=3, shared=1, dropout=0.5),
    discriminator=dict(name='unit.MultiScaleDiscriminator', features=64, layers=4, scales=3),
    loss=dict(gan=10.0, kl=0.1, reconstruction=100.0, cycle_kl=0.1, cycle=100.0),
    optim=dict(G=adam, D=adam),
    train=dict(steps=500_000, batch_size=1, sample_steps=5000, checkpoint_steps=5000),
    sample=dict(num_images=16, batch_size=1),
    eval=dict(held_out_split='train'),
    parallel=dict(data=1),  # a batch of one is not shared
  )
  return ConfigDict(config)


SMOKE = {
  **{'data.shape': (16, 16, 3), 'data.load_size': 18},
  **{'generator.features': 2, 'generator.downs': 1, 'generator.blocks': 1},
  **{'discriminator.features': 2, 'discriminator.layers': 2, 'discriminator.scales': 2},
}
