"""Shared by the systems whose net denoises (`SYSTEMS`): fields, state, labels, and everything that
samples. Losses and steps are in the systems.

Such a system has, besides its contract,

    path(config) -> Path                             the Gaussian path that it trains on
    denoiser(params, label, *, config) -> Denoise    its net; label int32 [b], or None

so that any of them can be sampled by any sampler, guided by any other, and guide any other. The
functions of the contract below find these two by config.system.
"""

import flax
import jax
import jax.numpy as jnp

from gen_jax import draws, fields
from gen_jax import state as players
from gen_jax.diffusion import encoding, guidance, ode, samplers
from gen_jax.diffusion.paths import Denoise, Path, denoise_on
from gen_jax.errors import UserError
from gen_jax.state import (
  OPTIMIZER,
  Frozen,
  Player,
  batch_size,
  init_player,
  one_image,
)
from gen_jax.systems import _one_net, find_system, noisy_classifier
from gen_jax.systems._one_net import Model

SYSTEMS = ('ddpm', 'score_sde', 'edm', 'flow_matching', 'mean_flow')


def make_fields(meaning: str, ema_decay: float, **sampling) -> dict:
  """The rules of the fields that these systems share; `sampling` as in `samplers.make_fields`."""
  return {
    'net': fields.net(meaning=meaning),
    'label_drop': fields.number(
      0,
      below=1,
      default=0.0,
      meaning='probability that a label is dropped in training, for classifier-free guidance',
    ),
    'ema_decay': fields.number(
      0, below=1, default=ema_decay, meaning='decay of the averaged weights'
    ),
    **{f'optim.{name}': field for name, field in OPTIMIZER.items()},
    **samplers.make_fields(**sampling),
    **guidance.FIELDS,
    **ode.FIELDS,
    'sample.weights': fields.one_of('ema', 'raw', default='ema', meaning='averaged or raw weights'),
  }


@flax.struct.dataclass
class State:
  """Everything that a step changes."""

  step: jax.Array  # int32
  net: Player
  # Other runs, only while sampling, see `guidance.runs`.
  guide: Frozen | None = None  # a classifier of noisy images
  weak: Frozen | None = None  # a weaker net


def check(config) -> None:
  """Checks constraints between fields.

  Raises:
    UserError: as `samplers.check`; a conditional net for data without labels, or guidance that
      needs labels without them.
  """
  samplers.check(config, path_of(config))
  guidance.check_interval(config)
  classes = config.net.get('num_classes')
  if classes is not None and classes != config.data.num_classes:
    raise UserError(
      f'config.net.num_classes={classes} but config.data.num_classes={config.data.num_classes}; '
      'they must be equal, or config.net.num_classes None'
    )
  if config.label_drop and classes is None:
    raise UserError(
      f'config.label_drop={config.label_drop}: a net without config.net.num_classes has no labels '
      'to drop'
    )
  w = config.sample.guidance.w
  if w and not config.label_drop:
    raise UserError(
      f'config.sample.guidance.w={w}: classifier-free guidance needs a net that was trained with '
      'config.label_drop above 0 (and config.net.num_classes), but config.label_drop=0.0'
    )


def build(config, axis_name=None, **offered) -> Model:
  """Module and optimiser; cheap, so every trace builds its own. `offered` as in `nets.make`."""
  return _one_net.build(config, axis_name, drop_labels=config.label_drop > 0, **offered)


def init_state(rng, batch, *, config, model: Model | None = None, **times) -> State:
  """A fresh net for data like batch['image'] [b, ...].

  Args:
    rng: key of the initial parameters.
    batch: `image` and, where there are labels, `label`.
    config: hashable config.
    model: None: `build(config)`.
    **times: further inputs of the net.
  """
  model = build(config) if model is None else model
  x = one_image(batch, config)
  label = jnp.zeros((1,), jnp.int32) if 'label' in batch else None
  variables = model.net.init(rng, x, jnp.zeros((1,)), label, train=False, **times)
  return State(step=jnp.zeros((), jnp.int32), net=init_player(variables, model.optimizer, ema=True))


def update(state: State, loss, rows, keys, model: Model, config, axis_name, ema_decay=None):
  """One update of the net, see `state.update`: the next state, and metrics. `ema_decay` None: that
  of the config.
  """
  net, metrics = players.update(
    state.net,
    loss,
    rows,
    keys,
    name='net',
    optimizer=model.optimizer,
    step=state.step,
    accumulate=config.train.accumulate,
    ema_decay=config.ema_decay if ema_decay is None else ema_decay,
    axis_name=axis_name,
  )
  return state.replace(step=state.step + 1, net=net), metrics


def apply(model: Model, params, x, time, label, channels: int | None = None, **how) -> jax.Array:
  """The net's output for x [b, ...] and what it is told of the time, float32 [b].

  Args:
    model: of the config.
    params: its parameters.
    x: input of the net.
    time: as the system tells it.
    label: int32 [b], or None.
    channels: of the output; None: those of x.
    **how: further arguments of the net.

  Raises:
    UserError: the output has another shape, so that the loss would silently broadcast.
  """
  output = model.net.apply({'params': params}, x, time, label, **how)
  wanted = x.shape if channels is None else (*x.shape[:-1], channels)
  if output.shape != wanted:
    raise UserError(
      f'config.net: {type(model.net.module).__name__} maps {x.shape} to {output.shape}; '
      f'{wanted} is needed, for what it predicts'
    )
  return output


def drop_labels(label, key, config, axis_name=None):
  """Labels int32 [b] with some replaced by the null label, config.net.num_classes."""
  if label is None or not config.label_drop:
    return label
  dropped = draws.uniform(key, label.shape, axis_name) < config.label_drop
  return jnp.where(dropped, config.net.num_classes, label)


# --- Sampling -----------------------------------------------------------------------------------


def path_of(config) -> Path:
  """The path of the system of a config."""
  return find_system(config.system).path(config)


def weights(state: State, config):
  """The parameters that config.sample.weights names."""
  return state.net.ema if config.sample.weights == 'ema' else state.net.params


def plain(state: State, label, config) -> Denoise:
  """The net with the weights that config.sample.weights names."""
  return find_system(config.system).denoiser(weights(state, config), label, config=config)


def trained(state: State, label, config) -> Denoise:
  """The net as config.sample asks for it: with guidance by other predictions, and clipping."""
  c, path = config.sample, path_of(config)
  own = guided = plain(state, label, config)
  if c.guidance.w:
    free = plain(state, jnp.full_like(label, config.net.num_classes), config)
    guided = guidance.extrapolated(guided, free, 1 + c.guidance.w)
  if state.weak is not None:
    weak = _weak(state.weak, label, path, config)
    guided = guidance.extrapolated(guided, weak, c.guidance.weak_w)
  denoise = guidance.within(guided, own, path, c.guidance.interval)
  return samplers.clipped(denoise, path) if samplers.clips(c) else denoise


def _weak(weak: Frozen, label, path: Path, config) -> Denoise:
  """The net of another run, on the path of this one."""
  guidance.check_run(config, weak.config, 'weak_run', SYSTEMS)
  other = find_system(weak.config.system)
  return denoise_on(
    path, other.denoiser(weak.params, label, config=weak.config), other.path(weak.config)
  )


def sample(state: State, given, rng, *, config) -> dict:
  """One sample for each row of `given`, with the label of the row where the net or a guide use
  labels.

  Returns:
    {'image': float32 [n, ...] in [-1, 1]}, and with config.sample.intermediates = m also
    'trajectory' [n, m, ...], evenly spaced images from noise to data. By the adaptive 'ode' also
    'evaluations', int32 [n].
  """
  c, path, label = config.sample, path_of(config), given.get('label')
  denoise, guide = trained(state, label, config), None
  if state.guide is not None:
    guide = noisy_classifier.guide(state.guide, label, path, config)
    if c.sampler != 'ancestral':
      denoise, guide = guidance.by_classifier(denoise, guide, path), None
  noise_key, steps_key = jax.random.split(rng)
  x = samplers.noise((batch_size(given), *config.data.shape), noise_key, path, c)
  if c.sampler == 'ode':
    x, count = ode.sample(denoise, x, path, c.tolerance)
    return samplers.pictures(x, ()) | {'evaluations': count * (1 + _further(c))}
  method = samplers.make_method(c, path, guide)
  return samplers.pictures(*samplers.run(method, denoise, x, steps_key, c.intermediates))


def conditional(state: State, *, config) -> bool:
  """Whether samples depend on labels: by the net, or by a classifier that guides them."""
  return config.net.get('num_classes') is not None or state.guide is not None


def _further(c) -> int:
  """Predictions that guidance needs beside that of the net, at the noise levels of its interval."""
  return (c.guidance.w > 0) + (c.guidance.weak_run is not None and c.guidance.weak_w != 1)


def evaluations(config) -> int | None:
  """Forward passes of nets that denoise for one sample, those of guidance included; None: an
  adaptive solver decides. (Of these it is the most, as if guidance had no interval.)
  """
  c, path = config.sample, path_of(config)
  if c.sampler == 'ode':
    return None
  t = samplers.make_method(c, path).rows['t']
  interval = c.guidance.interval
  inside = len(t) if interval is None else int(guidance.is_inside(path, t, interval).sum())
  return len(t) + _further(c) * inside


# --- Encodings and likelihoods ------------------------------------------------------------------


def encode(state: State, batch, rng, *, config) -> dict:
  """The noise that the deterministic sampler of config.sample turns into the images of a batch, by
  running it backwards, and what it then makes of it.

  Args:
    state: the `State`.
    batch: `image` float32 [b, ...] in [-1, 1]; `label` int32 [b] where the net is conditional.
    rng: not used.
    config: the run's.

  Returns:
    'z' float32 [b, ...], close to N(0, I), and 'reconstruction' [b, ...] in [-1, 1].

  Raises:
    UserError: the sampler is not deterministic.
  """
  del rng
  denoise, path = trained(state, batch.get('label'), config), path_of(config)
  z = encoding.encode(denoise, batch['image'], path, config.sample)
  return {'z': z, 'reconstruction': decode(state, z, batch, config=config)['image']}


def decode(state: State, z, given, *, config) -> dict:
  """The images of encodings z [n, ...], given their labels, where the net is conditional.

  Raises:
    UserError: the sampler adds noise, or z has another shape.
  """
  if z.shape[1:] != tuple(config.data.shape):
    raise UserError(f'z is {z.shape}: {("n", *config.data.shape)} is needed')
  denoise, path = trained(state, given.get('label'), config), path_of(config)
  return {'image': jnp.clip(encoding.decode(denoise, z, path, config.sample), -1, 1)}


def prior(rng, n: int, *, config) -> jax.Array:
  """Noise of unit variance, [n, ...], such as `encode` gives."""
  return draws.normal(rng, (n, *config.data.shape))


MEASURES = ode.measures(path_of)


def evaluate(state: State, batch, rng, *, config) -> dict:
  """The likelihood of each example of `batch` by the probability-flow ODE, see `ode.evaluate`."""
  denoise = plain(state, batch.get('label'), config)
  return ode.evaluate(denoise, batch['image'], rng, path_of(config), config)
