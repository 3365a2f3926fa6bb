"""A GAN in a script of your own: your nets, your data, the step of gen_jax."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import config as configs
from gen_jax.systems import gan


class Generator(nn.Module):  # z [b, d] -> [b, 2]
  @nn.compact
  def __call__(self, z, *, train):
    return nn.Dense(2)(nn.relu(nn.Dense(64)(z)))


class Discriminator(nn.Module):  # x [b, 2] -> logits [b]
  @nn.compact
  def __call__(self, x, *, train):
    return nn.Dense(1)(nn.relu(nn.Dense(64)(x)))[:, 0]


adam = dict(name='adam', lr=2e-4, b1=0.5)
config = configs.make(
  'gan',
  {
    'data.shape': (2,),
    'generator.name': Generator,  # or the dotted path of an importable class
    'discriminator.name': Discriminator,
    'latent.dim': 2,
    'optim': dict(G=adam, D=adam),
  },
)

init_key, run_key, sample_key = jax.random.split(jax.random.key(0), 3)
angle = jnp.linspace(0, 2 * jnp.pi, 256)
batch = {'image': jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)[None]}  # [k=1, b, 2]

state = gan.init_state(init_key, batch, config=config)
step = jax.jit(functools.partial(gan.train_step, config=config), donate_argnums=0)
for _ in range(500):
  state, metrics = step(state, batch, run_key)  # the step folds its own number into the key
print({name: round(float(value), 3) for name, value in metrics.items()})
points = gan.sample(state, {'index': jnp.arange(8)}, sample_key, config=config)['image']
print(points)
