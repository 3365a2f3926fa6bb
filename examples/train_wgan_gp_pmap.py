"""WGAN-GP with a critic of your own under `jax.pmap`: one copy of the step per device."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import config as configs
from gen_jax.systems import wgan_gp


class Critic(nn.Module):  # x [b, 28, 28, 1] -> [b]
  @nn.compact
  def __call__(self, x, *, train):
    return nn.Dense(1)(nn.leaky_relu(nn.Dense(64)(x.reshape(len(x), -1))))[:, 0]


adam = dict(name='adam', lr=1e-4, b1=0.5, b2=0.9)
values = {
  'data.shape': (28, 28, 1),
  'generator': dict(name='wgan_gp.Generator28', features=4),
  'critic.name': Critic,
  'optim': dict(G=adam, D=adam),
}
config = configs.make('wgan_gp', values)
k, devices, b = config.loss.n_critic, jax.local_device_count(), 8

init_key, run_key, data_key, sample_key = jax.random.split(jax.random.key(0), 4)
images = jnp.tanh(jax.random.normal(data_key, (devices, k, b, 28, 28, 1)))

state = wgan_gp.init_state(init_key, {'image': images[0]}, config=config)
step = jax.pmap(
  functools.partial(wgan_gp.train_step, config=config, axis_name='batch'),
  axis_name='batch',
  in_axes=(None, 0, None),  # the state and the key are the same on all devices
  out_axes=(None, None),
)
for _ in range(3):
  state, metrics = step(state, {'image': images}, run_key)
print({name: round(float(value), 3) for name, value in metrics.items()})
made = wgan_gp.sample(state, {'index': jnp.arange(4)}, sample_key, config=config)
print(made['image'].shape)
