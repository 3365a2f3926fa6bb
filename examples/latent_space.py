"""Looks at the latent space of a trained GAN, VAE or diffusion model of images.

    PYTHONPATH=. python examples/latent_space.py zoo/gan_mnist
    PYTHONPATH=. python examples/latent_space.py runs/edm_digits pictures

(without PYTHONPATH where gen_jax is installed). It writes to a folder (default: latent_space)

    strips.png      arcs between pairs of latents
    grid.png        a rectangle of latents between four
    classes.png     where samples depend on labels: each latent in every class
    arithmetic.png  otherwise: latents z of the largest class; the mean latent of each class minus
                    that of this one, added to z
    nearest.png     samples, each with its nearest training examples by pixels, then by features
"""

import pathlib
import sys

import numpy as np

import gen_jax
from gen_jax import data, latent
from gen_jax.metrics import networks
from gen_jax.run import pictures

ROWS, COLUMNS = 6, 10
run, out = gen_jax.load(sys.argv[1]), pathlib.Path([*sys.argv, 'latent_space'][2])
out.mkdir(parents=True, exist_ok=True)


def save(name, z, label):
  """The images of latents z [rows, columns, ...], of a class for each row or column."""
  label = np.broadcast_to(label, z.shape[:2]).ravel() if run.conditional else None
  images = run.decode(z.reshape(-1, *z.shape[2:]), label)
  pictures.save_png(out / name, pictures.image_grid(images, z.shape[1]))


ends = run.latents(2 * ROWS)
strips = latent.slerp(ends[:ROWS], ends[ROWS:], np.linspace(0, 1, COLUMNS))
save('strips.png', np.asarray(strips), np.arange(ROWS)[:, None])
save('grid.png', np.asarray(latent.grid(run.latents(4, seed=1), COLUMNS, COLUMNS)), 0)
if run.conditional:
  classes = np.arange(run.config.data.num_classes)
  save('classes.png', np.stack([ends[:ROWS]] * len(classes), 1), classes)
elif (source := data.open_source(run.config)).num_classes:
  z = run.latents(2000, seed=2)
  network = networks.open_network('classifier', source=source)  # trained on these data, once
  [(_, probabilities)] = networks.features(network, iter([run.decode(z)]))
  label = probabilities.argmax(1)
  means, largest = latent.class_means(z, label), np.bincount(label).argmax()
  ways = np.stack([means[other] - means[largest] for other in sorted(means)])
  save('arithmetic.png', z[label == largest][:ROWS, None] + ways[None], 0)

samples = run.sample(ROWS, seed=3)
found = [run.nearest(samples, k=3, by=by).image for by in ('pixels', 'features')]
rows = np.concatenate([samples[:, None], *found], 1).reshape(-1, *samples.shape[1:])
heads = ['sample', *['pixels'] * 3, *['features'] * 3] * ROWS
pictures.save_png(out / 'nearest.png', pictures.image_grid(rows, 7, captions=heads))
