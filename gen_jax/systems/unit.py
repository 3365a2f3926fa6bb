r"""UNIT, unsupervised image-to-image translation networks (Liu, Breuel and Kautz 2017, arXiv
1703.00848).

Two variational autoencoders, of domains x and y, share a latent space: q(z | x) = N(mu(x), I), and
the last layers of both encoders and the first ones of both generators are the same. x_st is what
the generator of t makes of the code of an image of s: x_xx is a reconstruction of x, x_yx an image
of y translated into x, which D_x is to take for real, and x_xyx an image of x translated into y and
back. The paper's min over encoders and generators and max over D_x and D_y is of a sum over both
domains, of which this is the part of x:

    L_VAE = lambda_1 KL(q(z | x) || p(z)) - lambda_2 E log p(x | z)
    L_GAN = lambda_0 (E log D_x(x) + E log(1 - D_x(x_yx)))
    L_CC  = lambda_3 (KL(q(z | x) || p(z)) + KL(q(z | x_xy) || p(z))) - lambda_4 E log p(x | z_xy)

with z_xy the code of x_xy. Here it is as in the authors' code (branch version_02), for logits l of
D and means over pixels:

    D:  lambda_0 (E softplus(-l_x(x)) + E softplus(l_x(x_yx)) + the same for y and x_xy)

    G:  lambda_0 (E softplus(-l_x(x_yx)) + E softplus(-l_y(x_xy)))
        + lambda_1 (K(x) + K(y)) + lambda_2 (E |x_xx - x| + E |x_yy - y|)
        + lambda_3 (K(x_xy) + K(x_yx)) + lambda_4 (E |x_xyx - x| + E |x_yxy - y|)

K is the mean of z^2 over a code with its noise: the KL divergence of N(mu, I) to N(0, I) but for
factor and constant. The codes of x and y have weight lambda_1 alone, and D's terms are not halved.
Where D has several scales, each has these terms.

One step is one update of D, then one of G, for which its images are generated again. In the state,
`G` is the player of encoders and generators and `D` that of both discriminators.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import domains, draws, fields
from gen_jax.errors import UserError
from gen_jax.fields import Measure
from gen_jax.nets.layers import crop
from gen_jax.state import step_keys, update
from gen_jax.systems import _two_domains
from gen_jax.systems._two_domains import both_ways, l1, other
from gen_jax.systems._two_nets import State

FIELDS = (
  _two_domains.FIELDS
  | _two_domains.TO
  | {
    'loss.gan': fields.number(0, default=10.0, meaning="lambda_0, of D's loss and of -log D"),
    'loss.kl': fields.number(0, default=0.1, meaning='lambda_1, of the codes of images'),
    'loss.reconstruction': fields.number(0, default=100.0, meaning='lambda_2, of x_xx and x_yy'),
    'loss.cycle_kl': fields.number(
      0, default=0.1, meaning='lambda_3, of the codes of translations'
    ),
    'loss.cycle': fields.number(0, default=100.0, meaning='lambda_4, of x_xyx and x_yxy'),
  }
)
CONDITIONS = ('x', 'y')
inputs, build = domains.inputs, _two_domains.build


def check(config) -> None:
  """Checks constraints between fields.

  Raises:
    UserError: as `_two_domains.check`, or the generator cannot halve images of x or y so often.
  """
  _two_domains.check(config)
  times = 2 ** config.generator.get('downs', 0)
  for field, shape in (
    ('config.data.x.shape', domains.x_shape(config)),
    ('config.data.shape', tuple(config.data.shape)),
  ):
    if shape[0] % times or shape[1] % times:
      raise UserError(
        f'{field}={shape}: height and width must be multiples of {times}, as '
        f'config.generator.downs={config.generator.downs} halves them'
      )


def codes_of(game, params, images, noise=None, key=None) -> dict:
  """The codes z of {domain: images [b, ...]}: the means, in training with the noise {domain: eps}
  added, and with a key of dropout.
  """
  rngs = None if key is None else {'dropout': key}
  how = dict(method='encode', train=key is not None, rngs=rngs)
  mu = game.G.apply({'params': params}, images, **how)
  return mu if noise is None else {d: mu[d] + noise[d] for d in mu}


def images_of(game, params, z, domain, key=None) -> jax.Array:
  """Codes z as images of a domain, [b, ...]; in training with a key of dropout."""
  rngs = None if key is None else {'dropout': key}
  how = dict(method='decode', domains=(domain,), train=key is not None, rngs=rngs)
  return game.G.apply({'params': params}, z, **how)[domain]


def draw_noise(key, game, params, images, axis_name=None) -> dict:
  """{domain: eps}, N(0, I) of the shape of the codes of {domain: images}."""
  shapes = jax.eval_shape(functools.partial(codes_of, game), params, images)
  keys = dict(zip(images, jax.random.split(key, len(images)), strict=True))
  return {d: draws.normal(keys[d], z.shape, axis_name) for d, z in shapes.items()}


# --- The losses ---------------------------------------------------------------------------------


def source_loss(logits, real: bool) -> jax.Array:
  """The cross-entropies of logits [b, h, w] of each scale of each domain, all of real images or all
  of translations: means over the positions of an array, summed over arrays.
  """
  sign = -1 if real else 1
  return sum(jnp.mean(nn.softplus(sign * l)) for l in logits)


def K(z) -> jax.Array:
  """The mean of z^2."""
  return jnp.mean(jnp.square(z))


def d_loss(params, rows, keys, *, game, config):
  """D's loss on rows (x, y, x_yx, x_xy), images [b, h, w, ...]; also its metrics."""
  x, y, x_yx, x_xy = rows
  real = game.D.apply({'params': params}, x, y)
  fake = game.D.apply({'params': params}, x_yx, x_xy)
  loss = config.loss.gan * (source_loss(real, True) + source_loss(fake, False))
  flat = [jnp.concatenate([l.ravel() for l in logits]) for logits in (real, fake)]
  metrics = {
    'd/loss': loss,
    'd/real_prob': jnp.mean(nn.sigmoid(flat[0])),
    'd/fake_prob': jnp.mean(nn.sigmoid(flat[1])),
  }
  return loss, (metrics, {})


def g_loss(params, rows, key, *, D, game, config):
  """G's loss on rows (x, y, noise of their codes, noise of those of translations), images
  [b, h, w, ...]; also its metrics.
  """
  x, y, noise, cycle_noise = rows
  k = jax.random.split(key, 8)
  z = codes_of(game, params, {'x': x, 'y': y}, noise, k[0])
  made = {
    name: images_of(game, params, z[name[0]], name[1], k[1 + i])
    for i, name in enumerate(('xx', 'xy', 'yx', 'yy'))
  }
  codes = codes_of(game, params, {'x': made['yx'], 'y': made['xy']}, cycle_noise, k[5])
  x_xyx = images_of(game, params, codes['y'], 'x', k[6])
  x_yxy = images_of(game, params, codes['x'], 'y', k[7])

  gan_loss = source_loss(game.D.apply(D.variables(), made['yx'], made['xy']), True)
  reconstruction = l1(made['xx'], x) + l1(made['yy'], y)
  cycle = l1(x_xyx, x) + l1(x_yxy, y)
  kl, cycle_kl = (K(of['x']) + K(of['y']) for of in (z, codes))
  w = config.loss
  loss = w.gan * gan_loss + w.kl * kl + w.reconstruction * reconstruction
  loss = loss + w.cycle_kl * cycle_kl + w.cycle * cycle
  metrics = {
    'g/loss': loss,
    'g/gan_loss': gan_loss,
    'g/kl': kl,
    'g/reconstruction': reconstruction,
    'g/cycle_kl': cycle_kl,
    'g/cycle': cycle,
  }
  return loss, (metrics, {})


METRICS = {
  'd/loss': "D's loss",
  'd/real_prob': 'mean probability of being real that D gives to real images',
  'd/fake_prob': 'mean probability of being real that D gives to translations',
  'g/loss': "G's loss",
  'g/gan_loss': '-log D of translations, summed over both domains and all scales',
  'g/kl': 'K(x) + K(y), of the codes of images',
  'g/reconstruction': 'mean |x_xx - x| + mean |x_yy - y|',
  'g/cycle_kl': 'K(x_xy) + K(x_yx), of the codes of translations',
  'g/cycle': 'mean |x_xyx - x| + mean |x_yxy - y|',
}


# --- The contract -------------------------------------------------------------------------------


init_state = _two_domains.init_state


def train_step(state, batch, rng, *, config, axis_name=None):
  """One update of D, then one of G.

  Args:
    state: the `State`.
    batch: `x` and `y`, float32 [b, h, w, ...] in [-1, 1].
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and the metrics, float32 scalars.
  """
  game = build(config, axis_name)
  x, y = batch['x'], batch['y']
  keys = step_keys(rng, state.step, 'd_noise', 'd_dropout', 'noise', 'cycle_noise', 'dropout')
  how = dict(step=state.step, accumulate=config.train.accumulate, axis_name=axis_name)
  both, G = {'x': x, 'y': y}, state.G.params
  noise = {
    name: draw_noise(keys[name], game, G, both, axis_name)
    for name in ('d_noise', 'noise', 'cycle_noise')
  }

  k = jax.random.split(keys['d_dropout'], 3)
  z = codes_of(game, G, both, noise['d_noise'], k[0])
  x_yx, x_xy = images_of(game, G, z['y'], 'x', k[1]), images_of(game, G, z['x'], 'y', k[2])
  loss = functools.partial(d_loss, game=game, config=config)
  rows = x, y, x_yx, x_xy
  D, d_metrics = update(state.D, loss, rows, (), name='d', optimizer=game.d_optimizer, **how)

  loss = functools.partial(g_loss, D=D, game=game, config=config)
  rows = x, y, noise['noise'], noise['cycle_noise']
  G, g_metrics = update(
    state.G, loss, rows, keys['dropout'], name='g', optimizer=game.g_optimizer, **how
  )
  return State(state.step + 1, G, D), d_metrics | g_metrics


def translate(state, images, to, rng, *, config) -> jax.Array:
  """Images [n, h, w, c] of the other domain, in [-1, 1] and of any size, as images of domain `to`,
  by the means of their codes: float32 [n, h, w, d]. Nothing is drawn from rng.
  """
  del rng
  game, source = build(config), other[to]
  z = codes_of(game, state.G.params, {source: images})[source]
  return crop(images_of(game, state.G.params, z, to), images.shape[1:3])


def sample(state, given, rng, *, config) -> dict:
  """Held-out images of both domains translated, see `_two_domains.both_ways`."""
  to = lambda images, domain: translate(state, images, domain, rng, config=config)
  return both_ways(to, given)


# --- Held-out images ----------------------------------------------------------------------------

MEASURES = {
  'cycle_x': Measure('mean |x - x_xyx|', 'exact'),
  'cycle_y': Measure('mean |y - x_yxy|', 'exact'),
}


def evaluate(state, batch, rng, *, config) -> dict:
  """How far images are from where they were after both translations: values [b] of `MEASURES`."""

  def of(domain):
    to = functools.partial(translate, state, rng=rng, config=config)
    back = to(to(batch[domain], other[domain]), domain)
    return jnp.mean(jnp.abs(back - batch[domain]), axis=(1, 2, 3))

  return {'cycle_x': of('x'), 'cycle_y': of('y')}
