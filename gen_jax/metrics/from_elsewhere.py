"""Images, or points, that were made elsewhere and are scored like samples of ours (`--samples`)."""

import numpy as np

from gen_jax import config as configs
from gen_jax import data
from gen_jax.data import sources
from gen_jax.devices import memory
from gen_jax.errors import UserError
from gen_jax.host.arrays import BadArrays, stored
from gen_jax.host.files import open_file

LISTED = 3  # arrays of a file that an error message names


def open_pictures(config, path: str):
  """Images, or points, from elsewhere as a source of the data's shape.

  Raises:
    UserError: there are none, or they do not match the data's shape and dtype.
  """
  shape = tuple(config.data.shape)
  if path.endswith(('.npz', '.npy')):
    return _open_arrays(path, shape)
  if len(shape) == 1:  # as --mode=sample writes them
    return _open_arrays(f'{path}/points.npy', shape)
  fields = {
    'data.name': 'folder',
    'data.path': path,
    'data.split': 'train',
    'data.num_classes': None,
    'data.classes': None,
    # All images are scored, without resizing.
    'data.fit': 'exact',
    'data.bad_files': 'error',
  }
  try:
    return data.open_source(configs.replace(config, fields))
  except UserError as error:
    text = str(error).partition(' Fix them')[0].replace('config.data.path=', '--samples=')
    raise UserError(text) from error


def _open_arrays(path: str, shape) -> sources.ArraySource:
  """The first array of a file that has the data's shape and dtype."""
  dtype = np.dtype(np.uint8 if len(shape) == 3 else np.float32)
  try:
    with open_file(path) as file:
      found = stored(file)
      for array in found.values():
        if array.dtype == dtype and array.shape[1:] == shape and array.shape[0]:
          free = memory.of_the_host()
          if free is not None and array.nbytes > free:
            needed, found = map(memory.text, (array.nbytes, free))
            raise BadArrays(f'it needs {needed} of memory, {found} are free')
          return _checked(path, array.read())
  except (OSError, BadArrays) as error:
    raise UserError(
      f'--samples={path} cannot be read: {getattr(error, "strerror", None) or error}'
    ) from error
  if not found:
    raise UserError(f'--samples={path} holds no array')
  listed = ', '.join(
    f'{name or "it"} is {array.dtype} {array.shape}' for name, array in list(found.items())[:LISTED]
  )
  raise UserError(
    f'--samples={path}: {listed}, but {dtype} {("n", *shape)} is needed, as '
    f'config.data.shape={shape}'
  )


def _checked(path: str, image: np.ndarray) -> sources.ArraySource:
  """An array of images, or of points, as a source."""
  if image.dtype.kind == 'f' and not np.isfinite(image).all():
    raise UserError(f'--samples={path}: the points are not finite')
  image = np.ascontiguousarray(image)
  digest = sources.content_hash(image.data.cast('B'))
  return sources.ArraySource(path, {'image': image}, None, f'npz/{len(image)}/{digest}')
