"""Scores a run, or images from elsewhere, and records the protocol of every number:
`run(config, workdir)`; also the quick evaluations during training.

Samples are generated batch by batch, and each batch is passed through the feature network at once.
Every batch is saved to a file, so that a stopped evaluation resumes.
"""

import dataclasses
import functools
import json
import math
import pathlib
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from gen_jax import config as configs
from gen_jax import contract, data, sampling
from gen_jax.data import sources
from gen_jax.devices import compilation, processes
from gen_jax.errors import Diverged, UserError, writing
from gen_jax.fields import METRICS
from gen_jax.host import console
from gen_jax.metrics import from_elsewhere, networks
from gen_jax.metrics import scorer as scores
from gen_jax.metrics.scorer import Features, Scorer
from gen_jax.run import (
  export_format,
  grids,
  pictures,
  records,
  restoring,
  results,
  signals,
)
from gen_jax.run.cache import cache_folder, working_folder
from gen_jax.run.manifest import Manifest, environment
from gen_jax.run.records import Row
from gen_jax.run.tensorboard import Board
from gen_jax.run.workdir import (
  Workdir,
  check_file,
  check_folder,
  check_place,
  make_folder,
  write_atomic,
)

SAMPLES, NOISE = 0xE7A1, 0xE7A2  # folded into the key of config.eval.seed, one for each use
LEAST_SECONDS = 1.0  # minimum time of sampling for a rate to be measured over
SHOWN = 64  # images in the grid of an evaluation
# Fields on which no file of an evaluation depends, but for numbers in `evaluation.jsonl`.
NOT_SHOWN = (
  'sample.num_images',
  'sample.seed',
  'eval.network',
  'eval.weights',
  'eval.metrics',
  'eval.every_steps',
  'eval.best',
)
QUICK_BLOCK = 64  # samples per feature batch in training: a stop waits for one batch


# --- Samples ------------------------------------------------------------------------------------


class Samples(NamedTuple):
  seen: Features
  pictures: np.ndarray  # the first samples, in the data's dtype, [at most SHOWN, ...]
  per_second: float  # samples generated per second when nothing else runs
  evaluations: int | None  # of a net in the first batch, where the sampler decides
  machine: str  # the machine that generated them


def batches(config, system, state) -> Callable[[int], dict]:
  """Returns `draw(i)`, batch i of what `system.sample` returns, arrays
  [config.sample.batch_size, ...]; compiled.
  """
  size = config.sample.batch_size
  rng = jax.random.fold_in(jax.random.key(config.eval.seed), SAMPLES)

  conditions = sampling.default_conditions(config, system)

  def inputs(i):
    return state, conditions(size, i * size), jax.random.fold_in(rng, i)

  sample = sampling.compile_sampler(config, system).compile(*inputs(0))
  return lambda i: sample(*inputs(i))


def drawn_features(config, draw, network, number: int, folder, stop=None) -> Samples | None:
  """Generates `number` samples by `draw(i)`, from `batches`, and computes their features; resumes,
  see `scores.in_parts`.
  """
  size = config.sample.batch_size
  if scores.read_part(folder / 'first.npz') is None:  # written with the first batch
    (folder / '00000.npz').unlink(missing_ok=True)

  def make(missing):
    def pictures():
      started = time.monotonic()
      following = draw(missing[0])
      for i, after in zip(missing, [*missing[1:], None], strict=True):
        drawn, images = following, following['image']
        if stop is not None and not stop.wait_ready(images):
          return
        if i == 0:  # nothing else runs yet
          jax.block_until_ready(images)
          times = 1
          while time.monotonic() - started < LEAST_SECONDS:
            jax.block_until_ready(draw(0))
            times += 1
          per_second = times * size / (time.monotonic() - started)
          first = sampling.as_data(images[: min(SHOWN, number)], config)
          where = records.machine(environment())
          count = drawn.get('evaluations', [-1])[0]  # -1: the sampler does not decide
          about = dict(per_second=per_second, evaluations=count, machine=where)
          scores.write_part(folder / 'first.npz', dict(pictures=first, **about))
        if after is not None:  # sampled while the features of this batch are computed
          following = draw(after)
        yield sampling.as_data(images, config)

    return (Features(*seen)._asdict() for seen in networks.features(network, pictures()))

  arrays = scores.in_parts(folder, -(-number // size), make, 'samples', stop)
  if arrays is None:
    return None
  first = scores.read_part(folder / 'first.npz')
  seen = Features(**{name: value[:number] for name, value in arrays.items()})
  count = int(first['evaluations'])
  rate, where = float(first['per_second']), str(first['machine'])
  return Samples(seen, first['pictures'], rate, None if count < 0 else count, where)


# --- What the system measures of real examples ---------------------------------------------------


def measured(config, system, state, source, folder, stop) -> tuple[list[Row], dict] | None:
  """The values of `system.evaluate` for config.eval.held_out_examples of a held-out source;
  resumes, see `scores.in_parts`.

  Returns:
    A row with mean and standard error of every value [b], and {name: [n, k]} of the others; None: a
    stop was requested first.
  """
  about = contract.measures(system)
  number = min(config.eval.held_out_examples, len(source))
  indices = scores.chosen(len(source), number)
  size = min(config.sample.batch_size, number)
  blocks = [indices[start : start + size] for start in range(0, number, size)]
  rng = jax.random.fold_in(jax.random.key(config.eval.seed), NOISE)
  evaluate = compilation.ShardedForward(
    lambda state, batch, rng: system.evaluate(state, batch, rng, config=config)
  )

  def make(missing):
    for i in missing:
      # The last block is padded, so that one program serves all blocks.
      batch = sampling.as_trained(source.read(np.resize(blocks[i], size)), config)
      found = evaluate(state, batch, jax.random.fold_in(rng, i))
      if stop is not None and not stop.wait_ready(found):
        return
      yield {name: np.asarray(value)[: len(blocks[i])] for name, value in found.items()}

  found = scores.in_parts(folder, len(blocks), make, 'held-out examples', stop)
  if found is None:
    return None
  protocol = dict(
    reference=f'{source.name} {config.eval.held_out_split}, {number:,}',
    data=scores.identity(source),
    weights=contract.sampling(config, system).weights,
    seed=config.eval.seed,
  )
  made = []
  for name, measure in about.items():  # in the system's order
    if name not in found:
      continue
    if (values := found[name].astype(np.float64)).ndim == 1:
      spread = float(values.std(ddof=1) / math.sqrt(number))
      how = measure.how and measure.how(config)
      mean = float(values.mean())
      made.append(Row(name, measure.label, mean, spread, measure.kind, sampler=how, **protocol))
  return made, {name: values for name, values in found.items() if values.ndim == 2}


# --- The verb -----------------------------------------------------------------------------------


def run(config, workdir, step: int | None = None, samples: str | None = None) -> int:
  """Scores a checkpoint of a run, or `samples`; prints a table, and appends it to
  `evaluation.jsonl` and TensorBoard.

  Args:
    config: checked config; it may differ from the run's in fields that are safe to change.
    workdir: folder of the run.
    step: which checkpoint; None: the newest that is intact.
    samples: a folder of images, or a `.npz` or `.npy` file with an array uint8 [n, h, w, c] (of
      points float32 [n, 2], or a folder with `points.npy`), to be scored in place of the run's
      samples.

  Returns:
    The exit status: 0; 1 if the net generates values that are not finite; 128 + n: stopped by
    signal n, the next call resumes.

  Raises:
    UserError: before any sampling: no checkpoint, or one of another config; data or weights are not
      available; too few examples for a metric; images that do not match the data.
  """
  if processes.several():
    raise UserError('--mode=evaluate is for one process, which uses all devices of its host')
  folder = Workdir(workdir)
  again = 'the same command resumes'
  with signals.exit_in_order():
    if samples is None:
      opened = _open_run(config, folder, step)
      again += f', with --step={opened.manifest.step} if training has continued' * (step is None)
      scored = functools.partial(_score_run, config, folder, opened)
    else:
      source = from_elsewhere.open_pictures(config, samples)
      found = f'--samples={samples} with {len(source)} examples'
      scorer = scores.open_scorer(config, len(source), found)
      scored = functools.partial(_score_pictures, samples, folder, source, scorer)
  _check_writable(folder)
  with signals.Stop() as stop:
    try:
      made = scored(stop)
    except Diverged as error:
      console.tell(f'error: {folder.path}: {error}')
      return 1
    if made is None:
      console.tell(f'{folder.path}: stopped; {again}')
      return 128 + (stop.requested or 0)
  what = f'{folder.path}, step {opened.manifest.step}' if samples is None else samples
  console.tell(f'{what}:\n{records.table(made)}', sys.stdout)
  return 0


class Opened(NamedTuple):
  """A run and everything that its evaluation needs."""

  system: Any
  manifest: Manifest
  state: Any
  held_out: sources.Source | None  # for the system's `evaluate`
  scorer: Scorer | None  # None: the system generates no samples
  runs: dict[str, str]  # checksums of the finished runs that sampling needs
  number: int  # of samples


def _open_run(config, folder, step) -> Opened:
  system = contract.check(config)
  return _opened(config, system, *restoring.restore(config, system, folder.path, step))


def _opened(config, system, manifest, state) -> Opened:
  state, runs = restoring.attach(state, config, system)
  measures = bool(contract.measures(system)) and config.eval.held_out_examples is not None
  held_out = data.held_out(config) if measures else None
  scorer, number = None, 0
  if contract.has_samples(system):
    number = _at_most(config, system, config.eval.num_samples)
    scorer = scores.open_scorer(config, number, f'config.eval.num_samples={number}')
  elif held_out is None:
    raise UserError(
      f'config.system={config.system!r} generates no samples, so that with '
      f'config.eval.held_out_examples={config.eval.held_out_examples} there is nothing to evaluate'
    )
  return Opened(system, manifest, state, held_out, scorer, runs, number)


def score_state(config, folder: Workdir, manifest, state) -> list[Row]:
  """Scores a loaded state, and appends the rows to `evaluation.jsonl` in the folder; see `run`.

  Raises:
    UserError, Diverged: as `run` reports them.
    KeyboardInterrupt: stopped by a signal. The next call resumes.
  """
  opened = _opened(config, contract.check(config), manifest, state)
  _check_writable(folder)
  with signals.Stop() as stop:
    made = _score_run(config, folder, opened, stop)
  if made is None:
    raise KeyboardInterrupt
  return made


def _check_writable(folder: Workdir) -> None:
  if not export_format.is_export(folder.path):
    check_place(folder.path)
  with writing(folder.path):
    folder.path.mkdir(parents=True, exist_ok=True)
  for path in (folder.evaluation, folder.tensorboard / 'evaluation'):
    check_folder(path)  # now, rather than after all the work
  check_file(folder.evaluations)


def _score_run(config, folder, opened, stop) -> list[Row] | None:
  """Rows of a run's samples, and of what its system measures of real examples."""
  _, manifest, state, held_out, scorer, runs, _ = opened
  network = ('', '') if scorer is None else (scorer.network.checksum, scorer.network.resize)
  name = sources.content_hash(
    manifest.sha256.encode(),
    json.dumps(configs.to_dict(config)['sample']).encode(),
    repr((config.eval.seed, *network, runs)).encode(),
  )
  parts = folder.evaluation / f'parts_{manifest.step:07d}_{name}'
  out = _place(config, folder, opened)
  made, values = [], {}
  if scorer is not None:
    rows = _score_samples(config, folder, opened, parts / 'samples', out, stop)
    if rows is None:
      return None
    made += rows
  if held_out is not None:
    about = contract.measures(opened.system).values()
    settings = [measure.how and measure.how(config) for measure in about]
    kept = (config.eval.held_out_examples, held_out.fingerprint, held_out.content, settings)
    folder_of_it = parts / f'measured_{sources.content_hash(repr(kept).encode())[:8]}'
    found = measured(config, opened.system, state, held_out, folder_of_it, stop)
    if found is None:
      return None
    rows, values = found
    made += rows
  for name, array in values.items():
    about = contract.measures(opened.system)[name]
    scores.write_part(results.beside(out, f'_{name}.npz'), {name: array})
    place = results.beside(out, f'_{name}.png')
    if about.points:
      title = f'{folder.path.name}, step {manifest.step}: {about.label} of {len(array):,} examples'
      pictures.points_plot(array, place, title=title, labels=_labels(config, held_out, len(array)))
      continue
    pictures.values_plot(
      array,
      place,
      title=f'{folder.path.name}, step {manifest.step}: {len(array):,} examples ({about.kind})',
      label=about.label,
      index=about.index,
      log=about.log,
    )
  points = {f'evaluation/{row.metric}': row.value for row in made}
  Board(make_folder(folder.tensorboard) / 'evaluation').scalars(manifest.step, points)
  records.append(folder, manifest.step, made)
  shutil.rmtree(parts, ignore_errors=True)
  return made


def _labels(config, source, number: int) -> np.ndarray | None:
  """Labels int [number] of the examples that `measured` takes from a source; None: without."""
  if config.data.num_classes is None:
    return None
  return np.asarray(source.read(scores.chosen(len(source), number))['label'])


def _place(config, folder, opened) -> pathlib.Path:
  """What the names of an evaluation's files begin with; see `results.place`."""
  paths = [path for path, _ in configs.leaves(config) if path.startswith(('sample.', 'eval.'))]
  decides = [path for path in paths if not path.startswith('eval.quick') and path not in NOT_SHOWN]
  start = make_folder(folder.evaluation) / f'{opened.manifest.step:07d}'
  files = ['_samples.png', *(f'_{name}.npz' for name in contract.measures(opened.system))]
  out, about = results.place(start, config, opened.manifest, decides, files=files, runs=opened.runs)
  write_atomic(results.beside(out, '.json'), about)
  return out


def _score_samples(config, folder, opened, parts, out, stop) -> list[Row] | None:
  """Generates samples and scores them; writes a grid, or plot, of the first ones."""
  system, manifest, state, _, scorer, runs, number = opened
  reference = scorer.reference(stop)
  if reference is None:
    return None
  how = contract.sampling(config, system)
  draw = batches(config, system, state)
  drawn = drawn_features(config, draw, scorer.network, number, parts, stop)
  if drawn is None:
    return None
  drawing = dict(
    weights=how.weights,
    sampler=how.text,
    evaluations=drawn.evaluations if how.evaluations is None else how.evaluations,
    seed=config.eval.seed,
    runs=', '.join(f'{field} sha256 {checksum[:16]}' for field, checksum in runs.items()) or None,
  )
  how_many = dict(samples=f'{number:,}', **drawing)
  made = scores.rows(scorer, reference, drawn.seen, **how_many)
  asked = contract.asked_labels(config, system, state, number)
  labels = _source_labels(config, system, number) if asked is None else asked
  made += scores.class_accuracy(scorer, drawn.seen, labels, **how_many)
  untranslated = _score_sources(config, opened, reference, parts, stop)
  if untranslated is None:
    return None
  made += untranslated
  made.append(
    Row(
      'samples_per_second',
      'samples per second',
      drawn.per_second,
      samples=f'batches of {config.sample.batch_size:,}',
      machine=drawn.machine,
      **drawing,
    )
  )
  path = results.beside(out, '_samples.png')
  if drawn.pictures.ndim == 2:
    pictures.scatter_plot(reference.features[:number], drawn.seen.features, path)
  else:
    pictures.save_png(path, grids.grid(drawn.pictures, asked))
  return made


def _at_most(config, system, number: int) -> int:
  """A number of samples: for systems that translate, not more than there are held-out images of x,
  since the metrics take repeated translations for a collapse.
  """
  if not contract.needed(system):
    return number
  return min(number, len(data.open_domain(config, 'x', 'eval.held_out_split')))


def _source_labels(config, system, number: int) -> np.ndarray | None:
  """The classes of the held-out images of x of which the first `number` translations are made; None
  where there are none.
  """
  if not contract.needed(system) or config.data.num_classes is None:
    return None
  source = data.held_out(config)
  return np.asarray(source.read(np.arange(number) % len(source))['x_label'])


def _score_sources(config, opened, reference, parts, stop) -> list[Row] | None:
  """What the metrics say of images of x as they are, the baseline of their translations: rows named
  'source_...'. [] for other systems, and where the feature network cannot take them.
  """
  system, scorer, number = opened.system, opened.scorer, opened.number
  if not contract.needed(system):
    return []
  source = data.open_domain(config, 'x', 'eval.held_out_split')
  of_their_data = scorer.network.name in networks.OF_THEIR_DATA
  if of_their_data and source.shape != tuple(config.data.shape):
    return []
  seen = scores.seen_features(source, scorer.network, range(number), parts / 'source', stop)
  if seen is None:
    return None
  seen, how_many = Features(**seen), f'{number:,} of x, untranslated'
  labels = _source_labels(config, system, number)
  made = scores.rows(scorer, reference, seen, samples=how_many)
  made += scores.class_accuracy(scorer, seen, labels, samples=how_many)
  return [
    dataclasses.replace(row, metric=f'source_{row.metric}', label=f'source: {row.label}')
    for row in made
  ]


def _score_pictures(samples: str, folder, source, scorer, stop) -> list[Row] | None:
  reference = scorer.reference(stop)
  if reference is None:
    return None
  key = (source.fingerprint, source.shape, scorer.network.checksum, scorer.network.resize)
  parts = cache_folder('references') / f'pictures_{sources.content_hash(repr(key).encode())}'
  parts = working_folder(parts)
  seen = scores.seen_features(source, scorer.network, range(len(source)), parts, stop)
  if seen is None:
    return None
  made = scores.rows(scorer, reference, Features(**seen), samples=f'{len(source):,} of {samples}')
  records.append(folder, None, made)
  shutil.rmtree(parts, ignore_errors=True)
  return made


# --- In training --------------------------------------------------------------------------------


class Quick:
  """The quick evaluations during training: `quick(state, stop) -> rows`, or None when a stop is
  requested first.

  Constructed before training begins, so that missing data or weights are reported at once. See
  `contract.quick` for the settings that make them quick.

  Raises:
    UserError: as `scores.open_scorer`; or config.eval.best is not among config.eval.metrics.
  """

  def __init__(self, config, system):
    self.config = contract.quick(config)
    names = config.eval.metrics or METRICS
    best = config.eval.best
    metric = scores.metric_of(best)
    if metric not in names:
      raise UserError(
        f'config.eval.best={best!r} needs {metric!r} among config.eval.metrics={tuple(names)}'
      )
    number = self.number = _at_most(config, system, config.eval.quick_samples)
    self.scorer = scores.open_scorer(config, number, f'config.eval.quick_samples={number}')
    field = f'config.eval.best={best!r}'
    if metric == 'modes' and self.scorer.modes is None:
      raise UserError(f'{field} is for toys with known modes')
    scores.check_applies(field, metric, self.scorer.network, self.scorer.modes)
    self.reference = self.scorer.reference()
    self.draw = sampling.make_sampler(self.config, system)
    how = contract.sampling(self.config, system)
    self.protocol = dict(
      samples=f'{number:,}',
      weights=how.weights,
      sampler=how.text,
      evaluations=how.evaluations,
      seed=config.eval.seed,
      version='quick',
    )

  def __call__(self, state, stop) -> list[Row] | None:
    rng = jax.random.fold_in(jax.random.key(self.config.eval.seed), SAMPLES)
    made = self.draw(state, rng, self.number, stop)
    if made is None:
      return None
    pictures, protocol = made['image'], self.protocol
    if 'evaluations' in made:
      protocol = protocol | dict(evaluations=int(made['evaluations'][0]))
    starts = range(0, len(pictures), QUICK_BLOCK)
    blocks = (pictures[start : start + QUICK_BLOCK] for start in starts if stop.requested is None)
    parts = [Features(*seen) for seen in networks.features(self.scorer.network, blocks)]
    if stop.requested is not None:
      return None
    seen = Features(*(np.concatenate(field) for field in zip(*parts, strict=True)))
    return scores.rows(self.scorer, self.reference, seen, **protocol)
