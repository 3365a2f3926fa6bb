r"""CoGAN, coupled generative adversarial networks (Liu and Tuzel 2016, arXiv 1606.07536).

Generators of two domains x and y make a pair of images, x' = G_x(z) and y' = G_y(z), of the same z,
and two discriminators tell them from real ones, which need not be pairs:

    min_{G_x, G_y} max_{D_x, D_y} E log D_x(x) + E log(1 - D_x(G_x(z)))
                                + E log D_y(y) + E log(1 - D_y(G_y(z)))

The generators share all layers but the last, the discriminators all but the first: so what a z
means (the shared layers) is common to both domains, and how it looks is not.

Here D also classifies, for domain adaptation (section 5): images x have labels, images y do not.
With a logit l of being real, class logits c and features f of the last shared layer,

    D:  E softplus(-l(real)) + E softplus(l(generated)) + lambda_c CE(c(x), label)
        + lambda_f E |f(x') - f(y')|^2

    G:  E softplus(-l(generated))

This is the authors' PyTorch code: one mean over both domains, and only D keeps the distance of
features small.

One step is one update of D, then one of G. In the state, `G` is the player of both generators and
`D` that of both discriminators.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from gen_jax import domains, fields
from gen_jax.errors import UserError
from gen_jax.state import batch_size, init_player, one_image, step_keys, update
from gen_jax.systems import _two_domains, _two_nets
from gen_jax.systems._two_domains import correct, mean, squared_distance, tied
from gen_jax.systems._two_nets import State, generate, latents

FIELDS = _two_domains.FIELDS | {
  'generator': fields.net(meaning='G: latents to images of both domains'),
  **{path: rule for path, rule in _two_nets.FIELDS.items() if path.startswith('latent.')},
  'loss.classes': fields.number(0, default=10.0, meaning='lambda_c, of the classes of x'),
  'loss.features': fields.number(0, default=0.01, meaning="lambda_f, of D's features of x' and y'"),
}
inputs, build = domains.inputs, _two_domains.build
check = _two_domains.check_one_shape


# --- The losses ---------------------------------------------------------------------------------


def d_loss(params, rows, keys, *, game, config):
  """D's loss on rows (x, y, label of x, x', y'), each [b, ...]; also its metrics."""
  x, y, label, x_made, y_made = rows
  real = game.D.apply({'params': params}, x, y)
  fake = game.D.apply({'params': params}, x_made, y_made)
  real_loss = mean([nn.softplus(-judged.logit) for judged in real])
  fake_loss = mean([nn.softplus(judged.logit) for judged in fake])
  classes = real[0].classes
  class_loss = optax.softmax_cross_entropy_with_integer_labels(classes, label).mean()
  feature_loss = squared_distance(fake[0].features, fake[1].features)
  weights = config.loss
  loss = real_loss + fake_loss + weights.classes * class_loss + weights.features * feature_loss
  metrics = {
    'd/loss': loss,
    'd/real_prob': mean([nn.sigmoid(judged.logit) for judged in real]),
    'd/fake_prob': mean([nn.sigmoid(judged.logit) for judged in fake]),
    'd/class_loss': class_loss,
    'd/class_accuracy': correct(classes, label).mean(),
    'd/feature_loss': feature_loss,
  }
  return loss, (metrics, {})


def g_loss(params, z, keys, *, state, game):
  """G's loss on latents z [b, d]; also its metrics and new batch statistics."""
  made, stats = generate(game.G, state.G, z, params)
  fake = game.D.apply(state.D.variables(), made['x'], made['y'])
  loss = mean([nn.softplus(-judged.logit) for judged in fake])
  return loss, ({'g/loss': loss}, stats)


METRICS = {
  'd/loss': "D's loss: of the source, the classes and the features",
  'd/real_prob': 'mean probability of being real that D gives to real images',
  'd/fake_prob': 'mean probability of being real that D gives to generated images',
  'd/class_loss': 'cross-entropy of the classes of x, nats',
  'd/class_accuracy': 'share of x whose class is right',
  'd/feature_loss': "squared distance of the features of x' and y'",
  'g/loss': '-log D of generated images; log 2 where D cannot tell',
}


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """Fresh nets for data like batch['x'] and batch['y'], both [b, ...]."""
  game, (g_key, d_key) = build(config), jax.random.split(rng)
  images = one_image(batch, config, leaf='x'), one_image(batch, config, leaf='y')
  z = jnp.zeros((1, config.latent.dim))
  return State(
    step=jnp.zeros((), jnp.int32),
    G=init_player(tied(game.G.init(g_key, z, train=False), config), game.g_optimizer),
    D=init_player(tied(game.D.init(d_key, *images), config), game.d_optimizer),
  )


def train_step(state, batch, rng, *, config, axis_name=None):
  """One update of D, then one of G.

  Args:
    state: the `State`.
    batch: `x` and `y` float32 [b, ...] in [-1, 1], `x_label` int32 [b]; `y_label` is not used.
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and the metrics, float32 scalars.
  """
  game = build(config, axis_name)
  x, y = batch['x'], batch['y']
  keys = step_keys(rng, state.step, 'd_z', 'g_z')
  how = dict(step=state.step, accumulate=config.train.accumulate, axis_name=axis_name)

  made, _ = generate(game.G, state.G, latents(keys['d_z'], len(x), config, axis_name))
  loss = functools.partial(d_loss, game=game, config=config)
  rows = x, y, batch['x_label'], made['x'], made['y']
  D, d_metrics = update(state.D, loss, rows, (), name='d', optimizer=game.d_optimizer, **how)

  z = latents(keys['g_z'], len(x), config, axis_name)
  loss = functools.partial(g_loss, state=state.replace(D=D), game=game)
  G, g_metrics = update(state.G, loss, z, (), name='g', optimizer=game.g_optimizer, **how)
  return State(state.step + 1, G, D), d_metrics | g_metrics


def sample(state, given, rng, *, config) -> dict:
  """Pairs of the same z, one for each row of `given`: y' ('image') and x' ('x'), float32 [n, ...]
  in [-1, 1].
  """
  return decode(state, latents(rng, batch_size(given), config), given, config=config)


prior = _two_nets.prior


def decode(state, z, given, *, config) -> dict:
  """The pairs of latents z [n, d]: y' ('image') and x' ('x'), float32 [n, ...] in [-1, 1].

  Raises:
    UserError: z has another shape.
  """
  del given
  if z.shape[1:] != (config.latent.dim,):
    raise UserError(f'z is {z.shape}: {("n", config.latent.dim)} is needed')
  made, _ = generate(build(config).G, state.G, z, train=False)
  return {'image': made['y'], 'x': made['x']}


# --- Held-out images ----------------------------------------------------------------------------

MEASURES, evaluate = _two_domains.MEASURES, _two_domains.evaluate
