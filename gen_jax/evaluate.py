"""Scores a run, or pictures made elsewhere, with every number's protocol beside it:
`run(config, workdir)`; and what the training loop measures on its way.

Pictures are drawn batch by batch and pass at once through the feature network. Every batch leaves a
file, so that an evaluation goes on where it was stopped; features of the reference set are cached
for all runs.
"""

import dataclasses
import functools
import io
import json
import math
import os
import pathlib
import shutil
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorboardX
import tqdm

from gen_jax import checkpoint, contract, data, metrics, parallel, signals, writers
from gen_jax import config as configs
from gen_jax import sample as sampling
from gen_jax.cache import cache_folder
from gen_jax.data import sources, toys
from gen_jax.errors import Diverged, UserError
from gen_jax.metrics import networks
from gen_jax.workdir import Workdir, write_atomic

SAMPLES, NOISE = 0xE7A1, 0xE7A2  # folded into the key of config.eval.seed, one for each use
BLOCK = 256  # pictures of a data set that pass through the feature network at once
LEAST_SECONDS = 1.0  # of drawing, for a rate that is worth telling
SHOWN = 64  # pictures in the grid of an evaluation
KERNEL_SUBSET = 1000  # examples in a subset of the kernel distance, as published
# Examples that a metric needs; the Frechet distance: more than there are features.
LEAST = {'kernel': 4, 'precision_recall': 4, 'density_coverage': 6, 'inception_score': 10}
UNREADABLE = (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error)  # by NumPy
# Of quick evaluations of a run: what must agree where they are to compare.
COMPARED = ('reference', 'data', 'samples', 'features', 'resize', 'weights', 'sampler', 'seed')
LOWER_IS_BETTER = ('frechet', 'kernel')  # of the values of config.eval.best
ABBREVIATIONS = {'frechet': 'FD', 'kernel': 'KD', 'inception_score': 'IS'}
PUBLISHED = {'frechet': 'FID', 'kernel': 'KID', 'inception_score': 'IS'}  # by Inception only


@dataclasses.dataclass(frozen=True)
class Row:
  """One number, and what it depends on. None, here, is what a number does not have."""

  metric: str  # the name in a program, e.g. 'frechet'
  label: str  # the name for people, e.g. 'FID' or 'FD-classifier'
  value: float
  spread: float | None = None  # standard error; of the inception score, deviation over the splits
  reference: str | None = None  # data set, split and number of examples
  data: str | None = None  # fingerprint of that set, and the shape that it has here
  samples: str | None = None  # how many, and from where if not from the run
  features: str | None = None  # feature network and the checksum of its weights
  note: str | None = None  # about that network, e.g. its accuracy
  resize: str | None = None  # how pictures come to its input
  weights: str | None = None  # of the generator: ema or raw
  sampler: str | None = None
  evaluations: int | None = None  # of a net, per sample
  seed: int | None = None  # of the samples
  version: str = 'full'  # or quick: in training, with config.eval.quick_samples
  machine: str | None = None  # of a number that is a time


class Seen(NamedTuple):
  """What a feature network makes of a set of pictures."""

  features: np.ndarray  # float32 [n, d]
  probabilities: np.ndarray  # float32 [n, classes]; of points, [n, 0]


# --- Scores -------------------------------------------------------------------------------------


class Scorer(NamedTuple):
  """A reference set, and what is measured against it."""

  source: sources.Source  # of the reference set
  number: int  # of its examples
  network: networks.Network
  names: tuple[str, ...]  # of the metrics
  modes: toys.Modes | None  # of the reference set, where they are known
  protocol: dict[str, Any]  # fields of every `Row`


def open_scorer(config, number: int, found: str) -> Scorer:
  """The reference set and the metrics of `config.eval`. It may train a classifier first.

  Args:
    config: the whole config.
    number: how many examples will be scored.
    found: where that is said, for a message.

  Raises:
    UserError: data or weights cannot be had, a metric does not apply, or there are too few examples
      for one.
  """
  trained_on = data.open_source(config)
  same = config.eval.split == config.data.split
  source = trained_on if same else data.open_source(config, 'eval.split')
  network = networks.open_network(config.eval.network, path=config.eval.weights, source=trained_on)
  names = config.eval.metrics or configs.SHARED['eval.metrics'].choices
  modes = toys.modes(source.name) if source.name in toys.NAMES else None
  for name in config.eval.metrics or ():
    _check_applies(f'config.eval.metrics={tuple(names)}: {name}', name, network, modes)
  _check_number(found, number, network, names)
  referred = min(config.eval.num_reference or len(source), len(source))
  _check_number(
    f'config.eval.split={config.eval.split!r} with config.eval.num_reference={referred}',
    referred,
    network,
    names,
  )
  picked = config.eval.network == 'auto' and network.name != 'points'
  note = ', '.join(filter(None, (network.note, 'chosen by auto' * picked)))
  return Scorer(
    source=source,
    number=referred,
    network=network,
    names=names,
    modes=modes,
    protocol=dict(
      reference=f'{source.name} {config.eval.split}, {referred:,}',
      data=_identity(source),
      features=f'{network.title}, sha256 {network.checksum}' if network.checksum else 'none',
      note=note or None,
      resize=network.resize,
    ),
  )


def _identity(source) -> str:
  """Which pictures a source has, and in what shape."""
  shape = 'x'.join(map(str, source.shape))
  return ', '.join([source.fingerprint, shape, *['cropped'] * source.cropped])


def _check_applies(field: str, metric: str, network, modes) -> None:
  """Refuses a metric that this network, or this reference set, does not have."""
  if metric == 'inception_score' and network.name == 'points':
    raise UserError(f'{field} is for images: points have no classes')
  if metric == 'modes' and modes is None and network.name != 'classifier':
    raise UserError(
      f'{field} is for toys with known modes, and for classes by '
      f"config.eval.network='classifier'; here it is {network.name!r}"
    )


def _check_number(found: str, number: int, network, names) -> None:
  """Refuses fewer examples than a metric needs."""
  least = {name: LEAST[name] for name in names if name in LEAST}
  if 'frechet' in names:
    least['frechet'] = network.size + 1
  for name, needed in least.items():
    if number < needed:
      why = f': {network.title} has {network.size} features' if name == 'frechet' else ''
      others = ','.join(n for n in names if n != name)
      without = f', or --config.eval.metrics={others}' if others else ''
      raise UserError(f'{found}, but {name} needs at least {needed} examples{why}: more{without}')


def score(
  scorer: Scorer, reference: Seen, made: Seen
) -> Iterator[tuple[str, str, float, float | None]]:
  """(metric, label, value, spread) of every metric that applies to what is seen in the examples."""
  real, fake, names = reference.features, made.features, scorer.names

  def label(name):
    if scorer.network.title == networks.PUBLISHED:
      return PUBLISHED[name]
    return f'{ABBREVIATIONS[name]}-{scorer.network.title.partition(" of ")[0]}'

  if 'frechet' in names:
    yield 'frechet', label('frechet'), metrics.frechet_distance(real, fake), None
  if 'kernel' in names:
    # Halves at most: whole sets would leave the subsets nothing to differ in.
    size = min(KERNEL_SUBSET, len(real) // 2, len(fake) // 2)
    yield 'kernel', label('kernel'), *metrics.kernel_distance(real, fake, subset_size=size)
  if 'precision_recall' in names:
    for name, value in metrics.precision_recall(real, fake)._asdict().items():
      yield name, name, value, None
  if 'density_coverage' in names:
    for name, value in metrics.density_coverage(real, fake)._asdict().items():
      yield name, name, value, None
  if 'inception_score' in names and made.probabilities.shape[1]:
    found = metrics.inception_score(made.probabilities)
    yield 'inception_score', label('inception_score'), *found
  if 'modes' in names and scorer.modes is not None:
    found = metrics.mode_coverage(fake, scorer.modes.centres, scorer.modes.sd)
    yield 'modes', f'modes of {len(scorer.modes.centres)}', float(found.modes), None
    yield 'good', 'share of good samples', found.good, None
    yield 'modes_kl', 'KL to equal modes, nats', found.kl, None
  if 'modes' in names and scorer.network.name == 'classifier':
    number = reference.probabilities.shape[1]
    classes = np.bincount(reference.probabilities.argmax(1), minlength=number)
    found = metrics.class_coverage(made.probabilities.argmax(1), classes)
    yield 'classes', f'classes of {number}', float(found.classes), None
    yield 'classes_kl', 'KL of classes, nats', found.kl, None


def rows(scorer: Scorer, reference: Seen, made: Seen, **protocol) -> list[Row]:
  """A `Row` for every metric, with the scorer's protocol and more of it."""
  return [
    Row(metric, label, float(value), spread, **scorer.protocol, **protocol)
    for metric, label, value, spread in score(scorer, reference, made)
  ]


# --- Features, in parts that outlast a stop -----------------------------------------------------


def in_parts(
  folder: pathlib.Path, count: int, make: Callable[[list[int]], Iterable], title: str, stop
) -> dict[str, np.ndarray] | None:
  """Arrays that are made in `count` parts, joined along their first axis.

  Every part leaves a file in `folder`; those that are there and intact are not made again.

  Args:
    folder: where the files go; made if need be. Who calls removes it when its result is used.
    count: how many parts.
    make: yields the parts of the given numbers, in order, as {name: array}; it may end early.
    title: what is made, for the progress bar.
    stop: `signals.Stop`, or None.

  Returns:
    None: a stop was requested before all parts were made.
  """
  paths = [folder / f'{i:05d}.npz' for i in range(count)]
  with tqdm.tqdm(total=count, desc=title, unit='batch', disable=None) as bar:
    while stop is None or stop.requested is None:
      parts = [_read(path) for path in paths]
      missing = [i for i, part in enumerate(parts) if part is None]
      if not missing:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
      # A second time only where another process made the same features and removed its files.
      bar.update(count - len(missing) - bar.n)
      for i, part in zip(missing, make(missing), strict=False):
        _write(paths[i], part)
        bar.update()
        if stop is not None and stop.requested is not None:
          break
  return None


def _write(path, arrays) -> None:
  content = io.BytesIO()
  np.savez(content, **arrays)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content.getvalue())
  except OSError as error:
    raise UserError(f'{path} cannot be written: {error.strerror}') from error


def _read(path) -> dict[str, np.ndarray] | None:
  """None: not there, or damaged."""
  try:
    with open(path, 'rb') as file, np.load(file, allow_pickle=False) as arrays:
      return dict(arrays)
  except UNREADABLE:
    return None


def chosen(length: int, number: int) -> np.ndarray:
  """Which `number` examples of a source stand for all of it, ascending: the same ones always."""
  words = np.random.Philox(key=1).random_raw(length)
  return np.sort(np.argsort(words, kind='stable')[:number])


def reference_features(source, network, number: int, stop=None) -> Seen | None:
  """Features of `number` examples of a source, cached under everything that they depend on.

  Returns:
    None: a stop was requested first; the next call goes on.
  """
  data = (source.fingerprint, source.content, source.shape, number)
  parts = (*data, network.name, network.checksum, network.resize)
  path = cache_folder('references') / f'{sources.content_hash(repr(parts).encode(), b"v1")}.npz'
  arrays = _read(path)
  if arrays is None:
    arrays = seen_features(source, network, chosen(len(source), number), path.with_suffix(''), stop)
    if arrays is None:
      return None
    _write(path, arrays)
    shutil.rmtree(path.with_suffix(''), ignore_errors=True)
  return Seen(**arrays)


def seen_features(source, network, indices: Sequence[int], folder, stop) -> dict | None:
  """What the network sees in examples of a source, as the fields of `Seen`; see `in_parts`."""
  blocks = [indices[start : start + BLOCK] for start in range(0, len(indices), BLOCK)]

  def make(missing):
    pictures = (source.read(blocks[i])['image'] for i in missing)
    return (Seen(*seen)._asdict() for seen in networks.features(network, pictures))

  return in_parts(folder, len(blocks), make, f'features of {source.name}', stop)


class Drawn(NamedTuple):
  seen: Seen
  pictures: np.ndarray  # the first ones, float32 [at most SHOWN, ...]
  per_second: float  # examples drawn per second when nothing else runs
  machine: str  # which did so


def batches(config, system, state) -> Callable[[int], jax.Array]:
  """Returns `draw(i)`, the examples of batch i, [config.sample.batch_size, ...]; compiled."""
  size = config.sample.batch_size
  rng = jax.random.fold_in(jax.random.key(config.eval.seed), SAMPLES)

  def inputs(i):
    return state, contract.conditions(config, size, i * size), jax.random.fold_in(rng, i)

  sample = sampling.compile_sampler(config, system).lower(*inputs(0)).compile()
  return lambda i: sample(*inputs(i))['image']


def drawn_features(draw, size: int, network, number: int, folder, stop=None) -> Drawn | None:
  """Draws `number` examples in batches of `size` by `draw(i)`, and features of them; see
  `in_parts`.
  """
  if _read(folder / 'first.npz') is None:  # comes with the first batch
    (folder / '00000.npz').unlink(missing_ok=True)

  def make(missing):
    def pictures():
      started = time.monotonic()
      following = draw(missing[0])
      for i, after in zip(missing, [*missing[1:], None], strict=True):
        images = following
        if stop is not None and not stop.wait_ready(images):
          return
        if i == 0:  # nothing else runs yet
          jax.block_until_ready(images)
          times = 1
          while time.monotonic() - started < LEAST_SECONDS:
            jax.block_until_ready(draw(0))
            times += 1
          per_second = times * size / (time.monotonic() - started)
          first = np.asarray(images[: min(SHOWN, number)])
          where = machine(checkpoint.environment())
          _write(folder / 'first.npz', dict(pictures=first, per_second=per_second, machine=where))
        if after is not None:  # is drawn while features of this batch are computed
          following = draw(after)
        yield _as_data(images)

    return (Seen(*seen)._asdict() for seen in networks.features(network, pictures()))

  arrays = in_parts(folder, -(-number // size), make, 'samples', stop)
  if arrays is None:
    return None
  first = _read(folder / 'first.npz')
  seen = Seen(**{name: value[:number] for name, value in arrays.items()})
  return Drawn(seen, first['pictures'], float(first['per_second']), str(first['machine']))


def _as_data(images) -> np.ndarray:
  """Drawn examples as a data set has them: pictures in uint8, points as they are.

  Raises:
    Diverged: they are not finite.
  """
  images = np.asarray(images)
  if not np.isfinite(images).all():
    raise Diverged('the net draws pictures that are not finite: training has diverged')
  return images if images.ndim == 2 else writers.to_pixels(images)


# --- Likelihood ---------------------------------------------------------------------------------


def likelihood(config, system, state, source, folder, stop) -> tuple[list[Row], dict] | None:
  """Bits per dimension of examples of a source by `system.evaluate`, in all and by terms.

  Returns:
    Rows, and {'bits_per_dim': [n], 'terms': [n, T + 1]}; None: a stop was requested first.
  """
  number = min(config.eval.likelihood_examples, len(source))
  indices = chosen(len(source), number)
  size = min(config.sample.batch_size, number)
  blocks = [indices[start : start + size] for start in range(0, number, size)]
  rng = jax.random.fold_in(jax.random.key(config.eval.seed), NOISE)
  evaluate = jax.jit(
    lambda state, batch, rng: system.evaluate(state, batch, rng, config=config),
    compiler_options=parallel.forward_options(),
  )

  def make(missing):
    for i in missing:
      # One program serves all: the last block is filled up.
      batch = source.read(np.resize(blocks[i], size))
      image = (jnp.asarray(batch['image'], jnp.float32) - 127.5) / 127.5
      fed = {'image': image}
      if config.data.num_classes is not None:
        fed['label'] = jnp.asarray(batch['label'])
      found = evaluate(state, fed, jax.random.fold_in(rng, i))
      if stop is not None and not stop.wait_ready(found):
        return
      yield {name: np.asarray(value)[: len(blocks[i])] for name, value in found.items()}

  found = in_parts(folder, len(blocks), make, 'likelihood', stop)
  if found is None:
    return None
  terms, in_all = found['terms'].astype(np.float64), found['bits_per_dim']
  columns = {
    'bits_per_dim': ('bits/dim', in_all),
    'L_0': ('L_0, bits/dim', terms[:, 0]),
    'L_t': ('sum of L_1 to L_{T-1}, bits/dim', terms[:, 1:-1].sum(1)),
    'L_T': ('L_T, bits/dim', terms[:, -1]),
  }
  how = contract.sampling(config, system)
  protocol = dict(
    reference=f'{source.name} {config.eval.likelihood_split}, {number:,}',
    data=_identity(source),
    weights=how.weights,
    sampler=how.likelihood,
    seed=config.eval.seed,
  )
  made = [
    Row(name, label, float(x.mean()), float(x.std(ddof=1) / math.sqrt(number)), **protocol)
    for name, (label, x) in columns.items()
  ]
  return made, found


# --- The verb -----------------------------------------------------------------------------------


def run(config, workdir, step: int | None = None, samples: str | None = None) -> int:
  """Scores a checkpoint of a run, or `samples`; prints a table, and appends it to
  `evaluation.jsonl` and TensorBoard.

  Args:
    config: checked config; it may differ from the run's in fields that are safe to change.
    workdir: folder of the run.
    step: which checkpoint; None: the newest that is intact.
    samples: a folder of images, or a `.npz` file with an array uint8 [n, h, w, c], to be scored in
      place of the run's samples.

  Returns:
    The exit status: 0; 1 if the net draws values that are not finite; 128 + n: stopped by signal n,
    the next call goes on.

  Raises:
    UserError: before anything is drawn: no checkpoint, or one of another config; data or weights
      cannot be had; too few examples for a metric; pictures that are not like the data.
  """
  folder = Workdir(workdir)
  again = 'the same command goes on'
  with signals.exit_in_order():
    if samples is None:
      opened = _open_run(config, folder, step)
      again += f', with --step={opened.manifest.step} if training has gone on' * (step is None)
      scored = functools.partial(_score_run, config, folder, opened)
    else:
      source = open_pictures(config, samples)
      found = f'--samples={samples} with {len(source)} examples'
      scorer = open_scorer(config, len(source), found)
      scored = functools.partial(_score_pictures, samples, folder, source, scorer)
  try:
    (folder.path if samples else folder.evaluation).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f'{folder.path} cannot be written: {error.strerror}') from error
  with signals.Stop() as stop:
    try:
      made = scored(stop)
    except Diverged as error:
      print(f'error: {folder.path}: {error}', file=sys.stderr)
      return 1
    if made is None:
      print(f'{folder.path}: stopped; {again}', file=sys.stderr)
      return 128 + (stop.requested or 0)
  print(f'{samples or f"{folder.path}, step {opened.manifest.step}"}:\n{table(made)}')
  return 0


class Opened(NamedTuple):
  """A run, and all that its evaluation needs."""

  system: Any
  manifest: checkpoint.Manifest
  state: Any
  held_out: sources.Source | None  # for the likelihood
  scorer: Scorer


def _open_run(config, folder, step) -> Opened:
  system = contract.check(config)
  manifest, state = sampling.restore(config, system, folder, step)
  likely = (
    hasattr(system, 'evaluate')
    and config.eval.likelihood_examples is not None
    and len(config.data.shape) == 3
  )
  held_out = data.open_source(config, 'eval.likelihood_split') if likely else None
  number = config.eval.num_samples
  scorer = open_scorer(config, number, f'config.eval.num_samples={number}')
  return Opened(system, manifest, state, held_out, scorer)


def _score_run(config, folder, opened, stop) -> list[Row] | None:
  system, manifest, state, held_out, scorer = opened
  reference = reference_features(scorer.source, scorer.network, scorer.number, stop)
  if reference is None:
    return None
  how = contract.sampling(config, system)
  name = sources.content_hash(
    manifest.sha256.encode(),
    json.dumps(configs.to_dict(config)['sample']).encode(),
    repr((config.eval.seed, scorer.network.checksum, scorer.network.resize)).encode(),
  )
  parts = folder.evaluation / f'parts_{manifest.step:07d}_{name}'
  draw = batches(config, system, state)
  size, number = config.sample.batch_size, config.eval.num_samples
  drawn = drawn_features(draw, size, scorer.network, number, parts / 'samples', stop)
  if drawn is None:
    return None
  drawing = dict(
    weights=how.weights, sampler=how.text, evaluations=how.evaluations, seed=config.eval.seed
  )
  made = rows(scorer, reference, drawn.seen, samples=f'{number:,}', **drawing)
  made.append(
    Row(
      'samples_per_second',
      'samples per second',
      drawn.per_second,
      samples=f'batches of {size:,}',
      machine=drawn.machine,
      **drawing,
    )
  )
  terms = None
  if held_out is not None:
    kept = (config.eval.likelihood_examples, held_out.fingerprint, held_out.content)
    bound = parts / f'bound_{sources.content_hash(repr(kept).encode())[:8]}'
    found = likelihood(config, system, state, held_out, bound, stop)
    if found is None:
      return None
    made += found[0]
    terms = found[1]

  prefix = f'{manifest.step:07d}'
  if drawn.pictures.ndim == 2:
    real = reference.features[:number]
    writers.scatter_plot(real, drawn.seen.features, folder.evaluation / f'{prefix}_samples.png')
  else:
    picture = writers.image_grid(drawn.pictures)
    writers.save_png(folder.evaluation / f'{prefix}_samples.png', picture)
  if terms is not None:
    _write(folder.evaluation / f'{prefix}_likelihood.npz', terms)
    writers.terms_plot(terms['terms'], folder.evaluation / f'{prefix}_likelihood.png')
  append(folder, manifest.step, made)
  with tensorboardX.SummaryWriter(str(folder.tensorboard / 'evaluation')) as board:
    for row in made:
      board.add_scalar(f'evaluation/{row.metric}', row.value, manifest.step)
  shutil.rmtree(parts, ignore_errors=True)
  return made


def _score_pictures(samples: str, folder, source, scorer, stop) -> list[Row] | None:
  reference = reference_features(scorer.source, scorer.network, scorer.number, stop)
  if reference is None:
    return None
  key = (source.fingerprint, source.shape, scorer.network.checksum, scorer.network.resize)
  parts = cache_folder('references') / f'pictures_{sources.content_hash(repr(key).encode())}'
  seen = seen_features(source, scorer.network, range(len(source)), parts, stop)
  if seen is None:
    return None
  made = rows(scorer, reference, Seen(**seen), samples=f'{len(source):,} of {samples}')
  append(folder, None, made)
  shutil.rmtree(parts, ignore_errors=True)
  return made


def open_pictures(config, path: str):
  """Pictures made elsewhere, as a source of the data's shape.

  Raises:
    UserError: they are not there, or not like the data.
  """
  shape = tuple(config.data.shape)
  if path.endswith(('.npz', '.npy')):
    return _open_arrays(path, shape)
  if len(shape) == 1:  # as --mode=sample leaves them
    return _open_arrays(f'{path}/points.npy', shape)
  fields = {
    'data.name': 'folder',
    'data.path': path,
    'data.split': 'train',
    'data.num_classes': None,
    # Scored as they are, and all of them.
    'data.fit': 'exact',
    'data.bad_files': 'error',
  }
  try:
    return data.open_source(configs.replace(config, fields))
  except UserError as error:
    text = str(error).partition(' Mend them')[0].replace('config.data.path=', '--samples=')
    raise UserError(text) from error


def _open_arrays(path: str, shape) -> sources.ArraySource:
  """The first array of a file that is like the data."""
  try:
    with open(path, 'rb') as file:
      loaded = np.load(file, allow_pickle=False)
      found = {'it': loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
  except UNREADABLE as error:
    why = getattr(error, 'strerror', None) or 'it is no file of NumPy arrays'
    raise UserError(f'--samples={path} cannot be read: {why}') from error
  dtype = np.dtype(np.uint8 if len(shape) == 3 else np.float32)
  for image in found.values():
    if image.dtype == dtype and image.shape[1:] == shape and len(image):
      if not np.isfinite(image).all():
        raise UserError(f'--samples={path}: the points are not finite')
      digest = sources.content_hash(np.ascontiguousarray(image).tobytes())
      return sources.ArraySource(path, {'image': image}, None, f'npz/{len(image)}/{digest}')
  if not found:
    raise UserError(f'--samples={path} holds no array')
  listed = ', '.join(f'{name} is {array.dtype} {array.shape}' for name, array in found.items())
  raise UserError(
    f'--samples={path}: {listed}, but {dtype} {("n", *shape)} is needed, as '
    f'config.data.shape={shape}'
  )


# --- In training --------------------------------------------------------------------------------


class Quick:
  """The cheap evaluations of a run in training: `quick(state, stop) -> rows`, or None when a stop
  is requested first.

  Made before training begins, so that what is missing is told at once. See `contract.quick` for
  what is cheap.

  Raises:
    UserError: as `open_scorer`; or config.eval.best is no metric of config.eval.metrics.
  """

  def __init__(self, config, system):
    self.config = contract.quick(config, system)
    names = config.eval.metrics or configs.SHARED['eval.metrics'].choices
    best = config.eval.best
    if not any(best in name for name in names):
      raise UserError(f'config.eval.best={best!r} is none of config.eval.metrics={tuple(names)}')
    number = config.eval.quick_samples
    self.scorer = open_scorer(config, number, f'config.eval.quick_samples={number}')
    _check_applies(f'config.eval.best={best!r}', best, self.scorer.network, self.scorer.modes)
    if best == 'modes' and self.scorer.modes is None:
      raise UserError("config.eval.best='modes' is for toys with known modes")
    self.reference = reference_features(self.scorer.source, self.scorer.network, self.scorer.number)
    self.draw = sampling.make_sampler(self.config, system)
    how = contract.sampling(self.config, system)
    self.protocol = dict(
      samples=f'{config.eval.quick_samples:,}',
      weights=how.weights,
      sampler=how.text,
      evaluations=how.evaluations,
      seed=config.eval.seed,
      version='quick',
    )

  def __call__(self, state, stop) -> list[Row] | None:
    rng = jax.random.fold_in(jax.random.key(self.config.eval.seed), SAMPLES)
    made = self.draw(state, rng, self.config.eval.quick_samples, stop)
    if made is None:
      return None
    pictures = _as_data(made['image'])
    blocks = (pictures[start : start + BLOCK] for start in range(0, len(pictures), BLOCK))
    parts = [Seen(*seen) for seen in networks.features(self.scorer.network, blocks)]
    seen = Seen(*(np.concatenate(field) for field in zip(*parts, strict=True)))
    return rows(self.scorer, self.reference, seen, **self.protocol)


def best_step(lines: Iterable[dict], name: str) -> int | None:
  """The step of the best of the quick evaluations in `lines`, as `read` gives them; the first of
  equals. None: there is none.

  Those with another protocol than the last one's do not count: their numbers do not compare.
  """
  quick = [line for line in lines if line['version'] == 'quick' and line['metric'] == name]
  values = {
    line['step']: line['value']
    for line in quick
    if line['value'] is not None and all(line.get(f) == quick[-1].get(f) for f in COMPARED)
  }
  sign = 1 if name in LOWER_IS_BETTER else -1
  return min(values, key=lambda step: (sign * values[step], step), default=None)


# --- What is written ----------------------------------------------------------------------------


def append(folder: Workdir, step: int | None, made: list[Row]) -> None:
  """Adds a line for every row to `evaluation.jsonl`. Values that JSON does not have become null."""
  lines, now = [], time.time()  # the same for all rows of an evaluation
  for row in made:
    line = dict(step=step, time=now) | dataclasses.asdict(row)
    finite = {k: v for k, v in line.items() if not isinstance(v, float) or math.isfinite(v)}
    lines.append(json.dumps(dict.fromkeys(line) | finite))
  with open(folder.evaluations, 'a+b') as file:
    if file.tell():
      file.seek(-1, os.SEEK_END)
      if file.read(1) != b'\n':  # a kill has torn the last line
        lines.insert(0, '')
    file.write(''.join(f'{line}\n' for line in lines).encode())


def read(folder: Workdir) -> list[dict]:
  """The lines of `evaluation.jsonl`; torn ones are left out."""
  lines = []
  try:
    text = folder.evaluations.read_text(encoding='utf-8')
  except OSError:
    return []
  for line in text.splitlines():
    try:
      lines.append(json.loads(line))
    except ValueError:
      continue
  return lines


def is_measured(lines: Iterable[dict], step: int) -> bool:
  """Whether `lines`, as `read` gives them, hold the quick evaluation of a step."""
  return any(line['version'] == 'quick' and line['step'] == step for line in lines)


def forget_quick(folder: Workdir, step: int) -> None:
  """Drops the quick evaluations after `step`, of a run that goes on from there."""
  lines = read(folder)
  kept = [line for line in lines if line['version'] != 'quick' or line['step'] <= step]
  if len(kept) < len(lines):
    text = ''.join(f'{json.dumps(line)}\n' for line in kept)
    write_atomic(folder.evaluations, text.encode())


def table(made: list[Row]) -> str:
  """Rows as an aligned table, which is Markdown too; columns that no row has are left out."""
  names = [
    'label',
    'value',
    'spread',
    'reference',
    'samples',
    'features',
    'resize',
    'weights',
    'sampler',
    'machine',
  ]
  heads = ['metric', *names[1:]]
  cells = [[_cell(row, name) for name in names] for row in made]
  used = [i for i in range(len(names)) if any(line[i] for line in cells)]
  lines = [[heads[i] for i in used], *([line[i] for i in used] for line in cells)]
  return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
  """A table of text, the first line its head, as aligned Markdown."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  rule = [['-' * width for width in widths]]
  return '\n'.join(
    '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + ' |'
    for line in lines[:1] + rule + lines[1:]
  )


def _cell(row: Row, name: str) -> str:
  value = getattr(row, name)
  if value is None:
    return ''
  if name == 'features' and ', sha256 ' in value:  # shorter than in the file
    title, _, checksum = value.partition(', sha256 ')
    note = f' ({row.note})' if row.note else ''
    return f'{title.partition(" of ")[0]} {checksum[:8]}{note}'
  return f'{value:.4g}' if isinstance(value, float) else str(value)


def machine(environment: dict) -> str:
  """The machine of an environment, as `checkpoint.environment` gives it, in words."""
  if environment['backend'] == 'cpu':
    return f'{environment["cpu"]}, {environment["cpu_cores"]} cores'
  return f'{environment["devices"]} x {environment["device"]}'
