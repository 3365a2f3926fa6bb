"""BigGAN for 128x128 images of a folder with a sub-folder for each class, as for ImageNet.

Brock, Donahue and Simonyan 2019, https://arxiv.org/abs/1809.11096, with the learning rates and the
updates of D of BigGAN-PyTorch, and without its 2,048 examples a batch.

    python launch.py --config=configs/biggan_128_folder.py --config.data.path=FOLDER

G has 70 million parameters, D 88 million. The number of sub-folders is data.num_classes.
Not trained here: a step would take about 7 minutes on two CPU cores (AMD EPYC).
It writes grids of samples, a column for each class, to runs/biggan_128_folder/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', b1=0.0, b2=0.999, eps=1e-6)
  net = dict(attention=(64,), init_name='orthogonal')
  config = dict(
    system='biggan',
    data=dict(name='folder', shape=(128, 128, 3), num_classes=1000, fit='crop'),
    generator=dict(
      name='biggan.Generator',
      features=(1536, 1536, 768, 384, 192, 96),
      shared=128,
      hierarchical=True,
      **net,
    ),
    discriminator=dict(
      name='biggan.Discriminator', features=(96, 192, 384, 768, 1536, 1536), downs=5, **net
    ),
    latent=dict(dim=120, distribution='normal'),
    loss=dict(d_steps=1, orthogonal=1e-4),
    ema=dict(decay=0.9999, start=20_000),
    optim=dict(G=dict(lr=1e-4, **adam), D=dict(lr=4e-4, **adam)),
    train=dict(steps=500_000, batch_size=256),
  )
  return ConfigDict(config)


SMOKE = {
  'data.shape': (32, 32, 3),
  **{f'{net}.features': (8,) * 4 for net in ('generator', 'discriminator')},
  **{f'{net}.attention': (16,) for net in ('generator', 'discriminator')},
  'discriminator.downs': 3,
}
