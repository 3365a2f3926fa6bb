"""How samples are shown: grids, by class or with a row for each translation; plots of points."""

import numpy as np

from gen_jax.run import pictures

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


def write(writer, step: int, made: dict, source, labels=None):
  """Writes samples through `Writers`; returns the path of the grid, or plot, 'samples'.

  Images become a `grid`, two-dimensional points a plot over real ones from `source`. Every other
  name of images in `made` becomes a grid of its own. `labels` are the classes of the samples.
  """
  image = made['image']
  if image.ndim == 2:
    path = writer.image_path(step, 'samples')
    pictures.scatter_plot(real_points(source, len(image)), image, path)
    return writer.image(step, 'samples', path)
  for name, further in further_grids(made, labels).items():
    writer.image(step, name, further)
  return writer.image(step, 'samples', shown_grid(made, labels))


def shown_grid(made: dict, labels) -> np.ndarray:
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


def real_points(source, n: int) -> np.ndarray:
  """The first n examples of a source of points."""
  return source.read(range(min(n, len(source))))['image']


def further_grids(made: dict, labels) -> dict[str, np.ndarray]:
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
