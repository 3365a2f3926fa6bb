"""--mode=sample over the results of earlier commands."""

import json
import types

import numpy as np
import pytest
from PIL import Image
from untrained import load_config, save_untrained

import gen_jax
import launch
from gen_jax import config as configs
from gen_jax.errors import UserError
from gen_jax.run import grids, results

FEW = {'net.multipliers': '(1,)', 'sample.steps': '2', 'sample.sampler': 'ddim'}


@pytest.fixture
def run(tmp_path):
  """The folder of a run whose samples depend on labels, with 8 samples of 2 steps."""
  return save_untrained(tmp_path / 'run', 'ddpm_digits', **FEW)


def draw(folder, *flags) -> dict[str, bytes]:
  """Samples; returns every file under `samples`."""
  flags = [f'--config.sample.{flag}' for flag in flags]
  assert launch.main(['--mode=sample', f'--workdir={folder}', *flags]) == 0
  files = [path for path in (folder / 'samples').rglob('*') if path.is_file()]
  return {str(path.relative_to(folder / 'samples')): path.read_bytes() for path in files}


def test_nothing_of_other_settings_is_replaced(run):
  first = draw(run, 'intermediates=0')
  base = 'step_0000007_seed_0_intermediates=0'
  assert set(first) == {
    *(f'{base}/{i:05d}_class{i}.png' for i in range(8)),
    f'{base}.json',
    f'{base}_grid.png',
  }
  assert json.loads(first[f'{base}.json'])['settings']['sample.steps'] == 2
  second = draw(run, 'intermediates=0', 'steps=3')
  assert second.items() > first.items()
  made = {name.partition('/')[0] for name in second if name not in first}
  assert made == {f'{base}_steps=3{end}' for end in ('', '.json', '_grid.png')}
  assert second[f'{base}_steps=3/00000_class0.png'] != first[f'{base}/00000_class0.png']
  # The same settings again: the same files.
  (run / f'samples/{base}/00002_class2.png').unlink()
  (run / f'samples/{base}_grid.png').unlink()
  assert draw(run, 'intermediates=0') == second


@pytest.mark.parametrize(
  'change, name',
  [
    ({}, 'x'),
    ({'sample.eta': 0.5, 'sample.num_images': 3}, 'x_eta=0.5_num_images=3'),
    ({'sample.guidance.run': 'runs/some where/noisy_é/'}, 'x_guidance.run=noisy-'),
    ({'sample.guidance.run': f'/{"y" * 200}'}, f'x_guidance.run={"y" * 40}'),
    ({'sample.seed': 3}, 'x'),
    ({'sample.weights': 'raw'}, 'x_weights=raw'),
    ({'sample.guidance.interval': (0.25, 7.0)}, 'x_guidance.interval=0.25,7'),
  ],
)
def test_the_name_holds_the_settings_that_differ(change, name, tmp_path):
  config = load_config('ddpm_digits', **FEW)
  manifest = types.SimpleNamespace(config=configs.to_dict(config), step=7, sha256='abc')
  paths = [path for path, _ in configs.leaves(config) if path.startswith('sample.')]
  changed = configs.replace(config, change)
  how = dict(named=['sample.seed'], runs={'guide': 'def'})
  found, text = results.place(tmp_path / 'x', changed, manifest, paths, **how)
  assert found == tmp_path / name
  about = json.loads(text)
  assert (about['step'], about['checkpoint'], about['runs']) == (7, 'abc', {'guide': 'def'})
  assert (
    set(about['settings']) == set(paths)
    and about['settings'].items() >= json.loads(json.dumps(change)).items()
  )
  results.beside(found, '.json').write_bytes(text)
  assert results.place(tmp_path / 'x', changed, manifest, paths, **how)[0] == found
  # Where another result has the name: of other weights, or one of an earlier version.
  how['runs'] = {'guide': 'other'}
  assert results.place(tmp_path / 'x', changed, manifest, paths, **how)[0].name == f'{name}_2'
  results.beside(found, '.json').unlink()
  found.mkdir()
  results.beside(found, '_2').mkdir()
  assert results.place(tmp_path / 'x', changed, manifest, paths, **how)[0].name == f'{name}_3'


def test_points_move_in_an_animation(tmp_path):
  few = {'sample.sampler': 'ddim', 'sample.steps': '5', 'sample.intermediates': '5'}
  folder = save_untrained(tmp_path / 'run', 'ddpm_ring', **few)
  base = 'step_0000007_seed_0'
  made = draw(folder)
  assert set(made) == {
    f'{base}/points.npy',
    *(f'{base}{end}' for end in ('.json', '_plot.png', '_trajectory.gif')),
  }
  with Image.open(folder / f'samples/{base}_trajectory.gif') as film:
    assert film.n_frames > 2 and film.size == (600, 600)
    film.seek(film.n_frames - 1)
    last = np.asarray(film.convert('RGB')).astype(int)
  with Image.open(folder / f'samples/{base}_plot.png') as plot:
    assert abs(np.asarray(plot.convert('RGB')) - last).mean() < 2


def test_labels_are_not_told_where_samples_ignore_them(tmp_path):
  few = FEW | {'net.num_classes': 'None', 'sample.intermediates': '0'}
  folder = save_untrained(tmp_path / 'run', 'ddpm_digits', **few)
  base = 'step_0000007_seed_0'
  assert set(draw(folder)) == {
    *(f'{base}/{i:05d}.png' for i in range(8)),
    f'{base}.json',
    f'{base}_grid.png',
  }
  with Image.open(folder / f'samples/{base}_grid.png') as grid:
    assert grid.size == (152, 152)
  opened = gen_jax.load(folder)
  with pytest.raises(UserError, match='labels=3: samples of .* do not depend on labels, None is'):
    opened.sample(2, labels=3)


@pytest.mark.parametrize(
  'n, classes, size',
  [(11, 3, (152, 16 + 4 * 50)), (64, 20, (1002, 16 + 4 * 50)), (30, 21, (302, 2 + 5 * 64))],
)
def test_a_grid_has_a_column_for_each_of_few_classes(n, classes, size):
  labels = np.arange(100) % classes
  assert grids.grid(np.zeros((n, 48, 48, 1), np.uint8), labels).shape == (*size[::-1], 1)
