"""The metrics of real images, intact and degraded: reference values for judging a number.

    python benchmarks/anchors.py        # all sets: 14 minutes, more while a classifier is missing
    python benchmarks/anchors.py digits mnist --num 2000

The reference set is from a data set's training split. It is compared with as many other images of
that split, which the classifier may have been trained on; as many held-out ones, the floor; the
held-out ones with noise of increasing standard deviation, or with increasing blur; and the held-out
ones of some classes only. Features are those of the classifier that `config.eval.network='auto'`
picks, trained once and cached. At the end the program says whether the metrics change as expected;
the exit status is 1 if one does not.
"""

import argparse
import pathlib
import sys
import tempfile

import numpy as np
from PIL import Image, ImageFilter

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from gen_jax import config as configs
from gen_jax import data
from gen_jax.data import sources
from gen_jax.errors import in_one_line
from gen_jax.metrics import scorer as scores
from gen_jax.run import records

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / 'configs'
SETS = {  # name -> config, held-out split
  'digits': ('ddpm_digits', 'train[80%:]'),
  'mnist': ('gan_mnist', 'test'),
  'fashion_mnist': ('dcgan_fashion_mnist', 'test'),
}
NOISE = (4, 8, 16, 32, 64)  # standard deviations in grey levels
BLUR = {8: (0.25, 0.5, 0.75, 1), 28: (0.5, 1, 1.5, 2)}  # height in pixels -> radii
KEPT = (9, 7, 5, 3, 1)  # numbers of classes that are kept, the first ones
# The floor is one sample: the share by which the least noise may bring held-out images nearer
# (MNIST: 0.036; a bootstrap gives -0.18 +- 0.12 for that difference).
DRAW = 0.05
SLACK = 0.02  # precision may fall by this when classes are removed, as some classes are easier


def noisy(image, sd):
  """Adds the same noise for every `sd`, up to its scale."""
  noise = np.random.default_rng(0).standard_normal(image.shape)
  return np.uint8(np.clip(np.rint(image + sd * noise), 0, 255))


def blurred(image, radius):
  """Grey images [n, h, w, 1] after Pillow's Gaussian blur."""
  blur = ImageFilter.GaussianBlur(radius)
  return np.stack([np.asarray(Image.fromarray(x[..., 0]).filter(blur)) for x in image])[..., None]


def look(network, image):
  """`scores.Features` of images uint8 [n, h, w, c]."""
  source = sources.ArraySource('pictures', {'image': image}, None, '')
  with tempfile.TemporaryDirectory() as folder:
    parts = pathlib.Path(folder)
    return scores.Features(**scores.seen_features(source, network, range(len(image)), parts, None))


def sets_of_pictures(network, train, test, n):
  """(kind of degradation, title, `scores.Features`) of every row."""
  others = np.setdiff1d(scores.chosen(len(train), 2 * n), scores.chosen(len(train), n))
  if len(others) == n:
    title = 'others of ' + train.fingerprint.split('/')[1]
    yield None, title, look(network, train.read(others)['image'])
  held_out = test.read(scores.chosen(len(test), n))
  image, label = held_out['image'], held_out['label']
  floor = look(network, image)
  yield 'floor', 'held-out: the floor', floor
  for sd in NOISE:
    yield 'noise', f'noise, sd {sd}', look(network, noisy(image, sd))
  for radius in BLUR[image.shape[1]]:
    yield 'blur', f'blur, radius {radius}', look(network, blurred(image, radius))
  for k in KEPT:
    seen = scores.Features(*(part[label < k] for part in floor))
    yield 'classes removed', f'{k} of {test.num_classes} classes', seen


def anchors(name, num):
  """Prints the table of a data set; yields (expectation, whether it holds, the values)."""
  file, split = SETS[name]
  config = configs.load(str(CONFIGS / f'{file}.py'))
  train = data.open_source(config)
  test = data.open_source(configs.replace(config, {'data.split': split}))
  n = min(num, len(train), len(test))
  scorer = scores.open_scorer(configs.replace(config, {'eval.num_reference': n}), n, f'--num={num}')
  reference = scorer.reference()

  lines, found = [], []
  for how, title, seen in sets_of_pictures(scorer.network, train, test, n):
    print(f'{name}: {title}', file=sys.stderr)
    values = list(scores.score(scorer, reference, seen))
    lines.append([title, f'{len(seen.features):,}', *(cell(*value[2:]) for value in values)])
    found.append((how, {metric: value for metric, _, value, _ in values}))
  head = ['images', 'number', *(label for _, label, _, _ in values)]
  about = scorer.protocol
  print(f'\nReference: {about["reference"]}; held out: {split}.')
  print(f'Features: {about["features"]} ({about["note"]}).\n')
  print(records.markdown([head, *lines]), flush=True)

  for metric, sign, what in (
    ('frechet', 1, 'noise'),
    ('frechet', 1, 'blur'),
    ('recall', -1, 'classes removed'),
    ('coverage', -1, 'classes removed'),
    ('precision', 0, 'classes removed'),
  ):
    values = [value[metric] for how, value in found if how in ('floor', what)]
    if sign:
      least = [values[0] * (1 - DRAW * (what == 'noise')), *values[1:]]
      holds = bool((sign * np.diff(least) > 0).all())
    else:
      holds = min(values) >= values[0] - SLACK
    should = {1: 'rises', -1: 'falls', 0: f'falls by {SLACK} at most'}[sign]
    yield f'{name}: {metric} {should} with {what}', holds, values


def cell(value, spread) -> str:
  """A value, and its spread where there is one."""
  return f'{value:.4g}' + ('' if spread is None else f' ± {spread:.2g}')


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('sets', nargs='*', default=list(SETS), metavar='SET', help=', '.join(SETS))
  parser.add_argument('--num', type=int, default=10000, help='examples per side, or all there are')
  args = parser.parse_args()
  for name in args.sets:
    if name not in SETS:
      parser.error(f'{name!r} is none of {", ".join(SETS)}')
  checks = [check for name in args.sets for check in anchors(name, args.num)]
  print()
  for what, holds, values in checks:
    print(f'{"ok" if holds else "NOT ok"}: {what}: {", ".join(f"{v:.4g}" for v in values)}')
  return 0 if all(holds for _, holds, _ in checks) else 1


if __name__ == '__main__':
  in_one_line()
  sys.exit(main())
