r"""WGAN with gradient penalty (Gulrajani et al. 2017, arXiv 1704.00028).

The critic D estimates the Wasserstein-1 distance W(p_data, p_g) = sup over 1-Lipschitz f of E f(x)
- E f(G(z)) (Arjovsky et al. 2017); G makes it small. A function is 1-Lipschitz if its gradient has
norm at most 1, and the best critic has norm 1 almost everywhere on lines between real and generated
points, so the critic minimises (Eq. 3)

    L = E D(x~) - E D(x) + lambda E (||grad D(x^)||_2 - 1)^2,    x^ = x + alpha (x~ - x)

with x real, x~ = G(z), and alpha ~ U(0, 1), one for each example, as is the norm; so the critic has
no batch norm. G minimises -E D(G(z)).

One step is Algorithm 1: n_critic updates of D, each on a minibatch of its own, then one of G.
"""

import functools
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp

from gen_jax import config as rules
from gen_jax import draws, nets
from gen_jax.errors import UserError
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
  'critic': rules.NET,
  'latent.dim': rules.integer(low=1),
  'loss.penalty': rules.number(low=0),  # lambda
  'loss.n_critic': rules.integer(low=1),  # updates of D per update of G
  'loss.g_batch': rules.integer(low=1),  # G's batch as a multiple of D's
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
    D=nets.make(config.critic, 'config.critic', **offered),
    g_optimizer=make_optimizer(config.optim.G),
    d_optimizer=make_optimizer(config.optim.D),
  )


def minibatches(config) -> int:
  """Minibatches that one step takes: leaves of the batch are [n_critic, b, ...]."""
  return config.loss.n_critic


# --- The losses ---------------------------------------------------------------------------------


def gradient_penalty(D, x_hat):
  """E (||grad D(x^)|| - 1)^2 over x^ [b, ...], and the mean norm; D maps [b, ...] to [b].

  Rows do not meet in D, so the gradient of the sum holds each example's own gradient.
  """
  grads = jax.grad(lambda x: jnp.sum(D(x)))(x_hat)
  squares = jnp.sum(grads.reshape(len(grads), -1) ** 2, axis=1)
  # The root has no derivative at 0, where a dead critic's gradient is.
  norms = jnp.sqrt(jnp.maximum(squares, 1e-24))
  return jnp.mean((norms - 1) ** 2), jnp.mean(norms)


def d_loss(params, rows, keys, *, game, config):
  """The critic's loss on rows (x, x_fake, alpha): real and generated [b, ...], and alpha [b]; also
  its metrics.
  """
  x, x_fake, alpha = rows

  def D(x, key):
    return game.D.apply({'params': params}, x, train=True, rngs={'dropout': key})

  # One pass, since without batch norm rows never meet; side by side, so that a device's rows stay
  # together under pmap.
  both = D(jnp.stack([x, x_fake], axis=1).reshape(-1, *x.shape[1:]), keys['critic'])
  real, fake = jnp.mean(both[0::2]), jnp.mean(both[1::2])
  x_hat = x + alpha.reshape(-1, *[1] * (x.ndim - 1)) * (x_fake - x)
  penalty, norm = gradient_penalty(lambda x: D(x, keys['penalty']), x_hat)
  loss = fake - real + config.loss.penalty * penalty
  metrics = {
    'd/loss': loss,
    'd/wasserstein': real - fake,
    'd/penalty': penalty,
    'd/input_grad_norm': norm,  # mean ||grad D(x^)||, which the penalty pulls to 1
  }
  return loss, metrics


def g_loss(params, z, key, *, state, game, config):
  """-E D(G(z)) on latents z [b, d]; also its metrics and new batch statistics."""
  x_fake, updates = game.G.apply(state.G.variables(params), z, train=True, mutable=['batch_stats'])
  loss = -jnp.mean(
    game.D.apply({'params': state.D.params}, x_fake, train=True, rngs={'dropout': key})
  )
  return loss, ({'g/loss': loss}, updates.get('batch_stats', {}))


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """Fresh nets for data like batch['image'] [n_critic, b, ...].

  Raises:
    UserError: the critic has batch norm, which the penalty forbids.
  """
  game = build(config)
  g_key, d_key = jax.random.split(rng)
  z = jnp.zeros((1, config.latent.dim))
  x = jnp.zeros((1, *batch['image'].shape[2:]))
  d_variables = game.D.init(d_key, x, train=False)
  if 'batch_stats' in d_variables:
    raise UserError(
      f'config.critic.name={config.critic.name!r} has batch norm, but the penalty is per example; '
      'a net without is needed'
    )
  return State(
    step=jnp.zeros((), jnp.int32),
    G=init_player(game.G.init(g_key, z, train=False), game.g_optimizer),
    D=init_player(d_variables, game.d_optimizer),
  )


def train_step(state, batch, rng, *, config, axis_name=None):
  """Algorithm 1: n_critic updates of the critic, then one of the generator.

  Args:
    state: the `State`.
    batch: `image` float32 [n_critic, b, ...] in [-1, 1].
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and metrics, float32 scalars: losses, gradient norms, the estimate of the
    Wasserstein distance, the penalty and the mean norm of the critic's gradient with respect to its
    input. D's are those of its last update.
  """
  game = build(config, axis_name)
  k, b = batch['image'].shape[:2]
  keys = step_keys(rng, state.step, 'D', 'z', 'dropout')

  def d_step(D, inputs):
    x, key = inputs
    z_key, alpha_key, critic_key, penalty_key = jax.random.split(key, 4)
    z = draws.normal(z_key, (b, config.latent.dim), axis_name)
    alpha = draws.uniform(alpha_key, (b,), axis_name)
    x_fake, _ = game.G.apply(state.G.variables(), z, train=True, mutable=['batch_stats'])
    loss = functools.partial(d_loss, game=game, config=config)
    (_, metrics), grads = value_and_grad(loss, config.train.accumulate)(
      D.params, (x, x_fake, alpha), {'critic': critic_key, 'penalty': penalty_key}
    )
    D, norm = apply_gradients(D, grads, game.d_optimizer, state.step, axis_name=axis_name)
    return D, metrics | {'d/grad_norm': norm}

  D, d_metrics = scan(d_step, state.D, (batch['image'], jax.random.split(keys['D'], k)))

  z = draws.normal(keys['z'], (b * config.loss.g_batch, config.latent.dim), axis_name)
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
  z = draws.normal(rng, (batch_size(batch), config.latent.dim))
  # `mutable`: some nets use the statistics of the batch in sampling too, and then record them.
  x, _ = game.G.apply(state.G.variables(), z, train=False, mutable=['batch_stats'])
  return {'image': x}
