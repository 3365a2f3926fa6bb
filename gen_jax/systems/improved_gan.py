r"""Improved techniques for training GANs (Salimans et al. 2016, arXiv 1606.03498).

D returns K logits u(x), and so the logit l(x) = log sum_k exp u_k(x) of x being real: K + 1 classes
whose last, "generated", has the logit 0 (section 5). Without labels K is 1 and l = u. With them,

    L_lab = E [l(x) - u_y(x)] = -E log p(y | x, real)                     on few labelled x
    L_unl = 1/2 E softplus(-l(x)) + 1/2 E softplus(l(G(z)))               on all others
    L_D = L_lab + loss.unlabelled L_unl

G minimises a loss of `gan`, or matches features f of D: |E f(x) - E f(G(z))|^2. Each technique is
switched on by itself:

    feature matching (3.1)           loss.generator = 'feature_matching'
    minibatch discrimination (3.2)   discriminator.kernels = 100
    historical averaging (3.3)       loss.historical: weight of |theta - mean of theta[0..t]|^2
    one-sided label smoothing (3.4)  loss.real_target = 0.9
    virtual batch norm (3.5)         generator.norm = 'virtual'; 'reference' without the row itself

The labelled examples and the scales of weight norm come from the minibatches of the first step, the
reference batch, of latents, is drawn then; all are part of the state. One step is k updates of D,
then n of G.
"""

import functools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from gen_jax import draws, fields
from gen_jax.errors import UserError
from gen_jax.fields import Measure
from gen_jax.ops.scan import scan
from gen_jax.state import init_player, one_image, step_keys, update
from gen_jax.systems import _two_nets as two_nets
from gen_jax.systems import gan
from gen_jax.systems._two_nets import generate, latents
from gen_jax.systems.gan import GENERATOR_LOSSES, discriminator_loss

MATCHING = 'feature_matching'
MOST_ROWS = 500  # that nets are initialised with, as in the released code
FIELDS = two_nets.FIELDS | {
  'discriminator': fields.net(meaning='D: data to logits and features'),
  'loss.generator': fields.one_of(
    *GENERATOR_LOSSES, MATCHING, default='non_saturating', meaning='what G minimises'
  ),
  'loss.feature_distance': fields.one_of(
    'squared',
    'absolute',
    default='squared',
    meaning='of mean features: the mean of squared or of absolute differences',
    when=('.generator', (MATCHING,)),
  ),
  'loss.real_target': gan.FIELDS['loss.real_target'],
  'loss.historical': fields.number(
    0, default=0.0, meaning='weight of the squared distance of parameters to their mean over steps'
  ),
  'loss.unlabelled': fields.number(0, default=1.0, meaning='weight of the unlabelled loss'),
  'loss.d_steps': fields.integer(1, 10_000, default=1, meaning='k, updates of D in a step'),
  'loss.g_steps': fields.integer(1, 10_000, default=1, meaning='n, updates of G in a step'),
  'labels.per_class': fields.integer(
    1, optional=True, default=None, meaning='labelled examples of each class; None: no labels'
  ),
  'first.minibatches': fields.integer(
    1, 10_000, default=5, meaning='minibatches of the first step, the source of labelled examples'
  ),
  'ema_decay': fields.number(
    0, below=1, default=0.9999, meaning="decay of D's averaged weights, less in the first steps"
  ),
}
build = functools.partial(two_nets.build, d_field='discriminator')


@flax.struct.dataclass
class State(two_nets.State):
  """Everything that a step changes."""

  labelled: dict | None  # image [n, ...] and label int32 [n]; never changes
  history: dict | None  # the means of the parameters of G and D over all steps


def check(config) -> None:
  """Checks constraints between fields.

  Raises:
    UserError: classes without labels or the reverse, or a batch that is too small.
  """
  classes, per_class = config.data.num_classes, config.labels.per_class
  size, parts = config.train.batch_size, config.train.accumulate
  labels = f'config.labels.per_class={per_class}'
  if (classes is None) != (per_class is None):
    raise UserError(f'{labels}, but config.data.num_classes={classes}: both or neither is needed')
  if classes is not None and classes * per_class > size * config.first.minibatches:
    raise UserError(
      f'{labels}: {classes} classes need {classes * per_class} examples, but '
      f'config.first.minibatches={config.first.minibatches} of {size} are fewer'
    )
  if config.discriminator.get('kernels') and size // parts < 2:
    raise UserError(
      f'config.train.batch_size={size} in config.train.accumulate={parts} parts is too small for '
      'minibatch discrimination: at least 2 rows, which it compares, are needed'
    )


def minibatches(config, step: int) -> int:
  """Minibatches that a step takes: k for D and, to match their features, n others for G."""
  k, n = config.loss.d_steps, config.loss.g_steps
  needed = k + n if config.loss.generator == MATCHING else max(k, n)
  return max(needed, config.first.minibatches) if step == 0 else needed


# --- The losses ---------------------------------------------------------------------------------


def judge(D, player, x, key, params=None):
  """Logits u [b, K], features [b, n] and the batch statistics after this pass, of x [b, ...]."""
  made, stats = two_nets.score(D, player, x, key, params)
  if not isinstance(made, tuple):
    raise UserError(
      f'config.discriminator: {type(D.module).__name__} returns no features; a net that returns '
      '(logits [b, classes or 1], features [b, n]) is needed'
    )
  return *made, stats


def historical(params, history, config):
  """The weighted squared distance of parameters to their means over all steps."""
  if history is None:
    return 0.0
  squares = jax.tree.map(lambda p, mean: jnp.sum((p - mean) ** 2), params, history)
  return config.loss.historical * sum(jax.tree.leaves(squares))


def d_loss(params, rows, keys, *, player, history, game, config):
  """D's loss on rows (x, x_fake, labelled): real and generated, each [b, ...], and a batch of
  labelled examples or None; also its metrics and new batch statistics.
  """
  x, x_fake, labelled = rows
  # Each in a pass of its own: rows meet in minibatch discrimination.
  real, _, stats = judge(game.D, player, x, keys['real'], params)
  fake, _, stats = judge(game.D, player.replace(stats=stats), x_fake, keys['fake'], params)
  real, fake = nn.logsumexp(real, axis=-1), nn.logsumexp(fake, axis=-1)
  unlabelled = discriminator_loss(real, fake, config.loss.real_target)
  loss, metrics = config.loss.unlabelled * unlabelled, {}
  if labelled is not None:
    player = player.replace(stats=stats)
    u, _, stats = judge(game.D, player, labelled['image'], keys['labelled'], params)
    l_lab = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(u, labelled['label']))
    right = jnp.mean(jnp.argmax(u, axis=-1) == labelled['label'])
    loss, metrics = loss + l_lab, {'d/labelled': l_lab, 'd/labelled_accuracy': right}
  loss = loss + historical(params, history, config)
  metrics |= {
    'd/loss': loss,
    'd/unlabelled': unlabelled,
    'd/real_prob': jnp.mean(nn.sigmoid(real)),
    'd/fake_prob': jnp.mean(nn.sigmoid(fake)),
    'd/accuracy': 0.5 * (jnp.mean(real > 0) + jnp.mean(fake < 0)),
  }
  return loss, (metrics, stats)


def g_loss(params, rows, keys, *, player, history, D, game, config, axis_name):
  """G's loss on rows (z, x), [b, d] and [b, ...]; also its metrics and new batch statistics."""
  z, x = rows
  x_fake, stats = generate(game.G, player, z, params)
  fake, f_fake, _ = judge(game.D, D, x_fake, keys['fake'])
  if config.loss.generator == MATCHING:
    _, f_real, _ = judge(game.D, D, x, keys['real'])
    gap = jnp.mean(f_real, axis=0) - jnp.mean(f_fake, axis=0)
    gap = gap if axis_name is None else jax.lax.pmean(gap, axis_name)
    loss = jnp.mean(gap**2 if config.loss.feature_distance == 'squared' else jnp.abs(gap))
  else:
    loss = GENERATOR_LOSSES[config.loss.generator](nn.logsumexp(fake, axis=-1))
  loss = loss + historical(params, history, config)
  return loss, ({'g/loss': loss}, stats)


METRICS = {
  'd/loss': "D's loss, all terms",
  'd/unlabelled': 'the loss of telling real from generated examples: log 2 where it cannot',
  'd/labelled': 'cross-entropy of the classes of labelled examples, nats, where there are labels',
  'd/labelled_accuracy': 'share of labelled examples in the right class, where there are labels',
  'd/real_prob': 'mean probability that D gives to real examples of being real',
  'd/fake_prob': 'mean probability that D gives to generated examples of being real',
  'd/accuracy': 'share of examples, half of them real, that D classifies right',
  'g/loss': "G's loss, of the kind loss.generator",
}


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """Nets scaled to batch['image'] [k, b, ...]; labelled examples are the first ones of each class
  in batch['label'] [k, b].
  """
  game = build(config)
  z_key, g_key, g_dropout, d_key, d_dropout = jax.random.split(rng, 5)
  one_image(batch, config, axes=2)  # checks the shape
  batch = jax.tree.map(jnp.concatenate, batch)  # [k b, ...]
  x = batch['image'][:MOST_ROWS]
  z = latents(z_key, len(x), config)
  G = game.G.init({'params': g_key, 'dropout': g_dropout}, z, train=True)
  D = game.D.init({'params': d_key, 'dropout': d_dropout}, x, train=True)
  G = init_player(G, game.g_optimizer)
  D = init_player(D, game.d_optimizer, ema=True)
  labelled, history = None, None
  if config.labels.per_class is not None:
    rows = first_of_each_class(batch['label'], config.data.num_classes, config.labels.per_class)
    labelled = {name: batch[name][rows] for name in ('image', 'label')}
  if config.loss.historical > 0:
    history = jax.tree.map(jnp.copy, {'G': G.params, 'D': D.params})
  return State(jnp.zeros((), jnp.int32), G, D, labelled, history)


def first_of_each_class(label, classes: int, count: int) -> jax.Array:
  """Row numbers, int32 [classes count], of the first `count` rows of each class in label [n]; where
  a class has fewer, the next rows of others replace them.
  """
  of_class = label[:, None] == jnp.arange(classes)[None]
  rank = jnp.sum(jnp.where(of_class, jnp.cumsum(of_class, axis=0), 0), axis=1)
  return jnp.argsort(rank, stable=True)[: classes * count].astype(jnp.int32)


def draw_labelled(labelled, key, b: int, axis_name):
  """A batch of b labelled examples, all different where there are as many; None without labels."""
  if labelled is None:
    return None
  order = jax.random.permutation(key, len(labelled['label']))
  rows = draws.rows(lambda shape: jnp.resize(order, shape), (b,), axis_name)
  return jax.tree.map(lambda leaf: leaf[rows], labelled)


def train_step(state, batch, rng, *, config, axis_name=None):
  """k updates of D, each with a minibatch of its own, then n updates of G.

  Args:
    state: the `State`.
    batch: `image` float32 [m, b, ...] in [-1, 1], m = minibatches(config, state.step).
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and the metrics, float32 scalars, those of the last update of each net.
  """
  game = build(config, axis_name=axis_name)
  x, k, n = batch['image'], config.loss.d_steps, config.loss.g_steps
  b, history = x.shape[1], state.history or {'G': None, 'D': None}
  keys = step_keys(rng, state.step, 'D', 'G')
  how = dict(step=state.step, accumulate=config.train.accumulate, axis_name=axis_name)
  # From 0.1 on, so that the average forgets the initial weights in short runs, too. The released
  # code's starts at zero, with a constant decay.
  decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))

  def d_step(D, inputs):
    x, key = inputs
    z_key, label_key, *dropout = jax.random.split(key, 5)
    x_fake, _ = generate(game.G, state.G, latents(z_key, b, config, axis_name))
    rows = x, x_fake, draw_labelled(state.labelled, label_key, b, axis_name)
    loss = functools.partial(d_loss, player=D, history=history['D'], game=game, config=config)
    dropout = dict(zip(('real', 'fake', 'labelled'), dropout, strict=True))
    optimizer = game.d_optimizer
    return update(D, loss, rows, dropout, name='d', optimizer=optimizer, ema_decay=decay, **how)

  D, d_metrics = scan(d_step, state.D, (x[:k], jax.random.split(keys['D'], k)))

  def g_step(G, inputs):
    x, key = inputs
    z_key, *dropout = jax.random.split(key, 3)
    rows = latents(z_key, b, config, axis_name), x
    given = dict(player=G, history=history['G'], D=D, game=game, config=config)
    loss = functools.partial(g_loss, axis_name=axis_name, **given)
    dropout = dict(zip(('real', 'fake'), dropout, strict=True))
    return update(G, loss, rows, dropout, name='g', optimizer=game.g_optimizer, **how)

  G, g_metrics = scan(g_step, state.G, (x[-n:], jax.random.split(keys['G'], n)))

  if state.history is not None:  # the mean of the parameters at steps 0 to t
    now, t = {'G': G.params, 'D': D.params}, state.step
    history = jax.tree.map(lambda mean, p: mean + (p - mean) / (t + 2), state.history, now)
    state = state.replace(history=history)
  metrics = jax.tree.map(lambda m: m[-1], d_metrics | g_metrics)
  return state.replace(step=state.step + 1, G=G, D=D), metrics


def sample(state, given, rng, *, config) -> dict:
  """Generated examples, one for each row of `given`: {'image': float32 [n, ...] in [-1, 1]}."""
  return two_nets.sample(state, given, rng, build(config), config)


prior = two_nets.prior


def decode(state, z, given, *, config) -> dict:
  """G(z) for latents z [n, d]: {'image': float32 [n, ...] in [-1, 1]}."""
  del given
  return two_nets.decode(state, z, build(config), config)


def settings(config) -> str:
  """What the numbers of `evaluate` depend on."""
  labels = config.labels.per_class and config.labels.per_class * config.data.num_classes
  return f"{labels or 'no'} labels, D's averaged weights"


MEASURES = {
  'error': Measure('classification error', 'estimate', settings),
  'real_prob': Measure('probability of being real', 'estimate', settings),
}


def evaluate(state, batch, rng, *, config) -> dict:
  """What D, with averaged weights and without noise, says of held-out examples.

  Returns:
    For batch['image'] [b, ...], 'real_prob' [b]; with labels also 'error' [b], 1 where the class is
    not batch['label'].
  """
  u, _ = build(config).D.apply(state.D.variables(state.D.ema), batch['image'], train=False)
  found = {'real_prob': nn.sigmoid(nn.logsumexp(u, axis=-1))}
  if config.labels.per_class is not None:
    found['error'] = jnp.float32(jnp.argmax(u, axis=-1) != batch['label'])
  return found
