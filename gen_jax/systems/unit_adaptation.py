r"""UNIT for domain adaptation (Liu, Breuel and Kautz 2017, arXiv 1703.00848).

Images x have labels, images y do not. As in `unit`, two variational autoencoders share a latent
space, here with q(z | x) = N(mu, sigma^2), and of a pair of unrelated x and y four images are
generated, x_xx, x_xy, x_yx and x_yy, where x_xy is x translated into y. D has a first layer of each
domain, and shared ones with features f, a logit l of being real and class logits c. It learns the
classes of both domains from the labels of x alone, as translations keep their features:

    D:  E softplus(-l(real)) + E softplus(l(generated)) + lambda_c CE(c(x), label)
        + lambda_f (E |f(x_xy) - f(x_xx)|^2 + E |f(x_yx) - f(x_yy)|^2)

    G:  2 E softplus(-l(generated)) + lambda_r (E |x_xx - x|^2 + E |x_yy - y|^2)
        + lambda_k (K(x) + K(y)),   K = E sum mu^2 + sigma^2 - log sigma^2

This is the authors' code (branch version_02): one mean over both domains, K without the 1/2 of a KL
divergence, and no cycle. There, one pass of x serves l and another c; here the same one does.

One step is one update of D, then one of G.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from gen_jax import domains, draws, fields
from gen_jax.nets.layers import deinterleave, interleave
from gen_jax.state import step_keys, update
from gen_jax.systems import _two_domains
from gen_jax.systems._two_domains import both_ways, correct, mean, other, squared_distance
from gen_jax.systems._two_nets import State

FIELDS = (
  _two_domains.FIELDS
  | _two_domains.TO
  | {
    'loss.classes': fields.number(0, default=10.0, meaning='lambda_c, of the classes of x'),
    'loss.features': fields.number(
      0, default=1e-4, meaning='lambda_f, that translations keep features'
    ),
    'loss.reconstruction': fields.number(0, default=1e-3, meaning='lambda_r, of x_xx and x_yy'),
    'loss.kl': fields.number(0, default=1e-4, meaning='lambda_k, of the codes'),
  }
)
CONDITIONS = ('x', 'y')
inputs, build = domains.inputs, _two_domains.build


def check(config) -> None:
  """Checks constraints between fields.

  Raises:
    UserError: as `_two_domains.check` or `_two_domains.check_adaptation`.
  """
  _two_domains.check(config)
  _two_domains.check_adaptation(config)


def make(game, variables, images, key=None, axis_name=None):
  """Of {'x': x, 'y': y} the generated images {'xx': x_xx, ...}, the codes {domain: (mu, sigma)} and
  new batch statistics; in training with a key of the noise, else from mu. All layers that the
  domains share normalise over both together.
  """
  how = dict(mutable=['batch_stats'], train=key is not None)
  codes, updates = game.G.apply(variables, images, method='encode', **how)
  mu, sigma = (interleave(parts) for parts in zip(*codes.values(), strict=True))
  z = mu if key is None else mu + sigma * draws.normal(key, mu.shape, axis_name)
  decoded, updates = game.G.apply(variables | updates, z, method='decode', **how)
  made = {
    f'{source}{to}': part
    for to, rows in decoded.items()
    for source, part in zip(images, deinterleave(rows, len(images)), strict=True)
  }
  return made, codes, updates.get('batch_stats', {})


def judge(D, params, x, y, key, **how):
  """D in training, with dropout, on images of x and y: `nets.unit_digits.Judged` of each."""
  return D.apply({'params': params}, x, y, train=True, rngs={'dropout': key}, **how)


def judge_made(D, params, made, key, **how):
  """D in training on the four generated images: {'xx': Judged, ...}."""
  x, y = (interleave([made[f'{source}{to}'] for source in 'xy']) for to in 'xy')
  both = judge(D, params, x, y, key, **how)
  parts = [jax.tree.map(lambda a: deinterleave(a, 2), of) for of in both]
  return {
    f'{source}{to}': type(of)(*(None if a is None else a[i] for a in of))
    for to, of in zip('xy', parts, strict=True)
    for i, source in enumerate('xy')
  }


# --- The losses ---------------------------------------------------------------------------------


def kl(mu, sigma) -> jax.Array:
  """K of codes [b, ...]: twice a KL divergence to N(0, I), plus one for each entry."""
  terms = mu**2 + sigma**2 - 2 * jnp.log(sigma)
  return jnp.mean(jnp.sum(terms.reshape(len(mu), -1), axis=-1))


def d_loss(params, rows, keys, *, game, config):
  """D's loss on rows (x, y, label of x, generated images {'xx': x_xx, ...}); also its metrics."""
  x, y, label, made = rows
  real = judge(game.D, params, x, y, keys['real'], features=False)
  fake = judge_made(game.D, params, made, keys['fake'])
  real_loss = mean([nn.softplus(-judged.logit) for judged in real])
  fake_loss = mean([nn.softplus(judged.logit) for judged in fake.values()])
  classes = real[0].classes
  class_loss = optax.softmax_cross_entropy_with_integer_labels(classes, label).mean()
  feature_loss = sum(
    squared_distance(fake[f'{d}{other[d]}'].features, fake[f'{d}{d}'].features) for d in 'xy'
  )
  weights = config.loss
  loss = real_loss + fake_loss + weights.classes * class_loss + weights.features * feature_loss
  metrics = {
    'd/loss': loss,
    'd/real_prob': mean([nn.sigmoid(judged.logit) for judged in real]),
    'd/fake_prob': mean([nn.sigmoid(judged.logit) for judged in fake.values()]),
    'd/class_loss': class_loss,
    'd/class_accuracy': correct(classes, label).mean(),
    'd/feature_loss': feature_loss,
  }
  return loss, (metrics, {})


def g_loss(params, rows, keys, *, state, game, config, axis_name):
  """G's loss on rows (x, y), each [b, ...]; also its metrics and new batch statistics."""
  x, y = rows
  made, codes, stats = make(
    game, state.G.variables(params), {'x': x, 'y': y}, keys['noise'], axis_name
  )
  fake = judge_made(game.D, state.D.params, made, keys['D'], features=False)
  gan_loss = mean([nn.softplus(-judged.logit) for judged in fake.values()])
  reconstruction = squared_distance(made['xx'], x) + squared_distance(made['yy'], y)
  K = sum(kl(*code) for code in codes.values())
  loss = 2 * gan_loss + config.loss.reconstruction * reconstruction + config.loss.kl * K
  metrics = {'g/loss': loss, 'g/gan_loss': gan_loss, 'g/reconstruction': reconstruction, 'g/kl': K}
  return loss, (metrics, stats)


METRICS = {
  'd/loss': "D's loss: of the source, the classes and the features",
  'd/real_prob': 'mean probability of being real that D gives to real images',
  'd/fake_prob': 'mean probability of being real that D gives to generated images',
  'd/class_loss': 'cross-entropy of the classes of x, nats',
  'd/class_accuracy': 'share of x whose class is right, with dropout',
  'd/feature_loss': 'squared distances of the features of translations to those of reconstructions',
  'g/loss': "G's loss",
  'g/gan_loss': '-log D of generated images; log 2 where D cannot tell',
  'g/reconstruction': 'squared distances of x_xx to x and x_yy to y',
  'g/kl': 'K(x) + K(y), of the codes',
}


# --- The contract -------------------------------------------------------------------------------


init_state = _two_domains.init_state


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
  keys = step_keys(rng, state.step, 'd_noise', 'real', 'fake', 'noise', 'D')
  how = dict(step=state.step, accumulate=config.train.accumulate, axis_name=axis_name)

  made, _, _ = make(game, state.G.variables(), {'x': x, 'y': y}, keys['d_noise'], axis_name)
  loss = functools.partial(d_loss, game=game, config=config)
  rows = x, y, batch['x_label'], made
  D, d_metrics = update(
    state.D,
    loss,
    rows,
    {name: keys[name] for name in ('real', 'fake')},
    name='d',
    optimizer=game.d_optimizer,
    **how,
  )

  loss = functools.partial(
    g_loss, state=state.replace(D=D), game=game, config=config, axis_name=axis_name
  )
  G, g_metrics = update(
    state.G,
    loss,
    (x, y),
    {name: keys[name] for name in ('noise', 'D')},
    name='g',
    optimizer=game.g_optimizer,
    **how,
  )
  return State(state.step + 1, G, D), d_metrics | g_metrics


def translate(state, images, to, rng, *, config) -> jax.Array:
  """Images [n, ...] of the other domain, in [-1, 1], as images of domain `to`, by the means of
  their codes and running averages: float32 [n, ...]. Nothing is drawn from rng.
  """
  del rng
  source = other[to]
  made, _, _ = make(build(config), state.G.variables(), {source: images})
  return made[f'{source}{to}']


def sample(state, given, rng, *, config) -> dict:
  """Held-out images of both domains translated, see `_two_domains.both_ways`."""
  to = lambda images, domain: translate(state, images, domain, rng, config=config)
  return both_ways(to, given)


# --- Held-out images ----------------------------------------------------------------------------

MEASURES, evaluate = _two_domains.MEASURES, _two_domains.evaluate
