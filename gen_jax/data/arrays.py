"""Images in a file of NumPy arrays: `image` and perhaps `label` of an .npz file, or an .npy file of
images. Nothing is unpickled, and every value is checked before training starts.
"""

import os
import pathlib

import numpy as np
from PIL import Image

from gen_jax.data.decoding import BadImage, fit_image
from gen_jax.data.sources import ArraySource, check_image_shape, content_hash
from gen_jax.errors import UserError
from gen_jax.host.arrays import BadArrays, Stored, open_zip, stored
from gen_jax.host.files import open_file

_LISTED = 10
_CHANNELS = (1, 3, 4)


def arrays(config, split: str = 'train') -> ArraySource:
  """The images of the file `config.data.path`.

  `image` is [n, h, w, c] or, grey, [n, h, w]: integers from 0 to 255, floats in [0, 1], which are
  rounded to 8 bits, or booleans. `label`, integers [n] from 0, is optional. `config.data.fit`
  and `background` are those of folders.

  Args:
    config: the whole config.
    split: the name of the split that the file is, for the fingerprint.

  Raises:
    UserError: the file cannot be read, or its arrays are not of this form.
  """
  data = config.data
  where = f'config.data.path={data.path!r}'
  if data.path is None:
    raise UserError(f'{where}, but arrays needs an .npz or .npy file')
  shape = tuple(data.shape)
  check_image_shape(shape, data.get('background'))
  image, label = _read(data.path, where)
  image = _levels(image, where)
  if image.shape[1:] != shape:
    image = _fitted(image, data, where)
  arrays = {'image': image} | ({} if label is None else {'label': label})
  content = content_hash(repr(image.shape).encode(), *(a.tobytes() for a in arrays.values()))
  classes = None if label is None else int(label.max()) + 1
  fingerprint = f'arrays/{split}/{len(image)}/{content}'
  return ArraySource('arrays', arrays, classes, fingerprint)


def _read(path: str, where: str) -> tuple[np.ndarray, np.ndarray | None]:
  """The images, of a sound layout, and the labels of a file."""
  if os.path.isdir(path):
    raise UserError(f'{where} is a folder: an .npz or .npy file is needed')
  if pathlib.PurePath(path).suffix.lower() not in ('.npz', '.npy'):
    raise UserError(f'{where}: an .npz or .npy file is needed')
  try:
    with open_file(path) as file:
      found = stored(file)
      names = sorted(found)
      objects = [] if '' in found else {'image.npy', 'label.npy'} & {*open_zip(file).namelist()}
      for name in sorted(objects):
        if name.removesuffix('.npy') not in found:
          raise UserError(f'{where}: {name.removesuffix(".npy")} holds objects: numbers are needed')
      if '' in found:
        found = {'image': found['']}
      if 'image' not in found:
        listed = ', '.join(names[:_LISTED]) or 'no array of numbers'
        raise UserError(f"{where} holds {listed}: an array 'image' of numbers is needed")
      _check_layout(found['image'], where)
      image = found['image'].read()
      if 'label' not in found:
        return image, None
      return image, _labels(found['label'], len(image), where)
  except (OSError, BadArrays) as error:
    why = getattr(error, 'strerror', None) or error
    raise UserError(f'{where} cannot be read: {why}') from error


def _check_layout(image: Stored, where: str) -> None:
  """Rejects what cannot be images before it is read."""
  shape, kind = image.shape, image.dtype.kind
  said = f'{where}: image is {image.dtype} {shape}'
  if kind not in 'buif':
    raise UserError(f'{said}: integers from 0 to 255, or floats in [0, 1], are needed')
  if len(shape) not in (3, 4) or 0 in shape:
    raise UserError(f'{said}: (n, height, width, channels), or (n, height, width), is needed')
  if len(shape) == 4 and shape[3] not in _CHANNELS:
    first = ', channels first' if shape[1] in _CHANNELS else ''
    raise UserError(f'{said}{first}: (n, height, width, 1, 3 or 4 channels) is needed')


def _labels(label: Stored, n: int, where: str) -> np.ndarray:
  if label.dtype.kind not in 'ui' or label.shape != (n,):
    raise UserError(f'{where}: label is {label.dtype} {label.shape}: integers {(n,)} are needed')
  values = label.read()
  if values.min() < 0 or values.max() >= 1_000_000:
    worst = values.min() if values.min() < 0 else values.max()
    raise UserError(f'{where}: label holds {worst}: classes from 0 to 999999 are needed')
  return values.astype(np.int32)


def _levels(image: np.ndarray, where: str) -> np.ndarray:
  """Images as uint8 [n, h, w, c]."""
  if image.ndim == 3:
    image = image[..., None]
  if image.dtype == np.uint8:
    return np.ascontiguousarray(image)
  if image.dtype.kind == 'b':
    return image.astype(np.uint8) * np.uint8(255)
  high = 1 if image.dtype.kind == 'f' else 255
  low_found, high_found = image.min(), image.max()
  if not (low_found >= 0 and high_found <= high):  # NaN, too
    form = 'floats in [0, 1]' if high == 1 else 'integers from 0 to 255'
    raise UserError(
      f'{where}: image is {image.dtype} with values from {low_found:g} to {high_found:g}: {form} '
      'are needed'
    )
  if high == 1:
    return np.rint(image.astype(np.float32) * 255).astype(np.uint8)
  return image.astype(np.uint8)


def _fitted(image: np.ndarray, data, where: str) -> np.ndarray:
  """Images in the shape of `config.data`, as those of folders are."""
  shape, background = tuple(data.shape), data.get('background')
  pictures = (Image.fromarray(x[..., 0] if x.shape[2] == 1 else x) for x in image)
  try:
    return np.stack([fit_image(picture, shape, data.fit, background) for picture in pictures])
  except BadImage as error:
    helps = f': {" or ".join(error.cures)}' if error.cures else ''
    raise UserError(
      f'config.data.shape={shape} with config.data.fit={data.fit!r}, but an image in {where} '
      f'{error}{helps}'
    ) from error
