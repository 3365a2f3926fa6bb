r"""CycleGAN (Zhu, Park, Isola and Efros 2017, arXiv 1703.10593): images translated without pairs.

G maps images x to images y, F maps back; D_Y tells y from G(x), D_X tells x from F(y):

    L_GAN(G, D_Y) = E log D_Y(y) + E log(1 - D_Y(G(x)))                                      (Eq. 1)
    L_cyc(G, F) = E |F(G(x)) - x| + E |G(F(y)) - y|                                          (Eq. 2)
    L = L_GAN(G, D_Y) + L_GAN(F, D_X) + lambda L_cyc(G, F)                                   (Eq. 3)

and L_identity = E |G(y) - y| + E |F(x) - x|, weighted by a share of lambda (section 5.2), keeps
colours. By default L_GAN is replaced by least squares (section 4): G minimises E (D_Y(G(x)) - 1)^2,
and D_Y half of E (D_Y(y) - 1)^2 + E D_Y(G(x))^2. Losses are means over patches.

Each D learns from a buffer of earlier translations (Shrivastava et al. 2017, arXiv 1612.07828):
the first 50 are kept and used as they are; from then on, half of them, by chance, are exchanged
with one from the buffer. The buffers are part of the state.

One step is one update of G and F together, then one of D_X and D_Y, on the translations made before
it. In the state, `G` is the player of both translators and `D` that of both discriminators.
"""

import functools
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp

from gen_jax import domains, fields, nets
from gen_jax.errors import UserError
from gen_jax.fields import Measure
from gen_jax.state import (
  OPTIMIZER,
  Player,
  init_player,
  make_optimizer,
  one_image,
  step_keys,
  update,
)
from gen_jax.systems import gan
from gen_jax.systems._two_domains import TO, both_ways, l1

FIELDS = {
  'generator': fields.net(meaning='G and F: images of one domain to those of the other'),
  'discriminator': fields.net(meaning='D_X and D_Y: images to logits, or scores, of patches'),
  **domains.UNPAIRED,
  'loss.gan': fields.one_of(
    'least_squares', 'log', default='least_squares', meaning='of D and of translations'
  ),
  'loss.cycle': fields.number(0, default=10.0, meaning='lambda, the weight of L_cyc'),
  'loss.identity': fields.number(
    0, default=0.5, meaning='weight of L_identity, as a share of lambda'
  ),
  'buffer.size': fields.integer(
    0, 10_000, default=50, smoke=4, meaning='translations kept for each D; 0: only new ones'
  ),
  **TO,
  **{f'optim.{net}.{name}': field for net in 'GD' for name, field in OPTIMIZER.items()},
}
CONDITIONS = ('x', 'y')
inputs = domains.inputs


@flax.struct.dataclass
class Buffer:
  """Earlier translations into one domain."""

  images: jax.Array  # float32 [size, h, w, c]
  count: jax.Array  # int32, how many of them are there


@flax.struct.dataclass
class State:
  """Everything that a step changes."""

  step: jax.Array  # int32
  G: Player  # its parameters: {'G': ..., 'F': ...}
  D: Player  # its parameters: {'X': ..., 'Y': ...}
  x_buffer: Buffer
  y_buffer: Buffer


class Game(NamedTuple):
  """The modules and optimisers of a config."""

  G: nets.Net
  F: nets.Net
  D: nets.Net  # of both domains
  g_optimizer: Any
  d_optimizer: Any


def build(config, axis_name=None) -> Game:
  """Modules and optimisers; cheap, so every trace builds its own."""

  def translator(shape):
    offered = dict(precision=config.precision, shape=shape, axis_name=axis_name)
    return nets.make(config.generator, 'config.generator', **offered)

  offered = dict(precision=config.precision, axis_name=axis_name)
  return Game(
    G=translator(tuple(config.data.shape)),
    F=translator(domains.x_shape(config)),
    D=nets.make(config.discriminator, 'config.discriminator', **offered),
    g_optimizer=make_optimizer(config.optim.G),
    d_optimizer=make_optimizer(config.optim.D),
  )


def check(config) -> None:
  """Checks constraints between fields.

  Raises:
    UserError: as `domains.check`, x and y differ in size, or in channels where L_identity is used.
  """
  domains.check(config)
  x, y = domains.x_shape(config), tuple(config.data.shape)
  shapes = f'config.data.x.shape={x} and config.data.shape={y}'
  if x[:2] != y[:2]:
    raise UserError(f'{shapes}: cyclegan needs one height and width')
  if config.loss.identity and x != y:
    raise UserError(
      f'config.loss.identity={config.loss.identity}, but {shapes}: 0 is needed, or equal channels'
    )


# --- The losses ---------------------------------------------------------------------------------


def discriminator_loss(real, fake, kind: str) -> jax.Array:
  """Half of what D minimises, for its scores [b, h, w, 1] of real images and of translations."""
  if kind == 'log':
    return gan.discriminator_loss(real, fake)
  return 0.5 * (jnp.mean((real - 1) ** 2) + jnp.mean(fake**2))


def adversarial_loss(fake, kind: str) -> jax.Array:
  """What a translator minimises, for D's scores [b, h, w, 1] of translations."""
  if kind == 'log':
    return gan.GENERATOR_LOSSES['non_saturating'](fake)
  return jnp.mean((fake - 1) ** 2)


def g_loss(params, rows, keys, *, D, game, config):
  """The loss of G and F on rows (x, y), images [b, h, w, ...]; also its metrics."""
  x, y = rows
  G, F = translators(game, params)
  D_X, D_Y = discriminators(game, D.params)
  y_fake, x_fake = G(x), F(y)
  kind, cycle, share = config.loss.gan, config.loss.cycle, config.loss.identity
  gan_y, gan_x = adversarial_loss(D_Y(y_fake), kind), adversarial_loss(D_X(x_fake), kind)
  l_cyc = l1(F(y_fake), x) + l1(G(x_fake), y)
  loss = gan_y + gan_x + cycle * l_cyc
  metrics = {'g/gan_y': gan_y, 'g/gan_x': gan_x, 'g/cycle': l_cyc}
  if share:
    l_identity = l1(G(y), y) + l1(F(x), x)
    loss = loss + cycle * share * l_identity
    metrics['g/identity'] = l_identity
  return loss, (metrics | {'g/loss': loss}, {})


def d_loss(params, rows, keys, *, game, config):
  """The loss of D_X and D_Y on rows (x, y, x_fake, y_fake), images [b, h, w, ...]; also its
  metrics.
  """
  x, y, x_fake, y_fake = rows
  D_X, D_Y = discriminators(game, params)
  loss_x = discriminator_loss(D_X(x), D_X(x_fake), config.loss.gan)
  loss_y = discriminator_loss(D_Y(y), D_Y(y_fake), config.loss.gan)
  loss = loss_x + loss_y
  return loss, ({'d/loss': loss, 'd/x': loss_x, 'd/y': loss_y}, {})


METRICS = {
  'g/loss': 'g/gan_y + g/gan_x + lambda (g/cycle + share g/identity)',
  'g/gan_y': 'what G minimises by deceiving D_Y',
  'g/gan_x': 'what F minimises by deceiving D_X',
  'g/cycle': 'L_cyc: mean |F(G(x)) - x| + mean |G(F(y)) - y|',
  'g/identity': 'mean |G(y) - y| + mean |F(x) - x|, where loss.identity is not 0',
  'd/loss': 'd/x + d/y; 1/2, or 2 log 2 with loss.gan=log, where D cannot tell',
  'd/x': 'half of what D_X minimises',
  'd/y': 'half of what D_Y minimises',
}


def translators(game: Game, params):
  """G and F as functions of images."""
  G = lambda x: game.G.apply({'params': params['G']}, x, train=True)
  F = lambda y: game.F.apply({'params': params['F']}, y, train=True)
  return G, F


def discriminators(game: Game, params):
  """D_X and D_Y as functions of images."""
  D_X = lambda x: game.D.apply({'params': params['X']}, x, train=True)
  D_Y = lambda y: game.D.apply({'params': params['Y']}, y, train=True)
  return D_X, D_Y


# --- The buffer ---------------------------------------------------------------------------------


def exchange(buffer: Buffer, images, key, axis_name=None) -> tuple[Buffer, jax.Array]:
  """What D learns from in place of the translations `images` [b, h, w, c], and the buffer after.

  The images enter in turn. While the buffer is not full, each is kept, and returned; then, with
  probability 1/2, it takes the place of one in the buffer, which is returned. Under `pmap` they
  enter in the order of the whole batch, so that the buffer is the same on all devices.
  """
  size, local = len(buffer.images), len(images)
  if size == 0:
    return buffer, images
  if axis_name is not None:
    images = jax.lax.all_gather(images, axis_name, tiled=True)
  swap_key, place_key = jax.random.split(key)
  swap = jax.random.bernoulli(swap_key, 0.5, (len(images),))
  place = jax.random.randint(place_key, (len(images),), 0, size)

  def enter(carry, row):
    slots, count = carry
    own, swap, place = row
    full = count == size
    place = jnp.where(full, place, count)
    kept = slots[place]
    slots = slots.at[place].set(jnp.where(full & ~swap, kept, own))
    return (slots, jnp.where(full, size, count + 1)), jnp.where(full & swap, kept, own)

  # The loop moves row numbers; the images, which may be on several devices, are gathered once.
  rows = jnp.concatenate([buffer.images, images])
  places = jnp.arange(len(rows))
  (slots, count), chosen = jax.lax.scan(
    enter, (places[:size], buffer.count), (places[size:], swap, place)
  )
  buffer, images = Buffer(rows[slots], count), rows[chosen]
  if axis_name is not None:
    images = jax.lax.dynamic_slice_in_dim(images, jax.lax.axis_index(axis_name) * local, local)
  return buffer, images


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """Fresh nets for images like batch['x'] and batch['y'], [b, h, w, ...], and empty buffers."""
  game = build(config)
  x, y = (one_image(batch, config, leaf=leaf) for leaf in ('x', 'y'))
  keys = dict(zip('GFXY', jax.random.split(rng, 4), strict=True))
  made = {
    'generator': {'G': game.G.init(keys['G'], x, train=False)}
    | {'F': game.F.init(keys['F'], y, train=False)},
    'discriminator': {'X': game.D.init(keys['X'], x, train=False)}
    | {'Y': game.D.init(keys['Y'], y, train=False)},
  }

  def joint(name, optimizer):
    for variables in made[name].values():
      if set(variables) != {'params'}:
        raise UserError(
          f'config.{name}: {config[name].name} has batch statistics: a net without them, such as '
          "one with norm='instance', is needed"
        )
    return init_player({'params': {k: v['params'] for k, v in made[name].items()}}, optimizer)

  def empty(image):
    images = jnp.zeros((config.buffer.size, *image.shape[1:]))
    return Buffer(images, jnp.zeros((), jnp.int32))

  return State(
    step=jnp.zeros((), jnp.int32),
    G=joint('generator', game.g_optimizer),
    D=joint('discriminator', game.d_optimizer),
    x_buffer=empty(x),
    y_buffer=empty(y),
  )


def train_step(state, batch, rng, *, config, axis_name=None):
  """One update of G and F, then one of D_X and D_Y.

  Args:
    state: the `State`.
    batch: `x` and `y`, float32 [b, h, w, ...] in [-1, 1].
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and the metrics, float32 scalars.
  """
  game = build(config, axis_name=axis_name)
  x, y = batch['x'], batch['y']
  keys = step_keys(rng, state.step, 'x', 'y')
  how = dict(step=state.step, accumulate=config.train.accumulate, axis_name=axis_name)
  G, F = translators(game, state.G.params)
  y_fake, x_fake = G(x), F(y)

  loss = functools.partial(g_loss, D=state.D, game=game, config=config)
  g_player, g_metrics = update(
    state.G, loss, (x, y), (), name='g', optimizer=game.g_optimizer, **how
  )

  x_buffer, x_fake = exchange(state.x_buffer, x_fake, keys['x'], axis_name)
  y_buffer, y_fake = exchange(state.y_buffer, y_fake, keys['y'], axis_name)
  loss = functools.partial(d_loss, game=game, config=config)
  d_player, d_metrics = update(
    state.D, loss, (x, y, x_fake, y_fake), (), name='d', optimizer=game.d_optimizer, **how
  )
  state = State(state.step + 1, g_player, d_player, x_buffer, y_buffer)
  return state, g_metrics | d_metrics


def sample(state, given, rng, *, config) -> dict:
  """Held-out images of both domains translated, see `_two_domains.both_ways`."""
  to = lambda images, domain: translate(state, images, domain, rng, config=config)
  return both_ways(to, given)


def translate(state, images, to, rng, *, config) -> jax.Array:
  """G(x), or F(y), for images float32 [n, h, w, c] in [-1, 1] of any size: [n, h, w, d].

  Args:
    to: the domain of the result, 'y' or 'x'.
  """
  G, F = translators(build(config), state.G.params)
  return {'y': G, 'x': F}[to](images)


# --- Held-out images ----------------------------------------------------------------------------

MEASURES = {
  'cycle_x': Measure('|F(G(x)) - x|, of values in [-1, 1]', 'exact'),
  'cycle_y': Measure('|G(F(y)) - y|, of values in [-1, 1]', 'exact'),
}


def evaluate(state, batch, rng, *, config) -> dict:
  """How far images are from where they were after both translations: values [b] of `MEASURES`."""
  G, F = translators(build(config), state.G.params)
  x, y = batch['x'], batch['y']
  return {
    'cycle_x': jnp.mean(jnp.abs(F(G(x)) - x), axis=(1, 2, 3)),
    'cycle_y': jnp.mean(jnp.abs(G(F(y)) - y), axis=(1, 2, 3)),
  }
