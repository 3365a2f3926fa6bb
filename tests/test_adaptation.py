"""benchmarks/adaptation.py: its cells and table; and accuracies of systems with a class head."""

import importlib.util
import json

import numpy as np
import pytest
from cases import ROOT

from gen_jax import config as configs
from gen_jax import data, evaluate
from gen_jax.metrics import scorer

spec = importlib.util.spec_from_file_location('adaptation', ROOT / 'benchmarks/adaptation.py')
adaptation = importlib.util.module_from_spec(spec)
spec.loader.exec_module(adaptation)


def digits(folder, split, n, size=16):
  """An .npz of n images of known rows: the value of a corner says which."""
  image = np.zeros((n, size, size, 1), np.uint8)
  image[:, :4, :4] = (np.arange(n) % 200)[:, None, None, None]
  np.savez(folder / f'{split}.npz', image=image, label=np.arange(n, dtype=np.int32) % 10)


@pytest.mark.parametrize('name', ['classifier', 'cogan', 'unit'])
def test_an_accuracy_is_over_all_of_the_test_split(name, tmp_path):
  """Each image of y once, though the test split of x is larger; x may be held back to as many."""
  for domain, n in (('x', 500), ('y', 137)):
    (tmp_path / domain).mkdir()
    digits(tmp_path / domain, 'test', n)
  path = {d: str(tmp_path / d / '{split}.npz') for d in 'xy'}
  config = configs.load(
    f'{ROOT}/configs/{name}_mnist_usps.py',
    [
      *{'data.path': path['y'], 'data.x.path': path['x'], 'data.x.name': 'arrays'}.items(),
      *{'data.x.held_out_split': 'test[:137]', 'eval.held_out_examples': '137'}.items(),
    ],
  )
  held_out = data.held_out(config)
  rows = scorer.chosen(len(held_out), config.eval.held_out_examples)
  seen = held_out.read(rows)['y'][:, 1, 1, 0]
  np.testing.assert_array_equal(np.sort(seen), np.arange(137))


@pytest.mark.parametrize('direction', adaptation.DIRECTIONS)
def test_a_direction_is_said_by_fields(direction):
  fields = adaptation.fields_of(direction, 'usps/{split}.npz')
  for _, name, _ in adaptation.METHODS.values():
    overrides = [(path, str(value)) for path, value in fields.items()]
    config = configs.load(f'{ROOT}/configs/{name}.py', overrides)
    sources = [(config.data.x.name, config.data.x.path), (config.data.name, config.data.path)]
    mnist, usps = sources if direction == 'mnist_usps' else sources[::-1]
    assert mnist == ('mnist', None) and usps == ('arrays', 'usps/{split}.npz')
    if config.system != 'cyclegan':  # a classifier sees its translations
      assert config.eval.held_out_examples == (2007 if direction == 'mnist_usps' else 10_000)
    assert config.data.flip == 0 and config.data.load_size is None  # no augmentation


def test_the_table_has_finished_cells_beside_published_ones(tmp_path, capsys):
  flags = ['--usps=x', '--smoke', f'--workdir={tmp_path}', '--methods', 'source', '--seeds=2']
  flags += ['--directions', 'mnist_usps', '--config.train.steps=2', '--config.train.log_steps=2']
  adaptation.main(flags)
  kept = [tmp_path / f'mnist_usps/source_{seed}.json' for seed in '01']
  found = [json.loads(each.read_text()) for each in kept]
  values = [each['accuracy'][0] for each in found]
  out = capsys.readouterr().out
  mean = f'{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} (2 seeds)'
  assert f'| source only | {mean} | 0.822 |  | 0.696 |' in out
  assert '| CyCADA |  | 0.956 |  | 0.965 |' in out
  found[0]['accuracy'][0] = 0.25  # not measured again
  kept[0].write_text(json.dumps(found[0]))
  adaptation.main(flags)
  assert f'| source only | {(0.25 + values[1]) / 2:.3f} ±' in capsys.readouterr().out


def test_the_ceiling_is_the_run_of_the_other_direction_that_saw_these_labels(tmp_path, monkeypatch):
  """And one CycleGAN translates for the classifiers of both directions."""
  parts = []  # of two measurements of a run they must not be mixed
  measured = evaluate.measured
  monkeypatch.setattr(evaluate, 'measured', lambda *args: parts.append(args[4]) or measured(*args))
  flags = ['--usps=x', '--smoke', f'--workdir={tmp_path}', '--methods', 'source', 'target']
  flags += ['cyclegan', '--seeds=1', '--config.train.steps=6', '--config.train.log_steps=2']
  adaptation.main([*flags, '--config.eval.held_out_examples=600'])
  assert len(list(tmp_path.glob('*/*.json'))) == 6 and len(parts) == len({*parts}) == 4
  runs = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.glob('*/*/config.json')}
  assert runs == {f'{run}_0' for run in ('mnist_usps/source', 'usps_mnist/source')} | {
    'mnist_usps/cyclegan_0'
  }
