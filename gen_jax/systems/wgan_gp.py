r"""WGAN with gradient penalty (Gulrajani et al. 2017, arXiv 1704.00028).

The critic D estimates the Wasserstein-1 distance W(p_data, p_g) = sup over 1-Lipschitz f of E f(x)
- E f(G(z)) (Arjovsky et al. 2017); G minimises it. A function is 1-Lipschitz if its gradient has
norm at most 1, and the best critic has norm 1 almost everywhere on lines between real and generated
points, so the critic minimises (Eq. 3)

    L = E D(x~) - E D(x) + lambda E (||grad D(x^)||_2 - 1)^2,    x^ = x + alpha (x~ - x)

with x real, x~ = G(z), and alpha ~ U(0, 1). alpha and the norm are per example, so the critic has
no batch norm. G minimises -E D(G(z)).

One step is Algorithm 1: n_critic updates of D, each on its own minibatch, then one of G.
"""

import functools

import jax
import jax.numpy as jnp

from gen_jax import draws, fields
from gen_jax.errors import UserError
from gen_jax.nets.layers import deinterleave, interleave
from gen_jax.ops.scan import scan
from gen_jax.state import step_keys, update
from gen_jax.systems import _two_nets as two_nets
from gen_jax.systems._two_nets import State, generate, latents, score

FIELDS = two_nets.FIELDS | {
  'critic': fields.net(meaning='D: data to one number; without batch norm'),
  'loss.penalty': fields.number(
    0, default=10.0, meaning='lambda, weight of the gradient penalty, for data in [-1, 1]'
  ),
  'loss.n_critic': fields.integer(
    1, 10_000, default=5, smoke=2, meaning='updates of D per update of G'
  ),
  'loss.g_batch': fields.integer(1, 10_000, default=1, meaning="G's batch as a multiple of D's"),
}
build = functools.partial(two_nets.build, d_field='critic')


def minibatches(config, step: int) -> int:
  """Minibatches that a step takes: leaves of the batch are [n_critic, b, ...]."""
  return config.loss.n_critic


# --- The losses ---------------------------------------------------------------------------------


def gradient_penalty(D, x_hat):
  """E (||grad D(x^)|| - 1)^2 over x^ [b, ...], and the mean norm; D maps [b, ...] to [b].

  Rows do not interact in D, so the gradient of the sum holds the gradient of each example.
  """
  grads = jax.grad(lambda x: jnp.sum(D(x)))(x_hat)
  squares = jnp.sum(grads.reshape(len(grads), -1) ** 2, axis=1)
  # The root has no derivative at 0, the gradient of a dead critic.
  norms = jnp.sqrt(jnp.maximum(squares, 1e-24))
  return jnp.mean((norms - 1) ** 2), jnp.mean(norms)


def d_loss(params, rows, keys, *, game, config):
  """The critic's loss on rows (x, x_fake, alpha): real and generated [b, ...], and alpha [b]; also
  its metrics.
  """
  x, x_fake, alpha = rows

  def D(x, key):
    return game.D.apply({'params': params}, x, train=True, rngs={'dropout': key})

  # One pass, since without batch norm rows do not interact; interleaved, so that rows stay on their
  # device.
  scores = D(interleave([x, x_fake]), keys['critic'])
  real, fake = (jnp.mean(s) for s in deinterleave(scores, 2))
  x_hat = x + alpha.reshape(-1, *[1] * (x.ndim - 1)) * (x_fake - x)
  penalty, norm = gradient_penalty(lambda x: D(x, keys['penalty']), x_hat)
  loss = fake - real + config.loss.penalty * penalty
  metrics = {
    'd/loss': loss,
    'd/wasserstein': real - fake,
    'd/penalty': penalty,
    'd/input_grad_norm': norm,
  }
  return loss, (metrics, {})


def g_loss(params, z, key, *, state, game):
  """-E D(G(z)) on latents z [b, d]; also its metrics and new batch statistics."""
  x_fake, stats = generate(game.G, state.G, z, params)
  fake, _ = score(game.D, state.D, x_fake, key)
  loss = -jnp.mean(fake)
  return loss, ({'g/loss': loss}, stats)


METRICS = {
  'd/loss': '-d/wasserstein + lambda d/penalty',
  'd/wasserstein': 'mean D(x) - mean D(G(z)), an estimate of the Wasserstein-1 distance',
  'd/penalty': 'mean of (||grad D(x^)|| - 1)^2',
  'd/input_grad_norm': 'mean of ||grad D(x^)||, which the penalty pulls to 1',
  'g/loss': '-mean D(G(z))',
}


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """Fresh nets for data like batch['image'] [n_critic, b, ...].

  Raises:
    UserError: the critic has batch norm, which the penalty forbids.
  """
  state = two_nets.init_state(rng, batch, build(config), config)
  if state.D.stats:
    raise UserError(
      f'config.critic.name={config.critic.name!r} has batch norm, but the penalty is per example; '
      'a net without is needed'
    )
  return state


def train_step(state, batch, rng, *, config, axis_name=None):
  """Algorithm 1: n_critic updates of D, then one of G.

  Args:
    state: the `State`.
    batch: `image` float32 [n_critic, b, ...] in [-1, 1].
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
    z_key, alpha_key, critic_key, penalty_key = jax.random.split(key, 4)
    z = latents(z_key, b, config, axis_name)
    alpha = draws.uniform(alpha_key, (b,), axis_name)
    x_fake, _ = generate(game.G, state.G, z)
    rows = x, x_fake, alpha
    loss = functools.partial(d_loss, game=game, config=config)
    dropout = {'critic': critic_key, 'penalty': penalty_key}
    return update(D, loss, rows, dropout, name='d', optimizer=game.d_optimizer, **how)

  D, d_metrics = scan(d_step, state.D, (batch['image'], jax.random.split(keys['D'], k)))

  z = latents(keys['z'], b * config.loss.g_batch, config, axis_name)
  loss = functools.partial(g_loss, state=state.replace(D=D), game=game)
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
