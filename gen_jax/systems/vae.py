r"""Variational autoencoder (Kingma and Welling 2013, Auto-Encoding Variational Bayes, arXiv
1312.6114).

A latent z ~ N(0, I) is decoded into an image, x ~ p_theta(x|z). The posterior of z is intractable;
an encoder approximates it by q_phi(z|x) = N(mu(x), diag sigma(x)^2), and both nets maximise a lower
bound of log p(x) (Eq. 3, Appendix B):

    ELBO = E_q log p_theta(x|z) - KL(q_phi(z|x) || p(z))
    KL   = 1/2 sum_j (mu_j^2 + sigma_j^2 - log sigma_j^2 - 1)

with z = mu + sigma eps, eps ~ N(0, I), so that gradients flow through the draw (section 2.4). More
draws tighten the bound (Burda et al. 2015, Importance Weighted Autoencoders, arXiv 1509.00519):

    log p(x) >= E log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x),  z_i ~ q(z|x);  k = 1 is the ELBO
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax import draws, fields, nets
from gen_jax.errors import UserError
from gen_jax.fields import Measure
from gen_jax.ops.scan import after, scan
from gen_jax.state import (
  OPTIMIZER,
  batch_size,
  init_player,
  make_optimizer,
  one_image,
  step_keys,
  update,
)
from gen_jax.systems._one_net import State

FIELDS = {
  'encoder': fields.net(meaning='x to the mean and log sigma^2 of q(z|x)'),
  'decoder': fields.net(meaning='z to the parameters of p(x|z)'),
  'latent.dim': fields.integer(1, 2**20, meaning='dimensions of z'),
  'likelihood': fields.one_of(
    'bernoulli', 'discretised_logistic', meaning='p(x|z): of binarised images, or of 256 levels'
  ),
  **{f'optim.{name}': field for name, field in OPTIMIZER.items()},
  'sample.pixels': fields.one_of(
    'mean', 'draw', default='mean', meaning='samples are means of p(x|z), or draws from it'
  ),
  'sample.interpolation': fields.integer(
    0, 1000, default=8, meaning='images from one latent to the next; 0: none', protocol=False
  ),
  'eval.importance_samples': fields.integer(
    1, 1_000_000, default=64, smoke=4, meaning='k, draws of z for the importance-weighted bound'
  ),
}
CONDITIONS = ('image',)  # held-out images, to be reconstructed and interpolated
LOG_VARIANCE = 10.0  # log sigma^2 is clipped to +-LOG_VARIANCE, so that exp does not overflow
PASS = 4096  # images decoded at once for the importance-weighted bound


# --- Likelihoods --------------------------------------------------------------------------------


class Likelihood(NamedTuple):
  """p(x|z) of every value of x in [-1, 1], as functions of its parameters theta, arrays like x."""

  outputs: int  # number of parameters
  log_prob: Callable  # (theta, x) -> nats
  mean: Callable  # theta -> x
  draw: Callable  # (theta, key) -> x


def bernoulli_log_prob(theta, x) -> jax.Array:
  """log p(x), nats [b, ...], of x = -1 or 1 [b, ...] for theta = (log p(1) / p(-1),)."""
  return -nn.softplus(-x * theta[0])


def bernoulli_draw(theta, key) -> jax.Array:
  return jnp.where(jax.random.bernoulli(key, nn.sigmoid(theta[0])), 1.0, -1.0)


def logistic_log_prob(theta, x) -> jax.Array:
  """log p(x), nats [b, ...], of a level x = v / 127.5 - 1 [b, ...] for theta = (mean, log scale): a
  logistic distribution's mass in the bin of x, outermost bins to infinity (Salimans et al. 2017,
  PixelCNN++, arXiv 1701.05517, section 2.1).

  With a and b the edges of the bin less the mean, over the scale, the mass is sigmoid(a) -
  sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)). In float32 only the product keeps the tails.
  """
  mean, scale = theta[0], _scale(theta)
  a, b = ((x + edge / 255 - mean) / scale for edge in (1, -1))
  first, last = x < -1 + 1 / 255, x > 1 - 1 / 255
  up_to_a = jnp.where(last, 0, -nn.softplus(-a))
  from_b = jnp.where(first, 0, -nn.softplus(b))
  return up_to_a + from_b + jnp.where(first | last, 0, jnp.log(-jnp.expm1(-2 / 255 / scale)))


def _scale(theta) -> jax.Array:
  return jnp.exp(jnp.maximum(theta[1], -7.0))  # as in PixelCNN++: e^-7 is a tenth of a bin


def logistic_draw(theta, key) -> jax.Array:
  noise = jax.random.logistic(key, theta[0].shape)
  levels = jnp.round((theta[0] + _scale(theta) * noise + 1) * 127.5)
  return jnp.clip((levels - 127.5) / 127.5, -1, 1)


LIKELIHOODS = {
  'bernoulli': Likelihood(
    1, bernoulli_log_prob, lambda theta: jnp.tanh(theta[0] / 2), bernoulli_draw
  ),
  'discretised_logistic': Likelihood(
    2, logistic_log_prob, lambda theta: jnp.clip(theta[0], -1, 1), logistic_draw
  ),
}


# --- The model and its bound --------------------------------------------------------------------


class Model(NamedTuple):
  """The modules, likelihood and optimiser of a config."""

  encoder: nets.Net
  decoder: nets.Net
  likelihood: Likelihood
  optimizer: Any

  def encode(self, params, x) -> tuple[jax.Array, jax.Array]:
    """mu and log sigma^2 of q(z|x), each [b, d], for x [b, ...]."""
    mu, log_variance = self.encoder.apply({'params': params['encoder']}, x)
    return mu, jnp.clip(log_variance, -LOG_VARIANCE, LOG_VARIANCE)

  def decode(self, params, z) -> list[jax.Array]:
    """theta of p(x|z), arrays [b, h, w, c], for z [b, d]."""
    theta = self.decoder.apply({'params': params['decoder']}, z)
    return jnp.split(theta, self.likelihood.outputs, axis=-1)

  def log_likelihood(self, params, x, z) -> jax.Array:
    """log p(x|z), nats [b]; the sum over all values of x [b, ...]."""
    nats = self.likelihood.log_prob(self.decode(params, z), x)
    return jnp.sum(nats, tuple(range(1, x.ndim)))


def build(config) -> Model:
  """Modules and optimiser; cheap, so every trace builds its own."""
  likelihood = LIKELIHOODS[config.likelihood]
  sizes = dict(shape=config.data.shape, latent_dim=config.latent.dim, outputs=likelihood.outputs)
  offered = sizes | {'precision': config.precision}
  return Model(
    encoder=nets.make(config.encoder, 'config.encoder', **offered),
    decoder=nets.make(config.decoder, 'config.decoder', **offered),
    likelihood=likelihood,
    optimizer=make_optimizer(config.optim),
  )


def check(config) -> None:
  """Checks constraints between fields.

  Raises:
    UserError: the likelihood is not one of the data.
  """
  if config.likelihood == 'bernoulli' and config.data.binarize == 'none':
    raise UserError(
      "config.likelihood='bernoulli' with config.data.binarize='none': it is a likelihood of two "
      "levels only; config.data.binarize='static' or 'discretised_logistic' is needed"
    )
  if config.data.dequantize != 'none':
    raise UserError(
      f'config.data.dequantize={config.data.dequantize!r}: the likelihoods of a VAE are of '
      "discrete levels; 'none' is needed"
    )


def kl(mu, log_variance) -> jax.Array:
  """KL(N(mu, sigma^2) || N(0, I)) for mu and log sigma^2 [b, d]: nats [b]."""
  return 0.5 * jnp.sum(mu**2 + jnp.exp(log_variance) - log_variance - 1, -1)


def loss_fn(params, rows, keys, *, model):
  """-ELBO of rows (x, eps), [b, ...] and [b, d], by one draw of z: the mean over rows."""
  x, eps = rows
  mu, log_variance = model.encode(params, x)
  log_likelihood = model.log_likelihood(params, x, mu + jnp.exp(log_variance / 2) * eps)
  divergence = kl(mu, log_variance)
  loss = jnp.mean(divergence - log_likelihood)
  parts = {'net/reconstruction': -jnp.mean(log_likelihood), 'net/kl': jnp.mean(divergence)}
  return loss, ({'net/loss': loss} | parts, {})


METRICS = {
  'net/loss': '-ELBO, by one draw of z: nats per example',
  'net/reconstruction': '-log p(x|z): nats per example',
  'net/kl': 'KL(q(z|x) || p(z)): nats per example',
}


# --- The contract -------------------------------------------------------------------------------


def init_state(rng, batch, *, config) -> State:
  """Fresh nets for data like batch['image'] [b, ...], both of the player `net`."""
  model = build(config)
  encoder_key, decoder_key = jax.random.split(rng)
  x, z = one_image(batch, config), jnp.zeros((1, config.latent.dim))
  params = {
    'encoder': model.encoder.init(encoder_key, x)['params'],
    'decoder': model.decoder.init(decoder_key, z)['params'],
  }
  net = init_player({'params': params}, model.optimizer)
  return State(step=jnp.zeros((), jnp.int32), net=net)


def train_step(state, batch, rng, *, config, axis_name=None):
  """Algorithm 1 with L = 1: one gradient step on -ELBO.

  Args:
    state: the `State`.
    batch: `image` float32 [b, ...] in [-1, 1].
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and the metrics, float32 scalars.
  """
  model, x = build(config), batch['image']
  keys = step_keys(rng, state.step, 'eps')
  net, metrics = update(
    state.net,
    functools.partial(loss_fn, model=model),
    (x, draws.normal(keys['eps'], (len(x), config.latent.dim), axis_name)),
    {},
    name='net',
    optimizer=model.optimizer,
    step=state.step,
    accumulate=config.train.accumulate,
    axis_name=axis_name,
  )
  return State(state.step + 1, net), metrics


def sample(state, given, rng, *, config) -> dict:
  """Images decoded from the prior, one for each row of `given`; and what becomes of given images.

  Returns:
    'image' float32 [n, ...] in [-1, 1], means of p(x|z) or draws, as config.sample.pixels says. If
    `given` has an 'image' [n, ...], also 'reconstruction' [n, 2, ...], each beside the mean of
    p(x|z) at z = mu(x), and, with config.sample.interpolation = m, 'interpolation' [n, m, ...]:
    means at m points of the line from mu(x) to that of the next image.
  """
  model, params = build(config), state.net.params
  z_key, pixels_key = jax.random.split(rng)
  z = draws.normal(z_key, (batch_size(given), config.latent.dim))
  theta, mean = model.decode(params, z), model.likelihood.mean
  draw = config.sample.pixels == 'draw'
  made = {'image': model.likelihood.draw(theta, pixels_key) if draw else mean(theta)}
  if 'image' in given:
    x, m = given['image'], config.sample.interpolation
    mu, _ = model.encode(params, x)
    made['reconstruction'] = jnp.stack([x, mean(model.decode(params, mu))], 1)
    if m:
      t = jnp.linspace(0, 1, m)[None, :, None]
      line = (1 - t) * mu[:, None] + t * jnp.roll(mu, -1, 0)[:, None]  # [n, m, d]
      images = mean(model.decode(params, line.reshape(-1, config.latent.dim)))
      made['interpolation'] = images.reshape(*line.shape[:2], *x.shape[1:])
  return made


def encode(state, batch, rng, *, config) -> dict:
  """'z' [b, d], the mean of q(z|x) for batch['image'] [b, ...], and 'reconstruction' [b, ...], the
  mean of p(x|z) there.
  """
  model, params = build(config), state.net.params
  mu, _ = model.encode(params, batch['image'])
  return {'z': mu, 'reconstruction': model.likelihood.mean(model.decode(params, mu))}


def decode(state, z, given, *, config) -> dict:
  """'image' [n, ...], the means of p(x|z) for z [n, d]; a UserError for z of another shape."""
  if z.shape[1:] != (config.latent.dim,):
    raise UserError(f'z is {z.shape}: {("n", config.latent.dim)} is needed')
  model = build(config)
  return {'image': model.likelihood.mean(model.decode(state.net.params, z))}


def prior(rng, n: int, *, config) -> jax.Array:
  """Draws of z, N(0, I), [n, latent.dim]."""
  return draws.normal(rng, (n, config.latent.dim))


def settings(config) -> str:
  """The settings that the values of `evaluate` depend on, as text."""
  text = f'{config.likelihood} likelihood, {config.eval.importance_samples} samples of z'
  return text + ', statically binarised images' * (config.data.binarize == 'static')


MEASURES = {
  'bits_per_dim': Measure('bits/dim', 'upper bound', settings),
  'nats': Measure('-log p(x), importance-weighted, nats', 'upper bound', settings),
  'negative_elbo': Measure('-ELBO, nats', 'upper bound', settings),
  'reconstruction': Measure('-E log p(x|z), nats', 'estimate', settings),
  'kl': Measure('KL(q(z|x) || p(z)), nats', 'exact'),
}


def evaluate(state, batch, rng, *, config) -> dict:
  """Upper bounds of -log p(x), by k = config.eval.importance_samples draws of z for each example.

  Args:
    state: the `State`.
    batch: `image` float32 [b, ...] in [-1, 1].
    rng: key of the draws.
    config: as for `train_step`.

  Returns:
    Values [b] in nats: 'nats', the importance-weighted bound; 'negative_elbo', the sum of
    'reconstruction' and 'kl'; and 'bits_per_dim', the first in bits per dimension.
  """
  model, params = build(config), state.net.params
  x, k = batch['image'], config.eval.importance_samples
  b, draws_per_pass = len(x), max(1, min(k, PASS // len(x)))
  mu, log_variance = model.encode(params, x)
  divergence = kl(mu, log_variance)
  # Row i of a pass is a draw for example i % b.
  rows = [jnp.tile(a, (draws_per_pass, *[1] * (a.ndim - 1))) for a in (x, mu, log_variance)]

  def one_pass(before, key):
    x, mu, log_variance = after(before, rows)
    eps = jax.random.normal(key, mu.shape)
    z = mu + jnp.exp(log_variance / 2) * eps
    log_likelihood = model.log_likelihood(params, x, z)
    # log p(z) - log q(z|x), whose constants cancel.
    log_ratio = 0.5 * jnp.sum(eps**2 + log_variance - z**2, -1)
    return log_likelihood[0], (log_likelihood, log_likelihood + log_ratio)

  keys = jax.random.split(rng, math.ceil(k / draws_per_pass))
  _, made = scan(one_pass, jnp.zeros(()), keys)
  log_likelihood, log_weight = (a.reshape(-1, b)[:k] for a in made)
  nats = math.log(k) - nn.logsumexp(log_weight, 0)
  reconstruction = -jnp.mean(log_likelihood, 0)
  return {
    'bits_per_dim': nats / (math.prod(x.shape[1:]) * math.log(2)),
    'nats': nats,
    'negative_elbo': reconstruction + divergence,
    'reconstruction': reconstruction,
    'kl': divergence,
  }
