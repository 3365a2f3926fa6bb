"""DCGAN on a folder of your own images, 64x64: Radford's nets for faces and bedrooms.

Radford, Metz and Chintala 2016, https://arxiv.org/abs/1511.06434.

    python launch.py --config=configs/dcgan_folder.py --config.data.path=FOLDER

PNG, JPEG and WebP, centre-cropped and resized; sub-folders, if any, are classes. In place of a
folder, a set of tensorflow-datasets: --config.data.name=oxford_flowers102. Batch norm uses the
statistics of the batch, in sampling too, as the authors' code does: a sample depends on the others
of its batch.
Not trained here: a step takes 32 s on two CPU cores (AMD EPYC), the 50,000 steps 18 days.
It writes grids of samples to runs/dcgan_folder/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=2e-4, b1=0.5, b2=0.999)
  config = dict(
    system='gan',
    data=dict(name='folder', shape=(64, 64, 3), fit='crop'),
    generator=dict(name='dcgan.Generator', features=(1024, 512, 256, 128)),
    discriminator=dict(
      name='dcgan.Discriminator', features=(128, 256, 512, 1024), negative_slope=0.2
    ),
    latent=dict(dim=100, distribution='uniform'),
    loss=dict(generator='non_saturating'),
    # D's loss is half of the paper's, and so is its weight decay.
    optim=dict(G=dict(adam, l2=1e-5), D=dict(adam, l2=5e-6)),
    train=dict(steps=50_000, batch_size=128, sample_steps=1000, checkpoint_steps=1000),
    eval=dict(quick_samples=2500),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': (32, 16, 8, 4), 'discriminator.features': (4, 8, 16, 32)}
