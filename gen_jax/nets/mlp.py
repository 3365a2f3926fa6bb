"""Fully connected nets: StandardGAN for 28x28, and plain ones for two-dimensional toys."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.nets import layers


class Generator(nn.Module):
  """z [b, d] -> [b, *shape] in (-1, 1): dense layers with LeakyReLU, tanh at the end.

  The defaults are the StandardGAN generator, 256-512-1024-784.
  """

  shape: Sequence[int]  # shape of one example
  features: Sequence[int] = (256, 512, 1024)  # widths of the hidden layers
  negative_slope: float = 0.2  # of LeakyReLU
  squash: bool = True  # tanh at the end; off for data that do not fill [-1, 1]

  @nn.compact
  def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
    x = z
    for width in self.features:
      x = nn.leaky_relu(nn.Dense(width)(x), self.negative_slope)
    x = nn.Dense(math.prod(self.shape))(x)
    return (nn.tanh(x) if self.squash else x).reshape(-1, *self.shape)


class Discriminator(nn.Module):
  """x [b, ...] -> logits [b]: dense layers with LeakyReLU and dropout.

  The defaults are the StandardGAN discriminator, 1024-512-256-128-1 with dropout 0.3. With dropout
  0 it is the critic of the WGAN-GP toys.
  """

  features: Sequence[int] = (1024, 512, 256, 128)  # widths of the hidden layers
  negative_slope: float = 0.2  # of LeakyReLU
  dropout: float = 0.3  # after every hidden layer
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = layers.flatten(x)
    for width in self.features:
      x = nn.leaky_relu(nn.Dense(width)(x), self.negative_slope)
      x = layers.Dropout(self.dropout, self.axis_name)(x, train=train)
    return nn.Dense(1)(x)[:, 0]


class Denoiser(nn.Module):
  """eps_theta(x_t, t): x [b, ..., c], t [b], label int32 [b] or None -> [b, ..., out_channels].

  Dense layers with swish, in the manner of the U-Net: t is embedded by sinusoids and two dense
  layers, and added, with a class embedding where there are classes, before each hidden layer. The
  input comes with its sinusoids (Tancik et al. 2020, arXiv 2006.10739): without them, dense layers
  are too smooth to separate narrow modes. t is a number of a size up to 1000, such as the time
  step. With `h`, a second such number, the sinusoids of both are embedded.
  """

  features: Sequence[int] = (256, 256, 256)  # widths of the hidden layers
  octaves: int = 5  # sines and cosines of pi x, 2 pi x, 4 pi x, ... beside x
  time_features: int = 64  # sinusoids of t
  num_classes: int | None = None  # adds a class embedding to the time embedding
  drop_labels: bool = False  # label num_classes is the null label of classifier-free guidance
  out_channels: int | None = None  # None: those of x; twice these to learn the variance

  @nn.compact
  def __call__(self, x: jax.Array, t: jax.Array, label=None, h=None, *, train: bool) -> jax.Array:
    temb = layers.time_embeddings(layers.time_embedding, (t, h), self.time_features).astype(x.dtype)
    temb = nn.Dense(self.features[0])(nn.swish(nn.Dense(self.features[0])(temb)))
    if self.num_classes is not None:
      temb += nn.Embed(self.num_classes + self.drop_labels, self.features[0])(label)
    y = layers.flatten(x)
    angles = [math.pi * 2**octave * y for octave in range(self.octaves)]
    y = jnp.concatenate([y, *map(jnp.sin, angles), *map(jnp.cos, angles)], axis=-1)
    for width in self.features:
      y = nn.swish(nn.Dense(width)(y) + nn.Dense(width)(nn.swish(temb)))
    # Almost zero at first, as the last layer of the U-Net.
    almost_zero = nn.initializers.variance_scaling(1e-10, 'fan_avg', 'uniform')
    shape = (*x.shape[1:-1], self.out_channels or x.shape[-1])
    eps_hat = nn.Dense(math.prod(shape), kernel_init=almost_zero)(y)
    return eps_hat.reshape(x.shape[0], *shape)
