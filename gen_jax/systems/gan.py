r"""Generative adversarial nets (Goodfellow et al. 2014, arXiv 1406.2661).

A generator G maps latents z to data, a discriminator D gives the probability that its input is
real. They play

    min_G max_D V(D, G) = E_x log D(x) + E_z log(1 - D(G(z)))  (Eq. 1)

For a fixed G the best D is D*(x) = p_data(x) / (p_data(x) + p_g(x)) (Prop. 1), where V = -2 log 2 +
2 JSD(p_data, p_g): at equilibrium D is 1/2 everywhere and V = -2 log 2 (Thm. 1). D works on logits
l, D(x) = sigmoid(l(x)), so log D = -softplus(-l) and log(1 - D) = -softplus(l). By default G
minimises -E log D(G(z)), which has the same fixed point and a strong gradient where D wins
(section 3).

One step is Algorithm 1: k updates of D, each on its own minibatch, then one of G.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import fields
from gen_jax.ops.scan import scan
from gen_jax.state import step_keys, update
from gen_jax.systems import _two_nets as two_nets
from gen_jax.systems._two_nets import State, generate, latents, score

FIELDS = two_nets.FIELDS | {
  'discriminator': fields.net(meaning='D: data to logits'),
  'loss.generator': fields.one_of(
    'minimax',
    'non_saturating',
    'maximum_likelihood',
    default='non_saturating',
    meaning='what G minimises',
  ),
  'loss.real_target': fields.number(
    above=0, high=1, default=1.0, meaning="D's target for real examples; below 1: label smoothing"
  ),
  'loss.d_steps': fields.integer(1, 10_000, default=1, meaning='k, updates of D per update of G'),
}
build = functools.partial(two_nets.build, d_field='discriminator')


def minibatches(config, step: int) -> int:
  """Minibatches that a step takes: leaves of the batch are [k, b, ...]."""
  return config.loss.d_steps


# --- The losses, as functions of logits ---------------------------------------------------------


def discriminator_loss(real, fake, real_target=1.0) -> jax.Array:
  """-V / 2 for logits of real and generated examples [b]: the mean binary cross-entropy; log 2 at
  equilibrium.

  With real_target = a < 1 (one-sided label smoothing, Salimans et al. 2016, section 3.4) the target
  of real examples is a, and the best D becomes a p_data / (p_data + p_g).
  """
  real_loss = real_target * nn.softplus(-real) + (1 - real_target) * nn.softplus(real)
  return 0.5 * (jnp.mean(real_loss) + jnp.mean(nn.softplus(fake)))


# What G minimises, as functions of D's logits for generated examples [b] (Goodfellow
# 2016, NIPS tutorial, arXiv 1701.00160, section 3.2; without its 1/2).
GENERATOR_LOSSES = {
  # E log(1 - D(G(z))): the game itself. Its gradient vanishes where D wins.
  'minimax': lambda fake: -jnp.mean(nn.softplus(fake)),
  # -E log D(G(z)): same fixed point, strong gradient where D wins.
  'non_saturating': lambda fake: jnp.mean(nn.softplus(-fake)),
  # -E exp(sigma^-1(D(G(z)))): the gradient of maximum likelihood where D is optimal.
  'maximum_likelihood': lambda fake: -jnp.mean(jnp.exp(fake)),
}


def d_loss(params, rows, keys, *, player, game, config):
  """D's loss on rows (x, x_fake), real and generated, each [b, ...]; also its metrics and new batch
  statistics.
  """
  x, x_fake = rows
  # Two passes, so that batch norm treats real and generated examples separately (Radford et al.
  # 2016).
  real, stats = score(game.D, player, x, keys['real'], params)
  fake, stats = score(game.D, player.replace(stats=stats), x_fake, keys['fake'], params)
  loss = discriminator_loss(real, fake, config.loss.real_target)
  metrics = {
    'd/loss': loss,
    'd/real_prob': jnp.mean(nn.sigmoid(real)),
    'd/fake_prob': jnp.mean(nn.sigmoid(fake)),
    'd/accuracy': 0.5 * (jnp.mean(real > 0) + jnp.mean(fake < 0)),
    # V = -2 log 2 + 2 JSD at the best D, so this is a lower bound on the divergence, in nats.
    'd/jsd': jnp.log(2.0) - discriminator_loss(real, fake),
  }
  return loss, (metrics, stats)


def g_loss(params, z, key, *, state, game, config):
  """G's loss on latents z [b, d]; also its metrics and new batch statistics."""
  x_fake, stats = generate(game.G, state.G, z, params)
  # D in training mode, with dropout; its updated batch statistics are discarded.
  fake, _ = score(game.D, state.D, x_fake, key)
  loss = GENERATOR_LOSSES[config.loss.generator](fake)
  return loss, ({'g/loss': loss}, stats)


METRICS = {
  'd/loss': "D's loss, -V / 2: log 2 at equilibrium (real examples have the target real_target)",
  'd/real_prob': 'mean of D(x)',
  'd/fake_prob': 'mean of D(G(z))',
  'd/accuracy': 'share of examples, half of them real, that D classifies right',
  'd/jsd': 'log 2 + V / 2: a lower bound of the Jensen-Shannon divergence, nats',
  'g/loss': "G's loss, of the kind loss.generator",
}


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """Fresh nets for data like batch['image'] [k, b, ...]."""
  return two_nets.init_state(rng, batch, build(config), config)


def train_step(state, batch, rng, *, config, axis_name=None):
  """Algorithm 1: k updates of D, then one of G.

  Args:
    state: the `State`.
    batch: `image` float32 [k, b, ...] in [-1, 1], k = config.loss.d_steps.
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and the metrics, float32 scalars; D's are those of its last update.
  """
  game = build(config, axis_name=axis_name)
  k, b = batch['image'].shape[:2]
  keys = step_keys(rng, state.step, 'D', 'z', 'dropout')
  how = dict(step=state.step, accumulate=config.train.accumulate, axis_name=axis_name)

  def d_step(D, inputs):
    x, key = inputs
    z_key, real_key, fake_key = jax.random.split(key, 3)
    x_fake, _ = generate(game.G, state.G, latents(z_key, b, config, axis_name))
    loss = functools.partial(d_loss, player=D, game=game, config=config)
    dropout = {'real': real_key, 'fake': fake_key}
    return update(D, loss, (x, x_fake), dropout, name='d', optimizer=game.d_optimizer, **how)

  D, d_metrics = scan(d_step, state.D, (batch['image'], jax.random.split(keys['D'], k)))

  z = latents(keys['z'], b, config, axis_name)
  loss = functools.partial(g_loss, state=state.replace(D=D), game=game, config=config)
  G, g_metrics = update(
    state.G, loss, z, keys['dropout'], name='g', optimizer=game.g_optimizer, **how
  )
  return State(state.step + 1, G, D), jax.tree.map(lambda m: m[-1], d_metrics) | g_metrics


def sample(state, given, rng, *, config) -> dict:
  """Generated examples, one for each row of `given`: {'image': float32 [n, ...] in [-1, 1]}."""
  return two_nets.sample(state, given, rng, build(config), config)


prior = two_nets.prior


def decode(state, z, given, *, config) -> dict:
  """G(z) for latents z [n, d]: {'image': float32 [n, ...] in [-1, 1]}."""
  del given
  return two_nets.decode(state, z, build(config), config)
