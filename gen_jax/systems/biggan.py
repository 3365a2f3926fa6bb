r"""BigGAN (Brock, Donahue and Simonyan 2019, arXiv 1809.11096): SNGAN's game at scale, and what it
needs to sample well.

The losses are the hinge of `sngan`, both nets have spectral norm, and to G's loss is added

    R_beta(W) = beta || W W^T * (1 - I) ||_F^2  (Eq. 3)

over its weights W [outputs, n] (the paper's W is the transpose), * entrywise: rows should be
orthogonal, of any length. Samples are of the moving average of G's weights, whose batch norm has
standing statistics: means over many batches that the averaged weights generate (appendix C.1). z is
N(0, I) in training; in sampling, entries beyond a threshold are drawn again (the truncation trick,
section 3.1), for less variety and better images.

One step is d_steps updates of D, each on its own minibatch, then one of G.
"""

import functools

import jax
import jax.numpy as jnp

from gen_jax import draws, fields, latent
from gen_jax.errors import UserError
from gen_jax.nets.layers import MOMENTUM, deinterleave, interleave
from gen_jax.ops.scan import scan
from gen_jax.state import batch_size, step_keys, update
from gen_jax.systems import _two_nets as two_nets
from gen_jax.systems._two_nets import State, generate, latents, latents_and_labels, score
from gen_jax.systems.sngan import discriminator_loss

FIELDS = two_nets.FIELDS | {
  'discriminator': fields.net(meaning='D: data and labels to one number'),
  'loss.d_steps': fields.integer(
    1, 10_000, default=4, smoke=2, meaning='updates of D per update of G'
  ),
  'loss.orthogonal': fields.number(
    0, default=0.0, meaning='beta, weight of the orthogonal regularisation of G (paper: 1e-4)'
  ),
  'ema.decay': fields.number(0, below=1, default=0.9999, meaning="decay of G's averaged weights"),
  'ema.start': fields.integer(
    0, default=1000, smoke=5, meaning='step until which the average is a copy of the weights'
  ),
  'sample.weights': fields.one_of('ema', 'raw', default='ema', meaning='averaged or raw weights'),
  'sample.truncation': fields.number(
    above=0, optional=True, default=None, meaning='entries of z beyond +- this are drawn again'
  ),
  'sample.standing_batches': fields.integer(
    0,
    100_000,
    default=100,
    smoke=2,
    meaning='batches of train.batch_size that the statistics of batch norm are means over; 0: '
    'running averages of training',
  ),
}
build = functools.partial(two_nets.build, d_field='discriminator')


def minibatches(config, step: int) -> int:
  """Minibatches that a step takes: leaves of the batch are [d_steps, b, ...]."""
  return config.loss.d_steps


def check(config) -> None:
  """Checks constraints between fields.

  Raises:
    UserError: there are no classes, a net has others than the data, or a uniform z is truncated.
  """
  two_nets.check_classes(config)
  if config.sample.truncation is not None and config.latent.distribution != 'normal':
    raise UserError(
      f'config.sample.truncation={config.sample.truncation} is of a normal z, but '
      f"config.latent.distribution={config.latent.distribution!r}; 'normal' or None is needed"
    )


# --- The losses ---------------------------------------------------------------------------------


def orthogonal_penalty(params) -> jax.Array:
  """Sum over the weights of || W W^T * (1 - I) ||_F^2, but for the embedding called `shared`: 0
  where the rows of each W are orthogonal.

  Rows are the weights of one output, or the embedding of one class.
  """
  total = jnp.zeros(())
  for path, w in jax.tree.leaves_with_path(params):
    names = [part.key for part in path]
    if w.ndim < 2 or 'shared' in names:
      continue
    W = w if names[-1] == 'embedding' else w.reshape(-1, w.shape[-1]).T
    # Of the float32 parameters, in every compute dtype.
    products = jnp.matmul(W, W.T, precision=jax.lax.Precision.HIGHEST)
    total += jnp.sum((products * (1 - jnp.eye(len(W)))) ** 2)
  return total


def d_loss(params, rows, key, *, player, game):
  """D's hinge loss on rows (x, y, x_fake, y_fake), images [b, ...] and labels [b]; also its metrics
  and new batch statistics, the singular vectors.
  """
  x, y, x_fake, y_fake = rows
  # One pass, as in the released code; interleaved, so that rows stay on their device.
  both, labels = interleave([x, x_fake]), interleave([y, y_fake])
  scores, stats = score(game.D, player, both, key, params, label=labels)
  real, fake = deinterleave(scores, 2)
  loss = discriminator_loss(real, fake)
  metrics = {
    'd/loss': loss,
    'd/real': jnp.mean(real),
    'd/fake': jnp.mean(fake),
    'd/accuracy': 0.5 * (jnp.mean(real > 0) + jnp.mean(fake < 0)),
  }
  return loss, (metrics, stats)


def g_loss(params, rows, key, *, state, game, config):
  """-E D(G(z, y), y) + R_beta on rows (z, y), latents [b, d] and labels [b]; also its metrics and
  new batch statistics.
  """
  z, y = rows
  x_fake, stats = generate(game.G, state.G, z, params, label=y)
  fake, _ = score(game.D, state.D, x_fake, key, label=y)  # these singular vectors are discarded
  loss, metrics = -jnp.mean(fake), {}
  if config.loss.orthogonal:
    metrics['g/orthogonal'] = orthogonal_penalty(params)
    loss += config.loss.orthogonal * metrics['g/orthogonal']
  return loss, (metrics | {'g/loss': loss}, stats)


METRICS = {
  'd/loss': 'E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)))',
  'd/real': 'mean of D(x)',
  'd/fake': 'mean of D(G(z))',
  'd/accuracy': 'share of examples, half of them real, whose score has the right sign',
  'g/loss': '-mean D(G(z)) + beta g/orthogonal',
  'g/orthogonal': '|| W W^T * (1 - I) ||^2 over the weights of G, where loss.orthogonal is above 0',
}


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """Fresh nets for data like batch['image'] [d_steps, b, ...]."""
  label = jnp.zeros(1, jnp.int32)
  state = two_nets.init_state(rng, batch, build(config), config, label=label)
  return state.replace(G=state.G.replace(ema=jax.tree.map(jnp.copy, state.G.params)))


def train_step(state, batch, rng, *, config, axis_name=None):
  """d_steps updates of D, then one of G.

  Args:
    state: the `State`.
    batch: `image` float32 [d_steps, b, ...] in [-1, 1] and `label` int32 [d_steps, b].
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and the metrics, float32 scalars; D's are those of its last update.
  """
  game = build(config, axis_name=axis_name)
  k, b = batch['image'].shape[:2]
  keys = step_keys(rng, state.step, 'D', 'G', 'dropout')
  how = dict(step=state.step, accumulate=config.train.accumulate, axis_name=axis_name)

  def d_step(D, inputs):
    x, y, key = inputs
    fake_key, dropout = jax.random.split(key)
    z, y_fake = latents_and_labels(*jax.random.split(fake_key), b, config, axis_name)
    x_fake, _ = generate(game.G, state.G, z, label=y_fake)
    loss = functools.partial(d_loss, player=D, game=game)
    rows = x, y, x_fake, y_fake
    return update(D, loss, rows, dropout, name='d', optimizer=game.d_optimizer, **how)

  inputs = batch['image'], batch['label'], jax.random.split(keys['D'], k)
  D, d_metrics = scan(d_step, state.D, inputs)

  loss = functools.partial(g_loss, state=state.replace(D=D), game=game, config=config)
  rows = latents_and_labels(*jax.random.split(keys['G']), b, config, axis_name)
  decay = jnp.where(state.step < config.ema.start, 0.0, config.ema.decay)
  G, g_metrics = update(
    state.G,
    loss,
    rows,
    keys['dropout'],
    name='g',
    optimizer=game.g_optimizer,
    ema_decay=decay,
    **how,
  )
  return State(state.step + 1, G, D), jax.tree.map(lambda m: m[-1], d_metrics) | g_metrics


# --- Sampling -----------------------------------------------------------------------------------


def prior(rng, n: int, *, config) -> jax.Array:
  """Draws of z, [n, latent.dim], truncated where config.sample.truncation says so."""
  threshold = config.sample.truncation
  if threshold is None:
    return latents(rng, n, config)
  return latent.truncated_normal(rng, (n, config.latent.dim), threshold)


def standing_statistics(G, player, params, *, config) -> dict:
  """The batch statistics of `player` with, for each mean and variance, its mean over
  config.sample.standing_batches batches of images that G generates with `params`.

  The batches are the same in every call, so that samples do not depend on how many are drawn at
  once. The singular vectors stay.
  """
  count = config.sample.standing_batches
  if count == 0:
    return player.stats
  of_batch_norm = jax.tree.map_with_path(
    lambda path, leaf: path[-1].key in ('mean', 'var'), player.stats
  )
  select = functools.partial(jax.tree.map, jnp.where, of_batch_norm)
  zeros = jax.tree.map(jnp.zeros_like, player.stats)
  fresh = player.replace(stats=select(zeros, player.stats))

  def add(total, key):
    z_key, y_key = jax.random.split(key)
    z = prior(z_key, config.train.batch_size, config=config)
    y = draws.integers(y_key, (len(z),), 0, config.data.num_classes)
    _, stats = generate(G, fresh, z, params, label=y)
    return jax.tree.map(jnp.add, total, stats), None

  total, _ = jax.lax.scan(add, zeros, jax.random.split(jax.random.key(0), count))
  # From zeros, a pass in training makes 1 - momentum times the batch's own statistics.
  factor = 1 / (count * (1 - MOMENTUM))
  return select(jax.tree.map(lambda leaf: factor * leaf, total), player.stats)


def decode(state, z, given, *, config) -> dict:
  """G(z, y) for z [n, d] and the labels y in `given`, as `sample`."""
  game = build(config)
  params = state.G.ema if config.sample.weights == 'ema' else state.G.params
  stats = standing_statistics(game.G, state.G, params, config=config)
  weights = state.replace(G=state.G.replace(params=params, stats=stats))
  return two_nets.decode(weights, z, game, config, label=given['label'])


def sample(state, given, rng, *, config) -> dict:
  """Generated examples of the classes given['label'] int32 [n]: {'image': float32 [n, ...] in
  [-1, 1]}.
  """
  return decode(state, prior(rng, batch_size(given), config=config), given, config=config)


def conditional(state, *, config) -> bool:
  """Samples depend on labels."""
  return True
