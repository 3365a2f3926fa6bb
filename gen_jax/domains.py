"""Two domains, x and y: the fields of systems that translate images of x into images of y, and the
leaves of their batches.

`config.data.name`, `path`, `shape` and `split` are those of the target y, as in every system, so
that all that is measured against real images is measured against y. `config.data.x_from` says what
x is:

    left, right              that half of each image of the folder `data.path`; y is the other half
    names                    the image of the same name in the folder `data.x.path`
    edges, sobel, grey,      made of y, after crop and flip, inside the compiled step
    mask, small              (gen_jax.data.made)
    domain                   the images of another source, `data.x.name`: there are no pairs

A batch of pairs has one crop and one flip for both images; in one of unpaired domains
(`data.paired=False`), each domain has its own permutation, crops and flips.
"""

from gen_jax import fields
from gen_jax.errors import UserError

HALVES = ('left', 'right')
FILES = (*HALVES, 'names')
MADE = ('edges', 'sobel', 'grey', 'mask', 'small')
_GREY = ('edges', 'sobel', 'grey')

_SHARED = {
  'data.x.shape': fields.integers(
    high=2**16,
    length=(3,),
    optional=True,
    default=None,
    meaning='of an image of x, where data.shape is that of y; None: as y, but grey where x is made '
    'grey',
  ),
  'data.x.mask': fields.one_of(
    'box', 'strokes', default='box', when=('data.x_from', ('mask',)), meaning='form of the hole'
  ),
  'data.x.factor': fields.integer(
    2,
    2**16,
    default=4,
    when=('data.x_from', ('small',)),
    meaning='how many times smaller x is made; it is enlarged again where data.x.shape is larger',
  ),
  'data.load_size': fields.integer(
    1,
    2**16,
    optional=True,
    default=None,
    meaning='height at which training images are loaded, to be cropped at random to data.shape; '
    'None: no crop',
  ),
}

# The fields of systems that need pairs.
PAIRED = {
  'data.x_from': fields.one_of(
    *FILES,
    *MADE,
    default='edges',
    meaning='x: a half of each image, the image of the same name in data.x.path, or made of y',
  ),
  'data.paired': fields.one_of(True, default=True, meaning='batches hold pairs'),
  'data.x.path': fields.path(
    optional=True,
    default=None,
    when=('data.x_from', ('names',)),
    meaning='folder of x; {split} in it stands for the split',
  ),
  **_SHARED,
}

# The fields of systems that do not.
UNPAIRED = {
  'data.x_from': fields.one_of(
    'domain',
    *FILES,
    *MADE,
    default='domain',
    meaning='x: another source, or as in systems with pairs',
  ),
  'data.paired': fields.one_of(
    True, False, default=False, meaning='False: x and y have a permutation, crops and flips each'
  ),
  'data.x.name': fields.text(
    default='folder',
    when=('data.x_from', ('domain',)),
    meaning='digits, shapes, folder, arrays, or any name of TFDS',
  ),
  'data.x.path': fields.path(
    optional=True,
    default=None,
    when=('data.x_from', ('domain', 'names')),
    meaning='of x, as data.path; {split} in it stands for the split',
  ),
  'data.x.split': fields.text(
    optional=True,
    default=None,
    when=('data.x_from', ('domain',)),
    meaning='of x in training; None: data.split',
  ),
  'data.x.held_out_split': fields.text(
    optional=True,
    default=None,
    when=('data.x_from', ('domain',)),
    meaning='of x in evaluations; None: eval.held_out_split',
  ),
  **_SHARED,
}


def inputs(config) -> dict[str, tuple[int, ...]]:
  """The leaves of a batch and the shape of an example in each: `x` and `y`, float32 in [-1, 1], and
  with `config.data.num_classes` also `x_label` and `y_label`, int32.
  """
  images = {'x': x_shape(config), 'y': tuple(config.data.shape)}
  labels = {} if config.data.num_classes is None else {'x_label': (), 'y_label': ()}
  return images | labels


def x_shape(config) -> tuple[int, int, int]:
  """(height, width, channels) of an image of x."""
  if config.data.x.shape is not None:
    return tuple(config.data.x.shape)
  height, width, channels = config.data.shape
  return height, width, 1 if config.data.x_from in _GREY else channels


def load_shape(config, shape: tuple[int, int, int]) -> tuple[int, int, int]:
  """The shape at which training images are loaded that are cropped to `shape`, that of x or y."""
  if config.data.load_size is None:
    return tuple(shape)
  height, width, channels = shape
  load, crop = config.data.load_size, config.data.shape[0]
  return round(height * load / crop), round(width * load / crop), channels


def check(config) -> None:
  """Checks what the fields of two domains say of each other.

  Raises:
    UserError: they are inconsistent.
  """
  data, x_from = config.data, config.data.x_from
  if len(data.shape) != 3:
    raise UserError(
      f'config.data.shape={tuple(data.shape)}: {config.system} translates images, (height, width, '
      'channels) is needed'
    )
  if data.binarize != 'none':
    raise UserError(f"config.data.binarize={data.binarize!r}: with two domains, 'none' is needed")
  said = f'config.data.x_from={x_from!r}'
  if x_from in FILES and data.name != 'folder':
    raise UserError(f"{said} with config.data.name={data.name!r}: 'folder' is needed")
  if data.paired and x_from == 'domain':
    raise UserError(f'{said} has no pairs: config.data.paired=False is needed')
  reads_files = x_from == 'names' or (x_from == 'domain' and data.x.name in ('folder', 'arrays'))
  if reads_files and data.x.path is None:
    raise UserError(f'config.data.x.path=None: {said} needs the images of x')
  _check_x_shape(config, said)
  (height, width, _), x_height = data.shape, x_shape(config)[0]
  if data.load_size is not None and data.load_size < height:
    raise UserError(
      f'config.data.load_size={data.load_size}: at least the height in config.data.shape, {height},'
      ' is needed'
    )
  if data.paired and x_height * width != x_shape(config)[1] * height:
    raise UserError(
      f'config.data.x.shape={x_shape(config)} and config.data.shape={tuple(data.shape)}: pairs '
      'need one aspect ratio'
    )


def _check_x_shape(config, said: str) -> None:
  x_from, (height, width, channels) = config.data.x_from, config.data.shape
  found = x_shape(config)
  where = f'config.data.x.shape={found}'
  if x_from in HALVES and found != (height, width, channels):
    raise UserError(
      f'{where}: {said} needs that of y, config.data.shape={(height, width, channels)}'
    )
  if x_from not in MADE:
    return
  if x_from == 'grey' and channels == 1:
    raise UserError(
      f'{said}, but images of config.data.shape={(height, width, 1)} are grey already'
    )
  allowed = [(height, width, channels)]
  if x_from in _GREY:
    allowed = [(height, width, 1), (height, width, 3)]
  if x_from == 'small':
    factor = config.data.x.factor
    if height % factor or width % factor:
      raise UserError(
        f'config.data.x.factor={factor}: a divisor of height and width in config.data.shape='
        f'{(height, width, channels)} is needed'
      )
    allowed.append((height // factor, width // factor, channels))
  if found not in allowed:
    raise UserError(f'{where}: {said} makes {" or ".join(map(str, allowed))}')
