"""Players: a network's parameters with everything that training needs, and the one function that
updates them.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from gen_jax import domains, fields
from gen_jax.errors import UserError
from gen_jax.ops.optim import global_norm, scale_by_adam
from gen_jax.ops.scan import after, scan


@flax.struct.dataclass
class Player:
  """One network in training: `G`, `D`, or the single `net` of a diffusion model."""

  params: Any
  stats: Any  # Flax's `batch_stats`; an empty dict without batch norm
  opt_state: Any
  ema: Any = None  # exponential moving average of params; None when none is kept

  def variables(self, params=None) -> dict:
    """Flax variables; `params`, where given, replaces the player's own."""
    return {'params': self.params if params is None else params, 'batch_stats': self.stats}


@flax.struct.dataclass
class Frozen:
  """A network of another, finished run, applied but never trained (see `runs` in `contract`)."""

  params: Any
  stats: Any  # Flax's `batch_stats`; an empty dict without batch norm
  config: Any = flax.struct.field(pytree_node=False)  # the config of its run, frozen and hashable

  def variables(self) -> dict:
    """Flax variables."""
    return {'params': self.params, 'batch_stats': self.stats}


_SCHEDULED = ('.schedule', ('linear', 'cosine', 'constant_then_linear'))


def _of(*names):
  return dict(when=('.name', names), strict=True)


# The fields of one optimiser; a system has them under `optim`, or `optim.G` and `optim.D`. Fields
# that belong to other optimisers or schedules are None.
OPTIMIZER = {
  'name': fields.one_of(
    'adam', 'adamw', 'adamax', 'rmsprop', 'sgd', default='adam', meaning='optimiser'
  ),
  'lr': fields.number(above=0, meaning='learning rate'),
  'b1': fields.number(
    0, below=1, default=0.9, meaning='decay of the first moment', **_of('adam', 'adamw', 'adamax')
  ),
  'b2': fields.number(
    0,
    below=1,
    default=0.999,
    meaning='decay of the second moment (adamax: of the infinity norm)',
    **_of('adam', 'adamw', 'adamax'),
  ),
  'eps': fields.number(
    above=0,
    default=1e-8,
    meaning='added to the root of the second moment, outside of it (adamax: to |gradient|)',
    **_of('adam', 'adamw', 'adamax', 'rmsprop'),
  ),
  'decay': fields.number(
    0, below=1, default=0.99, meaning="decay of the gradient's squares", **_of('rmsprop')
  ),
  'momentum': fields.number(
    0, below=1, default=0.0, meaning='decay of the sum of gradients; 0: none', **_of('sgd')
  ),
  'weight_decay': fields.number(
    0, default=1e-4, meaning='decoupled: lr * weight_decay * params is subtracted', **_of('adamw')
  ),
  'schedule': fields.one_of(
    'constant', *_SCHEDULED[1], default='constant', meaning='of the learning rate over the steps'
  ),
  'warmup_steps': fields.integer(
    0, default=0, smoke=0, meaning='the rate is multiplied by step / warmup_steps in these steps'
  ),
  'constant_steps': fields.integer(
    0,
    meaning='steps before the linear decay',
    when=('.schedule', ('constant_then_linear',)),
    strict=True,
  ),
  'decay_steps': fields.integer(
    1,
    same_as='train.steps',
    default='train.steps',
    meaning='the step at which the rate reaches 0',
    when=_SCHEDULED,
    strict=True,
  ),
  'l2': fields.number(0, default=0.0, meaning='l2 * params is added to the gradient'),
  'clip_norm': fields.number(
    above=0, optional=True, default=None, meaning='global norm that gradients are clipped to'
  ),
}

OPTIMIZERS = {
  'adam': lambda c: scale_by_adam(c.b1, c.b2, c.eps),
  'adamw': lambda c: optax.chain(
    scale_by_adam(c.b1, c.b2, c.eps), optax.add_decayed_weights(c.weight_decay)
  ),
  'adamax': lambda c: optax.scale_by_adamax(c.b1, c.b2, c.eps),
  # eps outside the root, as in the papers' code; optax.rmsprop has it inside by default.
  'rmsprop': lambda c: optax.scale_by_rms(c.decay, c.eps, eps_in_sqrt=False),
  'sgd': lambda c: optax.trace(c.momentum) if c.momentum else optax.identity(),
}

# The factor of the learning rate at a step, without warm-up.
SCHEDULES = {
  'constant': lambda c: lambda step: 1.0,
  'linear': lambda c: lambda step: jnp.maximum(0, 1 - step / c.decay_steps),
  'cosine': lambda c: optax.cosine_decay_schedule(1.0, c.decay_steps),
  'constant_then_linear': lambda c: optax.linear_schedule(
    1.0, 0.0, c.decay_steps - c.constant_steps, c.constant_steps
  ),
}


def make_schedule(config):
  """step int32 [] -> learning rate float32 [], as the group `OPTIMIZER` describes."""
  schedule = SCHEDULES[config.schedule](config)

  def rate(step):
    factor = jnp.minimum(step / config.warmup_steps, 1) if config.warmup_steps else 1.0
    return config.lr * (factor * schedule(step))

  return rate


def make_optimizer(config) -> optax.GradientTransformationExtraArgs:
  """The optimiser that the group `OPTIMIZER` describes.

  The learning rate is a function of the training step, which `update` takes as `step`: several
  updates of a player in one step do not advance the schedule.
  """
  rate = make_schedule(config)

  def scale_by_rate(updates, state, params=None, *, step, **_):
    factor = -rate(step)
    return jax.tree.map(lambda u: factor * u, updates), state

  def clip(updates, state, params=None, **_):
    # As optax.clip_by_global_norm, but with one scalar factor: dividing each leaf by the norm costs
    # a kernel and a pass through memory per leaf, whereas XLA fuses a factor with its consumer.
    factor = jnp.minimum(1.0, config.clip_norm / global_norm(updates))
    return jax.tree.map(lambda u: factor * u, updates), state

  def stateless(update):
    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

  return optax.chain(
    optax.identity() if config.clip_norm is None else stateless(clip),
    optax.add_decayed_weights(config.l2) if config.l2 else optax.identity(),
    OPTIMIZERS[config.name](config),
    stateless(scale_by_rate),
  )


def one_image(batch, config, axes: int = 1, leaf: str = 'image') -> jax.Array:
  """Zeros [1, *config.data.shape] in place of an image, to initialise nets with.

  Args:
    batch: `leaf` has `axes` axes, such as [b, ...] or [k, b, ...], before those of the shape.
    config: the run's.
    axes: number of leading axes.
    leaf: 'image', or 'x' or 'y' of two domains, where the shape is that of the domain.

  Raises:
    UserError: batch[leaf] has another shape.
  """
  found, shape = tuple(batch[leaf].shape), tuple(config.data.shape)
  field = 'config.data.shape'
  if leaf == 'x':
    shape, field = domains.x_shape(config), 'config.data.x.shape'
  if len(found) != axes + len(shape) or found[axes:] != shape:
    leading = ', '.join(('k', 'b')[-axes:])
    raise UserError(
      f'batch[{leaf!r}] is {list(found)}: [{leading}, {", ".join(map(str, shape))}] is needed, as '
      f'{field}={shape}'
    )
  return jnp.zeros((1, *shape))


def init_player(variables, optimizer, *, ema: bool = False) -> Player:
  """A player from Flax's initial variables (`params` and, with batch norm, `batch_stats`)."""
  params = variables['params']
  return Player(
    params=params,
    stats=variables.get('batch_stats', {}),
    opt_state=optimizer.init(params),
    # A copy: the step donates its state, and one buffer cannot be donated twice.
    ema=jax.tree.map(jnp.copy, params) if ema else None,
  )


# What `update` adds to the metrics of a player.
UPDATE_METRICS = {'grad_norm': 'global norm of the gradient, before any clipping'}


def update(
  player: Player,
  loss: Callable,
  rows,
  keys,
  *,
  name: str,
  optimizer: optax.GradientTransformation,
  step,
  accumulate: int = 1,
  ema_decay=None,
  axis_name: str | None = None,
) -> tuple[Player, dict]:
  """One update of a player: its gradient, accumulated over microbatches and averaged over devices,
  the optimiser and the moving average.

  Args:
    player: the `Player` to update.
    loss: `loss(params, rows, keys) -> (scalar, (metrics, stats))`, means over rows; `stats` are new
      batch statistics, `{}` without batch norm.
    rows: tree of arrays [b, ...].
    keys: tree of random keys.
    name: name of the player in metrics: its gradient's norm is `name/grad_norm`.
    optimizer: the optax transformation whose state the player holds.
    step: the training step, int32, on which the learning rate depends.
    accumulate: microbatches, see `value_and_grad`.
    ema_decay: decay of the moving average (scalar, may be traced), which includes the new
      parameters.
    axis_name: the `pmap` axis to average over; under `jit` the loss is a global mean already.

  Returns:
    The new player, and the metrics with the global norm of the gradient (before any clipping).
  """
  (_, (metrics, stats)), grads = value_and_grad(loss, accumulate)(player.params, rows, keys)
  if axis_name is not None:
    grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
  optimizer = optax.with_extra_args_support(optimizer)
  updates, opt_state = optimizer.update(grads, player.opt_state, player.params, step=step)
  params = optax.apply_updates(player.params, updates)
  ema = player.ema
  if ema is not None:
    ema = optax.incremental_update(params, ema, 1 - ema_decay)
  player = player.replace(params=params, stats=stats, opt_state=opt_state, ema=ema)
  return player, metrics | {f'{name}/grad_norm': global_norm(grads)}


def value_and_grad(loss: Callable, accumulate: int = 1) -> Callable:
  """`jax.value_and_grad(loss, has_aux=True)` with gradient accumulation: the batch is processed in
  `accumulate` microbatches and needs the memory of one.

  Microbatch i has every accumulate-th row starting from row i, so that rows stay on their device.
  Where rows do not interact and no noise is drawn from `keys`, the result equals that of the full
  batch within rounding. Batch norm normalises over a microbatch; its new statistics are averaged
  over microbatches.

  Args:
    loss: `loss(params, rows, keys) -> (scalar, aux)`, means over rows; `rows` is a tree of arrays
      [b, ...], `keys` one of random keys.
    accumulate: a divisor of b.
  """
  whole = jax.value_and_grad(loss, has_aux=True)
  if accumulate == 1:
    return whole

  def accumulated(params, rows, keys):
    def microbatches(leaf):
      leaf = leaf.reshape(-1, accumulate, *leaf.shape[1:])
      return jnp.moveaxis(leaf, 1, 0)

    def add(total, inputs):
      inputs = after(total, inputs)
      return jax.tree.map(jnp.add, total, whole(params, *inputs)), None

    split = functools.partial(jax.random.split, num=accumulate)
    inputs = jax.tree.map(microbatches, rows), jax.tree.map(split, keys)
    first = jax.tree.map(lambda leaf: leaf[0], inputs)
    shapes = jax.eval_shape(whole, params, *first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = scan(add, zeros, inputs)
    return jax.tree.map(lambda leaf: leaf / accumulate, total)

  return accumulated


def step_keys(rng, step, *names: str) -> dict:
  """One key per use, `{name: key}`, for a step: `fold_in(rng, step)`, split once.

  `rng` is the constant run key; the keys are the same on every device, see `gen_jax.draws`.
  """
  keys = jax.random.split(jax.random.fold_in(rng, step), len(names))
  return {name: keys[i] for i, name in enumerate(names)}


def batch_size(batch) -> int:
  """Number of rows of a batch without minibatch axis."""
  return jax.tree.leaves(batch)[0].shape[0]
