"""Which configs are tested where: cases.py, and what conftest.py makes of it."""

import os

import cases
import pytest
from children import run_python

NAMES = list('abcdefgh')


def test_all_configs_while_they_are_few():
  assert cases.chosen(NAMES, ['b'], turn=3, most=8) == NAMES


def test_what_a_change_reaches_comes_first():
  for turn in range(9):
    assert {'b', 'g'} < set(cases.chosen(NAMES, ['b', 'g'], turn, most=4))
  assert cases.chosen(NAMES, [], 0, most=4) == list('abcd')


@pytest.mark.parametrize('reached', [[], ['a', 'h'], list('abcdef')])
def test_the_rest_takes_turns(reached):
  found = [cases.chosen(NAMES, reached, turn, most=3) for turn in range(6)]
  assert all(len(set(names)) == 3 and names == sorted(names) for names in found)
  if len(reached) < 3:
    assert set().union(*found) == set(NAMES)
  else:
    assert set().union(*found) == set(reached)


def test_a_change_reaches_the_configs_whose_experiment_it_is():
  def of(*changed):
    return set(cases.reached(set(changed)))

  every = {path.stem for path in cases.FILES}
  assert of('configs/ddpm_digits.py') == {'ddpm_digits'}
  assert of('gen_jax/train.py', 'README.md') == set()
  gans = of('gen_jax/systems/gan.py')
  assert {'gan_ring', 'dcgan_cifar'} <= gans and not {'ddpm_digits', 'wgan_gp_mnist'} & gans
  diffusion = of('gen_jax/diffusion/process.py')
  assert {'ddpm_cifar', 'ddpm_digits'} <= diffusion < every and 'gan_ring' not in diffusion
  assert 'dcgan_cifar' in of('gen_jax/nets/dcgan.py')
  assert 'ddpm_digits' not in of('gen_jax/nets/dcgan.py')
  # Through an import.
  games = of('gen_jax/systems/_two_nets.py')
  assert gans | {'wgan_gp_mnist'} <= games and 'ddpm_digits' not in games


def test_the_quick_suite_has_one_config_per_system():
  systems = {cases.load(path).system for path in cases.FILES}
  assert set(cases.QUICK) == systems
  slow = {p.id for p in cases.ALL if any(mark.name == 'slow' for mark in p.marks)}
  assert slow == {path.stem for path in cases.FILES} - {path.stem for path in cases.QUICK.values()}


def test_slow_checks_that_a_change_does_not_reach_are_left_out(tmp_path, repository):
  """The rule as pytest applies it, with room for one config."""
  (tmp_path / 'room.py').write_text('import cases\ncases.MOST = 1\n')
  command = ('-m', 'pytest', '-n0', '-p', 'room', '--collect-only', '-m', 'slow')
  path = os.pathsep.join([str(tmp_path), str(repository / 'tests'), str(repository)])
  done = run_python(
    *command,
    'tests/test_contract.py',
    cwd=repository,
    PYTHONPATH=path,
    GEN_JAX_CHANGED_SINCE='HEAD',
  )
  assert done.returncode == 0, done.stdout + done.stderr
  (line,) = [line for line in done.stdout.splitlines() if line.startswith('slow checks of 1 of ')]
  name = line.rpartition(': ')[2]
  listed = [line for line in done.stdout.splitlines() if '<Function ' in line]
  assert listed and all(f'[{name}' in line or f'{name}-' in line for line in listed), listed
