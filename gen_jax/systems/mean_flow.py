r"""Mean flows for one-step generation (Geng et al. 2025, arXiv 2505.13447).

On the straight path z_t = (1 - t) x + t eps, whose velocity is v = eps - x, the average velocity
between two times r <= t (Eq. 3) carries a sample from t to r in one step:

    u(z_t, r, t) = 1 / (t - r)  integral of v(z_s, s) over s from r to t,   z_r = z_t - (t - r) u

Differentiating (t - r) u by t gives the MeanFlow identity (Eq. 6), by which u can be learned from
the velocity of single examples, without a teacher:

    u = v - (t - r) du/dt

with the total derivative du/dt, that of u along (v, 0, 1) in (z, r, t) (Eq. 8), so that

    L = E w || u_theta(z_t, r, t) - sg(v - (t - r) du_theta/dt) ||^2                (Eq. 9 and 10)
    w = 1 / sg(|| error ||^2 + c)^p                                                      (Eq. 22)

A share of the examples has r = t, where u is the velocity: so the net can also be sampled by any
solver of that flow. The distributions of t and r are by default those of the authors' PyTorch code
("v1"), better on CIFAR-10 than the paper's. Guidance as a target of training (section 4.2) is not
implemented.
"""

import functools

import jax
import jax.numpy as jnp

from gen_jax import draws, fields, ops
from gen_jax.diffusion import guidance, paths, predictions, samplers
from gen_jax.diffusion.paths import per_row
from gen_jax.errors import UserError
from gen_jax.state import batch_size, step_keys
from gen_jax.systems import _denoising
from gen_jax.systems._denoising import State, drop_labels

FIELDS = {
  **_denoising.make_fields(
    'u: (z_t, time_scale t, label, h = time_scale (t - r))',
    ema_decay=0.9999,
    sampler='mean_flow',
    steps=1,
    more=('mean_flow',),
  ),
  'flow.t_mean': fields.number(-20, 20, default=-0.6, meaning='mean of logit(t)'),
  'flow.t_std': fields.number(above=0, high=20, default=1.6, meaning='its standard deviation'),
  'flow.r_mean': fields.number(-20, 20, default=-4.0, meaning='mean of logit(r)'),
  'flow.r_std': fields.number(above=0, high=20, default=1.6, meaning='its standard deviation'),
  'flow.equal': fields.number(
    0, 1, default=0.25, meaning='share of the examples with r = t, where u is the velocity'
  ),
  'flow.p': fields.number(0, 2, default=0.75, meaning='p of the adaptive weight; 0: none'),
  'flow.c': fields.number(above=0, default=1e-3, meaning='c of the adaptive weight'),
  'flow.time_scale': fields.number(
    above=0, default=1.0, meaning='what the net is told is t and h times this'
  ),
}


def check(config) -> None:
  """Checks constraints between fields.

  Raises:
    UserError: as `_denoising.check`, or the system's own sampler is to be guided.
  """
  _denoising.check(config)
  c = config.sample
  for name in ('w', 'run', 'weak_run'):
    if c.sampler == 'mean_flow' and c.guidance[name]:
      raise UserError(
        f'config.sample.guidance.{name}={c.guidance[name]!r}: the average velocity of '
        "config.sample.sampler='mean_flow' is not guided; another sampler is needed"
      )


def path(config) -> paths.Linear:
  """alpha = 1 - t, sigma = t."""
  del config
  return paths.Linear()


# --- The loss -----------------------------------------------------------------------------------


def draw_times(keys, shape, config, axis_name=None) -> tuple[jax.Array, jax.Array]:
  """t and r <= t of a batch, float32 [b] in (0, 1): logit-normal each, r at most t, and equal to it
  for a share of them.
  """
  c = config.flow
  t = jax.nn.sigmoid(c.t_mean + c.t_std * draws.normal(keys['t'], shape, axis_name))
  r = jax.nn.sigmoid(c.r_mean + c.r_std * draws.normal(keys['r'], shape, axis_name))
  same = draws.uniform(keys['equal'], shape, axis_name) < c.equal
  return t, jnp.where(same, t, jnp.minimum(r, t))


def average_velocity(model, params, z, r, t, label, config, **how) -> jax.Array:
  """u(z, r, t) for z [b, ...], r and t [b]."""
  scale = config.flow.time_scale
  return _denoising.apply(model, params, z, scale * t, label, h=scale * (t - r), **how)


def loss_fn(params, rows, key, *, model, config):
  """L of rows (x, label, t, r, eps): the squared error summed over dimensions and weighted, the
  mean over examples.
  """
  x, label, t, r, eps = rows
  z, v = paths.add_noise(path(config), x, t, eps), eps - x
  how = dict(label=label, config=config, train=True, rngs={'dropout': key})
  u_of = functools.partial(average_velocity, model, params, **how)
  with ops.forward_mode():
    along = v, jnp.zeros_like(r), jnp.ones_like(t)
    u, du_dt = jax.jvp(u_of, (z, r, t), along)
  target = jax.lax.stop_gradient(v - per_row(t - r, x.ndim) * du_dt)
  errors = jnp.sum((u - target).reshape(len(x), -1) ** 2, axis=-1)
  weight = jax.lax.stop_gradient(errors + config.flow.c) ** -config.flow.p
  loss = jnp.mean(weight * errors)
  return loss, ({'net/loss': loss, 'net/error': errors.mean() / x[0].size}, {})


METRICS = {
  'net/loss': 'L (Eq. 9), with the adaptive weight',
  'net/error': 'the squared error of the average velocity, the mean over dimensions',
}


# --- The contract -------------------------------------------------------------------------------


build = _denoising.build


def init_state(rng, batch, *, config) -> State:
  """A fresh net for data like batch['image'] [b, ...]."""
  h = jnp.zeros((1,))
  return _denoising.init_state(rng, batch, config=config, h=h)


def train_step(state, batch, rng, *, config, axis_name=None):
  """Algorithm 1: one gradient step on L.

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
  keys = step_keys(rng, state.step, 't', 'r', 'equal', 'eps', 'dropout', 'label')
  x = batch['image']
  t, r = draw_times(keys, (len(x),), config, axis_name)
  eps = draws.normal(keys['eps'], x.shape, axis_name)
  label = drop_labels(batch.get('label'), keys['label'], config, axis_name)
  loss = functools.partial(loss_fn, model=model, config=config)
  rows = x, label, t, r, eps
  return _denoising.update(state, loss, rows, keys['dropout'], model, config, axis_name)


def denoiser(params, label, *, config):
  """The net at r = t, the velocity, as samplers see it; label int32 [b], or None."""
  model = build(config)

  def denoise(x, t):
    u = average_velocity(model, params, x, t, t, label, config, train=False)
    return predictions.to_prediction('velocity', u, x, 1 - t, t)

  return denoise


def sample(state, given, rng, *, config) -> dict:
  """Algorithm 2: config.sample.steps equal steps of the average velocity, usually one; with another
  sampler than 'mean_flow', as `_denoising.sample`.
  """
  if config.sample.sampler != 'mean_flow':
    return _denoising.sample(state, given, rng, config=config)
  model, label = build(config), given.get('label')
  params = _denoising.weights(state, config)
  z = draws.normal(jax.random.split(rng)[0], (batch_size(given), *config.data.shape))
  steps, images = config.sample.steps, []
  for i in range(steps):
    t, r = (jnp.full(len(z), 1 - k / steps) for k in (i, i + 1))
    u = average_velocity(model, params, z, r, t, label, config, train=False)
    z = z - per_row(t - r, z.ndim) * u
    images.append(z)
  kept = samplers.kept_rows(steps, config.sample.intermediates)
  return samplers.pictures(z, jnp.stack(images)[kept])


def evaluations(config) -> int:
  """Forward passes of nets for one sample."""
  own = config.sample.sampler == 'mean_flow'
  return config.sample.steps if own else _denoising.evaluations(config)


conditional, runs = _denoising.conditional, guidance.runs
encode, decode, prior = _denoising.encode, _denoising.decode, _denoising.prior
evaluate, MEASURES = _denoising.evaluate, _denoising.MEASURES
