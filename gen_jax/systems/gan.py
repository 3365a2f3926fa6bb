r"""Generative adversarial nets (Goodfellow et al. 2014, arXiv 1406.2661).

A generator G maps latents z to data, a discriminator D gives the probability that its input is
real. They play

    min_G max_D V(D, G) = E_x log D(x) + E_z log(1 - D(G(z)))  (Eq. 1)

For a fixed G the best D is D*(x) = p_data(x) / (p_data(x) + p_g(x)) (Prop. 1), where V = -2 log 2 +
2 JSD(p_data, p_g): at equilibrium D is 1/2 everywhere and V = -2 log 2 (Thm. 1). D works on logits
l, D(x) = sigmoid(l(x)), so log D = -softplus(-l) and log(1 - D) = -softplus(l).

One step is Algorithm 1: k updates of D, each on a minibatch of its own, then one of G.
"""

import functools
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import config as rules
from gen_jax import draws, nets
from gen_jax.ops.scan import scan
from gen_jax.state import (
  OPTIMIZER,
  Player,
  apply_gradients,
  average,
  batch_size,
  init_player,
  make_optimizer,
  step_keys,
  value_and_grad,
)

FIELDS = {
  'generator': rules.NET,
  'discriminator': rules.NET,
  'latent.dim': rules.integer(low=1),
  'latent.distribution': rules.one_of('normal', 'uniform'),  # N(0, 1) or U(-1, 1), per entry
  'loss.generator': rules.one_of('minimax', 'non_saturating', 'maximum_likelihood'),
  'loss.real_target': rules.number(above=0, high=1),  # one-sided label smoothing; 1: none
  'loss.d_steps': rules.integer(low=1),  # k, updates of D per update of G
  **{f'optim.{net}.{name}': field for net in 'GD' for name, field in OPTIMIZER.items()},
}


@flax.struct.dataclass
class State:
  """Everything that a step changes."""

  step: jax.Array  # int32, number of generator updates
  G: Player
  D: Player


class Game(NamedTuple):
  """The modules and optimisers of a config."""

  G: nets.Net
  D: nets.Net
  g_optimizer: Any
  d_optimizer: Any


def build(config, axis_name=None) -> Game:
  """Modules and optimisers; cheap, so it is done anew in every trace."""
  offered = {'precision': config.precision, 'shape': config.data.shape, 'axis_name': axis_name}
  return Game(
    G=nets.make(config.generator, 'config.generator', **offered),
    D=nets.make(config.discriminator, 'config.discriminator', **offered),
    g_optimizer=make_optimizer(config.optim.G),
    d_optimizer=make_optimizer(config.optim.D),
  )


def minibatches(config) -> int:
  """Minibatches that one step takes: leaves of the batch are [k, b, ...]."""
  return config.loss.d_steps


def latents(key, n: int, config, axis_name=None) -> jax.Array:
  """z [n, latent.dim]."""
  shape = (n, config.latent.dim)
  if config.latent.distribution == 'uniform':
    return draws.uniform(key, shape, axis_name, low=-1.0, high=1.0)
  return draws.normal(key, shape, axis_name)


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
  """D's loss on rows (x, x_fake), real and generated, each [b, ...];
  also its metrics and new batch statistics.
  """
  x, x_fake = rows

  def logits(stats, x, key):
    variables = {'params': params, 'batch_stats': stats}
    out, updates = game.D.apply(
      variables, x, train=True, rngs={'dropout': key}, mutable=['batch_stats']
    )
    return out, updates.get('batch_stats', {})

  # Two passes, so that batch norm sees real and generated examples apart (Radford et al. 2016).
  real, stats = logits(player.stats, x, keys['real'])
  fake, stats = logits(stats, x_fake, keys['fake'])
  loss = discriminator_loss(real, fake, config.loss.real_target)
  metrics = {
    'd/loss': loss,
    'd/real_prob': jnp.mean(nn.sigmoid(real)),
    'd/fake_prob': jnp.mean(nn.sigmoid(fake)),
    'd/accuracy': 0.5 * (jnp.mean(real > 0) + jnp.mean(fake < 0)),
    # V = -2 log 2 + 2 JSD at the best D, so this is a lower bound of the divergence, in nats.
    'd/jsd': jnp.log(2.0) - discriminator_loss(real, fake),
  }
  return loss, (metrics, stats)


def g_loss(params, z, key, *, state, game, config):
  """G's loss on latents z [b, d]; also its metrics and new batch statistics."""
  x_fake, updates = game.G.apply(state.G.variables(params), z, train=True, mutable=['batch_stats'])
  # D as it is trained, dropout included; the statistics it would record are not kept.
  fake, _ = game.D.apply(
    state.D.variables(), x_fake, train=True, rngs={'dropout': key}, mutable=['batch_stats']
  )
  loss = GENERATOR_LOSSES[config.loss.generator](fake)
  return loss, ({'g/loss': loss}, updates.get('batch_stats', {}))


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """Fresh nets for data like batch['image'] [k, b, ...]."""
  game = build(config)
  g_key, d_key = jax.random.split(rng)
  z = jnp.zeros((1, config.latent.dim))
  x = jnp.zeros((1, *batch['image'].shape[2:]))
  return State(
    step=jnp.zeros((), jnp.int32),
    G=init_player(game.G.init(g_key, z, train=False), game.g_optimizer),
    D=init_player(game.D.init(d_key, x, train=False), game.d_optimizer),
  )


def train_step(state, batch, rng, *, config, axis_name=None):
  """Algorithm 1: k discriminator updates, then one generator update.

  Args:
    state: the `State`.
    batch: `image` float32 [k, b, ...] in [-1, 1], k = config.loss.d_steps.
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and metrics, float32 scalars: losses, gradient norms, D's mean probabilities and
    accuracy, and the estimate of the Jensen-Shannon divergence. D's are those of its last update.
  """
  game = build(config, axis_name)
  k, b = batch['image'].shape[:2]
  keys = step_keys(rng, state.step, 'D', 'z', 'dropout')

  def d_step(D, inputs):
    x, key = inputs
    z_key, real_key, fake_key = jax.random.split(key, 3)
    z = latents(z_key, b, config, axis_name)
    x_fake, _ = game.G.apply(state.G.variables(), z, train=True, mutable=['batch_stats'])
    loss = functools.partial(d_loss, player=D, game=game, config=config)
    (_, (metrics, stats)), grads = value_and_grad(loss, config.train.accumulate)(
      D.params, (x, x_fake), {'real': real_key, 'fake': fake_key}
    )
    D, norm = apply_gradients(
      D, grads, game.d_optimizer, state.step, stats=stats, axis_name=axis_name
    )
    return D, metrics | {'d/grad_norm': norm}

  D, d_metrics = scan(d_step, state.D, (batch['image'], jax.random.split(keys['D'], k)))

  z = latents(keys['z'], b, config, axis_name)
  loss = functools.partial(g_loss, state=state.replace(D=D), game=game, config=config)
  (_, (g_metrics, stats)), grads = value_and_grad(loss, config.train.accumulate)(
    state.G.params, z, keys['dropout']
  )
  G, norm = apply_gradients(
    state.G, grads, game.g_optimizer, state.step, stats=stats, axis_name=axis_name
  )

  metrics = jax.tree.map(lambda m: m[-1], d_metrics) | g_metrics | {'g/grad_norm': norm}
  return State(state.step + 1, G, D), average(metrics, axis_name)


def sample(state, batch, rng, *, config) -> dict:
  """Generated examples, one for each row of `batch`: {'image': float32 [n, ...] in [-1, 1]}."""
  game = build(config)
  z = latents(rng, batch_size(batch), config)
  # `mutable`: some nets use the statistics of the batch in sampling too, and then record them.
  x, _ = game.G.apply(state.G.variables(), z, train=False, mutable=['batch_stats'])
  return {'image': x}
