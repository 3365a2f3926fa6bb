r"""Wasserstein GAN with weight clipping (Arjovsky, Chintala and Bottou 2017, arXiv 1701.07875).

The Wasserstein-1 distance of data and generator is W = sup over 1-Lipschitz f of E f(x) - E f(G(z))
(Eq. 2). The critic D looks for f among nets with weights in [-c, c], which are K-Lipschitz for some
K: max_D E D(x) - E D(G(z)) = K W (Eq. 3). G minimises -E D(G(z)) (Thm. 3). The gradient does not
vanish near the best critic, which is therefore trained towards it, most of all at the start.

One step is Algorithm 1: n_critic updates of D, each on its own minibatch and with the weights
clipped before it, as in the released code, then one of G.
"""

import functools

import jax
import jax.numpy as jnp

from gen_jax import fields
from gen_jax.ops.scan import scan
from gen_jax.state import step_keys, update
from gen_jax.systems import _two_nets as two_nets
from gen_jax.systems._two_nets import State, generate, latents, score

FIELDS = two_nets.FIELDS | {
  'critic': fields.net(meaning='D: data to one number'),
  'loss.clip': fields.number(above=0, default=0.01, meaning='c: weights of D stay in [-c, c]'),
  'loss.n_critic': fields.integer(
    1, 10_000, default=5, smoke=2, meaning='updates of D per update of G'
  ),
  'loss.n_critic_start': fields.integer(
    1, 10_000, default=100, smoke=3, meaning='n_critic at the start, and now and then later'
  ),
  'loss.start_steps': fields.integer(
    0, default=25, smoke=2, meaning='first steps, with n_critic_start'
  ),
  'loss.start_every': fields.integer(
    1, default=500, meaning='steps that are multiples of this have n_critic_start, too'
  ),
}
build = functools.partial(two_nets.build, d_field='critic')


def minibatches(config, step: int) -> int:
  """Minibatches that a step takes: leaves of the batch are [k, b, ...]."""
  loss = config.loss
  more = step < loss.start_steps or step % loss.start_every == 0
  return loss.n_critic_start if more else loss.n_critic


# --- The losses ---------------------------------------------------------------------------------


def d_loss(params, rows, keys, *, player, game):
  """The critic's loss on rows (x, x_fake), real and generated, each [b, ...]; also its metrics and
  new batch statistics.
  """
  x, x_fake = rows
  # Two passes, so that batch norm treats real and generated examples separately, as in the released
  # code.
  real, stats = score(game.D, player, x, keys['real'], params)
  fake, stats = score(game.D, player.replace(stats=stats), x_fake, keys['fake'], params)
  wasserstein = jnp.mean(real) - jnp.mean(fake)
  return -wasserstein, ({'d/loss': -wasserstein, 'd/wasserstein': wasserstein}, stats)


def g_loss(params, z, key, *, state, game):
  """-E D(G(z)) on latents z [b, d]; also its metrics and new batch statistics."""
  x_fake, stats = generate(game.G, state.G, z, params)
  # D in training mode; its updated batch statistics are discarded.
  fake, _ = score(game.D, state.D, x_fake, key)
  loss = -jnp.mean(fake)
  return loss, ({'g/loss': loss}, stats)


METRICS = {
  'd/loss': '-d/wasserstein',
  'd/wasserstein': 'mean D(x) - mean D(G(z)), an estimate of K times the Wasserstein-1 distance',
  'g/loss': '-mean D(G(z))',
}


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """Fresh nets for data like batch['image'] [k, b, ...]."""
  return two_nets.init_state(rng, batch, build(config), config)


def train_step(state, batch, rng, *, config, axis_name=None):
  """Algorithm 1: k updates of D with clipped weights, then one of G.

  Args:
    state: the `State`.
    batch: `image` float32 [k, b, ...] in [-1, 1], k = minibatches(config, state.step).
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
  c = config.loss.clip

  def d_step(D, inputs):
    x, key = inputs
    z_key, real_key, fake_key = jax.random.split(key, 3)
    D = D.replace(params=jax.tree.map(lambda w: jnp.clip(w, -c, c), D.params))
    x_fake, _ = generate(game.G, state.G, latents(z_key, b, config, axis_name))
    loss = functools.partial(d_loss, player=D, game=game)
    dropout = {'real': real_key, 'fake': fake_key}
    return update(D, loss, (x, x_fake), dropout, name='d', optimizer=game.d_optimizer, **how)

  D, d_metrics = scan(d_step, state.D, (batch['image'], jax.random.split(keys['D'], k)))

  z = latents(keys['z'], b, config, axis_name)
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
