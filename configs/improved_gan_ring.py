"""Minibatch discrimination on the ring of gan_ring_collapse.py, against mode collapse.

Salimans et al. 2016, https://arxiv.org/abs/1606.03498, section 3.2; the ring: Metz et al. 2016.

    python launch.py --config=configs/improved_gan_ring.py

Without it, --config.discriminator.kernels=0, G stays on one of the eight modes. With it G spreads
over the ring, but its points are blurred: five and seven modes for two seeds, and few points within
3 standard deviations of one. Other techniques: --config.loss.generator=feature_matching,
--config.loss.historical=0.1, --config.loss.real_target=0.9.
3,000 steps, 40 s of CPU time on two cores (AMD EPYC).
It writes plots of real and generated points to runs/improved_gan_ring/samples/.
"""

from ml_collections import ConfigDict


def get_config():
  adam = dict(name='adam', lr=1e-3, b1=0.5, b2=0.9, schedule='linear')
  mlp = dict(features=(128, 128, 128), negative_slope=0.0)
  noise = dict(noise=0.05, hidden_noise=0.0)
  config = dict(
    system='improved_gan',
    data=dict(name='ring', shape=(2,)),
    generator=dict(mlp, name='mlp.Generator', squash=True),
    discriminator=dict(
      name='improved.Discriminator', features=(128,) * 3, kernels=8, kernel_dims=3, **noise
    ),
    latent=dict(dim=256, distribution='normal'),
    loss=dict(generator='non_saturating'),
    optim=dict(G=adam, D=adam),
    train=dict(steps=3000, batch_size=128, sample_steps=500, checkpoint_steps=1500),
    sample=dict(num_images=1000, batch_size=1000),
    eval=dict(
      metrics=('frechet', 'modes'), num_reference=10_000, every_steps=500, quick_samples=2500
    ),
  )
  return ConfigDict(config)


SMOKE = {'generator.features': (16,), 'discriminator.features': (16,), 'discriminator.kernels': 3}
