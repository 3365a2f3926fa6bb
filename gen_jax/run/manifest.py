"""The manifest of a checkpoint: what a checkpoint says about itself, and whether every byte of its
folder is as the manifest says.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import platform
import re
import reprlib

import jax
import jaxlib

from gen_jax import __version__
from gen_jax.errors import UserError
from gen_jax.host.files import JSON_BYTES, read_file
from gen_jax.run.workdir import checksum_line, parse_json

FORMAT = 2  # of the manifest; written since gen_jax 0.2
_SEAL = ('manifest.json', 'manifest.sha256')


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The manifest of a checkpoint.

  Attributes:
    step: number of finished steps.
    path: the folder.
    config: the resolved config; JSON has turned tuples into lists.
    data_fingerprint: names the data and their order.
    leaves: `{path: (shape, dtype)}`, e.g. `{'net/params/dense/kernel': ((3, 4), 'float32')}`.
    environment: what the bits of a step may depend on besides the program, {name: text}.
    format: version of the layout of the folder.
    sha256: of the manifest, which holds those of all files.
    runs: the finished runs that it started from, `{config field: {'path': ..., 'sha256': ...}}`.
  """

  step: int
  path: pathlib.Path
  config: dict
  data_fingerprint: str
  leaves: dict[str, tuple[tuple[int, ...], str]]
  environment: dict[str, str]
  format: int
  sha256: str
  runs: dict[str, dict[str, str]]


class Damaged(Exception):
  """A checkpoint fails verification; the message says which file and why."""


def environment() -> dict[str, str]:
  """What the bits of a compiled step may depend on besides the program and its inputs."""
  device = jax.devices()[0]
  return dict(
    jax=jax.__version__,
    jaxlib=jaxlib.__version__,
    backend=jax.default_backend(),
    device=device.device_kind,
    devices=str(jax.device_count()),
    processes=str(jax.process_count()),
    cpu=_cpu_name(),
    cpu_cores=str(
      len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    ),
    matmul_precision=str(jax.config.jax_default_matmul_precision),
    random_bits=str(jax.config.jax_default_prng_impl),
    xla_flags=os.environ.get('XLA_FLAGS', ''),
  )


def _cpu_name() -> str:
  with contextlib.suppress(OSError):
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.machine()


def _is_count(value) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _all(is_right):
  return lambda value: isinstance(value, dict) and all(map(is_right, value.values()))


def is_text(value) -> bool:
  """Whether a value of JSON is a text."""
  return isinstance(value, str)


def _is_leaf(value) -> bool:
  return (
    isinstance(value, list)
    and len(value) == 2
    and isinstance(value[0], list)
    and all(map(_is_count, value[0]))
    and is_text(value[1])
    and bool(re.fullmatch(r'bool|b?float\w+|u?int\d+|complex\d+|key<\w+>', value[1]))
  )


def _is_file(value) -> bool:
  return isinstance(value, dict) and _is_count(value.get('size')) and is_text(value.get('sha256'))


# The parts of a manifest, and whether a value is one.
PARTS = dict(
  step=_is_count,
  data_fingerprint=is_text,
  environment=_all(is_text),
  leaves=_all(_is_leaf),
  files=_all(_is_file),
  runs=_all(lambda run: _all(is_text)(run) and {'path', 'sha256'} <= run.keys()),
)


def described(manifest, parts=PARTS) -> dict:
  """The fields of `Manifest` that a manifest holds, read as JSON, besides path and checksum.

  Args:
    manifest: any value.
    parts: what it must hold, {name: whether a value is right}.

  Raises:
    ValueError: it is not one; says which field it lacks, or what it has there.
  """
  if not isinstance(manifest, dict):
    raise ValueError('no JSON object')
  for name, is_right in parts.items():
    if name not in manifest and name != 'runs':
      raise ValueError(f'{name} is missing')
    if not is_right(manifest.get(name, {})):
      raise ValueError(f'{name}={reprlib.repr(manifest[name])[:80]}')
  leaves = {k: (tuple(shape), dtype) for k, (shape, dtype) in manifest['leaves'].items()}
  named = {name: manifest[name] for name in ('step', 'data_fingerprint', 'environment')}
  return named | dict(leaves=leaves, runs=manifest.get('runs', {}))


def folder_name(step: int) -> str:
  return f'{step:010d}'


# What the file managers of desktops leave in folders, in lower case.
_LITTER = ('.ds_store', 'thumbs.db', 'ehthumbs.db', 'desktop.ini', '.directory')


def files_below(folder: pathlib.Path) -> list[str]:
  """Names of all files below `folder`, relative to it, with `/`, sorted; without what desktops
  leave there.
  """
  names = []
  for parent, folders, files in os.walk(folder):
    names += [os.path.join(parent, name) for name in files]
    # A link to a folder: `walk` does not follow it, and we never create one.
    names += [p for name in folders if os.path.islink(p := os.path.join(parent, name))]
  paths = [pathlib.Path(name).relative_to(folder) for name in names]
  litter = [p for p in paths if p.name.lower() in _LITTER or p.name.startswith('._')]
  return sorted(path.as_posix() for path in set(paths).difference(litter))


def file_digest(path: pathlib.Path, durable: bool = False) -> dict:
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
    if durable:
      os.fsync(file.fileno())
    return dict(size=os.fstat(file.fileno()).st_size, sha256=digest)


def verify(path: pathlib.Path) -> Manifest:
  """Reads the manifest and compares every byte with it; raises `Damaged`."""
  try:
    found = files_below(path)
    for name in _SEAL:
      if name not in found:
        raise Damaged(f'{path} is damaged: {name} is missing')
    for name in found:
      if (path / name).is_symlink() or not (path / name).is_file():
        raise Damaged(f'{path} is damaged: {name} is not a regular file')
    text = read_file(path / 'manifest.json', JSON_BYTES)
    if read_file(path / 'manifest.sha256', JSON_BYTES) != checksum_line(text):
      raise Damaged(f'{path} is damaged: manifest.json does not match manifest.sha256')
    manifest = parse_json(text)
    written = manifest.get('format') if isinstance(manifest, dict) else None
    if not _is_count(written):
      raise ValueError('it has no format')
    if written != FORMAT:
      raise UserError(
        f'checkpoint {path} has format {written}, gen_jax {__version__} reads format {FORMAT}: '
        'train again, or use the version that wrote it'
      )
    fields = described(manifest)
    if folder_name(fields['step']) != path.name:
      raise Damaged(f'{path} is damaged: its manifest is that of step {fields["step"]}')
    listed = manifest['files']
    for name in sorted(listed.keys() ^ set(found).difference(_SEAL)):
      fault = 'is missing' if name in listed else 'does not belong to it'
      raise Damaged(f'{path} is damaged: {name} {fault}')
    # Sizes first: a truncated file is found without reading gigabytes.
    for name, file in listed.items():
      if (size := (path / name).stat().st_size) != file['size']:
        raise Damaged(f'{path} is damaged: {name} has {size} bytes instead of {file["size"]}')
    for name, file in listed.items():
      if file_digest(path / name) != file:
        raise Damaged(f'{path} is damaged: the checksum of {name} is wrong')
    if not isinstance(config := parse_json(read_file(path / 'config.json', JSON_BYTES)), dict):
      raise Damaged(f'{path} is damaged: config.json is no JSON object')
    digest = hashlib.sha256(text).hexdigest()
    return Manifest(path=path, config=config, format=FORMAT, sha256=digest, **fields)
  except ValueError as error:
    raise Damaged(f'{path} is damaged: manifest.json is not one ({error})') from error
  except OSError as error:
    raise Damaged(f'{path} cannot be read: {error.strerror}') from error
