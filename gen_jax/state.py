"""Players: a network's parameters with all that training needs, and the one place that updates
them.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from gen_jax import config as rules
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
    """Flax variables; `params` stands in for the player's own where given."""
    return {'params': self.params if params is None else params, 'batch_stats': self.stats}


# One optimiser as a config writes it; a system puts these under `optim`, or `optim.G` and
# `optim.D`.
OPTIMIZER = {
  'lr': rules.number(above=0),  # learning rate of Adam
  'b1': rules.number(low=0, below=1),  # decay of Adam's first moment
  'b2': rules.number(low=0, below=1),  # decay of Adam's second moment
  'eps': rules.number(above=0),  # added to the root of the second moment
  'warmup_steps': rules.integer(low=0),  # the rate grows linearly from 0 to lr over so many steps
  'decay_steps': rules.integer(
    low=1, optional=True
  ),  # times a line from 1 at step 0 to 0 at this one; None: no line
  'l2': rules.number(low=0),  # added to the gradient as l2 * params (not decoupled)
  'clip_norm': rules.number(
    above=0, optional=True
  ),  # global norm that gradients are cut to; None: never
}


def make_optimizer(config) -> optax.GradientTransformationExtraArgs:
  """Adam with warm-up, linear decay, L2 and clipping, as the group `OPTIMIZER` describes.

  The learning rate is a function of the training step, which its `update` takes as `step`: a player
  that is updated several times in a step counts no faster.
  """

  def rate(step):
    factor = jnp.minimum(step / config.warmup_steps, 1) if config.warmup_steps else 1.0
    if config.decay_steps is not None:
      factor *= jnp.maximum(0, 1 - step / config.decay_steps)
    return config.lr * factor

  def scale_by_rate(updates, state, params=None, *, step, **_):
    factor = -rate(step)
    return jax.tree.map(lambda u: factor * u, updates), state

  def clip(updates, state, params=None, **_):
    # As optax.clip_by_global_norm, but by one factor: dividing each leaf by the norm is a kernel
    # and a pass through memory for each, where a factor goes along with what reads the leaf.
    factor = jnp.minimum(1.0, config.clip_norm / global_norm(updates))
    return jax.tree.map(lambda u: factor * u, updates), state

  def stateless(update):
    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

  return optax.chain(
    optax.identity() if config.clip_norm is None else stateless(clip),
    optax.add_decayed_weights(config.l2) if config.l2 else optax.identity(),
    scale_by_adam(config.b1, config.b2, config.eps),
    stateless(scale_by_rate),
  )


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
    name: of the player in metrics: its gradient's norm is `name/grad_norm`.
    optimizer: the transformation whose state the player holds; any of optax.
    step: the training step, int32, of which the learning rate is a function.
    accumulate: microbatches, see `value_and_grad`.
    ema_decay: decay of the moving average (scalar, may be traced); it sees the new parameters.
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
  `accumulate` microbatches, for the memory of one.

  Microbatch i has every accumulate-th row from row i on, so that the rows of a device stay on it.
  Where rows do not interact and no noise is drawn from `keys`, the result is that of the whole
  batch within rounding. Batch norm sees a microbatch, and its new statistics are means over them.

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
