"""Opening data sets by what a config says of them: sources of images, and of two domains."""

import os
import re

from ml_collections import FrozenConfigDict

from gen_jax import domains
from gen_jax.data import pairs, toys
from gen_jax.data.arrays import arrays
from gen_jax.data.binarize import Binarized
from gen_jax.data.folder import FolderSource
from gen_jax.data.shapes import shapes
from gen_jax.data.sources import Source, digits, part
from gen_jax.errors import UserError
from gen_jax.host import imports

_OWN_NAMES = ('digits', 'shapes', *toys.NAMES, 'folder', 'arrays')


def open_source(config, field: str = 'data.split') -> Source:
  """Opens `config.data.name`, prepares it first if necessary, and checks it against `config.data`.
  For a system of two domains these are the images of y.

  Args:
    config: the whole config.
    field: which of its fields names the split.

  Raises:
    UserError: if the data are not available or do not match the config.
  """
  if config.data.get('x_from') in domains.FILES:
    return pairs.View(_open_pairs(config, field), 'y', tuple(config.data.shape))
  return _open(config, field)


def open_domain(config, domain: pairs.Domain, field: str = 'data.split') -> Source:
  """Opens one domain of a system of two, 'x' or 'y', as a source of images; as `open_source`."""
  if domain == 'y':
    return open_source(config, field)
  if config.data.x_from == 'domain':
    return _open_x(config, field)
  return pairs.View(_open_pairs(config, field), 'x', domains.x_shape(config))


def open_training(config) -> Source:
  """Opens what a run is trained on, for `Batches`; as `open_source`. For a system of two domains
  the examples have the leaves of both, at the size that they are cropped from; an x that is made of
  y is left to `preprocess`.
  """
  data = config.data
  if 'x_from' not in data:
    return open_source(config)
  if data.x_from in domains.FILES:
    both = _open_pairs(config, 'data.split', load=True)
    if data.paired:
      return both
    x, y = (pairs.View(both, d, domains.load_shape(config, s)) for d, s in _shapes(config).items())
  else:
    y = _open(config, 'data.split', domains.load_shape(config, data.shape))
    if data.x_from in domains.MADE and data.paired:
      return pairs.Named(y, 'y')
    x = _open_x(config, 'data.split', load=True) if data.x_from == 'domain' else y
  return pairs.Zipped(x, y, paired=False)


def held_out(config, field: str = 'eval.held_out_split') -> Source:
  """Opens held-out examples, or those of another field's split, with all leaves: `image` and
  `label`, or of a system of two domains `x`, `y`, `x_label` and `y_label`, in pairs where there are
  any; as `open_source`.
  """
  if 'x_from' not in config.data:
    return open_source(config, field)
  if config.data.x_from == 'domain':
    return pairs.Zipped(_open_x(config, field), _open(config, field), paired=False)
  return _open_pairs(config, field)


def _open(config, field: str, load_shape=None) -> Source:
  """`config.data.name`, at `load_shape` if that is not None."""
  data, whole = config.data, 'train'
  shape = tuple(data.shape)
  resized = load_shape not in (None, shape)
  if resized and data.fit == 'crop' and data.name not in ('digits', 'shapes', *toys.NAMES):
    config, resized = _replaced(config, {'data.shape': load_shape}), False
  if data.name in ('folder', 'arrays'):
    path, whole = _of_split(data.path, config[field], field)
    config = _replaced(config, {'data.path': path})
  if data.name in toys.NAMES:
    _check_points(data)
    source = toys.toy(data.name)
  elif data.name == 'digits':
    source = digits()
  elif data.name == 'shapes':
    source = shapes(shape)
  elif data.name == 'folder':
    source = FolderSource(config, whole)
  elif data.name == 'arrays':
    source = arrays(config, whole)
  else:
    # Imported where it is needed: the import takes a second.
    from gen_jax.data.tfds_source import TFDSSource

    with imports.guarded():  # the files of a prepared set name classes of features
      source = TFDSSource(config, _OWN_NAMES, field)
  _check(source, config.data)
  if resized:
    source = pairs.Resized(source, load_shape)
  if data.name in _OWN_NAMES:
    source = part(source, config[field], field, whole)
  return Binarized(source) if data.binarize == 'static' else source


def _open_x(config, field: str, load: bool = False) -> Source:
  """The source `config.data.x.name`; errors name its fields."""
  x, shape = config.data.x, domains.x_shape(config)
  own = 'data.x.split' if field == 'data.split' else 'data.x.held_out_split'
  values = {'data.name': x.name, 'data.path': x.path, 'data.shape': shape}
  if config[own] is not None:
    values[field] = config[own]
  try:
    return _open(
      _replaced(config, values), field, domains.load_shape(config, shape) if load else None
    )
  except UserError as error:
    raise _about_x(error, {field: own} if config[own] is not None else {}) from error


def _about_x(error: UserError, fields=None) -> UserError:
  """An error about `config.data` as one about `config.data.x`."""
  names = {f'data.{name}': f'data.x.{name}' for name in ('name', 'path', 'shape')} | (fields or {})
  pattern = rf'config\.({"|".join(map(re.escape, names))})\b'
  return UserError(re.sub(pattern, lambda match: f'config.{names[match[1]]}', str(error)))


def _open_pairs(config, field: str, load: bool = False) -> Source:
  """The pairs of a split; at the size that they are cropped from, if `load`."""
  data, split = config.data, config[field]
  if data.x_from in domains.MADE:
    return pairs.Made(_open(config, field), config)
  path, whole = _of_split(data.path, split, field)
  load = load and data.load_size is not None
  resized = load and data.fit == 'exact'  # 'crop' resizes when it decodes

  def folder(path, shape, halves=False):
    shape = domains.load_shape(config, shape) if load and not resized else tuple(shape)
    return FolderSource(_replaced(config, {'data.path': path, 'data.shape': shape}), whole, halves)

  if data.x_from in domains.HALVES:
    found = pairs.SideBySide(folder(path, data.shape, halves=True), data.x_from)
    found = pairs.Resized(found, domains.load_shape(config, data.shape)) if resized else found
  else:
    y = folder(path, data.shape)
    try:
      x = folder(_of_split(data.x.path, split, field)[0], domains.x_shape(config))
    except UserError as error:
      raise _about_x(error) from error
    both = [pairs.Rows(s, r) for s, r in zip((x, y), pairs.by_name(x, y, config), strict=True)]
    if resized:
      both = [pairs.Resized(s, domains.load_shape(config, s.shape)) for s in both]
    found = pairs.Zipped(*both, paired=True)
  _check_labels(found, data)
  return part(found, split, field, whole)


def _shapes(config) -> dict[pairs.Domain, tuple[int, ...]]:
  return {'x': domains.x_shape(config), 'y': tuple(config.data.shape)}


def _of_split(path: str | None, split: str, field: str) -> tuple[str | None, str]:
  """The folder or file of a split, and the name of the split that it is.

  Raises:
    UserError: `path` has a place for the split, and there is none of this name.
  """
  if path is None or '{split}' not in path:
    return path, 'train'
  whole = split.partition('[')[0]
  found = path.replace('{split}', whole)
  if not re.fullmatch(r'[\w.-]+', whole) or not os.path.exists(found):
    raise UserError(f'config.{field}={split!r}, but config.data.path={path!r} has no {found!r}')
  return found, whole


def _replaced(config, values) -> FrozenConfigDict:
  """The config with other values, {dotted path: value}."""
  tree = config.to_dict()
  for path, value in values.items():
    *groups, name = path.split('.')
    group = tree
    for key in groups:
      group = group[key]
    group[name] = value
  return FrozenConfigDict(tree)


def _check_points(data) -> None:
  for field, neutral in (('flip', 0.0), ('dequantize', 'none'), ('binarize', 'none')):
    if data[field] != neutral:
      raise UserError(
        f'config.data.{field}={data[field]!r}, but {data.name} has points, not images: set it to '
        f'{neutral!r}'
      )


def _check(source: Source, data) -> None:
  if tuple(data.shape) != tuple(source.shape):
    resize = " (config.data.fit='crop' resizes)" if source.name not in _OWN_NAMES else ''
    raise UserError(
      f'config.data.shape={tuple(data.shape)}, but the examples of {source.name} are '
      f'{tuple(source.shape)}{resize}'
    )
  _check_labels(source, data)


def _check_labels(source: Source, data) -> None:
  if data.num_classes is None:
    return
  if source.num_classes is None:
    raise UserError(
      f'config.data.num_classes={data.num_classes}, but {source.name} has no labels: set it to None'
    )
  if source.num_classes > data.num_classes:
    raise UserError(
      f'config.data.num_classes={data.num_classes}, but {source.name} has labels up to '
      f'{source.num_classes - 1}: set it to {source.num_classes}'
    )
