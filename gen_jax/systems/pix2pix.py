r"""pix2pix (Isola, Zhu, Zhou and Efros 2017, arXiv 1611.07004): images translated by a conditional
GAN, learned from pairs.

The generator G maps an image x and noise z to an image y. The discriminator D sees x beside y, or
beside G(x, z):

    L_cGAN(G, D) = E log D(x, y) + E log(1 - D(x, G(x, z)))                                  (Eq. 1)
    L_L1(G) = E |y - G(x, z)|                                                                (Eq. 3)
    G* = arg min_G max_D L_cGAN(G, D) + lambda L_L1(G)                                       (Eq. 4)

D judges patches: it returns a map of logits, over which the losses are means. The noise z is the
dropout of G, in sampling, too. As published, D minimises half of -L_cGAN, and G -log D(x, G(x, z))
in place of log(1 - D(x, G(x, z))).

Batch norm uses the statistics of the batch, in sampling, too, as published: a translation then
depends on the other images of its batch. With `norm='instance'` of the nets it does not.

One step is one update of D, then one of G, with the same G(x, z).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import domains, fields, nets
from gen_jax.errors import UserError
from gen_jax.fields import Measure
from gen_jax.ops import similarity
from gen_jax.state import OPTIMIZER, init_player, make_optimizer, one_image, step_keys, update
from gen_jax.systems._two_nets import Game, State, generate, score
from gen_jax.systems.gan import GENERATOR_LOSSES, discriminator_loss

FIELDS = {
  'generator': fields.net(meaning='G: images of x to images of y'),
  'discriminator': fields.net(meaning='D: x and y, channel by channel, to logits of patches'),
  **domains.PAIRED,
  'loss.l1': fields.number(0, default=100.0, meaning='lambda, the weight of |y - G(x, z)|'),
  **{f'optim.{net}.{name}': field for net in 'GD' for name, field in OPTIMIZER.items()},
}
CONDITIONS = ('x', 'y')
inputs = domains.inputs


def build(config, axis_name=None) -> Game:
  """Modules and optimisers; cheap, so every trace builds its own."""
  offered = dict(precision=config.precision, shape=config.data.shape, axis_name=axis_name)
  return Game(
    G=nets.make(config.generator, 'config.generator', **offered),
    D=nets.make(config.discriminator, 'config.discriminator', **offered),
    g_optimizer=make_optimizer(config.optim.G),
    d_optimizer=make_optimizer(config.optim.D),
  )


def check(config) -> None:
  """Checks constraints between fields.

  Raises:
    UserError: as `domains.check`, or x and y differ in size, so that D cannot see both.
  """
  domains.check(config)
  x, y = domains.x_shape(config), tuple(config.data.shape)
  if x[:2] != y[:2]:
    raise UserError(
      f'config.data.x.shape={x} and config.data.shape={y}: pix2pix needs one height and width'
    )


# --- The losses ---------------------------------------------------------------------------------


def pair(x, y) -> jax.Array:
  """What D sees: x [b, h, w, c] and y [b, h, w, d] as [b, h, w, c + d]."""
  return jnp.concatenate([x, y], axis=-1)


def d_loss(params, rows, keys, *, player, game):
  """Half of -L_cGAN on rows (x, y, y_fake), images [b, h, w, ...]; also D's metrics and new batch
  statistics.
  """
  x, y, y_fake = rows
  # Two passes, as in the released code: batch norm treats real and generated pairs separately.
  real, stats = score(game.D, player, pair(x, y), keys['real'], params)
  player = player.replace(stats=stats)
  fake, stats = score(game.D, player, pair(x, y_fake), keys['fake'], params)
  loss = discriminator_loss(real, fake)
  metrics = {
    'd/loss': loss,
    'd/real_prob': jnp.mean(nn.sigmoid(real)),
    'd/fake_prob': jnp.mean(nn.sigmoid(fake)),
    'd/accuracy': 0.5 * (jnp.mean(real > 0) + jnp.mean(fake < 0)),
  }
  return loss, (metrics, stats)


def g_loss(params, rows, keys, *, state, game, config):
  """-log D(x, G(x, z)) + lambda |y - G(x, z)| on rows (x, y), images [b, h, w, ...]; also its
  metrics and new batch statistics.
  """
  x, y = rows
  y_fake, stats = generate(game.G, state.G, x, params, key=keys['z'])
  # D in training mode; its updated batch statistics are discarded.
  fake, _ = score(game.D, state.D, pair(x, y_fake), keys['fake'])
  gan = GENERATOR_LOSSES['non_saturating'](fake)
  l1 = jnp.mean(jnp.abs(y - y_fake))
  loss = gan + config.loss.l1 * l1
  return loss, ({'g/loss': loss, 'g/gan': gan, 'g/l1': l1}, stats)


METRICS = {
  'd/loss': "D's loss: log 2 where it cannot tell pairs from translations",
  'd/real_prob': 'mean of D(x, y) over patches',
  'd/fake_prob': 'mean of D(x, G(x, z)) over patches',
  'd/accuracy': 'share of patches, half of them real, that D classifies right',
  'g/loss': 'g/gan + lambda g/l1',
  'g/gan': 'mean of -log D(x, G(x, z)) over patches',
  'g/l1': 'mean of |y - G(x, z)|, of values in [-1, 1]',
}


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """Fresh nets for images like batch['x'] and batch['y'], [b, h, w, ...]."""
  game, (g_key, d_key) = build(config), jax.random.split(rng)
  x, y = (one_image(batch, config, leaf=leaf) for leaf in ('x', 'y'))
  return State(
    step=jnp.zeros((), jnp.int32),
    G=init_player(_init(game.G, g_key, x), game.g_optimizer),
    D=init_player(_init(game.D, d_key, pair(x, y)), game.d_optimizer),
  )


def _init(net, key, x):
  params, dropout = jax.random.split(key)
  return net.init({'params': params, 'dropout': dropout}, x, train=False)


def train_step(state, batch, rng, *, config, axis_name=None):
  """One update of D, then one of G.

  Args:
    state: the `State`.
    batch: `x` and `y`, float32 [b, h, w, ...] in [-1, 1], in pairs.
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and the metrics, float32 scalars.
  """
  game = build(config, axis_name=axis_name)
  x, y = batch['x'], batch['y']
  keys = step_keys(rng, state.step, 'z', 'real', 'fake', 'g')
  how = dict(step=state.step, accumulate=config.train.accumulate, axis_name=axis_name)

  y_fake, _ = generate(game.G, state.G, x, key=keys['z'])
  loss = functools.partial(d_loss, player=state.D, game=game)
  dropout = {'real': keys['real'], 'fake': keys['fake']}
  D, d_metrics = update(
    state.D, loss, (x, y, y_fake), dropout, name='d', optimizer=game.d_optimizer, **how
  )

  loss = functools.partial(g_loss, state=state.replace(D=D), game=game, config=config)
  again = {'z': jax.random.clone(keys['z']), 'fake': keys['g']}  # the same noise
  G, g_metrics = update(state.G, loss, (x, y), again, name='g', optimizer=game.g_optimizer, **how)
  return State(state.step + 1, G, D), d_metrics | g_metrics


def sample(state, given, rng, *, config) -> dict:
  """Translations of given['x'], float32 [n, h, w, ...] in [-1, 1]: `image`, beside `source`, the
  `target` given['y'] and `patches`, what D makes of the translations (`patch_map`).
  """
  y = translate(state, given['x'], 'y', rng, config=config)
  patches = patch_map(state, given['x'], y, config=config)
  return {'image': y, 'source': given['x'], 'target': given['y'], 'patches': 2 * patches - 1}


def translate(state, images, to, rng, *, config) -> jax.Array:
  """G(x, z) for images x, float32 [n, h, w, c] in [-1, 1] of any size: [n, h, w, d].

  Raises:
    UserError: `to` is not 'y'.
  """
  if to != 'y':
    raise UserError(f'to={to!r}: pix2pix translates x to y, and not back')
  return generate(build(config).G, state.G, images, key=rng, train=False)[0]


def patch_map(state, x, y, *, config) -> jax.Array:
  """D(x, y) for the patch around every pixel, float32 [n, h, w, 1] in [0, 1], interpolated: where D
  takes y [n, h, w, d] for real. D normalises these n pairs as it does a batch in training.
  """
  game = build(config)
  logits, _ = game.D.apply(state.D.variables(), pair(x, y), train=False, mutable=['batch_stats'])
  size = (len(x), *x.shape[1:3], 1)
  return jax.image.resize(nn.sigmoid(logits), size, 'linear', precision='highest')


# --- Held-out pairs -----------------------------------------------------------------------------

MEASURES = {
  'l1': Measure('|y - G(x, z)|, of values in [-1, 1]', 'exact'),
  'psnr': Measure('peak signal-to-noise ratio, dB', 'exact'),
  'ssim': Measure('structural similarity', 'exact'),
}


def evaluate(state, batch, rng, *, config) -> dict:
  """How near translations are to the targets of their pairs: values [b] of `MEASURES`."""
  y, y_fake = batch['y'], translate(state, batch['x'], 'y', rng, config=config)
  return {
    'l1': jnp.mean(jnp.abs(y - y_fake), axis=(1, 2, 3)),
    'psnr': similarity.psnr(y, y_fake),
    'ssim': similarity.ssim(y, y_fake),
  }
