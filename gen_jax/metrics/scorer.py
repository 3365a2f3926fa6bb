"""A reference set and the metrics against it: `open_scorer`, `Scorer.reference`, `rows`.

Features are computed block by block. Every block is saved to a file, so that a stopped computation
resumes; features of a reference set are cached for all runs.
"""

import io
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gen_jax import data, metrics
from gen_jax.data import sources, toys
from gen_jax.errors import UserError, writing
from gen_jax.fields import METRICS
from gen_jax.host import console
from gen_jax.host.arrays import BadArrays, read_arrays
from gen_jax.metrics import networks
from gen_jax.run import cache
from gen_jax.run.cache import cache_folder
from gen_jax.run.records import Row
from gen_jax.run.workdir import write_atomic

BLOCK = 256  # images of a data set that pass through the feature network at once
KERNEL_SUBSET = 1000  # examples in a subset of the kernel distance, as published
# The least number of examples of a metric; the Frechet distance needs more than there are features.
LEAST = {'kernel': 4, 'precision_recall': 4, 'density_coverage': 6, 'inception_score': 10}
# Metrics with several values, each of which config.eval.best may name.
VALUES = {
  'precision_recall': ('precision', 'recall'),
  'density_coverage': ('density', 'coverage'),
  'modes': ('modes', 'good', 'modes_kl'),
}
ABBREVIATIONS = {'frechet': 'FD', 'kernel': 'KD', 'inception_score': 'IS'}
PUBLISHED = {'frechet': 'FID', 'kernel': 'KID', 'inception_score': 'IS'}  # by Inception only
LARGEST_PART = 2**34  # bytes; the features of ImageNet have 10 GB


class Features(NamedTuple):
  """The output of a feature network for a set of images."""

  features: np.ndarray  # float32 [n, d]
  probabilities: np.ndarray  # float32 [n, classes]; for points, [n, 0]


class Scorer(NamedTuple):
  """A reference set and the metrics against it."""

  source: sources.Source  # source of the reference set
  number: int  # number of its examples
  network: networks.Network
  names: tuple[str, ...]  # names of the metrics
  modes: toys.Modes | None  # modes of the reference set, where they are known
  protocol: dict[str, Any]  # fields of every `Row`

  def reference(self, stop=None) -> Features | None:
    """Features of the reference set; see `reference_features`."""
    return reference_features(self.source, self.network, self.number, stop)


def open_scorer(config, number: int, found: str) -> Scorer:
  """The reference set and the metrics of `config.eval`. It may train a classifier first.

  Args:
    config: the whole config.
    number: number of examples to be scored.
    found: where that number comes from, for error messages.

  Raises:
    UserError: data or weights are not available, a metric does not apply, or there are too few
      examples for one.
  """
  trained_on = data.open_source(config)
  same = config.eval.split == config.data.split
  source = trained_on if same else data.open_source(config, 'eval.split')
  network = networks.open_network(config.eval.network, path=config.eval.weights, source=trained_on)
  modes = toys.modes(source.name) if source.name in toys.NAMES else None
  names = config.eval.metrics or tuple(n for n in METRICS if _applies(n, network, modes))
  for name in names:
    check_applies(f'config.eval.metrics={tuple(names)}: {name}', name, network, modes)
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
      data=identity(source),
      features=f'{network.title}, sha256 {network.checksum}' if network.checksum else 'none',
      note=note or None,
      resize=network.resize,
    ),
  )


def identity(source) -> str:
  """The fingerprint and shape of a source."""
  return f'{source.fingerprint}, {"x".join(map(str, source.shape))}'


def metric_of(best: str) -> str:
  """Which of `config.eval.metrics` gives the value that `config.eval.best` names."""
  return next((metric for metric, values in VALUES.items() if best in values), best)


def _applies(metric: str, network, modes) -> bool:
  """Whether this network, or this reference set, has a metric."""
  if metric == 'inception_score':
    return network.name != 'points'
  return metric != 'modes' or modes is not None or network.name == 'classifier'


def check_applies(field: str, metric: str, network, modes) -> None:
  """Rejects a metric that this network, or this reference set, does not have."""
  if _applies(metric, network, modes):
    return
  if metric == 'inception_score':
    raise UserError(f'{field} is for images: points have no classes')
  raise UserError(
    f'{field} is for toys with known modes, and for classes by '
    f"config.eval.network='classifier'; here it is {network.name!r}"
  )


def _check_number(found: str, number: int, network, names) -> None:
  """Rejects fewer examples than a metric needs."""
  least = {name: LEAST[name] for name in names if name in LEAST}
  if 'frechet' in names:
    least['frechet'] = network.size + 1
  for name, needed in least.items():
    if number < needed:
      why = f': {network.title} has {network.size} features' if name == 'frechet' else ''
      others = ','.join(n for n in names if n != name)
      without = f', or --config.eval.metrics={others}' if others else ''
      raise UserError(f'{found}, but {name} needs at least {needed} examples{why}: more{without}')


# What `score` and `class_accuracy` measure, by name.
MEANINGS = {
  'frechet': 'Fréchet distance of Gaussians fitted to the features; lower is better',
  'kernel': 'squared maximum mean discrepancy of the features, cubic kernel; lower is better',
  'precision': 'share of samples inside the manifold of the reference set',
  'recall': 'share of the reference set inside the manifold of the samples',
  'density': 'neighbourhoods of reference examples that hold a sample, over k; 1 for equal sets',
  'coverage': 'share of reference examples with a sample in their neighbourhood',
  'inception_score': 'exp of the mean KL of the class probabilities to their mean',
  'modes': 'modes of a toy with at least one good sample',
  'good': 'share of samples within three standard deviations of a mode',
  'modes_kl': 'KL of the good samples over the modes to equal ones, nats; lower is better',
  'classes': 'classes with at least one sample, by the classifier of the data set',
  'classes_kl': 'KL of the samples over the classes to the reference set, nats; lower is better',
  'class_accuracy': 'share of samples of the class that they were asked for, or of translations of '
  'that of their source, by that classifier',
  'class_accuracy_lowest': 'that of the class in which it is lowest',
}


def score(
  scorer: Scorer, reference: Features, made: Features
) -> Iterator[tuple[str, str, float, float | None]]:
  """(metric, label, value, spread) of every metric, from features of the examples."""
  real, fake, names = reference.features, made.features, scorer.names

  def label(name):
    if scorer.network.title == networks.PUBLISHED:
      return PUBLISHED[name]
    return f'{ABBREVIATIONS[name]}-{scorer.network.title.partition(" of ")[0]}'

  if 'frechet' in names:
    yield 'frechet', label('frechet'), metrics.frechet_distance(real, fake), None
  if 'kernel' in names:
    # At most halves: subsets as large as the sets would all be the same.
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


def rows(scorer: Scorer, reference: Features, made: Features, **protocol) -> list[Row]:
  """A `Row` for every metric, with the scorer's protocol and further fields of it."""
  return [
    Row(metric, label, float(value), spread, **scorer.protocol, **protocol)
    for metric, label, value, spread in score(scorer, reference, made)
  ]


def class_accuracy(scorer: Scorer, made: Features, label, **protocol) -> list[Row]:
  """The share of samples that the classifier of the data set assigns to the class asked for, with
  its standard error, and that share in the class where it is lowest: two of the metrics 'modes'. No
  row where the feature network is another one.

  Args:
    scorer: with the feature network.
    made: features of the samples.
    label: the class asked for, int [n]; None: no class was.
    **protocol: more of it.
  """
  if label is None or scorer.network.name != 'classifier' or 'modes' not in scorer.names:
    return []
  label = np.asarray(label)
  right = (np.argmax(made.probabilities, axis=1) == label).astype(np.float64)
  spread = float(right.std(ddof=1) / np.sqrt(len(right)))
  lowest = min(float(right[label == c].mean()) for c in np.unique(label))
  return [
    Row(*row, **scorer.protocol, **protocol)
    for row in (
      ('class_accuracy', 'class accuracy', float(right.mean()), spread),
      ('class_accuracy_lowest', 'class accuracy, lowest class', lowest, None),
    )
  ]


# --- Features, computed in parts, so that they resume after a stop ------------------------------


def in_parts(
  folder: pathlib.Path, count: int, make: Callable[[list[int]], Iterable], title: str, stop
) -> dict[str, np.ndarray] | None:
  """Arrays that are computed in `count` parts, concatenated along their first axis.

  Every part is saved to a file in `folder`; those that exist and are intact are not recomputed.

  Args:
    folder: the folder of the files; created if necessary. The caller removes it after use.
    count: number of parts.
    make: yields the parts of the given numbers, in order, as {name: array}; it may end early.
    title: name of the result, for the progress bar.
    stop: `signals.Stop`, or None.

  Returns:
    The arrays; None: a stop was requested before all parts were computed.
  """
  paths = [folder / f'{i:05d}.npz' for i in range(count)]
  with console.bar(total=count, desc=title, unit='batch', disable=None) as bar:
    while stop is None or stop.requested is None:
      parts = [read_part(path) for path in paths]
      missing = [i for i, part in enumerate(parts) if part is None]
      if not missing:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
      # Repeats only where another process computed the same features and removed its files.
      bar.update(count - len(missing) - bar.n)
      for i, part in zip(missing, make(missing), strict=False):
        write_part(paths[i], part)
        bar.update()
        if stop is not None and stop.requested is not None:
          break
  return None


def write_part(path, arrays) -> None:
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
  write_atomic(path, _npz(arrays))


def _npz(arrays) -> bytes:
  content = io.BytesIO()
  np.savez(content, **arrays)
  return content.getvalue()


def read_part(path) -> dict[str, np.ndarray] | None:
  """The arrays of a part; None: the file is missing or damaged."""
  try:
    return read_arrays(path, LARGEST_PART)
  except (OSError, BadArrays):
    return None


def chosen(length: int, number: int) -> np.ndarray:
  """Indices of the `number` examples that represent a source, ascending and always the same."""
  words = np.random.Philox(key=1).random_raw(length)
  return np.sort(np.argsort(words, kind='stable')[:number])


def reference_features(source, network, number: int, stop=None) -> Features | None:
  """Features of `number` examples of a source, cached under everything that they depend on.

  Returns:
    None: a stop was requested first; the next call resumes.
  """
  examples = (source.fingerprint, source.content, source.shape, number)
  parts = (*examples, network.name, network.checksum, network.resize)
  path = cache_folder('references') / f'{sources.content_hash(repr(parts).encode(), b"v1")}.npz'
  arrays = read_part(path)
  if arrays is None:
    parts = cache.working_folder(path.with_suffix(''))
    arrays = seen_features(source, network, chosen(len(source), number), parts, stop)
    if arrays is None:
      return None
    cache.keep(path, _npz(arrays))
    shutil.rmtree(parts, ignore_errors=True)
  return Features(**arrays)


def seen_features(source, network, indices: Sequence[int], folder, stop) -> dict | None:
  """The network's features of examples of a source, as the fields of `Features`; see `in_parts`."""
  blocks = [indices[start : start + BLOCK] for start in range(0, len(indices), BLOCK)]

  def make(missing):
    pictures = (source.read(blocks[i])['image'] for i in missing)
    return (Features(*seen)._asdict() for seen in networks.features(network, pictures))

  return in_parts(folder, len(blocks), make, f'features of {source.name}', stop)
