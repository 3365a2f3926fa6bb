r"""Spectrally normalised GAN with a projection discriminator (Miyato et al. 2018, arXiv 1802.05957;
Miyato and Koyama 2018, arXiv 1802.05637).

Each weight matrix W of D is divided by its largest singular value,

    W_SN = W / sigma(W),  sigma(W) = u^T W v  (Eq. 8)

so that every layer is 1-Lipschitz. One power iteration a pass follows u and v, which are constants
in the gradient (Eq. 12); they are part of the state, in the batch statistics of D. The game has the
hinge loss

    L_D = E max(0, 1 - D(x, y)) + E max(0, 1 + D(G(z, y), y))  (Eq. 16)
    L_G = -E D(G(z, y), y)  (Eq. 17)

and D(x, y) = psi(phi(x)) + <v_y, phi(x)>, the projection. Where config.data.num_classes is None,
there are no labels y.

One step is n_dis updates of D, each on its own minibatch, then one of G.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import fields
from gen_jax.ops.scan import scan
from gen_jax.state import step_keys, update
from gen_jax.systems import _two_nets as two_nets
from gen_jax.systems._two_nets import State, generate, latents_and_labels, score

FIELDS = two_nets.FIELDS | {
  'discriminator': fields.net(meaning='D: data, and labels, to one number'),
  'loss.n_dis': fields.integer(
    1, 10_000, default=5, smoke=2, meaning='updates of D per update of G'
  ),
  'loss.g_batch': fields.integer(1, 10_000, default=2, meaning="G's batch as a multiple of D's"),
}
build = functools.partial(two_nets.build, d_field='discriminator')


def minibatches(config, step: int) -> int:
  """Minibatches that a step takes: leaves of the batch are [n_dis, b, ...]."""
  return config.loss.n_dis


def check(config) -> None:
  """Checks constraints between fields.

  Raises:
    UserError: a net has other classes than the data.
  """
  two_nets.check_num_classes(config, 'generator', 'discriminator')


# --- The losses ---------------------------------------------------------------------------------


def discriminator_loss(real, fake) -> jax.Array:
  """The hinge loss of scores [b] of real and generated examples (Eq. 16)."""
  return jnp.mean(nn.relu(1 - real)) + jnp.mean(nn.relu(1 + fake))


def d_loss(params, rows, keys, *, player, game):
  """D's loss on rows (x, y, x_fake, y_fake), images [b, ...] and labels [b] or None; also its
  metrics and new batch statistics, the singular vectors.
  """
  x, y, x_fake, y_fake = rows
  # Two passes, as in the released code: each makes a power iteration.
  real, stats = score(game.D, player, x, keys['real'], params, label=y)
  player = player.replace(stats=stats)
  fake, stats = score(game.D, player, x_fake, keys['fake'], params, label=y_fake)
  loss = discriminator_loss(real, fake)
  metrics = {
    'd/loss': loss,
    'd/real': jnp.mean(real),
    'd/fake': jnp.mean(fake),
    'd/accuracy': 0.5 * (jnp.mean(real > 0) + jnp.mean(fake < 0)),
  }
  return loss, (metrics, stats)


def g_loss(params, rows, key, *, state, game):
  """-E D(G(z, y), y) on rows (z, y), latents [b, d] and labels [b] or None; also its metrics and
  new batch statistics.
  """
  z, y = rows
  x_fake, stats = generate(game.G, state.G, z, params, label=y)
  fake, _ = score(game.D, state.D, x_fake, key, label=y)  # these singular vectors are discarded
  loss = -jnp.mean(fake)
  return loss, ({'g/loss': loss}, stats)


METRICS = {
  'd/loss': 'E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)))',
  'd/real': 'mean of D(x)',
  'd/fake': 'mean of D(G(z))',
  'd/accuracy': 'share of examples, half of them real, whose score has the right sign',
  'g/loss': '-mean D(G(z))',
}


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """Fresh nets for data like batch['image'] [n_dis, b, ...]."""
  label = None if config.data.num_classes is None else jnp.zeros(1, jnp.int32)
  return two_nets.init_state(rng, batch, build(config), config, label=label)


def train_step(state, batch, rng, *, config, axis_name=None):
  """n_dis updates of D, then one of G on a batch g_batch times as large.

  Args:
    state: the `State`.
    batch: `image` float32 [n_dis, b, ...] in [-1, 1]; with classes, `label` int32 [n_dis, b].
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and the metrics, float32 scalars; D's are those of its last update.
  """
  game = build(config, axis_name=axis_name)
  k, b = batch['image'].shape[:2]
  keys = step_keys(rng, state.step, 'D', 'z', 'y', 'dropout')
  how = dict(step=state.step, accumulate=config.train.accumulate, axis_name=axis_name)
  labels = None if config.data.num_classes is None else batch['label']

  def d_step(D, inputs):
    x, y, key = inputs
    z_key, y_key, real_key, fake_key = jax.random.split(key, 4)
    z, y_fake = latents_and_labels(z_key, y_key, b, config, axis_name)
    x_fake, _ = generate(game.G, state.G, z, label=y_fake)
    loss = functools.partial(d_loss, player=D, game=game)
    dropout = {'real': real_key, 'fake': fake_key}
    rows = x, y, x_fake, y_fake
    return update(D, loss, rows, dropout, name='d', optimizer=game.d_optimizer, **how)

  D, d_metrics = scan(d_step, state.D, (batch['image'], labels, jax.random.split(keys['D'], k)))

  rows = latents_and_labels(keys['z'], keys['y'], b * config.loss.g_batch, config, axis_name)
  loss = functools.partial(g_loss, state=state.replace(D=D), game=game)
  G, g_metrics = update(
    state.G, loss, rows, keys['dropout'], name='g', optimizer=game.g_optimizer, **how
  )
  return State(state.step + 1, G, D), jax.tree.map(lambda m: m[-1], d_metrics) | g_metrics


def sample(state, given, rng, *, config) -> dict:
  """Generated examples, one for each row of `given`, of the classes given['label'] where there are
  any: {'image': float32 [n, ...] in [-1, 1]}. Batch norm uses its running averages.
  """
  return two_nets.sample(state, given, rng, build(config), config, label=given.get('label'))


def conditional(state, *, config) -> bool:
  """Whether samples depend on labels."""
  return config.data.num_classes is not None


prior = two_nets.prior


def decode(state, z, given, *, config) -> dict:
  """G(z, y) for z [n, d] and the labels y in `given`, as `sample`."""
  return two_nets.decode(state, z, build(config), config, label=given.get('label'))
