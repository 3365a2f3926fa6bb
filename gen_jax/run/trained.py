"""A trained run as an object: `load(path)`, which users, verbs and systems share.

A run is the folder that training leaves, finished or not, or an export of it (`export_format`). Its
arrays are placed on all devices, without the optimisers, which only training needs.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import config as configs
from gen_jax import contract, data, domains, evaluate, sampling
from gen_jax.data.binarize import binarize
from gen_jax.devices import compilation
from gen_jax.errors import UserError
from gen_jax.fields import SHARED, did_you_mean
from gen_jax.metrics import memorisation
from gen_jax.run import export_format
from gen_jax.run.leaves import state_leaves
from gen_jax.run.paths import local
from gen_jax.run.restoring import (
  attach,
  config_of,
  player_of,
  players,
  restore,
  sampled_weights,
  weights_of,
)
from gen_jax.run.workdir import Workdir

# Folded into the keys of `Run.encode` and `Run.translate`.
ENCODE, TRANSLATE = 0xE7C0, 0xE7C1


def load(path, step: int | None = None, weights: str | None = None) -> 'Run':
  """A run, finished or not, or an export, as an object.

  Args:
    path: folder of the run or the export.
    step: which checkpoint; None: the newest that is intact.
    weights: 'ema' or 'raw'; None: as config.sample.weights says.

  Raises:
    UserError: there is no run, no such checkpoint or no such weights.
  """
  return open_run(*config_of(path), step, weights)


def open_run(config, path, step: int | None = None, weights: str | None = None) -> 'Run':
  """As `load`, with a config that may differ from the run's in fields that are safe to change."""
  if weights not in ('ema', 'raw', None):
    raise UserError(f"weights={weights!r}: 'ema', 'raw' or None is needed")
  if weights is not None and 'weights' in config.sample:
    config = configs.replace(config, {'sample.weights': weights})
  elif weights == 'ema':
    raise UserError(f"weights='ema': {path} keeps no moving average; 'raw' or None is needed")
  compilation.keep_programs(config)
  system = contract.check(config)
  manifest, state = restore(config, system, path, step)
  return Run(path, config, system, manifest, state)


class Run:
  """A trained run. Made by `load`.

  Attributes:
    path: its folder.
    config: the resolved config, frozen.
    step: number of finished steps.
    state: the system's `State`; its players have no optimiser state.
    weights: what it samples with: 'ema', the moving average of the parameters, or 'raw'.
    manifest: what the checkpoint or the export says about itself.
  """

  def __init__(self, path, config, system, manifest, state):
    self.path, self.config, self.manifest, self.state = path, config, manifest, state
    self.step = manifest.step
    self.weights = sampled_weights(config, state)
    self._system = system
    self._programs = {}  # compiled, by what they are compiled for

  def __repr__(self) -> str:
    return (
      f'Run({str(self.path)!r}: {self.config.system}, step {self.step}, {self.weights} weights)'
    )

  @property
  def conditional(self) -> bool:
    """Whether samples depend on labels."""
    return contract.asked_labels(self.config, self._system, self.state, 1) is not None

  def params(self, player: str | None = None) -> Any:
    """The weights of a network, a tree of arrays: its moving average or its parameters, as
    `weights` says.

    Args:
      player: its name, such as 'net' or 'G'; None: the only one.
    """
    return weights_of(player_of(self.state, player, self.path), self.weights)

  def sample(self, n: int, seed: int = 0, labels=None, **fields) -> np.ndarray:
    """Generates n samples, those of `--mode=sample` with that seed.

    Args:
      n: how many.
      seed: the samples are a function of it, the weights and the settings.
      labels: classes, one int or [n] of them; None: 0, 1, 2, ... in turn. Only where samples depend
        on labels.
      **fields: other fields of config.sample, e.g. `sampler='ddim', steps=50`.

    Returns:
      uint8 [n, h, w, c], or float32 [n, 2] for two-dimensional points.

    Raises:
      UserError: config.sample has no such field, the field cannot hold the value, or there are no
        such labels.
      Diverged: the samples are not finite.
    """
    contract.check_samples(self.config, self._system)
    try:
      n = SHARED['sample.num_images'].accept(n)
    except ValueError as error:
      raise UserError(f'sample(n={n!r}): {SHARED["sample.num_images"]} is needed') from error
    config = self._with('sample', fields | dict(seed=seed))
    key = jax.random.fold_in(jax.random.key(config.sample.seed), sampling.SAMPLE_MODE)
    config = configs.replace(config, {'sample.seed': 0})  # one program serves all seeds
    if ('sample', config) not in self._programs:
      state, _ = attach(self.state, config, contract.check(config))
      self._programs['sample', config] = state, sampling.make_sampler(config, self._system)
    state, draw = self._programs['sample', config]
    if labels is not None:
      depends = contract.asked_labels(config, self._system, state, n) is not None
      labels = self._labels(labels, n, depends)
    return draw(state, key, n, labels=labels)['image']

  def _labels(self, labels, n: int, depends: bool) -> np.ndarray:
    if not depends:
      raise UserError(
        f'labels={labels!r}: samples of {self.path} do not depend on labels, None is needed'
      )
    classes = self.config.data.num_classes
    found = np.asarray(labels)
    if found.dtype.kind not in 'iu' or found.shape not in ((), (n,)):
      raise UserError(
        f'labels are {found.dtype} {found.shape}: an integer, or {n} of them, are needed'
      )
    if found.size and not (0 <= found.min() and found.max() < classes):
      worst = found.min() if found.min() < 0 else found.max()
      raise UserError(f'labels hold {worst}: classes from 0 to {classes - 1} are needed')
    return np.broadcast_to(found, n).astype(np.int32)

  def evaluate(self, out=None, **fields) -> list:
    """Scores the run as `--mode=evaluate` does, which also appends the rows to `evaluation.jsonl`
    in its folder, from which `--mode=compare` takes the last ones.

    Args:
      out: another folder for the rows and pictures, for settings that are only tried.
      **fields: fields of config.eval, or else of config.sample, e.g. `num_samples=1000`.

    Returns:
      A list of `gen_jax.run.records.Row`.

    Raises:
      UserError: as `--mode=evaluate`.
      Diverged: the samples are not finite.
    """
    mine = [name for name in fields if f'eval.{name}' not in self._rules()]
    config = self._with('eval', {k: v for k, v in fields.items() if k not in mine})
    config = self._with('sample', {k: fields[k] for k in mine}, config)
    return evaluate.score_state(config, Workdir(out or self.path), self.manifest, self.state)

  def encode(self, images, labels=None, seed: int = 0, **fields) -> dict[str, np.ndarray]:
    """Latents of images, by the system's `encode`.

    Args:
      images: uint8 [n, h, w, c], which are binarised where the run's data are; or float32 in
        [-1, 1] ([n, 2] for points).
      labels: their classes, one int or [n] of them; None where samples do not depend on labels.
      seed: of random draws in the encoder.
      **fields: other fields of config.sample, e.g. `sampler='ddim', steps=50`.

    Returns:
      What the system gives: 'z' float32 [n, ...] and perhaps 'reconstruction', uint8 as images are.

    Raises:
      UserError: the system has no encoder, or not with these fields; the images differ from its
        data in shape, dtype or range; or labels are missing, or not used.
      Diverged: what it gives is not finite.
    """
    config = self._having('encode', 'encoder', fields)
    shape = tuple(self.config.data.shape)
    images = _array('encode', images)
    if images.shape[1:] != shape or not len(images) or images.dtype not in (np.uint8, np.float32):
      raise UserError(
        f'encode: images are {images.dtype} {images.shape}; uint8 or float32 {("n", *shape)} in '
        '[-1, 1], n > 0, is needed'
      )
    if len(shape) == 3:
      _check_range('encode', images)
    if images.dtype == np.uint8:
      images = binarize(images) if self.config.data.binarize == 'static' else images
      images = data.from_pixels(images, self.config.data.dequantize)
    key = jax.random.fold_in(jax.random.key(seed), ENCODE)

    def encode(state, batch, rng):
      return self._system.encode(state, batch, rng, config=config)

    made = self._in_blocks(encode, config, 'image', images, labels, key)
    if 'reconstruction' in made:
      made['reconstruction'] = sampling.as_data(made['reconstruction'], config)
    return made

  def decode(self, z, labels=None, **fields) -> np.ndarray:
    """Images of latents such as those of `encode`, by the system's `decode`.

    Args:
      z: [n, ...], as `encode` gives them.
      labels: as in `encode`.
      **fields: other fields of config.sample, e.g. `sampler='ddim', steps=50`.

    Returns:
      uint8 [n, h, w, c], or float32 [n, 2] for two-dimensional points.

    Raises:
      UserError: the system has no decoder, or not with these fields; z has another shape; or labels
        are missing, or not used.
      Diverged: the images are not finite.
    """
    config = self._having('decode', 'decoder', fields)
    z = np.asarray(z)
    if z.ndim < 2 or not len(z) or z.dtype.kind not in 'fiu':
      raise UserError(f'decode: z is {z.dtype} {z.shape}; numbers [n, ...] are needed')

    def decode(state, batch, rng):
      del rng
      return self._system.decode(state, batch.pop('z'), batch, config=config)

    made = self._in_blocks(decode, config, 'z', np.float32(z), labels, jax.random.key(0))
    return sampling.as_data(made['image'], config)

  def translate(self, images, to: str = 'y', seed: int = 0, **fields) -> np.ndarray:
    """Translations of images into the other domain, by the system's `translate`.

    Where a net normalises by batches, a translation depends on the config.sample.batch_size images
    that are translated together; without that, it depends on its image, its position and `seed`.

    Args:
      images: uint8 [n, h, w, c], or float32 in [-1, 1], of x where `to` is 'y', and the reverse; of
        any height and width that the nets take. Those of each size are compiled once.
      to: the domain of the result, 'y' or 'x'.
      seed: of the noise, for systems that have any.
      **fields: other fields of config.sample, e.g. `batch_size=8`.

    Returns:
      uint8 [n, h, w, d].

    Raises:
      UserError: the system translates nothing, or not to that domain; the images differ from its
        data in channels, dtype or range, or do not have one size.
      Diverged: the translations are not finite.
    """
    config = self._having('translate', 'translation', fields)
    if to not in ('y', 'x'):
      raise UserError(f"to={to!r}: 'y' or 'x' is needed")
    images = _array('translate', images)
    *_, c = domains.x_shape(config) if to == 'y' else config.data.shape
    fits = images.ndim == 4 and images.size and images.shape[3] == c
    if not fits or images.dtype not in (np.uint8, np.float32):
      raise UserError(
        f'translate: images are {images.dtype} {images.shape}; uint8 or float32 (n, h, w, {c}) in '
        f'[-1, 1], n > 0, is needed to translate to {to}'
      )
    _check_range('translate', images)
    if images.dtype == np.uint8:
      images = data.from_pixels(images, self.config.data.dequantize)

    def translate(state, batch, rng):
      made = self._system.translate(state, batch['image'], to, rng, config=config)
      return {'image': made}

    translate.__name__ = f'translate to {to} {images.shape[1:]}'  # a program for each
    key = jax.random.fold_in(jax.random.key(seed), TRANSLATE)
    self._check_size(translate, images, key)
    made = self._in_blocks(translate, config, 'image', np.asarray(images), None, key)
    return sampling.as_data(made['image'], config)

  def _check_size(self, translate, images, key) -> None:
    """Rejects images of a size that the nets do not take, or do not keep, before compiling."""
    like = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    try:
      made = jax.eval_shape(translate, self.state, {'image': like}, key)['image'].shape
      why = f': the nets make {made[1:3]} of it'
    except (TypeError, ValueError) as error:
      made, why = None, f' ({" ".join(str(error).split())[:200]})'
    if made is None or made[1:3] != images.shape[1:3]:
      raise UserError(
        f'translate: images of {images.shape[1]}x{images.shape[2]} do not fit the nets of '
        f'{self.path}{why}; those of config.data.shape={tuple(self.config.data.shape)} do'
      )

  def latents(self, n: int, seed: int = 0) -> np.ndarray:
    """Draws from the prior of the latents, float32 [n, ...], for `decode`; `gen_jax.latent` has the
    paths between them.

    Args:
      n: how many.
      seed: the draws are a function of it and n.

    Raises:
      UserError: the system has no latents.
    """
    config = self._having('prior', 'latents', {})
    if n < 1:
      raise UserError(f'latents(n={n}): at least 1 is needed')
    return np.asarray(self._system.prior(jax.random.key(seed), n, config=config))

  def nearest(self, images, k: int = 1, by: str = 'pixels'):
    """The training examples nearest to images, such as samples: are they copies?

    Args:
      images: uint8 [n, h, w, c], or float32 [n, 2] for points.
      k: how many for each image.
      by: 'pixels', or 'features' of the network that config.eval names.

    Returns:
      `gen_jax.metrics.memorisation.Nearest`: `image` [n, k, ...] as `images`, `index` [n, k] in the
      training set, `distance` [n, k].

    Raises:
      UserError: the images differ from the data in shape or dtype, or there are fewer than k.
    """
    return memorisation.nearest(self.config, images, k, by)

  def _having(self, name: str, what: str, fields: Mapping):
    """The config with other values of config.sample, for a system that has the function `name`."""
    if not hasattr(self._system, name):
      raise UserError(f'{name}: system {self.config.system!r} of {self.path} has no {what}')
    return self._with('sample', fields)

  def _in_blocks(self, f, config, name: str, rows, labels, key) -> dict[str, np.ndarray]:
    """f(state, {name: rows and, if any, 'label'}, key), by config.sample.batch_size rows."""
    if (f.__name__, config) not in self._programs:
      state, _ = attach(self.state, config, contract.check(config))
      self._programs[f.__name__, config] = state, compilation.ShardedForward(f)
    state, program = self._programs[f.__name__, config]
    size, n, parts, given = config.sample.batch_size, len(rows), [], {name: rows}
    depends = contract.asked_labels(config, self._system, state, n) is not None
    if depends and labels is None:
      raise UserError(
        f'labels=None: samples of {self.path} depend on labels; an integer, or {n} of them, are '
        'needed'
      )
    if labels is not None:
      given['label'] = self._labels(labels, n, depends)
    for i, start in enumerate(range(0, n, size)):
      # The last block is padded, so that one program serves all blocks.
      blocks = {name: array[start : start + size] for name, array in given.items()}
      batch = {k: jnp.asarray(np.resize(v, (size, *v.shape[1:]))) for k, v in blocks.items()}
      made = program(state, batch, jax.random.fold_in(key, i))
      parts.append({k: np.asarray(v)[: len(blocks[name])] for k, v in made.items()})
    return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}

  def export(self, out=None, player: str | None = None, dtype: str = 'float32'):
    """Writes the weights, with the config beside them, into a folder that `load` and the verbs read
    like a run.

    Args:
      out: the folder; None: `export` in that of the run.
      player: the only network to write; None: all.
      dtype: 'float32', or 'float16' for half the size.

    Returns:
      The path of the folder.

    Raises:
      UserError: no such player or dtype, or the folder cannot be written.
    """
    if dtype not in export_format.DTYPES:
      raise UserError(f'dtype={dtype!r}: {" or ".join(export_format.DTYPES)} is needed')
    if player is not None:
      player_of(self.state, player, self.path)
    out = Workdir(self.path).path / 'export' if out is None else local(out, 'out')
    kept = {}
    for name, found in players(self.state).items():
      used = found.replace(params=self.params(name), ema=None)
      kept[name] = used if player in (None, name) else None
    arrays = state_leaves(self.state.replace(**kept))
    arrays = {'/'.join(key): np.asarray(x) for key, x in arrays.items()}
    export_format.write(
      out,
      arrays,
      step=self.step,
      config=configs.to_json(self.config),
      weights=self.weights,
      dtype=dtype,
      data_fingerprint=self.manifest.data_fingerprint,
      environment=self.manifest.environment,
      source=self.manifest.sha256,
    )
    return out

  def _rules(self) -> dict:
    return SHARED | dict(self._system.FIELDS)

  def _with(self, group: str, fields: Mapping, config=None):
    """The config with other values of a group's fields; checked."""
    rules, values = self._rules(), {}
    for path, value in configs.leaves({group: fields}):
      if path.partition('.')[2] in ('num_images', ''):
        continue
      if path not in rules:
        known = [p.partition('.')[2] for p in rules if p.startswith(f'{group}.')]
        name = path.partition('.')[2]
        hint = did_you_mean(name, known) or f'; it has {", ".join(known)}'
        raise UserError(f'{name}={value!r}: config.{group} has no such field{hint}')
      values[path] = value
    changed = configs.replace(self.config if config is None else config, values)
    return configs.check(changed)


def _array(name: str, images) -> np.ndarray:
  """What a user gives as images, as one array."""
  try:
    return np.asarray(images)
  except ValueError as error:  # a list of arrays of several shapes
    raise UserError(f'{name}: one array of images of one size is needed ({error})') from error


def _check_range(name: str, images: np.ndarray) -> None:
  if images.dtype == np.float32 and not np.abs(images).max() <= 1:  # NaN, too
    raise UserError(
      f'{name}: images are float32 from {images.min():g} to {images.max():g}; values in [-1, 1] '
      'are needed'
    )
