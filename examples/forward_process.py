"""The forward process of diffusion: a picture of q(x_t | x_0) of digits and of its signal-to-noise.

    python examples/forward_process.py

Above, digits at ten times t under the linear and the cosine schedule; below, the logarithm of
alpha_bar_t / (1 - alpha_bar_t). The last third of the linear schedule is almost noise.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import config as configs
from gen_jax import data
from gen_jax.diffusion import process
from gen_jax.run import pictures

SCHEDULES, DIGITS = ('linear', 'cosine'), 3


def load(schedule):
  return configs.load('ddpm_digits', [('diffusion.schedule', schedule)])


x_0 = data.from_pixels(data.open_source(load('linear')).read(range(DIGITS))['image'], 'none')
eps = jax.random.normal(jax.random.key(0), x_0.shape)  # the same at all times
with pictures.figure('forward_process.png', figsize=(8, 9), dpi=100, layout='constrained') as drawn:
  *rows, below = drawn.subplots(3, 1)
  for axes, schedule in zip(rows, SCHEDULES, strict=True):
    tables = process.make_process(process.make_betas(load(schedule)))
    times = np.linspace(0, len(tables.betas) - 1, 10).round().astype(int)
    x_t = [process.q_sample(tables, x_0, jnp.full(DIGITS, t), eps) for t in times]
    grid = data.to_pixels(np.stack(x_t, axis=1).clip(-1, 1), 'none')  # [digits, times, h, w, 1]
    captions = [f't={t}' for t in times] * DIGITS
    shown = pictures.image_grid(grid.reshape(-1, *x_0.shape[1:]), len(times), captions=captions)
    axes.imshow(shown.squeeze(), cmap='gray', vmin=0, vmax=255)
    axes.set(title=schedule, xticks=[], yticks=[])
    ratio = 2 * np.log(np.float64(tables.signal) / tables.noise)
    below.plot(ratio, label=schedule)
    print(schedule, {int(t): round(float(ratio[t]), 2) for t in times[[0, 4, 9]]})
  below.set(xlabel='t', ylabel='log signal-to-noise ratio')
  below.legend()
