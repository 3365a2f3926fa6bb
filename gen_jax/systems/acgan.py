r"""Auxiliary-classifier GAN (Odena, Olah and Shlens 2017, arXiv 1610.09585).

G makes an image of latents z and a class c; D gives a distribution over sources and one over
classes, P(S | X) and P(C | X). The log-likelihoods of the right source and of the right class are

    L_S = E log P(S = real | X_real) + E log P(S = fake | X_fake)                            (Eq. 2)
    L_C = E log P(C = c | X_real) + E log P(C = c | X_fake)                                  (Eq. 3)

D maximises L_S + L_C and G maximises L_C - L_S: D, too, learns the classes of generated examples.
D works on a logit l of the source, P(S = real | X) = sigmoid(l), and on logits of the classes. By
default G maximises E log P(S = real | X_fake), the non-saturating form (Goodfellow et al. 2014), in
place of -E log P(S = fake | X_fake).

One step is one update of D, then one of G. The classes asked of G are those of the batch.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import fields
from gen_jax.state import init_player, one_image, step_keys, update
from gen_jax.systems import _two_nets as two_nets
from gen_jax.systems._two_nets import State, generate, latents, score
from gen_jax.systems.gan import GENERATOR_LOSSES

FIELDS = two_nets.FIELDS | {
  'generator': fields.net(meaning='G: latents and labels to data'),
  'discriminator': fields.net(meaning='D: data to logits of the source and of the classes'),
  'loss.generator': fields.one_of(
    'minimax',
    'non_saturating',
    default='non_saturating',
    meaning='what G minimises for the source: log(1 - D) or -log D',
  ),
}
build = functools.partial(two_nets.build, d_field='discriminator')
check = two_nets.check_classes


def minibatches(config, step: int) -> int:
  """One minibatch a step: leaves of the batch are [1, b, ...]."""
  return 1


# --- The losses ---------------------------------------------------------------------------------


def class_likelihood(logits, label) -> jax.Array:
  """E log P(C = c | X) of logits [b, classes] for c = label int32 [b]."""
  return jnp.mean(jnp.take_along_axis(nn.log_softmax(logits), label[:, None], axis=-1))


def class_accuracy(logits, label) -> jax.Array:
  """Share of the rows of logits [b, classes] whose largest one is at label int32 [b]."""
  return jnp.mean(jnp.argmax(logits, axis=-1) == label)


def d_loss(params, rows, keys, *, player, game):
  """-(L_S + L_C) on rows (x, x_fake, label), where label int32 [b] is the class of both; also D's
  metrics and new batch statistics.
  """
  x, x_fake, label = rows
  (real, real_class), stats = score(game.D, player, x, keys['real'], params)
  player = player.replace(stats=stats)
  (fake, fake_class), stats = score(game.D, player, x_fake, keys['fake'], params)
  L_S = -jnp.mean(nn.softplus(-real)) - jnp.mean(nn.softplus(fake))
  L_C = class_likelihood(real_class, label) + class_likelihood(fake_class, label)
  metrics = {
    'd/loss': -(L_S + L_C),
    'd/source_loss': -L_S,
    'd/class_loss': -L_C,
    'd/real_prob': jnp.mean(nn.sigmoid(real)),
    'd/fake_prob': jnp.mean(nn.sigmoid(fake)),
    'd/real_class_accuracy': class_accuracy(real_class, label),
    'd/fake_class_accuracy': class_accuracy(fake_class, label),
  }
  return -(L_S + L_C), (metrics, stats)


def g_loss(params, rows, key, *, state, game, config):
  """G's loss of source and class on rows (z, label); also its metrics and new batch statistics."""
  z, label = rows
  x_fake, stats = generate(game.G, state.G, z, params, label=label)
  # D in training mode, with dropout; its updated batch statistics are discarded.
  (fake, fake_class), _ = score(game.D, state.D, x_fake, key)
  source_loss = GENERATOR_LOSSES[config.loss.generator](fake)
  class_loss = -class_likelihood(fake_class, label)
  metrics = {
    'g/loss': source_loss + class_loss,
    'g/source_loss': source_loss,
    'g/class_loss': class_loss,
  }
  return source_loss + class_loss, (metrics, stats)


METRICS = {
  'd/loss': '-(L_S + L_C), nats',
  'd/source_loss': '-L_S: 2 log 2 where D cannot tell generated from real examples',
  'd/class_loss': '-L_C: cross-entropy of the classes of real plus that of generated examples',
  'd/real_prob': 'mean of P(S = real | X) over real examples',
  'd/fake_prob': 'mean of P(S = real | X) over generated examples',
  'd/real_class_accuracy': 'share of real examples that D assigns to their class',
  'd/fake_class_accuracy': 'share of generated examples that D assigns to the class asked for',
  'g/loss': "G's loss, of source and class",
  'g/source_loss': 'loss of the source, of the kind loss.generator',
  'g/class_loss': 'cross-entropy of the classes of generated examples, nats',
}


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """Fresh nets for data like batch['image'] [1, b, ...]."""
  game = build(config)
  g_key, d_key = jax.random.split(rng)
  z, label = jnp.zeros((1, config.latent.dim)), jnp.zeros(1, jnp.int32)
  x = one_image(batch, config, axes=2)
  return State(
    step=jnp.zeros((), jnp.int32),
    G=init_player(game.G.init(g_key, z, label, train=False), game.g_optimizer),
    D=init_player(game.D.init(d_key, x, train=False), game.d_optimizer),
  )


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
  x, label = batch['image'][0], batch['label'][0]
  keys = step_keys(rng, state.step, 'd_z', 'real', 'fake', 'g_z', 'g')
  how = dict(step=state.step, accumulate=config.train.accumulate, axis_name=axis_name)

  z = latents(keys['d_z'], len(x), config, axis_name)
  x_fake, _ = generate(game.G, state.G, z, label=label)
  loss = functools.partial(d_loss, player=state.D, game=game)
  dropout = {'real': keys['real'], 'fake': keys['fake']}
  D, d_metrics = update(
    state.D, loss, (x, x_fake, label), dropout, name='d', optimizer=game.d_optimizer, **how
  )

  z = latents(keys['g_z'], len(x), config, axis_name)
  loss = functools.partial(g_loss, state=state.replace(D=D), game=game, config=config)
  G, g_metrics = update(
    state.G, loss, (z, label), keys['g'], name='g', optimizer=game.g_optimizer, **how
  )
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
