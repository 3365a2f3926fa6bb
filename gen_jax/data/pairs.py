"""Sources of two domains, x and y (see gen_jax.domains): their examples have the leaves `x`, `y`
and, where there are labels, `x_label` and `y_label`.
"""

import collections
import logging
import pathlib
import unicodedata
from typing import Literal

import jax
import numpy as np
from PIL import Image

from gen_jax import domains
from gen_jax.data import made
from gen_jax.data.finding import natural, some, without_ending
from gen_jax.data.folder import FolderSource
from gen_jax.data.sources import Source, content_hash
from gen_jax.errors import UserError, printable

_log = logging.getLogger(__name__)

Domain = Literal['x', 'y']
DOMAINS = ('x', 'y')


class _Of(Source):
  """A source that is another one in a different form."""

  def __init__(self, source: Source, form: str, shape: tuple[int, ...] | None = None):
    self.name, self.shape, self.dtype = source.name, shape or source.shape, source.dtype
    self.num_classes, self.classes = source.num_classes, source.classes
    self.content = source.content
    name, split, length, _ = source.fingerprint.rsplit('/', 3)
    content = content_hash(source.fingerprint.encode(), form.encode())
    self.fingerprint = f'{name}/{split}/{length}/{content}'
    self._source = source

  def __len__(self):
    return len(self._source)

  def _change(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    raise NotImplementedError

  def read(self, indices):
    return self._change(self._source.read(indices))

  def arrays(self):
    return self._change(self._source.arrays())  # with several threads where that is faster


class Resized(_Of):
  """The images of another source, of one domain or pairs, resized (bicubic, antialiased)."""

  def __init__(self, source: Source, shape: tuple[int, int, int]):
    super().__init__(source, f'resized {shape}', shape)

  def _change(self, batch):
    images = {name: value for name, value in batch.items() if value.ndim == 4}
    return batch | {name: _resized(value, self.shape) for name, value in images.items()}


def _resized(images: np.ndarray, shape) -> np.ndarray:
  """uint8 [n, h, w, c] -> [n, *shape], of as many channels."""
  height, width, channels = shape

  def resize(image):
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)).reshape(shape)

  return np.stack([resize(image) for image in images])


class Named(_Of):
  """The examples of another source as those of one domain: `x` and `x_label`, or `y`, `y_label`."""

  def __init__(self, source: Source, domain: Domain):
    super().__init__(source, f'as {domain}')
    self._domain = domain

  def _change(self, batch):
    names = {'image': self._domain, 'label': f'{self._domain}_label'}
    return {names[name]: value for name, value in batch.items()}


class View(_Of):
  """One domain of a source of pairs, as a source of images."""

  def __init__(self, pairs: Source, domain: Domain, shape: tuple[int, int, int]):
    super().__init__(pairs, f'the {domain} of pairs', shape)
    self._domain = domain

  def _change(self, batch):
    names = {self._domain: 'image', f'{self._domain}_label': 'label'}
    return {names[name]: value for name, value in batch.items() if name in names}


class SideBySide(_Of):
  """Pairs from images [h, 2 w, c]: x is the half that `side` names, y the other one."""

  def __init__(self, source: Source, side: str):
    height, width, channels = source.shape
    super().__init__(source, f'x {side}', (height, width // 2, channels))
    self._side = side

  @property
  def nbytes(self):
    return self._source.nbytes

  def _change(self, batch):
    left, right = np.split(batch.pop('image'), 2, axis=2)
    x, y = (left, right) if self._side == 'left' else (right, left)
    return {'x': x, 'y': y} | _both_labels(batch)


class Made(_Of):
  """Pairs from images y, with x made of them; holes by the row of an example in its split."""

  def __init__(self, source: Source, config):
    data = config.data
    form = f'x {data.x_from} {data.x.mask} {data.x.factor} {domains.x_shape(config)}'
    super().__init__(source, form)
    self._make = jax.jit(lambda y, u: made.make_x(y, u, config).astype('uint8'))

  def _with_x(self, batch, rows):
    y = batch.pop('image')
    return {'x': np.asarray(self._make(y, made.uniforms(rows))), 'y': y} | _both_labels(batch)

  def read(self, indices):
    return self._with_x(self._source.read(indices), indices)

  def arrays(self):
    return self._with_x(self._source.arrays(), range(len(self)))


def _both_labels(batch) -> dict[str, np.ndarray]:
  if 'label' not in batch:
    return {}
  return {'x_label': batch['label'], 'y_label': batch['label']}


class Rows(_Of):
  """Rows of another source, in any order."""

  def __init__(self, source: Source, rows: np.ndarray):
    super().__init__(source, repr(rows.tolist()))
    self._rows = rows
    name, split, _, content = self.fingerprint.rsplit('/', 3)
    self.fingerprint = f'{name}/{split}/{len(rows)}/{content}'

  def __len__(self):
    return len(self._rows)

  def read(self, indices):
    return self._source.read(self._rows[np.asarray(indices)])

  def arrays(self):
    return {name: value[self._rows] for name, value in self._source.arrays().items()}


class Zipped(Source):
  """The examples of two sources side by side.

  Args:
    x: the source of x.
    y: the source of y, which names the labels of both where `paired`.
    paired: False: the sources are permuted independently, and the shorter one is repeated.
  """

  def __init__(self, x: Source, y: Source, paired: bool):
    self.name = y.name if paired else f'{x.name} and {y.name}'
    self.shape, self.dtype = y.shape, y.dtype
    self.num_classes, self.classes = y.num_classes, y.classes
    content = content_hash(*(s.fingerprint.encode() for s in (x, y)))
    split = y.fingerprint.rsplit('/', 3)[1]
    self.fingerprint = f'{self.name}/{split}/{max(len(x), len(y))}/{content}'
    self.content = content_hash(x.content.encode(), y.content.encode())
    self._x, self._y, self._paired = x, y, paired

  def __len__(self):
    return max(len(self._x), len(self._y))

  def streams(self):
    if self._paired:
      return {'': self}
    return {'x': Named(self._x, 'x'), 'y': Named(self._y, 'y')}

  @property
  def nbytes(self):
    return self._x.nbytes + self._y.nbytes

  def _joined(self, x, y):
    labels = _both_labels(y) if self._paired else {}
    if not self._paired and 'label' in x and 'label' in y:
      labels = {'x_label': x['label'], 'y_label': y['label']}
    return {'x': x['image'], 'y': y['image']} | labels

  def read(self, indices):
    indices = np.asarray(indices)
    return self._joined(*(s.read(indices % len(s)) for s in (self._x, self._y)))

  def arrays(self):
    rows = np.arange(len(self))
    full = [
      {name: value[rows % len(s)] for name, value in s.arrays().items()} for s in (self._x, self._y)
    ]
    return self._joined(*full)


def by_name(x: FolderSource, y: FolderSource, config) -> tuple[np.ndarray, np.ndarray]:
  """The rows of x and of y whose files have the same path, without its ending, in the order of y.

  Raises:
    UserError: a file has no partner, unless `config.data.bad_files='skip'`, or several; or the two
      images of a pair have different aspect ratios.
  """
  rows = {domain: _by_stem(source, domain) for domain, source in (('x', x), ('y', y))}
  alone = [
    f'{path} (no {other})'
    for domain, other in (('x', 'y'), ('y', 'x'))
    for stem, (path, _) in rows[domain].items()
    if stem not in rows[other]
  ]
  pairs = [(rows['x'][stem], found) for stem, found in rows['y'].items() if stem in rows['x']]
  where = f'config.data.x.path={str(x.root)!r} and config.data.path={str(y.root)!r}'
  if alone and (config.data.bad_files == 'error' or not pairs):
    raise UserError(
      f'{where}: {len(alone)} of {len(x) + len(y)} images have no partner of the same name: '
      f"{some(sorted(alone, key=natural))}. Add them, or set config.data.bad_files='skip'"
    )
  different = []
  for (a, i), (b, j) in pairs if config.data.fit == 'crop' else ():  # 'exact' has checked them
    (h, w), (height, width) = x.size(i), y.size(j)
    if abs(h * width - w * height) > max(h, w, height, width):  # of a pixel
      different.append((j, f'{a} is {h}x{w}, {b} {height}x{width}'))
  unequal = sorted((text for _, text in different), key=natural)
  if different and (config.data.bad_files == 'error' or len(different) == len(pairs)):
    raise UserError(
      f'{where}: {len(different)} of {len(pairs)} pairs are of different sizes (x, y): '
      f"{some(unequal)}. Fix them, or set config.data.bad_files='skip'"
    )
  if skipped := alone + unequal:
    _log.warning('%s', printable(f'{where}: skipped: {some(sorted(skipped, key=natural))}'))
  left_out = {j for j, _ in different}
  kept = [(i, j) for (_, i), (_, j) in pairs if j not in left_out]
  return tuple(np.array(column) for column in zip(*kept, strict=True))


def _by_stem(source: FolderSource, domain: Domain) -> dict[str, tuple[pathlib.PurePath, int]]:
  """Path without its ending -> path and row of each image. Accents that file systems write in two
  ways, as one character or as two, are the same name.
  """
  files = collections.defaultdict(list)
  for row, path in enumerate(source.paths):
    files[unicodedata.normalize('NFC', str(without_ending(path)))].append((path, row))
  for named in files.values():
    if len(named) > 1:
      raise UserError(
        f'{str(source.root)!r} (the images of {domain}) holds {named[0][0]} and {named[1][0]}: '
        'pairs are found by names without endings, one is needed'
      )
  return {stem: named[0] for stem, named in files.items()}
