r"""BigBiGAN (Donahue and Simonyan 2019, Large Scale Adversarial Representation Learning, arXiv
1907.02544).

Beside the generator G there is an encoder E, z_hat ~ E(x), in the opposite direction. D is shown
pairs: (x, E(x)) with x of the data, and (G(z), z) with z ~ N(0, I). Where they have the same
distribution, E inverts G (Donahue et al. 2017, Adversarial Feature Learning, arXiv 1605.09782).
With features F(x), H(z) and J(F, H), D gives a joint score and two unary ones,

    s_xz(x, z) = theta_xz . J(F(x), H(z)),  s_x(x) = theta_x . F(x),  s_z(z) = theta_z . H(z)

and with h(t) = max(0, 1 - t) and y = +1 for pairs of E, -1 for those of G, the losses are means of

    l_D  = h(y s_xz) + h(y s_x) + h(y s_z)
    l_EG = y (s_xz + s_x + s_z)

over pairs (section 2). So E minimises the scores that D raises on its pairs, and G maximises those
of its own. The three terms are summed, as in the paper. The authors' published notebook takes one
mean over all of them instead, a third of this; to Adam that is the same.

E(x) = mu + sigma eps with eps ~ N(0, I). One step is d_steps updates of D, each on its own
minibatch, then one of G and one of E, on the last minibatch, against the same D.
"""

import functools
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import draws, fields, nets
from gen_jax.errors import UserError
from gen_jax.fields import Measure
from gen_jax.ops.scan import scan
from gen_jax.state import (
  OPTIMIZER,
  Player,
  init_player,
  make_optimizer,
  one_image,
  step_keys,
  update,
)
from gen_jax.systems import _two_nets as two_nets
from gen_jax.systems._two_nets import generate, latents

FIELDS = two_nets.FIELDS | {
  'encoder': fields.net(meaning='E: data to mu and sigma of z, before softplus'),
  'discriminator': fields.net(meaning='D: pairs of data and latents to s_xz, s_x and s_z'),
  'loss.d_steps': fields.integer(1, 10_000, default=1, smoke=1, meaning='updates of D in a step'),
  'loss.scores': fields.some_of(
    'xz', 'x', 'z', default=('xz', 'x', 'z'), meaning="scores in the losses; ('xz',) alone: BiGAN"
  ),
  **{f'optim.E.{name}': field for name, field in OPTIMIZER.items()},
}
CONDITIONS = ('image',)  # held-out images, to be reconstructed


@flax.struct.dataclass
class State:
  """Everything that a step changes."""

  step: jax.Array  # int32, the number of steps
  G: Player
  E: Player
  D: Player


class Game(NamedTuple):
  """The modules and optimisers of a config."""

  G: nets.Net
  E: nets.Net
  D: nets.Net
  g_optimizer: Any
  e_optimizer: Any
  d_optimizer: Any


def build(config, axis_name=None) -> Game:
  """Modules and optimisers; cheap, so every trace builds its own."""
  offered = dict(
    precision=config.precision,
    shape=config.data.shape,
    num_classes=None,
    outputs=2 * config.latent.dim,
    axis_name=axis_name,
  )
  return Game(
    G=nets.make(config.generator, 'config.generator', **offered),
    E=nets.make(config.encoder, 'config.encoder', **offered),
    D=nets.make(config.discriminator, 'config.discriminator', **offered),
    g_optimizer=make_optimizer(config.optim.G),
    e_optimizer=make_optimizer(config.optim.E),
    d_optimizer=make_optimizer(config.optim.D),
  )


def minibatches(config, step: int) -> int:
  """Minibatches that a step takes: leaves of the batch are [d_steps, b, ...]."""
  return config.loss.d_steps


def check(config) -> None:
  """Checks constraints between fields.

  Raises:
    UserError: E and G do not meet in a score.
  """
  if 'xz' not in config.loss.scores:
    raise UserError(
      f"config.loss.scores={tuple(config.loss.scores)}: 'xz' is needed among them, as no other "
      'score sees x and z'
    )


# --- The nets -----------------------------------------------------------------------------------


def posterior(game: Game, player: Player, x, params=None, train: bool = True):
  """mu and sigma [b, d] of E(x) for x [b, ...], and the batch statistics after this pass."""
  out, stats = generate(game.E, player, x, params, train=train)
  mu, raw = jnp.split(out, 2, axis=-1)
  return mu, nn.softplus(raw), stats


def scores(game: Game, player: Player, x, z, key, config, params=None):
  """The scores of pairs x [b, ...] and z [b, d] that config.loss.scores names, {name: [b]}, and the
  batch statistics after this pass.
  """
  variables = player.variables(params)
  made, updates = game.D.apply(
    variables, x, z, train=True, rngs={'dropout': key}, mutable=['batch_stats']
  )
  named = dict(zip(('xz', 'x', 'z'), made, strict=True))
  return {name: named[name] for name in config.loss.scores}, updates.get('batch_stats', {})


# --- The losses ---------------------------------------------------------------------------------


def discriminator_loss(encoded, generated) -> jax.Array:
  """The mean of l_D, for scores {name: [b]} of pairs of E and of G: a sum of hinge losses."""
  real = sum(jnp.mean(nn.relu(1 - s)) for s in encoded.values())
  return real + sum(jnp.mean(nn.relu(1 + s)) for s in generated.values())


def total(scores) -> jax.Array:
  """The mean of the sum of scores {name: [b]}: l_EG of pairs of E, and -l_EG of pairs of G."""
  return sum(jnp.mean(s) for s in scores.values())


def d_loss(params, rows, keys, *, player, game, config):
  """D's loss on rows (x, z_hat, x_hat, z), pairs of E and pairs of G; also its metrics and the new
  singular vectors of spectral norm.
  """
  x, z_hat, x_hat, z = rows
  encoded, stats = scores(game, player, x, z_hat, keys['encoded'], config, params)
  player = player.replace(stats=stats)
  generated, stats = scores(game, player, x_hat, z, keys['generated'], config, params)
  loss = discriminator_loss(encoded, generated)
  metrics = {'d/loss': loss}
  for name in config.loss.scores:
    right = jnp.mean(encoded[name] > 0) + jnp.mean(generated[name] < 0)
    metrics[f'd/accuracy_{name}'] = 0.5 * right
  return loss, (metrics, stats)


def g_loss(params, z, key, *, state, game, config):
  """-(s_xz + s_x + s_z) of pairs (G(z), z), for z [b, d]; the mean over pairs."""
  x_hat, stats = generate(game.G, state.G, z, params)
  generated, _ = scores(game, state.D, x_hat, z, key, config)
  loss = -total(generated)
  return loss, ({'g/loss': loss}, stats)


def e_loss(params, rows, key, *, state, game, config):
  """s_xz + s_x + s_z of pairs (x, E(x)), for rows (x, eps), [b, ...] and [b, d]; the mean."""
  x, eps = rows
  mu, sigma, stats = posterior(game, state.E, x, params)
  encoded, _ = scores(game, state.D, x, mu + sigma * eps, key, config)
  loss = total(encoded)
  return loss, ({'e/loss': loss, 'e/sigma': jnp.mean(sigma)}, stats)


METRICS = {
  'd/loss': "sum of the hinge losses of D's scores",
  **{
    f'd/accuracy_{name}': f'share of pairs, half of them of E, whose s_{name} has the right sign, '
    'where it is in loss.scores'
    for name in ('xz', 'x', 'z')
  },
  'g/loss': "-(s_xz + s_x + s_z) of G's pairs",
  'e/loss': "s_xz + s_x + s_z of E's pairs",
  'e/sigma': 'mean of sigma',
}


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """Fresh nets for data like batch['image'] [d_steps, b, ...]."""
  game = build(config)
  g_key, e_key, d_key = jax.random.split(rng, 3)
  x, z = one_image(batch, config, axes=2), jnp.zeros((1, config.latent.dim))
  return State(
    step=jnp.zeros((), jnp.int32),
    G=init_player(game.G.init(g_key, z, train=False), game.g_optimizer),
    E=init_player(game.E.init(e_key, x, train=False), game.e_optimizer),
    D=init_player(game.D.init(d_key, x, z, train=False), game.d_optimizer),
  )


def train_step(state, batch, rng, *, config, axis_name=None):
  """d_steps updates of D, then one of G and one of E.

  Args:
    state: the `State`.
    batch: `image` float32 [d_steps, b, ...] in [-1, 1].
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and the metrics, float32 scalars; D's are those of its last update.
  """
  game = build(config, axis_name=axis_name)
  k, b = batch['image'].shape[:2]
  keys = step_keys(rng, state.step, 'D', 'z', 'g', 'eps', 'e')
  how = dict(step=state.step, accumulate=config.train.accumulate, axis_name=axis_name)

  def noise(key):
    return draws.normal(key, (b, config.latent.dim), axis_name)

  def d_step(D, inputs):
    x, key = inputs
    z_key, eps_key, encoded_key, generated_key = jax.random.split(key, 4)
    z = latents(z_key, b, config, axis_name)
    x_hat, _ = generate(game.G, state.G, z)
    mu, sigma, _ = posterior(game, state.E, x)
    rows = x, mu + sigma * noise(eps_key), x_hat, z
    loss = functools.partial(d_loss, player=D, game=game, config=config)
    dropout = {'encoded': encoded_key, 'generated': generated_key}
    return update(D, loss, rows, dropout, name='d', optimizer=game.d_optimizer, **how)

  D, d_metrics = scan(d_step, state.D, (batch['image'], jax.random.split(keys['D'], k)))

  z = latents(keys['z'], b, config, axis_name)
  loss = functools.partial(g_loss, state=state.replace(D=D), game=game, config=config)
  G, g_metrics = update(state.G, loss, z, keys['g'], name='g', optimizer=game.g_optimizer, **how)

  rows = batch['image'][-1], noise(keys['eps'])
  loss = functools.partial(e_loss, state=state.replace(D=D), game=game, config=config)
  E, e_metrics = update(state.E, loss, rows, keys['e'], name='e', optimizer=game.e_optimizer, **how)
  metrics = jax.tree.map(lambda m: m[-1], d_metrics) | g_metrics | e_metrics
  return State(state.step + 1, G, E, D), metrics


def sample(state, given, rng, *, config) -> dict:
  """Generated examples, one for each row of `given`: {'image': float32 [n, ...] in [-1, 1]}. If
  `given` has an 'image' [n, ...], also 'reconstruction' [n, 2, ...], each beside G(mu(x)).
  """
  made = two_nets.sample(state, given, rng, build(config), config)
  if 'image' in given:
    coded = encode(state, given, rng, config=config)
    made['reconstruction'] = jnp.stack([given['image'], coded['reconstruction']], 1)
  return made


def encode(state, batch, rng, *, config) -> dict:
  """'z' [b, d], mu of batch['image'] [b, ...], and 'reconstruction' [b, ...], G(mu). With running
  averages in batch norm, so that they do not depend on the other images.
  """
  game = build(config)
  mu, _, _ = posterior(game, state.E, batch['image'], train=False)
  return {'z': mu, 'reconstruction': generate(game.G, state.G, mu, train=False)[0]}


prior = two_nets.prior


def decode(state, z, given, *, config) -> dict:
  """G(z) for latents z [n, d]: {'image': float32 [n, ...] in [-1, 1]}."""
  del given
  return two_nets.decode(state, z, build(config), config)


MEASURES = {'squared_error': Measure('||x - G(E(x))||^2, values in [-1, 1]', 'exact')}


def evaluate(state, batch, rng, *, config) -> dict:
  """'squared_error' [b] of reconstructions of batch['image'] [b, ...], the sum over values."""
  x = batch['image']
  reconstruction = encode(state, batch, rng, config=config)['reconstruction']
  return {'squared_error': jnp.sum((x - reconstruction) ** 2, tuple(range(1, x.ndim)))}
