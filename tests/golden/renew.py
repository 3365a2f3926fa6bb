"""Writes the golden file of every config, or of those named: all fields after defaults and file
(`full`), and what `:smoke` changes of them (`smoke`).

    python tests/golden/renew.py
    python tests/golden/renew.py gan_ring ddpm_cifar

Its diff shows which experiments a changed default touches.
"""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gen_jax import config as configs  # noqa: E402

CONFIGS = sorted((ROOT / 'configs').glob('[!_]*.py'))


def resolved(path: pathlib.Path) -> dict:
  """{'full': {dotted path: value}, 'smoke': {...}} of a config file, as JSON gives it back."""
  folder = [('data.path', 'FOLDER')] if path.stem.endswith('_folder') else []
  full = dict(configs.leaves(configs.load(str(path), folder)))
  small = dict(configs.leaves(configs.load(f'{path}:smoke')))
  smoke = {field: value for field, value in small.items() if value != full[field]}
  return json.loads(json.dumps({'full': full, 'smoke': smoke}))


def golden(path: pathlib.Path) -> pathlib.Path:
  """The golden file of a config file."""
  return pathlib.Path(__file__).with_name(f'{path.stem}.json')


if __name__ == '__main__':
  for config in CONFIGS:
    if not sys.argv[1:] or config.stem in sys.argv[1:]:
      golden(config).write_text(json.dumps(resolved(config), indent=1, sort_keys=True) + '\n')
