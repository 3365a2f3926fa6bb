"""Samples from a run, and translations of a folder, as files: `run(config, workdir)`."""

import collections
import io
import pathlib
import sys

import jax
import numpy as np

from gen_jax import config as configs
from gen_jax import contract, data, domains, sampling
from gen_jax.devices import processes
from gen_jax.devices.heartbeat import Watch
from gen_jax.errors import Diverged, UserError
from gen_jax.host import console
from gen_jax.run import grids, pictures, restoring, results, signals, trained
from gen_jax.run.workdir import Workdir, check_folder, new_folder, write_atomic

# How the pictures of --input are read; in training it may have been another way.
READING = ('data.background', 'data.bad_files', 'data.fit')


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
    conditions = sampling.held_out_conditions(config, system)
  except UserError as error:  # an export may lie where the data do not
    console.tell(f'no images of the held-out split: {error}')
    conditions = None
  with Watch():
    manifest, state = restoring.restore(config, system, folder.path, step)
    state, runs = restoring.attach(state, config, system)
    draw = sampling.make_sampler(config, system, conditions)
    try:
      key = jax.random.fold_in(jax.random.key(config.sample.seed), sampling.SAMPLE_MODE)
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
    first = grids.translations(dict(zip(names, shown, strict=True)))
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
  real = grids.real_points(data.open_source(config), len(image)) if points else None

  def shown(images) -> bytes:
    if not points:
      return pictures.png(grids.shown_grid(made | {'image': images[: grids.MOST_IN_GRID]}, labels))
    pictures.scatter_plot(real, images, buffer := io.BytesIO())
    return buffer.getvalue()

  path = results.beside(out, '_plot.png' if points else '_grid.png')
  write_atomic(path, shown(image))
  for name, further in grids.further_grids(made, labels).items():
    pictures.save_png(results.beside(out, f'_{name}.png'), further)
  for name, value in made.items():
    if value.ndim > image.ndim:  # a sequence for each sample
      frames = (shown(value[:, j]) for j in pictures.some_frames(value.shape[1]))
      pictures.save_gif(results.beside(out, f'_{name}.gif'), map(pictures.frame, frames))
  return path
