"""Shared by games over two domains, x and y, whose generator and discriminator have ends of their
own for each: fields, building, initial states; and class heads that labels of x alone train, for
domain adaptation.
"""

import jax
import jax.numpy as jnp

from gen_jax import domains, fields, nets
from gen_jax.errors import UserError
from gen_jax.fields import Measure
from gen_jax.state import OPTIMIZER, init_player, make_optimizer, one_image
from gen_jax.systems._two_nets import Game, State

FIELDS = {
  'generator': fields.net(meaning='G: encoders and decoders of both domains'),
  'discriminator': fields.net(meaning='D: images of either domain to logits'),
  **domains.UNPAIRED,
  'init.tied': fields.one_of(
    True, False, default=False, meaning='the ends of y start as those of x, so that x_xy = x_xx'
  ),
  **{f'optim.{net}.{name}': field for net in 'GD' for name, field in OPTIMIZER.items()},
}
# Of those that translate.
TO = {
  'sample.to': fields.one_of(
    'y', 'x', default='y', protocol=False, meaning='where --input is translated to'
  )
}
other = {'x': 'y', 'y': 'x'}


def build(config, axis_name=None) -> Game:
  """Modules and optimisers; cheap, so every trace builds its own."""
  offered = dict(
    precision=config.precision,
    channels=(domains.x_shape(config)[-1], config.data.shape[-1]),
    shape=config.data.shape,
    size=config.data.shape[0],
    num_classes=config.data.num_classes,
    axis_name=axis_name,
  )
  return Game(
    G=nets.make(config.generator, 'config.generator', **offered),
    D=nets.make(config.discriminator, 'config.discriminator', **offered),
    g_optimizer=make_optimizer(config.optim.G),
    d_optimizer=make_optimizer(config.optim.D),
  )


def init_state(rng, batch, *, config) -> State:
  """Fresh nets for data like batch['x'] and batch['y'], both [b, ...]."""
  game, (g_key, d_key) = build(config), jax.random.split(rng)
  images = one_image(batch, config, leaf='x'), one_image(batch, config, leaf='y')
  return State(
    step=jnp.zeros((), jnp.int32),
    G=init_player(tied(game.G.init(g_key, *images), config), game.g_optimizer),
    D=init_player(tied(game.D.init(d_key, *images), config), game.d_optimizer),
  )


def tied(variables: dict, config) -> dict:
  """Initial variables; with `config.init.tied` the parameters of y's ends are copies of those of x.
  A net's ends are its modules with x or y in their names: `end_x`, `nets_y_0`.
  """
  if not config.init.tied:
    return variables
  params = variables['params']
  of_x = lambda name: '_'.join('x' if part == 'y' else part for part in name.split('_'))
  return variables | {
    'params': {name: jax.tree.map(jnp.copy, params[of_x(name)]) for name in params}
  }


def l1(a, b) -> jax.Array:
  """The mean of |a - b|."""
  return jnp.mean(jnp.abs(a - b))


def both_ways(translate, given) -> dict:
  """What `sample` shows of given['x'] [n, ...]: its translation into y ('image'), the `source` and
  the way `back`; of given['y'] `image_x`, `source_y` and `back_y`. translate(images, to) makes
  images of domain `to`.
  """
  x, y = given['x'], given['y']
  image, image_x = translate(x, 'y'), translate(y, 'x')
  there = {'image': image, 'source': x, 'back': translate(image, 'x')}
  return there | {'image_x': image_x, 'source_y': y, 'back_y': translate(image_x, 'y')}


def check(config) -> None:
  """Checks constraints between fields.

  Raises:
    UserError: as `domains.check`, or ends of different channels start as copies.
  """
  domains.check(config)
  x, y = domains.x_shape(config)[-1], config.data.shape[-1]
  if config.init.tied and x != y:
    raise UserError(
      f'config.init.tied=True, but x has {x} channels and y {y}: False is needed, or equal channels'
    )


# --- Class heads --------------------------------------------------------------------------------


def check_adaptation(config) -> None:
  """Checks constraints between fields, of a system that learns classes from the labels of x.

  Raises:
    UserError: as `domains.check`, there are no classes, or x and y differ in size.
  """
  domains.check(config)
  if config.data.num_classes is None:
    raise UserError(
      f'config.data.num_classes=None: config.system={config.system!r} learns from labels, the '
      'number of classes is needed'
    )
  if domains.x_shape(config)[:2] != tuple(config.data.shape[:2]):
    raise UserError(_needs(config, f'the size of y, {tuple(config.data.shape[:2])},'))


def check_one_shape(config) -> None:
  """Checks constraints between fields, for nets that take images of x and of y alike.

  Raises:
    UserError: as `check_adaptation`, or x and y differ in channels.
  """
  check_adaptation(config)
  if domains.x_shape(config) != tuple(config.data.shape):
    raise UserError(_needs(config, f'config.data.shape={tuple(config.data.shape)}'))


def _needs(config, what: str) -> str:
  where = f'config.data.x.shape={domains.x_shape(config)}'
  return f'{where}: for config.system={config.system!r}, {what} is needed'


def correct(classes, label) -> jax.Array:
  """1 where the largest logit of classes [b, k] is at label int32 [b], else 0: float32 [b]."""
  return (jnp.argmax(classes, axis=-1) == label).astype(jnp.float32)


MEASURES = {
  'accuracy': Measure('accuracy on y, whose labels are not seen', 'exact'),
  'accuracy_x': Measure('accuracy on x', 'exact'),
}


def evaluate(state, batch, rng, *, config) -> dict:
  """Whether D's class head is right on the images of both domains, 1 or 0: [b] each."""
  judged = build(config).D.apply(state.D.variables(), batch['x'], batch['y'])
  accuracy_x, accuracy = (
    correct(of.classes, batch[f'{domain}_label']) for domain, of in zip('xy', judged, strict=True)
  )
  return {'accuracy': accuracy, 'accuracy_x': accuracy_x}


def mean(losses) -> jax.Array:
  """The mean of a list of arrays of one shape."""
  return jnp.mean(jnp.stack(losses))


def squared_distance(a, b) -> jax.Array:
  """The mean over rows of |a - b|^2, a and b [b, ...]."""
  return jnp.mean(jnp.sum(jnp.square(a - b).reshape(len(a), -1), axis=-1))
