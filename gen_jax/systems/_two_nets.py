"""Shared by games of a generator and a discriminator (or critic): state, building, latents,
sampling. Losses and steps are in the systems.

Where a `label`, int32 [n], is passed, the nets take it as their second argument.
"""

from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp

from gen_jax import draws, fields, nets
from gen_jax.errors import UserError
from gen_jax.state import OPTIMIZER, Player, batch_size, init_player, make_optimizer, one_image

FIELDS = {
  'generator': fields.net(meaning='G: latents to data'),
  'latent.dim': fields.integer(1, 2**20, default=128, meaning='entries of z'),
  'latent.distribution': fields.one_of(
    'normal', 'uniform', default='normal', meaning='entries of z are N(0, 1) or U(-1, 1)'
  ),
  **{f'optim.{net}.{name}': field for net in 'GD' for name, field in OPTIMIZER.items()},
}


@flax.struct.dataclass
class State:
  """Everything that a step changes."""

  step: jax.Array  # int32, the number of steps
  G: Player
  D: Player


class Game(NamedTuple):
  """The modules and optimisers of a config."""

  G: nets.Net
  D: nets.Net
  g_optimizer: Any
  d_optimizer: Any


def build(config, d_field: str, axis_name=None) -> Game:
  """Modules and optimisers; cheap, so every trace builds its own.

  Args:
    config: with the groups of `FIELDS` and the net of D.
    d_field: the config's name of D, e.g. 'discriminator'.
    axis_name: `pmap` axis, or None.
  """
  offered = dict(
    precision=config.precision,
    shape=config.data.shape,
    num_classes=config.data.num_classes,
    axis_name=axis_name,
  )
  return Game(
    G=nets.make(config.generator, 'config.generator', **offered),
    D=nets.make(config[d_field], f'config.{d_field}', **offered),
    g_optimizer=make_optimizer(config.optim.G),
    d_optimizer=make_optimizer(config.optim.D),
  )


def check_classes(config) -> None:
  """Checks that there are classes, for a game whose nets take labels.

  Raises:
    UserError: config.data.num_classes is None, or a net has another number of classes.
  """
  if config.data.num_classes is None:
    raise UserError(
      f'config.data.num_classes=None: config.system={config.system!r} needs labelled data and the '
      'number of their classes'
    )
  check_num_classes(config, 'generator', 'discriminator')


def check_num_classes(config, *names: str) -> None:
  """Checks that nets which take labels have the number of classes of the data.

  Raises:
    UserError: the net config[name] of one of `names` has another `num_classes`.
  """
  classes = config.data.num_classes
  for name in names:
    found = config[name].get('num_classes', classes)
    if found != classes:
      raise UserError(
        f'config.{name}.num_classes={found} but config.data.num_classes={classes}; set only the '
        'latter'
      )


def init_state(rng, batch, game: Game, config, label=None) -> State:
  """Fresh nets for data like batch['image'] [k, b, ...]; `label` [1] where the nets take one."""
  g_key, d_key = jax.random.split(rng)
  z = jnp.zeros((1, config.latent.dim))
  x = one_image(batch, config, axes=2)
  return State(
    step=jnp.zeros((), jnp.int32),
    G=init_player(game.G.init(g_key, *_with(z, label), train=False), game.g_optimizer),
    D=init_player(game.D.init(d_key, *_with(x, label), train=False), game.d_optimizer),
  )


def latents(key, n: int, config, axis_name=None, *, dim: int | None = None) -> jax.Array:
  """z [n, dim], of config.latent.dim entries where `dim` is None."""
  shape = (n, config.latent.dim if dim is None else dim)
  if config.latent.distribution == 'uniform':
    return draws.uniform(key, shape, axis_name, low=-1.0, high=1.0)
  return draws.normal(key, shape, axis_name)


def latents_and_labels(z_key, y_key, n: int, config, axis_name=None) -> tuple:
  """Latents z [n, d] and uniform labels y int32 [n], or None where the data have no classes."""
  classes = config.data.num_classes
  y = None if classes is None else draws.integers(y_key, (n,), 0, classes, axis_name)
  return latents(z_key, n, config, axis_name), y


def _with(x, label) -> tuple:
  return (x,) if label is None else (x, label)


def generate(
  G: nets.Net, player: Player, z, params=None, *, label=None, key=None, train: bool = True
):
  """G(z) [n, ...] for z [n, d], with dropout by `key` where a net has it in training, and the batch
  statistics after this pass.
  """
  inputs = _with(z, label)
  how = {} if key is None else {'rngs': {'dropout': key}}
  # `mutable`: some nets use batch statistics even in sampling, and then update their averages.
  x, updates = G.apply(
    player.variables(params), *inputs, train=train, mutable=['batch_stats'], **how
  )
  return x, updates.get('batch_stats', {})


def score(D: nets.Net, player: Player, x, key, params=None, *, label=None):
  """D(x) [n] in training for x [n, ...], with dropout by `key`, and the batch statistics after this
  pass.
  """
  variables, inputs = player.variables(params), _with(x, label)
  y, updates = D.apply(
    variables, *inputs, train=True, rngs={'dropout': key}, mutable=['batch_stats']
  )
  return y, updates.get('batch_stats', {})


def sample(state, given, rng, game: Game, config, label=None) -> dict:
  """Generated examples, one for each row of `given`: {'image': float32 [n, ...] in [-1, 1]}."""
  z = latents(rng, batch_size(given), config)
  return {'image': generate(game.G, state.G, z, label=label, train=False)[0]}


# --- Latents, for the contract ------------------------------------------------------------------


def decode(state, z, game: Game, config, label=None) -> dict:
  """G(z) for z [n, d]: {'image': float32 [n, ...] in [-1, 1]}.

  Raises:
    UserError: z has another shape.
  """
  if z.shape[1:] != (config.latent.dim,):
    raise UserError(f'z is {z.shape}: {("n", config.latent.dim)} is needed')
  return {'image': generate(game.G, state.G, z, label=label, train=False)[0]}


def prior(rng, n: int, *, config) -> jax.Array:
  """Draws of z, [n, latent.dim]."""
  return latents(rng, n, config)
