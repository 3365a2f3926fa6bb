"""The format of an export: the weights of a trained run, without what only training needs.

  config.json           the resolved config
  weights.safetensors   parameters, batch statistics and the step, named as in a checkpoint,
                        'net/params/conv_in/kernel'; floating point numbers in one dtype
  manifest.json         size and SHA-256 of both, the step, the weights (ema or raw), the dtype, the
                        players, data fingerprint, environment, version, and the checksum of the
                        checkpoint's manifest

The manifest is written last, so that a folder with one is complete.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import reprlib
from collections.abc import Mapping

import jax
import numpy as np
import safetensors
import safetensors.numpy

from gen_jax import __version__
from gen_jax.errors import UserError, writing
from gen_jax.host.files import JSON_BYTES, open_file, read_file
from gen_jax.run import manifest as manifests
from gen_jax.run.leaves import place
from gen_jax.run.workdir import check_place, parse_json, write_together

FORMAT = 1
DTYPES = ('float32', 'float16')
WEIGHTS = 'weights.safetensors'
_FILES = (WEIGHTS, 'config.json')
# What a manifest has, and what it must be.
_PARTS = manifests.PARTS | dict(
  weights=('ema', 'raw').__contains__,
  dtype=DTYPES.__contains__,
  players=lambda value: isinstance(value, list) and all(map(manifests.is_text, value)),
  source=manifests.is_text,
  gen_jax=manifests.is_text,
)


@dataclasses.dataclass(frozen=True)
class Manifest(manifests.Manifest):
  """What an export says about itself, besides what a checkpoint does.

  Attributes:
    weights: 'ema' or 'raw'.
    dtype: of floating point numbers in the file; `leaves` has those of the state.
    players: names of the networks in it.
    source: checksum of the manifest of the checkpoint, or of the file that was imported.
    version: of gen_jax, which wrote it.
  """

  weights: str
  dtype: str
  players: tuple[str, ...]
  source: str
  version: str


def is_export(path) -> bool:
  """Whether a folder holds an export."""
  return (pathlib.Path(path) / 'manifest.json').is_file()


def write(
  path,
  arrays: Mapping[str, np.ndarray],
  *,
  step: int,
  config: str,
  weights: str,
  dtype: str,
  data_fingerprint: str,
  environment: Mapping[str, str],
  source: str,
) -> Manifest:
  """Writes an export into the folder `path`, over an earlier one of the same weights.

  Args:
    path: the folder; made if need be.
    arrays: {'player/params/...' or 'player/stats/...' or another field of the state: host array}.
    step: number of finished steps.
    config: the resolved config as JSON, of `config.to_json`.
    weights: 'ema' or 'raw'.
    dtype: one of `DTYPES`.
    data_fingerprint: names the data that it was trained on.
    environment: of the training.
    source: checksum of what the weights come from.

  Raises:
    UserError: the folder holds a run or another export or cannot be written, or a number is too
      large for `dtype`.
  """
  path = pathlib.Path(path)
  if (path / 'checkpoints').exists():
    raise UserError(f'--out={path} holds a run: another folder is needed for its export')
  check_place(path, ('manifest.json',), '--out')
  stored = {}
  for name, array in arrays.items():
    floating = np.issubdtype(array.dtype, np.floating)
    with np.errstate(over='ignore'):
      # The library writes the memory of an array as it lies, whatever its strides say.
      stored[name] = np.asarray(array, dtype if floating else array.dtype, order='C')
    if floating:
      if not np.isfinite(stored[name]).all():
        raise UserError(f'{name} holds numbers that are not finite in {dtype}: use --dtype=float32')
  files = {
    WEIGHTS: safetensors.numpy.save(stored),
    'config.json': config.encode(),
  }
  manifest = dict(
    export=FORMAT,
    gen_jax=__version__,
    step=step,
    weights=weights,
    dtype=dtype,
    players=sorted({name.partition('/')[0] for name in arrays if '/params/' in name}),
    data_fingerprint=data_fingerprint,
    source=source,
    environment=dict(environment),
    leaves={name: [list(x.shape), str(x.dtype)] for name, x in sorted(arrays.items())},
    files={
      name: dict(size=len(data), sha256=hashlib.sha256(data).hexdigest())
      for name, data in files.items()
    },
  )
  _check_same(path, manifest)
  with writing(f'--out={path}'):
    path.mkdir(parents=True, exist_ok=True)
  files['manifest.json'] = (json.dumps(manifest, indent=1) + '\n').encode()
  try:
    write_together({path / name: data for name, data in files.items()})
  except UserError:
    with contextlib.suppress(OSError):  # it holds other things
      path.rmdir()
    raise
  return open_export(path)


def _check_same(path: pathlib.Path, manifest: dict) -> None:
  """Checks that a folder holds no export, or one of what this manifest describes."""

  def text(of) -> str:
    players = ', '.join(of['players'])
    return f'step {of["step"]}, {of["weights"]} weights of {players} in {of["dtype"]}'

  if not os.path.lexists(path / 'manifest.json'):
    return
  try:
    earlier = parse_json(read_file(path / 'manifest.json', JSON_BYTES))
    if earlier['source'] == manifest['source'] and text(earlier) == text(manifest):
      return
    found = f'the export of {text(earlier)}'
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    found = 'a manifest.json that is none of an export'
  raise UserError(f'--out={path} holds {found}: for {text(manifest)}, another folder is needed')


def open_export(path) -> Manifest:
  """The manifest of the export in a folder; every byte is compared with it.

  Raises:
    UserError: a file is missing or damaged, or the export is of another format.
  """
  path = pathlib.Path(path)
  try:
    text = read_file(path / 'manifest.json', JSON_BYTES)
    manifest = parse_json(text)
    if (found := manifest['export']) != FORMAT:
      raise UserError(
        f'{path} is an export of format {reprlib.repr(found)}, gen_jax {__version__} reads format '
        f'{FORMAT}'
      )
    described = manifests.described(manifest, _PARTS)
    for name in _FILES:
      if not (path / name).is_file():
        raise UserError(f'the export {path} cannot be read: {name} is missing')
      with open_file(path / name) as file:
        sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
        digest = dict(size=file.tell(), sha256=sha256)
      if digest != manifest['files'][name]:
        raise UserError(f'the export {path} is damaged: the checksum of {name} is wrong')
    config = parse_json(read_file(path / 'config.json', JSON_BYTES))
    del config['gen_jax']  # the version, which `from_json` checks
    return Manifest(
      path=path,
      config=config,
      format=FORMAT,
      sha256=hashlib.sha256(text).hexdigest(),
      weights=manifest['weights'],
      dtype=manifest['dtype'],
      players=tuple(manifest['players']),
      source=manifest['source'],
      version=manifest['gen_jax'],
      **described,
    )
  except OSError as error:
    raise UserError(f'the export {path} cannot be read: {error}') from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f'the export {path} is damaged: manifest.json is not one ({error})') from error


def read(manifest: Manifest, specs: Mapping[tuple[str, ...], jax.ShapeDtypeStruct]) -> dict:
  """Arrays of an export, in the dtype and with the sharding of their specs; as
  `Checkpointer.read`.
  """
  arrays = {}
  try:
    with safetensors.safe_open(manifest.path / WEIGHTS, framework='np') as file:
      for key, spec in specs.items():
        name = '/'.join(key)
        if (shape := tuple(file.get_slice(name).get_shape())) != spec.shape:
          raise ValueError(f'{name} has the shape {shape}')
        array = file.get_tensor(name)
        arrays[key] = place(array.astype(spec.dtype), spec)
  except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
    where = manifest.path / WEIGHTS
    raise UserError(f'{where} is not what manifest.json says: {error}') from error
  return arrays
