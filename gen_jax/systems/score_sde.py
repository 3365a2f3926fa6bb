r"""Score-based models through stochastic differential equations (Song et al. 2021, arXiv
2011.13456), in continuous time.

An SDE dx = f(t) x dt + g(t) dw, t from 0 to 1, turns data into noise. Its time reverse needs only
the score of the noisy data (Eq. 6), which a net learns by denoising score matching (Eq. 7). Here
the net predicts eps, and score_theta(x, t) = -eps_theta(x, t) / sigma_t:

    L = E lambda(t) || score_theta(x_t, t) - grad log p(x_t | x_0) ||^2
    x_t = alpha_t x_0 + sigma_t eps

With lambda = sigma^2 that is the error of eps; with lambda = g^2 L bounds the likelihood (Song et
al. 2021b, arXiv 2101.09258, Theorem 1). The SDEs (appendix B and C):

    VP      dx = -1/2 beta(t) x dt + sqrt(beta(t)) dw,  beta linear: the limit of DDPM
    sub-VP  the same drift, and less noise: sigma = 1 - alpha^2
    VE      dx = sigma(t) sqrt(2 log(sigma_max / sigma_min)) dw,  sigma(t) geometric

Sampling: `predictor_corrector` (Algorithm 1), `euler_maruyama`, `ode` (section 4.3), which also
gives likelihoods and encodings, or any other sampler.
"""

import functools

import jax
import jax.numpy as jnp

from gen_jax import draws, fields
from gen_jax.diffusion import guidance, paths, predictions
from gen_jax.diffusion.paths import per_row
from gen_jax.state import step_keys
from gen_jax.systems import _denoising
from gen_jax.systems._denoising import drop_labels

_VP = dict(when=('.name', ('vp', 'sub_vp')))
_VE = dict(when=('.name', ('ve',)))

FIELDS = {
  **_denoising.make_fields(
    'predicts eps: (x_t, what it is told of t, label); told 999 t, or by VE log(sigma / 2)',
    ema_decay=0.9999,
    sampler='predictor_corrector',
    steps=1000,
  ),
  'sde.name': fields.one_of('vp', 'sub_vp', 've', default='vp', meaning='the SDE'),
  'sde.beta_min': fields.number(above=0, default=0.1, meaning='beta(0)', **_VP),
  'sde.beta_max': fields.number(above=0, default=20.0, meaning='beta(1)', **_VP),
  'sde.sigma_min': fields.number(
    above=0,
    default=0.02,
    meaning="sigma(0), for data in [-1, 1]: twice the paper's, whose data are in [0, 1]",
    **_VE,
  ),
  'sde.sigma_max': fields.number(
    above=0, default=100.0, meaning="sigma(1), twice the paper's as well", **_VE
  ),
  'sde.weighting': fields.one_of(
    'sigma', 'likelihood', default='sigma', meaning='lambda: sigma^2, or g^2'
  ),
}

check = _denoising.check


def path(config) -> paths.Path:
  """The path of config.sde."""
  c = config.sde
  if c.name == 've':
    return paths.VE(c.sigma_min, c.sigma_max)
  return {'vp': paths.VP, 'sub_vp': paths.SubVP}[c.name](c.beta_min, c.beta_max)


# --- The loss -----------------------------------------------------------------------------------


def predict(model, params, x, t, label, config, **how) -> jax.Array:
  """eps_theta(x, t) for x [b, ...] and t [b]; the net is told 999 t, or on a VE path log sigma for
  data in [0, 1], as in the released code.
  """
  told = jnp.log(path(config).sigma(t) / 2) if config.sde.name == 've' else 999 * t
  return _denoising.apply(model, params, x, told, label, **how)


def loss_fn(params, rows, key, *, model, config):
  """L of rows (x_0, label, t, eps), the mean over all dimensions, then over examples. (For VE the
  released code has half of the sum over dimensions; Adam does not see a factor, clipping does.)
  """
  x_0, label, t, eps = rows
  on = path(config)
  x_t = paths.add_noise(on, x_0, t, eps)
  how = dict(train=True, rngs={'dropout': key})
  errors = (predict(model, params, x_t, t, label, config, **how) - eps) ** 2
  if config.sde.weighting == 'likelihood':
    errors *= per_row(on.diffusion_squared(t) / on.sigma(t) ** 2, x_0.ndim)
  loss = jnp.mean(errors)
  return loss, ({'net/loss': loss}, {})


METRICS = {
  'net/loss': 'L (Eq. 7): the weighted squared error of the score, the mean over dimensions'
}


# --- The contract -------------------------------------------------------------------------------


build, init_state = _denoising.build, _denoising.init_state


def train_step(state, batch, rng, *, config, axis_name=None):
  """One gradient step on L.

  Args:
    state: the `State`.
    batch: `image` float32 [b, ...] in [-1, 1]; `label` int32 [b] where the net is conditional.
    rng: the constant run key; the step number is folded in here.
    config: hashable config with the groups of `FIELDS`.
    axis_name: `pmap` axis, or None.

  Returns:
    The new state, and the metrics, float32 scalars.
  """
  model = build(config, axis_name)
  keys = step_keys(rng, state.step, 't', 'eps', 'dropout', 'label')
  x_0 = batch['image']
  t = draws.uniform(keys['t'], (len(x_0),), axis_name, low=path(config).t_min)
  eps = draws.normal(keys['eps'], x_0.shape, axis_name)
  label = drop_labels(batch.get('label'), keys['label'], config, axis_name)
  loss = functools.partial(loss_fn, model=model, config=config)
  rows = x_0, label, t, eps
  return _denoising.update(state, loss, rows, keys['dropout'], model, config, axis_name)


def denoiser(params, label, *, config):
  """The net as samplers see it; label int32 [b], or None."""
  model, on = build(config), path(config)

  def denoise(x, t):
    eps = predict(model, params, x, t, label, config, train=False)
    return predictions.to_prediction('eps', eps, x, on.alpha(t), on.sigma(t))

  return denoise


sample, conditional = _denoising.sample, _denoising.conditional
encode, decode, prior = _denoising.encode, _denoising.decode, _denoising.prior
evaluate, MEASURES = _denoising.evaluate, _denoising.MEASURES
evaluations, runs = _denoising.evaluations, guidance.runs
