"""Which image files a folder holds, and what else is in it."""

import collections
import os
import pathlib
import re
from typing import NamedTuple

from gen_jax.data.decoding import SUFFIXES, begins_like_image
from gen_jax.data.sources import reading_pool
from gen_jax.host.files import open_file

BROKEN_LINK = 'a link to nothing'
LISTED = 10  # names in a message
_NAMED = 3  # names with a reason of their own
_OF_SYSTEMS = ('__MACOSX', '@eaDir', 'lost+found')  # folders that no user made


def natural(name: str) -> list:
  """Sort key that puts `img2` before `img10`."""
  parts = re.split(r'(\d+)', name)
  return [*((int(part), '') if part.isdecimal() else (-1, part) for part in parts), (-1, name)]


def without_ending(path: pathlib.PurePosixPath) -> pathlib.PurePosixPath:
  """The path of an image without one of `SUFFIXES`; without another ending, as of `scan.001`, it is
  the path itself.
  """
  return path.with_suffix('') if path.suffix.lower() in SUFFIXES else path


class Found(NamedTuple):
  """What is below a folder; all paths are relative to it."""

  images: list[pathlib.PurePosixPath]  # in natural order
  folders: list[str]  # its sub-folders, links to missing ones included, in natural order
  left_out: dict[str, list[str]]  # reason -> paths
  unread: list[str]  # folders that cannot be read, with the reason


def find_images(root: pathlib.Path, threads: int = 8) -> Found:
  """Finds the images below `root`: files with one of `SUFFIXES`, and those that begin like a PNG,
  JPEG or WebP file, under any name. Hidden files and folders are left out.

  Raises:
    OSError: `root` cannot be read.
  """
  images, others, folders, unread = [], [], [], []
  left_out = collections.defaultdict(list)
  visited, pending = set(), ['']
  while pending:
    folder = pending.pop()
    try:
      status = os.stat(root / folder)
      if (identity := (status.st_dev, status.st_ino)) in visited:
        left_out['a folder once more'].append(folder)  # a link to a parent would never end
        continue
      visited.add(identity)
      if folder and '/' not in folder:
        folders.append(folder)
      with os.scandir(root / folder) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
      if not folder:
        raise
      unread.append(f'{folder} cannot be read ({error.strerror})')
      continue
    inner = []
    for entry in entries:
      name = f'{folder}/{entry.name}' if folder else entry.name
      if entry.name.startswith('.') or entry.name in _OF_SYSTEMS:
        left_out['hidden'].append(name)
      elif os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():
        inner.append(name)
      else:
        (images if name.lower().endswith(SUFFIXES) else others).append(name)
    pending += reversed(inner)
  with reading_pool(threads) as pool:
    reasons = pool.map(lambda name: _why_no_image(root / name), others)
    for name, reason in zip(others, reasons, strict=True):
      if reason is None:
        images.append(name)
      else:
        left_out[reason].append(name)
      if reason == BROKEN_LINK and '/' not in name:
        folders.append(name)
  paths = map(pathlib.PurePosixPath, images)
  ordered = sorted(paths, key=lambda path: [natural(part) for part in path.parts])
  return Found(ordered, sorted(folders, key=natural), dict(left_out), unread)


def _why_no_image(path: pathlib.Path) -> str | None:
  """Why a file is left out; None: it begins like an image."""
  try:
    with open_file(path) as file:
      head = file.read(12)
  except OSError as error:
    return BROKEN_LINK if path.is_symlink() and not os.path.exists(path) else error.strerror
  return None if begins_like_image(head) else 'not PNG, JPEG or WebP'


def left_out_text(left_out: dict[str, list[str]]) -> str:
  """`Found.left_out` as '3 left out: a.bmp, a.gif (not PNG, JPEG or WebP); .cache (hidden)'."""
  groups = []
  for reason, names in left_out.items():
    ordered = sorted(names, key=natural)
    more = f' and {len(names) - LISTED:,} more' * (len(names) > LISTED)
    groups.append(f'{", ".join(ordered[:LISTED])}{more} ({reason})')
  return f'{sum(map(len, left_out.values())):,} left out: {"; ".join(groups)}'


def some(texts: list[str]) -> str:
  """'a; b; c; and 2 more', of texts that may be many."""
  more = [f'and {len(texts) - _NAMED} more'] if len(texts) > _NAMED else []
  return '; '.join(texts[:_NAMED] + more)
