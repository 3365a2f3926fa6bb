"""Samples from a trained state: `run(config, workdir)`; also the samples during training."""

import collections
import functools
import io
import pathlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import config as configs
from gen_jax import contract, data, domains
from gen_jax.devices import compilation, processes
from gen_jax.devices.heartbeat import Watch
from gen_jax.errors import Diverged, UserError
from gen_jax.run import console, pictures, restoring, results, signals, trained
from gen_jax.run.workdir import Workdir, check_folder, new_folder, write_atomic

MOST_COLUMNS = 20  # of a grid with a column for each class
MOST_IN_GRID = 256  # images in a grid of --mode=sample
MOST_ROWS = 16  # of the grid of translations
# What a system that translates may give of each example, in the order of a row, and its heading.
PARTS = {
  'source': 'x',
  'image': 'to y',
  'target': 'y',
  'back': 'back to x',
  'source_y': 'y',
  'image_x': 'to x',
  'back_y': 'back to y',
}
# How the pictures of --input are read; in training it may have been another way.
READING = ('data.background', 'data.bad_files', 'data.fit')
SAMPLE_MODE = 0x5A3B1E  # folded in; anything but 0 to 3, the keys that a run splits from its seed


def compile_sampler(config, system):
  """Returns `sample(state, batch, rng) -> {name: array}`, compiled for the devices that hold the
  state.
  """
  return compilation.ShardedForward(
    lambda state, batch, rng: system.sample(state, batch, rng, config=config)
  )


def as_trained(batch, config) -> dict:
  """Preprocesses examples of a source as training does, without noise, crops and flips."""
  made = {}
  for name, value in batch.items():
    if not name.endswith('label'):
      points = len(config.data.shape) == 1
      made[name] = jnp.asarray(value) if points else data.from_pixels(value, config.data.dequantize)
    elif config.data.num_classes is not None:
      made[name] = jnp.asarray(value)
  return made


def held_out_conditions(config, system) -> Callable[[int, int], dict]:
  """Returns `conditions(n, start) -> given`: `contract.conditions`, and rows `start` to `start` + n
  of the held-out split as far as the `CONDITIONS` of the system name their leaves.

  Raises:
    UserError: the system needs that split, and it cannot be opened.
  """
  names = getattr(system, 'CONDITIONS', ())
  source = data.held_out(config) if names else None

  def conditions(n, start):
    given = contract.conditions(config, n, start)
    if names:
      rows = as_trained(source.read(np.arange(start, start + n) % len(source)), config)
      given |= {name: rows[name] for name in names}
    return given

  return conditions


def default_conditions(config, system) -> Callable[[int, int], dict]:
  """`conditions(n, start)` of samples that are measured: without the leaves of held-out examples,
  unless the system has no samples without them.
  """
  if contract.needed(system):
    return held_out_conditions(config, system)
  return functools.partial(contract.conditions, config)


def make_sampler(config, system, conditions=None):
  """Returns `draw(state, rng, n, stop=None, labels=None) -> {name: numpy array}`, which generates n
  samples in batches: uint8 images, or float32 points.

  `conditions(n, start)` makes what `sample` is given; None: `default_conditions`.

  Every batch has config.sample.batch_size rows, so that one program serves all and batch
  statistics, where a net uses them, are those of a full batch. With `stop` (a `signals.Stop`), it
  returns None when a stop is requested. `labels`, int32 [n], replace the cycle through the classes.
  It raises `Diverged` for values that are not finite.
  """
  size = config.sample.batch_size
  sample = compile_sampler(config, system)
  conditions = conditions or default_conditions(config, system)

  def draw(state, rng, n, stop=None, labels=None):
    parts, quiet = [], stop is not None or n <= size or not processes.is_first()
    for i in console.bar(range(-(-n // size)), desc='samples', disable=quiet):
      batch = conditions(size, i * size)
      if labels is not None:  # the last batch is padded
        batch['label'] = jnp.asarray(np.resize(labels[i * size :], size))
      made = sample(state, batch, jax.random.fold_in(rng, i))
      if stop is not None and not stop.wait_ready(made):
        return None
      parts.append(jax.device_get(made))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {
      name: value[:n] if name == 'evaluations' else as_data(value[:n], config)
      for name, value in joined.items()
    }

  return draw


def as_data(images, config) -> np.ndarray:
  """Samples in the data's dtype: images in uint8, points in float32.

  Raises:
    Diverged: they are not finite.
  """
  images = np.asarray(images)
  if not np.isfinite(images).all():
    raise Diverged('the samples are not finite: training has diverged')
  points = len(config.data.shape) == 1
  return images if points else data.to_pixels(images, config.data.dequantize)


def write(writer, step: int, made: dict, source, labels=None):
  """Writes samples through `Writers`; returns the path of the grid, or plot, 'samples'.

  Images become a `grid`, two-dimensional points a plot over real ones from `source`. Every other
  name of images in `made` becomes a grid of its own. `labels` are the classes of the samples.
  """
  image = made['image']
  if image.ndim == 2:
    path = writer.image_path(step, 'samples')
    pictures.scatter_plot(_points(source, len(image)), image, path)
    return writer.image(step, 'samples', path)
  for name, further in _further_grids(made, labels).items():
    writer.image(step, name, further)
  return writer.image(step, 'samples', _shown(made, labels))


def _shown(made: dict, labels) -> np.ndarray:
  """The grid of samples: `translations`, or, of a system without any, `grid`."""
  if 'source' in made:
    return translations(made)
  return grid(made['image'], labels)


def translations(made: dict) -> np.ndarray:
  """A grid with a row for each of the first `MOST_ROWS` examples: source, translation, target where
  there is one, and the way back (`PARTS`). Smaller images have a white border.

  Args:
    made: what a system's `sample` returns, uint8 [n, h, w, c] by name.
  """
  parts = {name: made[name][:MOST_ROWS] for name in PARTS if name in made}
  height, width, channels = (max(part.shape[i] for part in parts.values()) for i in (1, 2, 3))

  def padded(images):
    if images.shape[3] == 1:
      images = images.repeat(channels, axis=3)
    missing = [(0, 0), (0, height - images.shape[1]), (0, width - images.shape[2]), (0, 0)]
    return np.pad(images, missing, constant_values=255)

  images = np.stack([padded(part) for part in parts.values()], axis=1)
  captions = [PARTS[name] for name in parts] * len(images)
  return pictures.image_grid(images.reshape(-1, *images.shape[2:]), len(parts), captions=captions)


def grid(images, labels=None) -> np.ndarray:
  """A grid of images, uint8 [n, h, w, c], whose classes are `labels`, int [at least n]: each class
  has a column, or, of more than `MOST_COLUMNS`, each image its class above it. None: no labels.
  """
  if labels is None:
    return pictures.image_grid(images)
  labels = labels[: len(images)]
  classes = max(labels) + 1  # they cycle
  columns = classes if classes <= MOST_COLUMNS else None
  return pictures.image_grid(images, columns, captions=[str(label) for label in labels])


def _points(source, n: int) -> np.ndarray:
  """The first n examples of a source of points."""
  return source.read(range(min(n, len(source))))['image']


def _further_grids(made: dict, labels) -> dict[str, np.ndarray]:
  """A grid for every name but 'image': of images [n, h, w, c], or of sequences [n, m, h, w, c] of
  the first 8 samples, a row for each, with its class above it.
  """
  grids = {}
  for name, value in made.items():
    if name != 'image' and value.ndim == 4:
      grids[name] = grid(value[:MOST_IN_GRID], labels)
    elif value.ndim == 5:
      rows, m = value[:8], value.shape[1]
      captions = None
      if labels is not None:
        captions = [text for label in labels[:8] for text in [str(label), *[''] * (m - 1)]]
      grids[name] = pictures.image_grid(rows.reshape(-1, *rows.shape[2:]), m, captions=captions)
  return grids


@signals.exit_in_order()
def run(config, workdir, step: int | None = None, input: str | None = None) -> int:
  """Generates config.sample.num_images samples from a run, finished or not, and writes them as PNG
  files; or translates the images of the folder `input`, see `_translate`.

  They are written to `samples/step_<step>_seed_<config.sample.seed>/` in the workdir, one file
  each, or `points.npy` for two-dimensional points; the names of files say the class where the
  samples depend on labels. Settings that differ from those of the checkpoint are added to the name
  of the folder, and no result of other settings is replaced (`gen_jax.run.results`). The folder
  holds samples only: a grid, or a plot, grids of the additional images that the system returns, and
  animations of sequences among them, are written beside it.

  Args:
    config: checked config; it may differ from the run's in fields that are safe to change
      (`sample.*`).
    workdir: folder of the run.
    step: which checkpoint; None: the newest that is intact.
    input: a folder of images to translate; None: samples are generated.

  Returns:
    The exit status: 0, or 1 if the net generates values that are not finite.

  Raises:
    UserError: no checkpoint, or one of another config; the system generates no samples.
  """
  system = contract.check(config)
  contract.check_samples(config, system)
  folder = Workdir(workdir)
  check_folder(folder.samples)  # now, rather than after all the work
  if input is not None:
    return _translate(config, system, folder, step, input)
  try:
    conditions = held_out_conditions(config, system)
  except UserError as error:  # an export may lie where the data do not
    console.tell(f'no images of the held-out split: {error}')
    conditions = None
  with Watch():
    manifest, state = restoring.restore(config, system, folder.path, step)
    state, runs = trained.attach(state, config, system)
    draw = make_sampler(config, system, conditions)
    try:
      key = jax.random.fold_in(jax.random.key(config.sample.seed), SAMPLE_MODE)
      made = draw(state, key, config.sample.num_images)
    except Diverged as error:
      if processes.is_first():
        console.tell(f'error: step {manifest.step} of {folder.path}: {error}')
      return 1
    if processes.is_first():
      labels = contract.asked_labels(config, system, state, config.sample.num_images)
      decides = [path for path, _ in configs.leaves(config) if path.startswith('sample.')]
      also = dict(runs=runs)
      if hasattr(system, 'CONDITIONS'):
        also |= dict(held_out=conditions and config.eval.held_out_split)
      start = folder.samples / f'step_{manifest.step:07d}_seed_{config.sample.seed}'
      place = results.place(start, config, manifest, decides, named=['sample.seed'], **also)
      console.tell(_write_files(made, labels, config, *place), sys.stdout)
  return 0


def _translate(config, system, folder: Workdir, step: int | None, input: str) -> int:
  """Translates the images of a folder to the domain that config.sample.to names, y if the system
  has no such field, and writes them under their own names, as PNG files, to
  `samples/step_<step>_<name of the folder>_to_<domain>/` in the workdir, and a grid of the first
  ones beside it.

  Images of one size are translated together, config.sample.batch_size at a time. The fields
  `READING` may differ from the run's.

  Returns:
    As `run`.
  """
  if not hasattr(system, 'translate'):
    raise UserError(f'--input={input}: config.system={config.system!r} does not translate')
  if processes.several():
    raise UserError('--input is for one process, which uses all devices of its host')
  to = config.sample.get('to', 'y')
  *_, channels = domains.x_shape(config) if to == 'y' else config.data.shape
  found = data.Pictures(config, input, channels, '--input')
  as_trained = config
  if folder.config.is_file():
    its = configs.load(str(folder.config))
    as_trained = configs.replace(config, {path: its[path] for path in READING})
  with Watch():
    manifest, state = restoring.restore(as_trained, system, folder.path, step)
    trained_run = trained.Run(folder.path, as_trained, system, manifest, state)
    name = pathlib.Path(input).resolve().name
    start = folder.samples / f'step_{manifest.step:07d}_{name}_to_{to}'
    decides = [path for path, _ in configs.leaves(config) if path.startswith('sample.')]
    decides += READING
    named = ['sample.to', 'sample.seed']
    out, about = results.place(
      start, config, manifest, decides, named=named, input=str(input), content=found.content
    )
    size, shown = config.sample.batch_size, []
    try:
      with new_folder(out) as temporary:
        for rows in _batches_by_size(found.sizes, size):
          images = np.stack([found.read(row) for row in rows])
          try:
            made = trained_run.translate(images, to, config.sample.seed)
          except UserError as error:
            raise UserError(f'{found.root / found.paths[rows[0]]}: {error}') from error
          for row, picture in zip(rows, made, strict=True):
            path = temporary / f'{found.names[row]}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pictures.png(picture))
          shown = shown or [images, made]
        write_atomic(results.beside(out, '.json'), about)
    except Diverged as error:
      console.tell(f'error: step {manifest.step} of {folder.path}: {error}')
      return 1
    names = ('source', 'image') if to == 'y' else ('source_y', 'image_x')
    first = translations(dict(zip(names, shown, strict=True)))
    pictures.save_png(results.beside(out, '_grid.png'), first)
  console.tell(f'{len(found.paths)} translations: {out}', sys.stdout)
  return 0


def _batches_by_size(sizes, most: int) -> list[list[int]]:
  """Rows of images of equal size, in order, at most `most` together."""
  groups = collections.defaultdict(list)
  for row, size in enumerate(sizes):
    groups[size].append(row)
  return [rows[i : i + most] for rows in groups.values() for i in range(0, len(rows), most)]


def _write_files(made, labels, config, out: pathlib.Path, about: bytes) -> pathlib.Path:
  """Writes samples as `run` describes, and returns the path of the grid or plot."""
  image = made['image']
  points = image.ndim == 2
  with new_folder(out) as temporary:
    if points:
      np.save(buffer := io.BytesIO(), image)
      (temporary / 'points.npy').write_bytes(buffer.getvalue())
    else:
      for i, picture in enumerate(image):
        label = '' if labels is None else f'_class{labels[i]}'
        (temporary / f'{i:05d}{label}.png').write_bytes(pictures.png(picture))
    write_atomic(results.beside(out, '.json'), about)
  real = _points(data.open_source(config), len(image)) if points else None

  def shown(images) -> bytes:
    if not points:
      return pictures.png(_shown(made | {'image': images[:MOST_IN_GRID]}, labels))
    pictures.scatter_plot(real, images, buffer := io.BytesIO())
    return buffer.getvalue()

  path = results.beside(out, '_plot.png' if points else '_grid.png')
  write_atomic(path, shown(image))
  for name, further in _further_grids(made, labels).items():
    pictures.save_png(results.beside(out, f'_{name}.png'), further)
  for name, value in made.items():
    if value.ndim > image.ndim:  # a sequence for each sample
      frames = (shown(value[:, j]) for j in pictures.some_frames(value.shape[1]))
      pictures.save_gif(results.beside(out, f'_{name}.gif'), map(pictures.frame, frames))
  return path
