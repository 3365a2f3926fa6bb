r"""LAPGAN, a Laplacian pyramid of adversarial nets (Denton et al. 2015, arXiv 1506.05751).

With d(.) that halves the size of an image and u(.) that doubles it, an image I is the pyramid

    I_0 = I,  I_{k+1} = d(I_k);     l_k = u(I_{k+1}),  h_k = I_k - l_k for k < K,  h_K = I_K (Eq. 3)

and it is I_k = u(I_{k+1}) + h_k again, from the coarsest level K to the finest one, 0 (Eq. 4). Each
level has a game of its own. That of level K is a GAN of small images. The others are conditional:
G_k(z_k, l_k) makes a residual for a low-pass image, and D_k judges the sum l_k + h_k:

    min_{G_k} max_{D_k} E log D_k(l_k + h_k) + E log(1 - D_k(l_k + G_k(z_k, l_k)))

All games are trained at once, each on low-pass images of real ones. Samples are made coarse to fine
from I~_K = G_K(z_K):

    I~_k = u(I~_{k+1}) + G_k(z_k, u(I~_{k+1}))                                               (Eq. 5)

Here K = 2; d is the mean of 2x2 pixels and u linear interpolation. Where the data have classes, all
nets know the label. One step updates, on each level, D and then G, which maximises log D.
"""

import functools
import itertools
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import fields, nets
from gen_jax.errors import UserError
from gen_jax.nets.layers import mean_pool, upsample_linear
from gen_jax.state import (
  OPTIMIZER,
  Player,
  batch_size,
  init_player,
  make_optimizer,
  one_image,
  step_keys,
  update,
)
from gen_jax.systems import _two_nets as two_nets
from gen_jax.systems._two_nets import latents, score
from gen_jax.systems.gan import discriminator_loss

K = 2  # the coarsest level
LEVELS = range(K + 1)

FIELDS = {
  'generator': fields.net(meaning='G_k, k < K: latents and low-pass images to residuals'),
  'discriminator': fields.net(meaning='D_k, k < K: low-pass plus residual images to logits'),
  'coarse_generator': fields.net(meaning='G_K: latents to the coarsest images'),
  'coarse_discriminator': fields.net(meaning='D_K: the coarsest images to logits'),
  'latent.dim': fields.integer(
    1, 2**20, default=100, meaning='entries of z_K; z_k, k < K, has one for each pixel'
  ),
  'latent.distribution': two_nets.FIELDS['latent.distribution'],
  **{f'optim.{net}{k}.{name}': f for k in LEVELS for net in 'GD' for name, f in OPTIMIZER.items()},
}


@flax.struct.dataclass
class State:
  """Everything that a step changes."""

  step: jax.Array  # int32, the number of steps
  G0: Player
  D0: Player
  G1: Player
  D1: Player
  G2: Player
  D2: Player


class Level(NamedTuple):
  """Modules and optimisers of a level, the shape of its images, and the number of entries of z."""

  G: nets.Net
  D: nets.Net
  g_optimizer: Any
  d_optimizer: Any
  shape: tuple[int, int, int]
  z_size: int


def build(config, axis_name=None) -> list[Level]:
  """All levels, 0 to K; cheap, so every trace builds its own."""

  def level(k):
    height, width, channels = config.data.shape
    shape = (height // 2**k, width // 2**k, channels)
    offered = dict(
      precision=config.precision,
      shape=shape,
      num_classes=config.data.num_classes,
      axis_name=axis_name,
    )
    generator, discriminator = 'generator', 'discriminator'
    if k == K:
      generator, discriminator = 'coarse_generator', 'coarse_discriminator'
    return Level(
      G=nets.make(config[generator], f'config.{generator}', **offered),
      D=nets.make(config[discriminator], f'config.{discriminator}', **offered),
      g_optimizer=make_optimizer(config.optim[f'G{k}']),
      d_optimizer=make_optimizer(config.optim[f'D{k}']),
      shape=shape,
      z_size=config.latent.dim if k == K else shape[0] * shape[1],
    )

  return [level(k) for k in LEVELS]


def check(config) -> None:
  """Checks constraints between fields.

  Raises:
    UserError: the data are not images that can be halved K times, or a net has other classes.
  """
  shape = tuple(config.data.shape)
  if len(shape) != 3 or shape[0] % 2**K or shape[1] % 2**K:
    raise UserError(
      f'config.data.shape={shape}: images with height and width that are multiples of {2**K} are '
      f'needed, as the pyramid halves them {K} times'
    )
  two_nets.check_num_classes(
    config, 'generator', 'discriminator', 'coarse_generator', 'coarse_discriminator'
  )


def pyramid(image) -> list[jax.Array]:
  """I_0, ..., I_K of image [b, h, w, c], each half as large as the one before."""
  images = [image]
  for _ in range(K):
    images.append(mean_pool(images[-1]))
  return images


# --- The games, each of one level ---------------------------------------------------------------


def generate(G: nets.Net, player: Player, z, l, y, params=None, *, train: bool = True):
  """I~_k = l + G_k(z, l) for z [n, h w] and l = l_k [n, h, w, c], or G_K(z) for z [n, d] where l is
  None, with labels y int32 [n] or None.
  """
  inputs = (z,) if l is None else (z.reshape(*l.shape[:3], 1), l)
  h = G.apply(player.variables(params), *inputs, y, train=train)
  return h if l is None else l + h


def d_loss(params, rows, keys, *, k, player, level):
  """The mean cross-entropy of D_k on rows (I_k, I~_k, y): real and generated images that have the
  low-pass images and the labels in common; also its metrics and batch statistics.
  """
  x, x_fake, y = rows
  real, _ = score(level.D, player, x, keys['real'], params, label=y)
  fake, stats = score(level.D, player, x_fake, keys['fake'], params, label=y)
  loss = discriminator_loss(real, fake)
  metrics = {
    f'd{k}/loss': loss,
    f'd{k}/real_prob': jnp.mean(nn.sigmoid(real)),
    f'd{k}/fake_prob': jnp.mean(nn.sigmoid(fake)),
  }
  return loss, (metrics, stats)


def g_loss(params, rows, key, *, k, G, D, level):
  """-E log D_k on rows (z, l, y); also its metrics and batch statistics."""
  x_fake = generate(level.G, G, *rows, params)
  fake, _ = score(level.D, D, x_fake, key, label=rows[2])
  loss = jnp.mean(nn.softplus(-fake))
  return loss, ({f'g{k}/loss': loss}, G.stats)


METRICS = {}
for _k in LEVELS:
  METRICS |= {
    f'd{_k}/loss': f'cross-entropy of D_{_k}, of level {_k}: log 2 at equilibrium',
    f'd{_k}/real_prob': f'mean of D_{_k} over real images',
    f'd{_k}/fake_prob': f'mean of D_{_k} over generated images',
    f'g{_k}/loss': f'-mean log D_{_k} over generated images',
  }


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """Fresh nets for data like batch['image'] [b, h, w, c]."""
  images = pyramid(one_image(batch, config))
  y = None if config.data.num_classes is None else jnp.zeros(1, jnp.int32)
  players = {}
  for k, level in enumerate(build(config)):
    g_key, d_key = jax.random.split(jax.random.fold_in(rng, k))
    x = images[k]
    inputs = (jnp.zeros((1, level.z_size)),) if k == K else (x[..., :1], x)
    G = level.G.init(g_key, *inputs, y, train=False)
    players[f'G{k}'] = init_player(G, level.g_optimizer)
    players[f'D{k}'] = init_player(level.D.init(d_key, x, y, train=False), level.d_optimizer)
  return State(step=jnp.zeros((), jnp.int32), **players)


def train_step(state, batch, rng, *, config, axis_name=None):
  """On each level one update of D and one of G, with low-pass images of the batch.

  Args:
    state: the `State`.
    batch: `image` float32 [b, h, w, c] in [-1, 1]; with classes, `label` int32 [b].
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and the metrics, float32 scalars, of every level.
  """
  images = pyramid(batch['image'])
  y = None if config.data.num_classes is None else batch['label']
  keys = step_keys(rng, state.step, *(f'level{k}' for k in LEVELS))
  how = dict(step=state.step, accumulate=config.train.accumulate, axis_name=axis_name)
  players, metrics = {}, {}
  for k, level in enumerate(build(config, axis_name=axis_name)):
    G, D, x = getattr(state, f'G{k}'), getattr(state, f'D{k}'), images[k]
    l = None if k == K else upsample_linear(images[k + 1])
    d_z, real, fake, g_z, g = jax.random.split(keys[f'level{k}'], 5)

    z = latents(d_z, len(x), config, axis_name, dim=level.z_size)
    rows, dropout = (x, generate(level.G, G, z, l, y), y), {'real': real, 'fake': fake}
    loss = functools.partial(d_loss, k=k, player=D, level=level)
    D, d_metrics = update(D, loss, rows, dropout, name=f'd{k}', optimizer=level.d_optimizer, **how)

    z = latents(g_z, len(x), config, axis_name, dim=level.z_size)
    loss = functools.partial(g_loss, k=k, G=G, D=D, level=level)
    G, g_metrics = update(G, loss, (z, l, y), g, name=f'g{k}', optimizer=level.g_optimizer, **how)
    players |= {f'G{k}': G, f'D{k}': D}
    metrics |= d_metrics | g_metrics
  return State(state.step + 1, **players), metrics


def sample(state, given, rng, *, config) -> dict:
  """Images made coarse to fine, one for each row of `given`, of the classes given['label'] where
  there are any: {'image': float32 [n, h, w, c] in [-1, 1], 'levels': [n, K + 1, h, w, c]}, where
  `levels` are the images of all levels, the coarsest first, with their pixels repeated.
  """
  return decode(state, prior(rng, batch_size(given), config=config), given, config=config)


def evaluations(config) -> int:
  """Forward passes per sample: one of each level."""
  return len(LEVELS)


def conditional(state, *, config) -> bool:
  """Whether samples depend on labels."""
  return config.data.num_classes is not None


def prior(rng, n: int, *, config) -> jax.Array:
  """Draws of z_0, ..., z_K side by side: [n, d]."""
  return latents(rng, n, config, dim=sum(level.z_size for level in build(config)))


def decode(state, z, given, *, config) -> dict:
  """As `sample`, for the latents z [n, d] of all levels (Eq. 5).

  Raises:
    UserError: z has another shape.
  """
  levels = build(config)
  sizes = [level.z_size for level in levels]
  if z.shape[1:] != (sum(sizes),):
    raise UserError(f'z is {z.shape}: {("n", sum(sizes))} is needed')
  z = jnp.split(z, list(itertools.accumulate(sizes[:-1])), axis=1)  # z_0, ..., z_K
  y = None if config.data.num_classes is None else given['label']
  x, shown = None, []
  for k in reversed(LEVELS):
    l = None if k == K else upsample_linear(x)
    x = generate(levels[k].G, getattr(state, f'G{k}'), z[k], l, y, train=False)
    shown.append(jnp.clip(x.repeat(2**k, axis=1).repeat(2**k, axis=2), -1, 1))
  return {'image': shown[-1], 'levels': jnp.stack(shown, axis=1)}
