r"""Conditional GAN (Mirza and Osindero 2014, arXiv 1411.1784).

G and D both know a label y, and play the game of Goodfellow et al. 2014 for each y:

    min_G max_D V(D, G) = E_x log D(x | y) + E_z log(1 - D(G(z | y) | y))                    (Eq. 2)

For a fixed G the best D is p_data(x | y) / (p_data(x | y) + p_g(x | y)), and V = -2 log 2 + 2 JSD
of the two, in the mean over y: G is right when it has learned p_data(x | y) for every y. D works on
logits l, D = sigmoid(l). By default G minimises -log D(G(z | y) | y), which has the same fixed
point and a strong gradient where D wins.

One step is one update of D, then one of G. Generated examples have the labels of the batch, so
that labels alone tell D nothing.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from gen_jax import fields
from gen_jax.state import step_keys, update
from gen_jax.systems import _two_nets as two_nets
from gen_jax.systems._two_nets import State, generate, latents, score
from gen_jax.systems.gan import GENERATOR_LOSSES

FIELDS = two_nets.FIELDS | {
  'generator': fields.net(meaning='G: latents and labels to data'),
  'discriminator': fields.net(meaning='D: data and labels to logits'),
  'loss.generator': fields.one_of(
    'minimax',
    'non_saturating',
    default='non_saturating',
    meaning='what G minimises: log(1 - D) or -log D',
  ),
}
build = functools.partial(two_nets.build, d_field='discriminator')
check = two_nets.check_classes


def minibatches(config, step: int) -> int:
  """One minibatch a step: leaves of the batch are [1, b, ...]."""
  return 1


# --- The losses ---------------------------------------------------------------------------------


def d_loss(params, rows, keys, *, player, game):
  """-V / 2 on rows (x, x_fake, y), where y int32 [b] are the labels of both; also D's metrics and
  new batch statistics.
  """
  x, x_fake, y = rows
  real, stats = score(game.D, player, x, keys['real'], params, label=y)
  player = player.replace(stats=stats)
  fake, stats = score(game.D, player, x_fake, keys['fake'], params, label=y)
  V = -jnp.mean(nn.softplus(-real)) - jnp.mean(nn.softplus(fake))
  metrics = {
    'd/loss': -V / 2,
    'd/real_prob': jnp.mean(nn.sigmoid(real)),
    'd/fake_prob': jnp.mean(nn.sigmoid(fake)),
    'd/accuracy': 0.5 * (jnp.mean(real > 0) + jnp.mean(fake < 0)),
  }
  return -V / 2, (metrics, stats)


def g_loss(params, rows, keys, *, state, game, config):
  """G's loss on rows (z, y), y int32 [b]; also its metrics and new batch statistics."""
  z, y = rows
  x_fake, stats = generate(game.G, state.G, z, params, label=y, key=keys['g'])
  # D in training mode, with dropout; its updated batch statistics are discarded.
  fake, _ = score(game.D, state.D, x_fake, keys['d'], label=y)
  loss = GENERATOR_LOSSES[config.loss.generator](fake)
  return loss, ({'g/loss': loss}, stats)


METRICS = {
  'd/loss': "D's loss, -V / 2: log 2 at equilibrium",
  'd/real_prob': 'mean of D(x | y)',
  'd/fake_prob': 'mean of D(G(z | y) | y)',
  'd/accuracy': 'share of examples, half of them real, that D classifies right',
  'g/loss': "G's loss, of the kind loss.generator",
}


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """Fresh nets for data like batch['image'] [1, b, ...]."""
  label = jnp.zeros(1, jnp.int32)
  return two_nets.init_state(rng, batch, build(config), config, label=label)


def train_step(state, batch, rng, *, config, axis_name=None):
  """One update of D on a minibatch and as many generated examples, then one of G.

  Args:
    state: the `State`.
    batch: `image` float32 [1, b, ...] in [-1, 1] and `label` int32 [1, b].
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and the metrics, float32 scalars.
  """
  game = build(config, axis_name=axis_name)
  x, y = batch['image'][0], batch['label'][0]
  keys = step_keys(rng, state.step, 'd_z', 'd_g', 'real', 'fake', 'g_z', 'g', 'd')
  how = dict(step=state.step, accumulate=config.train.accumulate, axis_name=axis_name)

  z = latents(keys['d_z'], len(x), config, axis_name)
  x_fake, _ = generate(game.G, state.G, z, label=y, key=keys['d_g'])
  loss = functools.partial(d_loss, player=state.D, game=game)
  dropout = {'real': keys['real'], 'fake': keys['fake']}
  D, d_metrics = update(
    state.D, loss, (x, x_fake, y), dropout, name='d', optimizer=game.d_optimizer, **how
  )

  z = latents(keys['g_z'], len(x), config, axis_name)
  loss = functools.partial(g_loss, state=state.replace(D=D), game=game, config=config)
  dropout = {'g': keys['g'], 'd': keys['d']}
  G, g_metrics = update(state.G, loss, (z, y), dropout, name='g', optimizer=game.g_optimizer, **how)
  return State(state.step + 1, G, D), d_metrics | g_metrics


def sample(state, given, rng, *, config) -> dict:
  """Generated examples of the classes given['label'] int32 [n]: {'image': float32 [n, ...] in
  [-1, 1]}.
  """
  return two_nets.sample(state, given, rng, build(config), config, label=given['label'])


def conditional(state, *, config) -> bool:
  """Samples depend on labels."""
  return True


prior = two_nets.prior


def decode(state, z, given, *, config) -> dict:
  """G(z, y) for z [n, d] and the labels y in `given`, as `sample`."""
  return two_nets.decode(state, z, build(config), config, label=given['label'])
