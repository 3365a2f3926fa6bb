r"""Adversarial autoencoder (Makhzani et al. 2015, arXiv 1511.05644).

An encoder q(z|x) and a decoder form an autoencoder. A discriminator D tells codes z ~ q(z|x) from
draws of a prior p(z), and the encoder learns to deceive it, so that the aggregated posterior

    q(z) = E_{x ~ p_data} q(z|x)

becomes p(z). Then decoded draws of p(z) are samples of a generative model, for any prior that can
be sampled: no density is needed, as a VAE needs one. Three updates on each minibatch:

    reconstruction  min_{E, G}  E ||x - G(E(x))||^2
    regularisation  max_D       E_{z ~ p} log D(z) + E_x log(1 - D(E(x))),  D a sigmoid of logits
                    max_E       E_x log D(E(x)),  the non-saturating form; G has no part in it

E(x) is the code itself, or mu + sigma eps with eps ~ N(0, I) (section 2). With labels given to D,
a class may fill one component of the prior only (section 2.3, Figure 4): the prior's draw beside
label y is of component y, and D(z, y) sees y.
"""

import functools
import math
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import draws, fields, nets
from gen_jax.errors import UserError
from gen_jax.fields import Measure
from gen_jax.state import (
  OPTIMIZER,
  Player,
  batch_size,
  init_player,
  make_optimizer,
  one_image,
  step_keys,
  update,
)
from gen_jax.systems._two_nets import score
from gen_jax.systems.gan import discriminator_loss

FIELDS = {
  'encoder': fields.net(meaning='E: x to the code, or to the mean and log sigma^2 of q(z|x)'),
  'decoder': fields.net(meaning='G: z to x'),
  'discriminator': fields.net(meaning='D: z to logits'),
  'latent.dim': fields.integer(1, 2**20, default=2, meaning='entries of z'),
  'latent.posterior': fields.one_of(
    'deterministic', 'gaussian', default='deterministic', meaning='q(z|x): one code, or N(mu, s^2)'
  ),
  'latent.prior': fields.one_of(
    'normal',
    'mixture',
    'swiss_roll',
    default='normal',
    meaning='p(z): N(0, sd^2), a flower of Gaussians in the plane, or a spiral in the plane',
  ),
  'latent.sd': fields.number(
    above=0, default=5.0, meaning='sd of a normal prior', when=('latent.prior', ('normal',))
  ),
  'latent.components': fields.integer(
    1,
    10_000,
    default=10,
    meaning='Gaussians of the mixture, or sections of the roll',
    when=('latent.prior', ('mixture', 'swiss_roll')),
  ),
  'latent.labels': fields.one_of(
    True, False, default=False, meaning='D sees labels, so that each class fills one component'
  ),
  'loss.adversarial': fields.one_of(
    True, False, default=True, meaning='False: a plain autoencoder, whose codes follow no prior'
  ),
  **{f'optim.{net}.{name}': field for net in 'GDE' for name, field in OPTIMIZER.items()},
}
CONDITIONS = ('image',)  # held-out images, to be reconstructed
LOG_VARIANCE = 10.0  # log sigma^2 is clipped to [-LOG_VARIANCE, LOG_VARIANCE]


@flax.struct.dataclass
class State:
  """Everything that a step changes. Reconstruction and regularisation have optimisers of their own,
  as the encoder's gradients differ in scale: `G` holds that of reconstruction, for both nets, `E`
  that of regularisation.
  """

  step: jax.Array  # int32, the number of steps
  E: Player  # the encoder
  G: Player  # the decoder
  D: Player


class Model(NamedTuple):
  """The modules and optimisers of a config."""

  E: nets.Net
  G: nets.Net
  D: nets.Net
  e_optimizer: Any
  g_optimizer: Any
  d_optimizer: Any
  gaussian: bool

  def posterior(self, params, x) -> tuple[jax.Array, jax.Array]:
    """mu and sigma of q(z|x), each [b, d], for x [b, ...]; sigma is 0 where E is deterministic."""
    out = self.E.apply({'params': params}, x)
    if not self.gaussian:
      return out, jnp.zeros_like(out)
    mu, log_variance = jnp.split(out, 2, axis=-1)
    return mu, jnp.exp(jnp.clip(log_variance, -LOG_VARIANCE, LOG_VARIANCE) / 2)

  def encode(self, params, x, eps) -> jax.Array:
    """Codes z = mu + sigma eps [b, d]."""
    mu, sigma = self.posterior(params, x)
    return mu + sigma * eps

  def decode(self, params, z) -> jax.Array:
    """G(z) [b, ...]."""
    return self.G.apply({'params': params}, z)


def build(config, axis_name=None) -> Model:
  """Modules and optimisers; cheap, so every trace builds its own."""
  gaussian = config.latent.posterior == 'gaussian'
  offered = dict(
    precision=config.precision,
    shape=config.data.shape,
    outputs=config.latent.dim * (2 if gaussian else 1),
    num_classes=config.data.num_classes,
    axis_name=axis_name,
  )
  return Model(
    E=nets.make(config.encoder, 'config.encoder', **offered),
    G=nets.make(config.decoder, 'config.decoder', **offered),
    D=nets.make(config.discriminator, 'config.discriminator', **offered),
    e_optimizer=make_optimizer(config.optim.E),
    g_optimizer=make_optimizer(config.optim.G),
    d_optimizer=make_optimizer(config.optim.D),
    gaussian=gaussian,
  )


def check(config) -> None:
  """Checks constraints between fields.

  Raises:
    UserError: the prior is not one of `latent.dim` dimensions, or of the data's classes.
  """
  latent, classes = config.latent, config.data.num_classes
  if latent.prior != 'normal' and latent.dim != 2:
    raise UserError(
      f'config.latent.dim={latent.dim}: config.latent.prior={latent.prior!r} is in the plane; 2 is '
      'needed'
    )
  if latent.labels and latent.prior == 'normal':
    raise UserError(
      "config.latent.prior='normal' has no components for config.latent.labels=True; 'mixture' or "
      "'swiss_roll' is needed"
    )
  if latent.labels and latent.components != classes:
    raise UserError(
      f'config.latent.components={latent.components}: with config.latent.labels=True each class of '
      f'config.data.num_classes={classes} fills one, so as many are needed'
    )


# --- Priors -------------------------------------------------------------------------------------


def mixture(component, noise, components: int) -> jax.Array:
  """z [n, 2] of 2-D Gaussians in the manner of Figure 4a, the petals of a flower: that of component
  k, int [n], is 4 from the origin at the angle 2 pi k / components, with standard deviation 1 along
  this direction and 0.25 across. `noise` [n, 2] is standard normal.
  """
  angle = 2 * math.pi * component / components
  along = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
  across = jnp.stack([-jnp.sin(angle), jnp.cos(angle)], -1)
  return (4 + noise[:, :1]) * along + 0.25 * noise[:, 1:] * across


def swiss_roll(component, u, noise, components: int) -> jax.Array:
  """z [n, 2] on a spiral in the manner of Figure 4b, 0.4 (t cos t, t sin t) for t from 1.5 pi to
  4.5 pi, with normal noise of standard deviation 0.1. Component k, int [n], is the k-th of as many
  equal parts of t, and `u` [n], uniform in [0, 1), the place within; `noise` [n, 2] is standard
  normal.
  """
  t = 1.5 * math.pi * (1 + 2 * (component + u) / components)
  return 0.4 * t[:, None] * jnp.stack([jnp.cos(t), jnp.sin(t)], -1) + 0.1 * noise


def draw_prior(key, n: int, config, component=None, axis_name=None) -> jax.Array:
  """z ~ p(z), float32 [n, d]; `component`, int32 [n], chooses those of the prior, None: at random,
  all equally likely.
  """
  c = config.latent
  keys = jax.random.split(key, 3)
  noise = draws.normal(keys[0], (n, c.dim), axis_name)
  if c.prior == 'normal':
    return c.sd * noise
  if component is None:
    component = draws.integers(keys[1], (n,), 0, c.components, axis_name)
  if c.prior == 'mixture':
    return mixture(component, noise, c.components)
  return swiss_roll(component, draws.uniform(keys[2], (n,), axis_name), noise, c.components)


# --- The losses ---------------------------------------------------------------------------------


def squared_error(x, reconstruction) -> jax.Array:
  """||x - G(z)||^2 [b]: the sum over all values of x [b, ...]."""
  return jnp.sum((x - reconstruction) ** 2, tuple(range(1, x.ndim)))


def reconstruction_loss(params, rows, keys, *, model):
  """E ||x - G(E(x))||^2 for params {'E', 'G'} on rows (x, eps), [b, ...] and [b, d]; also its
  metrics.
  """
  x, eps = rows
  z = model.encode(params['E'], x, eps)
  loss = jnp.mean(squared_error(x, model.decode(params['G'], z)))
  return loss, ({'g/loss': loss}, {})


def d_loss(params, rows, keys, *, player, model):
  """D's mean binary cross-entropy on rows (z, code, label): draws of the prior and codes, each
  [b, d], and label int32 [b] or None; also its metrics and new batch statistics.
  """
  z, code, label = rows
  prior_logit, stats = score(model.D, player, z, keys['prior'], params, label=label)
  player = player.replace(stats=stats)
  code_logit, stats = score(model.D, player, code, keys['code'], params, label=label)
  loss = discriminator_loss(prior_logit, code_logit)
  metrics = {
    'd/loss': loss,
    'd/prior_prob': jnp.mean(nn.sigmoid(prior_logit)),
    'd/code_prob': jnp.mean(nn.sigmoid(code_logit)),
    'd/accuracy': 0.5 * (jnp.mean(prior_logit > 0) + jnp.mean(code_logit < 0)),
  }
  return loss, (metrics, stats)


def e_loss(params, rows, key, *, D, model):
  """-E log D(E(x)) on rows (x, eps, label), [b, ...], [b, d] and [b] or None; also its metrics."""
  x, eps, label = rows
  logit, _ = score(model.D, D, model.encode(params, x, eps), key, label=label)
  loss = jnp.mean(nn.softplus(-logit))
  return loss, ({'e/loss': loss}, {})


METRICS = {
  'g/loss': 'E ||x - G(E(x))||^2, the sum over values in [-1, 1]; of both nets, like g/grad_norm',
  'd/loss': "D's mean binary cross-entropy: log 2 where codes follow the prior; where adversarial",
  'd/prior_prob': 'mean of D(z) for draws of the prior, where adversarial',
  'd/code_prob': 'mean of D(E(x)), where adversarial',
  'd/accuracy': 'share of z, half of them codes, that D classifies right, where adversarial',
  'e/loss': '-mean log D(E(x)), where adversarial',
}


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """Fresh nets for data like batch['image'] [b, ...]."""
  model = build(config)
  e_key, g_key, d_key = jax.random.split(rng, 3)
  x, z = one_image(batch, config), jnp.zeros((1, config.latent.dim))
  label = (jnp.zeros((1,), jnp.int32),) if config.latent.labels else ()
  E = init_player(model.E.init(e_key, x), model.e_optimizer)
  G = init_player(model.G.init(g_key, z), model.g_optimizer)
  both = model.g_optimizer.init({'E': E.params, 'G': G.params})
  return State(
    step=jnp.zeros((), jnp.int32),
    E=E,
    G=G.replace(opt_state=both),
    D=init_player(model.D.init(d_key, z, *label, train=False), model.d_optimizer),
  )


def train_step(state, batch, rng, *, config, axis_name=None):
  """One update of the autoencoder, then one of D and one of the encoder, on the same minibatch.

  Args:
    state: the `State`.
    batch: `image` float32 [b, ...] in [-1, 1]; `label` int32 [b] with config.latent.labels.
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and the metrics, float32 scalars.
  """
  model, x = build(config, axis_name=axis_name), batch['image']
  label = batch['label'] if config.latent.labels else None
  keys = step_keys(rng, state.step, 'reconstruction', 'D', 'E', 'prior', 'd_prior', 'd_code', 'e')
  how = dict(step=state.step, accumulate=config.train.accumulate, axis_name=axis_name)

  def eps(name):
    return draws.normal(keys[name], (len(x), config.latent.dim), axis_name)

  # Reconstruction: one gradient of both nets.
  both = state.G.replace(params={'E': state.E.params, 'G': state.G.params})
  loss = functools.partial(reconstruction_loss, model=model)
  rows = (x, eps('reconstruction'))
  both, metrics = update(both, loss, rows, {}, name='g', optimizer=model.g_optimizer, **how)
  E, G = state.E.replace(params=both.params['E']), both.replace(params=both.params['G'])
  if not config.loss.adversarial:
    return State(state.step + 1, E, G, state.D), metrics

  # Regularisation.
  z = draw_prior(keys['prior'], len(x), config, label, axis_name)
  code = model.encode(E.params, x, eps('D'))
  loss = functools.partial(d_loss, player=state.D, model=model)
  dropout = {'prior': keys['d_prior'], 'code': keys['d_code']}
  D, d_metrics = update(
    state.D, loss, (z, code, label), dropout, name='d', optimizer=model.d_optimizer, **how
  )
  loss = functools.partial(e_loss, D=D, model=model)
  rows = (x, eps('E'), label)
  E, e_metrics = update(E, loss, rows, keys['e'], name='e', optimizer=model.e_optimizer, **how)
  return State(state.step + 1, E, G, D), metrics | d_metrics | e_metrics


def sample(state, given, rng, *, config) -> dict:
  """Decoded draws of the prior, one for each row of `given`, with config.latent.labels each of the
  component of its label: {'image': float32 [n, ...] in [-1, 1]}. If `given` has an 'image'
  [n, ...], also 'reconstruction' [n, 2, ...], each beside what is decoded from its code (with a
  Gaussian encoder, the mean).
  """
  model = build(config)
  component = given['label'] if config.latent.labels else None
  z = draw_prior(rng, batch_size(given), config, component)
  made = {'image': model.decode(state.G.params, z)}
  if 'image' in given:
    coded = encode(state, given, rng, config=config)
    made['reconstruction'] = jnp.stack([given['image'], coded['reconstruction']], 1)
  return made


def conditional(state, *, config) -> bool:
  """Whether samples depend on labels."""
  return config.latent.labels


def encode(state, batch, rng, *, config) -> dict:
  """'z' [b, d], the code, or the mean of q(z|x), of batch['image'] [b, ...], and 'reconstruction'
  [b, ...].
  """
  model = build(config)
  z, _ = model.posterior(state.E.params, batch['image'])
  return {'z': z, 'reconstruction': model.decode(state.G.params, z)}


def decode(state, z, given, *, config) -> dict:
  """G(z) for codes z [n, d]: {'image': float32 [n, ...] in [-1, 1]}.

  Raises:
    UserError: z has another shape.
  """
  del given
  if z.shape[1:] != (config.latent.dim,):
    raise UserError(f'z is {z.shape}: {("n", config.latent.dim)} is needed')
  return {'image': build(config).decode(state.G.params, z)}


def prior(rng, n: int, *, config) -> jax.Array:
  """Draws of z ~ p(z), [n, latent.dim]."""
  return draw_prior(rng, n, config)


MEASURES = {
  'squared_error': Measure('||x - G(E(x))||^2, values in [-1, 1]', 'exact'),
  'code': Measure('codes z ~ q(z|x)', 'exact', points=True),
}


def evaluate(state, batch, rng, *, config) -> dict:
  """'squared_error' [b] of reconstructions of batch['image'] [b, ...], and, where codes are in the
  plane, 'code' [b, 2], drawn from q(z|x) by `rng`.
  """
  model, x = build(config), batch['image']
  reconstruction = encode(state, batch, rng, config=config)['reconstruction']
  found = {'squared_error': squared_error(x, reconstruction)}
  if config.latent.dim == 2:
    eps = jax.random.normal(rng, (len(x), 2))
    found['code'] = model.encode(state.E.params, x, eps)
  return found
