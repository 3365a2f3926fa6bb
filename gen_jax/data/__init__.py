"""Data sets by name, and batches that are a pure function of seed and step."""

from gen_jax.data import toys
from gen_jax.data.binarize import Binarized
from gen_jax.data.pipeline import Batches, preprocess
from gen_jax.data.pixels import from_pixels, to_pixels
from gen_jax.data.shapes import shapes
from gen_jax.data.sources import Source, digits, part
from gen_jax.errors import UserError
from gen_jax.run import imports

__all__ = ['Batches', 'Source', 'from_pixels', 'open_source', 'preprocess', 'to_pixels']

_OWN_NAMES = ('digits', 'shapes', *toys.NAMES, 'folder')


def open_source(config, field: str = 'data.split') -> Source:
  """Opens `config.data.name`, prepares it first if necessary, and checks it against `config.data`.

  Args:
    config: the whole config.
    field: which of its fields names the split.

  Raises:
    UserError: if the data are not available or do not match the config.
  """
  data = config.data
  if data.name in toys.NAMES:
    _check_points(data)
    source = toys.toy(data.name)
  elif data.name == 'digits':
    source = digits()
  elif data.name == 'shapes':
    source = shapes(data.shape)
  elif data.name == 'folder':
    from gen_jax.data.folder import FolderSource

    source = FolderSource(config)
  else:
    # Imported where it is needed: the import takes a second.
    from gen_jax.data.tfds_source import TFDSSource

    with imports.guarded():  # the files of a prepared set name classes of features
      source = TFDSSource(config, _OWN_NAMES, field)
  _check(source, data)
  if data.name in _OWN_NAMES:
    source = part(source, config[field], field)
  return Binarized(source) if data.binarize == 'static' else source


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
