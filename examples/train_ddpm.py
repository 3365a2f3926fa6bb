"""DDPM in a script of your own: a small net for points on a circle, trained and sampled."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import config as configs
from gen_jax.nets.layers import time_embedding
from gen_jax.systems import ddpm


class EpsNet(nn.Module):  # x_t [b, 2], t [b] -> predicted noise [b, 2]
  @nn.compact
  def __call__(self, x, t, label=None, *, train):
    h = jnp.concatenate([x, time_embedding(t, 32)], axis=-1)
    for _ in range(3):
      h = nn.swish(nn.Dense(128)(h))
    return nn.Dense(2)(h)


values = {
  'data.shape': (2,),
  'net.name': EpsNet,  # or the dotted path of an importable class
  'diffusion.schedule': 'cosine',
  'ema_decay': 0.995,
  'optim': dict(name='adam', lr=2e-3, schedule='linear', decay_steps=3000, clip_norm=1.0),
  'sample': dict(sampler='ddim', steps=50),
}
config = configs.make('ddpm', values)

init_key, run_key, sample_key = jax.random.split(jax.random.key(0), 3)
angle = jnp.linspace(0, 2 * jnp.pi, 256, endpoint=False)
batch = {'image': jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)}  # [b, 2]

state = ddpm.init_state(init_key, batch, config=config)
step = jax.jit(functools.partial(ddpm.train_step, config=config), donate_argnums=0)
for _ in range(3000):
  state, metrics = step(state, batch, run_key)  # the step folds its own number into the key
print({name: round(float(value), 3) for name, value in metrics.items()})
made = ddpm.sample(state, {'index': jnp.arange(200)}, sample_key, config=config)['image']
print('mean distance from 0:', float(jnp.linalg.norm(made, axis=-1).mean()))  # 1 on the circle
