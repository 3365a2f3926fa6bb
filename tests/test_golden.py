"""Every config resolves to the values in its golden file: no experiment changes unseen."""

import json

import pytest
from golden import renew

RENEW = 'python tests/golden/renew.py writes the new values'


def differences(name: str, old: dict, new: dict) -> list[str]:
  """One line for each field that differs."""
  return [
    f'configs/{name}.py ({part}): {field} is {new[part].get(field, "(absent)")!r}, '
    f'was {old[part].get(field, "(absent)")!r}'
    for part in ('full', 'smoke')
    for field in sorted({*old[part], *new[part]})
    if old[part].get(field, '(absent)') != new[part].get(field, '(absent)')
  ]


@pytest.mark.parametrize('path', renew.CONFIGS, ids=lambda path: path.stem)
def test_a_config_resolves_to_its_golden_file(path):
  golden = renew.golden(path)
  assert golden.exists(), f'{golden} is missing: {RENEW}'
  found = differences(path.stem, json.loads(golden.read_text()), renew.resolved(path))
  assert not found, '\n'.join([*found, RENEW])


def test_no_golden_file_is_without_a_config():
  files = {path.stem for path in renew.golden(renew.CONFIGS[0]).parent.glob('*.json')}
  assert files == {path.stem for path in renew.CONFIGS}


def test_a_changed_field_is_named():
  old = {'full': {'seed': 0, 'a': 1}, 'smoke': {'b': 2}}
  new = {'full': {'seed': 1, 'a': 1}, 'smoke': {'c': 3}}
  assert differences('x', old, new) == [
    'configs/x.py (full): seed is 1, was 0',
    "configs/x.py (smoke): b is '(absent)', was 2",
    "configs/x.py (smoke): c is 3, was '(absent)'",
  ]
