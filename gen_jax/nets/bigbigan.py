"""Small nets of BigBiGAN (Donahue and Simonyan 2019, arXiv 1907.02544): the encoder, and the
discriminator with its three scores. Convolutions with stride 2, as the DCGANs of this size have,
stand for the paper's ResNets of ImageNet; `dcgan` has generators that fit.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.nets import layers
from gen_jax.nets.spectral import SpectralNorm


class Encoder(nn.Module):
  """x [b, h, w, c] -> [b, outputs], what the distribution of z is made of: 4x4 convolutions with
  stride 2, batch norm and ReLU, then a dense layer.
  """

  outputs: int  # numbers for each example
  features: Sequence[int] = (64, 128)  # at 1/2, 1/4, ... of the resolution
  hidden: Sequence[int] = (512,)  # widths of dense layers with batch norm and ReLU
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    def normed(x):
      norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis_name)
      return nn.relu(norm(x))

    for width in self.features:
      x = normed(layers.Conv(width, kernel=4, stride=2, bias=False)(x))
    x = layers.flatten(x)
    for width in self.hidden:
      x = normed(nn.Dense(width, use_bias=False)(x))
    return nn.Dense(self.outputs)(x)


class Discriminator(nn.Module):
  """x [b, h, w, c], z [b, d] -> the scores s_xz, s_x and s_z, [b] each. All layers have spectral
  norm and all but the last of a score LeakyReLU.

  F(x) is a stack of 4x4 convolutions with stride 2, H(z) an MLP and J(F, H) an MLP on both side by
  side; s_x, s_z and s_xz are linear in F, H and J.
  """

  features: Sequence[int] = (64, 128)  # of F: channels at 1/2, 1/4, ... of the resolution
  latent_features: Sequence[int] = (256, 256)  # of H: widths
  joint_features: Sequence[int] = (512, 512)  # of J: widths
  negative_slope: float = 0.2  # of LeakyReLU

  @nn.compact
  def __call__(self, x: jax.Array, z: jax.Array, *, train: bool):
    def normed(layer, x):
      return SpectralNorm(layer, name=f'{layer.name}_sn')(x, train=train)

    def mlp(x, widths, name):
      for i, width in enumerate(widths):
        layer = nn.Dense(width, name=f'{name}{i}')
        x = nn.leaky_relu(normed(layer, x), self.negative_slope)
      return x

    def score(x, name):
      return normed(nn.Dense(1, name=f's_{name}'), x)[:, 0]

    for i, width in enumerate(self.features):
      layer = layers.Conv(width, kernel=4, stride=2, name=f'F{i}')
      x = nn.leaky_relu(normed(layer, x), self.negative_slope)
    F, H = layers.flatten(x), mlp(z, self.latent_features, 'H')
    J = mlp(jnp.concatenate([F, H], -1), self.joint_features, 'J')
    return score(J, 'xz'), score(F, 'x'), score(H, 'z')
