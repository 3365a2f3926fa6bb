"""A folder of pictures that a trained run is applied to: each in its own size."""

import collections
import logging
import pathlib
import warnings
from typing import BinaryIO

import numpy as np

from gen_jax.data.decoding import BadImage, decode, upright_size
from gen_jax.data.finding import find_images, left_out_text, some, without_ending
from gen_jax.data.sources import content_hash, file_hash
from gen_jax.errors import UserError, printable
from gen_jax.host.files import open_file

_log = logging.getLogger(__name__)


class Pictures:
  """The images below a folder, in natural order of their names, each in its own size.

  Args:
    config: the whole config; its `data` says what is done with alpha, grey and bad files.
    path: the folder.
    channels: of every image.
    flag: the user's name for `path`, for messages.

  Attributes:
    paths: of the images, relative to the folder.
    names: the same without endings.
    sizes: (height, width) of each.
    content: a hash of their names and contents.

  Raises:
    UserError: there are none, two have one name but for its end, or some cannot be used.
  """

  def __init__(self, config, path: str, channels: int, flag: str):
    data, self.root, self._channels = config.data, pathlib.Path(path), channels
    self._fit, self._background = data.fit, data.get('background')
    where = f'{flag}={path}'
    if not self.root.is_dir():
      raise UserError(f'{where} is not a folder')
    try:
      found = find_images(self.root, data.read_threads)
    except OSError as error:
      raise UserError(f'{where} cannot be read: {error.strerror}') from error
    self.paths, self.sizes, digests, bad, cures = [], [], [], [*found.unread], {}
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Pillow's, of files that it reads nevertheless
      for name in found.images:
        try:
          with open_file(self.root / name) as file:
            size = self._decode(file).shape[:2]
            digests.append(f'{name} {file_hash(file)}')
        except (BadImage, OSError) as error:
          bad.append(f'{name} {getattr(error, "strerror", None) or error}')
          cures |= dict.fromkeys(getattr(error, 'cures', ()))
          continue
        self.paths.append(name)
        self.sizes.append(size)
    left_out = left_out_text(found.left_out) if found.left_out else ''
    if bad:
      total = len(found.images) + len(found.unread)
      count = f'{len(bad)} of {total} images in {where} cannot be used'
      named = some(bad)
      if data.bad_files == 'error':
        needed = f'{channels} channels are needed' if channels > 1 else 'grey is needed'
        helps = ''.join(f'{cure}, ' for cure in cures)
        raise UserError(
          f"{count}: {named}; {needed}. Fix them, {helps}or set config.data.bad_files='skip'"
        )
      _log.warning('%s', printable(f'{count} and are skipped: {named}'))
    if not self.paths:
      none = f'{where} holds no image (PNG, JPEG or WebP) that can be used'
      raise UserError('; '.join(filter(None, (none, left_out))))
    if left_out:
      _log.warning('%s', printable(f'{where}: {left_out}'))
    self.names = [without_ending(path) for path in self.paths]
    for name, count in collections.Counter(self.names).items():
      if count > 1:
        raise UserError(f'{where} holds {count} images named {name}: other names are needed')
    self.content = content_hash(*(line.encode('utf-8', 'surrogateescape') for line in digests))

  def read(self, index: int) -> np.ndarray:
    """An image, uint8 [h, w, channels]."""
    path = self.root / self.paths[index]
    try:
      with open_file(path) as file:
        return self._decode(file)
    except (BadImage, OSError) as error:
      raise UserError(f'{path} was good at first, but now: {error}') from error

  def _decode(self, file: BinaryIO) -> np.ndarray:
    try:
      height, width = upright_size(file)
    except Exception:
      height = width = 1  # `decode` says what is wrong
    file.seek(0)
    return decode(file, (height, width, self._channels), self._fit, self._background)
