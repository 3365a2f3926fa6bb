"""Configs: a mistake is answered by one line that names the field, no good config is refused."""

import copy
import dataclasses
import json
import math
import random
import re
import string
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import flax.linen as nn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict, FrozenConfigDict

import gen_jax
from gen_jax import config as configs
from gen_jax import fields, systems
from gen_jax.devices import sharding
from gen_jax.errors import UserError
from gen_jax.fields import (
  REQUIRED,
  SHARED,
  integer,
  integers,
  net,
  number,
  numbers,
  one_of,
  some_of,
  text,
)

FIELDS = {
  'net': net(),
  'optim.lr': number(above=0),
  'optim.betas': numbers(low=0, below=1, length=(2,)),
  'optim.clip': number(above=0, optional=True),
  'optim.warmup_steps': integer(0),
  'optim.G.decay': number(0, 1),
  'optim.G.decay_steps': integer(1, optional=True),
  'loss.name': one_of('minimax', 'non_saturating'),
  'loss.k': one_of(1, 2),
  'loss.learn_sigma': one_of(True, False),
  'loss.terms': some_of('pixels', 'features'),
  'loss.comment': text(optional=True),
  'loss.weights': numbers(optional=True),
  'loss.margin': number(0, default=0.5, when=('.name', ('minimax',)), strict=True),
  'sample.steps': integer(1, 1000, optional=True),
  'sample.sizes': integers(),
}
RULES = SHARED | FIELDS
CONFIGS = Path(__file__).parent.parent / 'configs'


class Net(nn.Module):
  """A net with attributes of every kind."""

  channels: int = 16  # how wide
  mults: Any = (1, 2)
  norm: str = 'layer'
  residual: bool = False
  dropout: float = 0.0
  attention: Any = dataclasses.field(default_factory=dict)
  act: Any = None
  opts: Any = None
  shape: Any = None  # what systems offer
  function: Any = abs  # what JSON cannot hold


class Other(Net):
  pass


GROUPS = ['data', 'train', 'sample', 'eval', 'parallel', 'optim', 'optim.G', 'loss']
OWN_GROUPS = [g for g in GROUPS if g != 'optim.G']

GOOD = {
  'system': 'tiny',
  'seed': 0,
  'data': {
    'name': 'digits',
    'path': None,
    'split': 'train',
    'shape': [28, 28, 1],
    'num_classes': None,
    'flip': 0.0,
    'dequantize': 'none',
    'binarize': 'none',
    'storage': 'auto',
    'bad_files': 'error',
    'fit': 'exact',
    'classes': None,
    'background': None,
    'read_threads': 8,
    'prefetch': 8,
  },
  'train': {
    'steps': 100,
    'batch_size': 16,
    'accumulate': 1,
    'steps_per_call': None,
    'log_steps': 10,
    'sample_steps': 500,
    'checkpoint_steps': 50,
    'keep_checkpoints': 2,
    'init_from': None,
  },
  'sample': {'num_images': 64, 'batch_size': 64, 'seed': 0, 'steps': None, 'sizes': (8,)},
  'eval': {
    'network': 'auto',
    'weights': None,
    'metrics': ['frechet', 'modes'],
    'split': 'train',
    'num_reference': None,
    'num_samples': 1000,
    'seed': 0,
    'every_steps': None,
    'held_out_split': 'test',
    'held_out_examples': None,
    'quick_samples': 100,
    'best': 'frechet',
  },
  'precision': 'float32',
  'compilation_cache': 'auto',
  'profile_steps': None,
  'parallel': {'mode': 'jit', 'data': None, 'fsdp': 1},
  'net': {
    'name': 'test_config.Net',
    'channels': 32,
    'mults': [1, 2],
    'norm': 'group',
    'residual': True,
    'dropout': 0.0,
    'act': None,
    'opts': None,
  },
  'optim': {
    'lr': 1,
    'betas': (0.9, 0.999),
    'clip': None,
    'warmup_steps': 0,
    'G': {'decay': 0.999, 'decay_steps': None},
  },
  'loss': {
    'name': 'minimax',
    'k': 1,
    'learn_sigma': False,
    'terms': ['pixels'],
    'comment': None,
    'weights': None,
    'margin': 0.5,
  },
}


def get(tree, path):
  for key in path.split('.'):
    tree = tree[key]
  return tree


def changed(path, value):
  """The good config with one field (or group) replaced, or added."""
  config = copy.deepcopy(GOOD)
  *groups, key = path.split('.')
  parent = config
  for group in groups:
    parent = parent[group]
  parent[key] = value
  return config


def error_of(function, *args):
  with pytest.raises(UserError) as e:
    function(*args)
  message = str(e.value)
  assert message and '\n' not in message and len(message) < 600, message
  return message


def values_of(rule):
  """Strategy: the values that a rule allows, said anew from its words."""
  if rule.many:
    one = values_of(
      fields.Field(rule.type, low=rule.low, high=rule.high, below=rule.below, choices=rule.choices)
    )
    low, high = (rule.length[0], rule.length[-1]) if rule.length else (1, 4)
    lists = st.lists(one, min_size=low, max_size=high)
    if rule.length:
      lists = lists.filter(lambda v: len(v) in rule.length)
    found = lists.flatmap(lambda v: st.sampled_from([v, tuple(v)]))
  elif rule.type == 'integer':
    found = st.integers(rule.low, 2**31 - 1 if rule.high is None else rule.high)
  elif rule.type == 'number':
    low = (-1e30 if rule.above is None else rule.above) if rule.low is None else rule.low
    high = (1e30 if rule.below is None else rule.below) if rule.high is None else rule.high
    found = st.floats(
      low,
      high,
      allow_nan=False,
      allow_infinity=False,
      exclude_min=rule.above is not None,
      exclude_max=rule.below is not None,
    )
  elif rule.type == 'choice':
    found = st.sampled_from(rule.choices)
  elif rule.type == 'text':
    written = st.characters(exclude_categories=['Cs', 'Cc'])
    found = st.text(written, min_size=1).filter(str.strip)
  elif rule.type == 'path':
    found = st.text('ab é./', min_size=1).filter(str.strip)
  else:
    names = st.sampled_from(['test_config.Net', 'test_config.Other'])
    leaf = (
      st.none() | st.booleans() | st.integers(-(2**31) + 1, 2**31 - 1) | st.floats(allow_nan=False)
    )
    leaf = leaf | st.text(st.characters(exclude_categories=['C', 'Z']))
    leaf = leaf | st.lists(leaf, max_size=3) | st.lists(leaf, max_size=3).map(tuple)
    keys = st.sampled_from(['channels', 'mults', 'norm', 'act', 'opts'])
    kwargs = st.dictionaries(keys, leaf | st.dictionaries(keys, leaf, max_size=2), max_size=3)
    found = st.builds(lambda name, kw: {'name': name, **kw}, names, kwargs)
  return found | st.none() if rule.optional else found


@st.composite
def good_configs(draw):
  config = copy.deepcopy(GOOD)
  for path, rule in RULES.items():
    *groups, key = path.split('.')
    (get(config, '.'.join(groups)) if groups else config)[key] = draw(values_of(rule))
  if config['data']['name'] == 'folder':
    config['data']['path'] = 'pictures'
  if config['loss']['name'] != 'minimax':
    config['loss']['margin'] = None
  return config


@settings(max_examples=150, deadline=None)
@given(good_configs())
def test_good_configs_are_accepted_and_survive_json(config):
  checked = configs.check(config, FIELDS)
  assert isinstance(checked, FrozenConfigDict)
  again = configs.from_json(configs.to_json(checked))
  assert again == checked and hash(again) == hash(checked)
  assert configs.check(ConfigDict(config), FIELDS) == checked
  assert configs.check(again, FIELDS) == checked
  assert configs.difference(configs.to_dict(checked), again) is None
  for path, rule in RULES.items():
    value, before = get(checked, path), get(config, path)
    if rule.many and value is not None:
      assert type(value) is tuple and value == tuple(before)
    elif rule.type == 'number' and value is not None:
      assert type(value) is float and value.hex() == float(before).hex()
    elif rule.type != 'net':
      assert value == before and type(value) is type(before)


def test_the_types_of_a_checked_config():
  checked = configs.check(GOOD, FIELDS)
  assert checked.data.shape == (28, 28, 1)
  assert checked.net.mults == (1, 2)
  assert type(checked.optim.lr) is float
  assert {checked: 1}[configs.check(ConfigDict(GOOD), FIELDS)] == 1


def test_a_class_may_name_a_net():
  checked = configs.check(changed('net', {'name': Net, 'channels': 3}), FIELDS)
  assert checked.net.name is Net
  assert configs.to_dict(checked)['net']['name'].endswith('Net')
  assert configs.from_json(configs.to_json(checked)).net.channels == 3


def test_a_net_is_completed_by_its_own_defaults():
  checked = configs.check(changed('net', {'name': 'test_config.Net', 'channels': 3}), FIELDS)
  found = configs.to_dict(checked)['net']
  assert found == GOOD['net'] | {'channels': 3, 'mults': (1, 2), 'norm': 'layer', 'residual': False}
  message = error_of(configs.check, changed('net', {'name': Net, 'chanels': 3}), FIELDS)
  assert message.startswith('config.net.chanels is not an attribute of ')
  assert message.endswith('did you mean config.net.channels?')
  message = error_of(configs.check, changed('net', {'name': 'unet.Unet'}), FIELDS)
  assert message.startswith("config.net.name='unet.Unet' cannot be imported")


def without(*paths):
  config = copy.deepcopy(GOOD)
  for path in paths:
    head, _, name = path.rpartition('.')
    del (get(config, head) if head else config)[name]
  return config


def test_what_is_left_out_has_its_default():
  shared = [group for group in ('data', 'train', 'sample', 'eval', 'parallel')]
  given = without('seed', 'precision', *shared, 'loss.margin')
  given |= {'data': {'shape': (2,)}, 'sample': {'steps': None, 'sizes': (8,)}}
  checked = configs.check(given, FIELDS)
  for path, rule in RULES.items():
    if rule.default is not REQUIRED and path != 'data.shape':
      assert get(checked, path) == rule.default, path
  again = configs.check(checked, FIELDS)
  assert again == checked and hash(again) == hash(checked)


def test_every_default_is_one_that_its_rule_accepts():
  rules = dict(SHARED)
  for name in systems.names():
    rules |= systems.find_system(name).FIELDS
  for path, rule in rules.items():
    assert rule.meaning and '\n' not in rule.meaning, path
    for value in (rule.default, rule.smoke):
      if value is not REQUIRED and value != rule.same_as:
        accepted = rule.accept(value)
        assert accepted == value and type(accepted) is type(value), path


def test_a_schedule_lasts_until_the_last_step_unless_the_config_says_otherwise():
  def decay(*said):
    config = configs.load(
      'configs/ddpm_digits.py', [('train.steps', '300'), *(('optim.' + k, v) for k, v in said)]
    )
    return config.optim.decay_steps

  assert decay() == decay(('decay_steps', 'train.steps')) == 300
  assert decay(('decay_steps', '400')) == 400
  assert decay(('schedule', 'constant')) is None


def test_a_field_that_another_one_switches_off_is_none():
  other = changed('loss.name', 'non_saturating')
  message = error_of(configs.check, other, FIELDS)
  assert message == (
    "config.loss.margin=0.5, but config.loss.name='non_saturating' does not use it: None is needed"
  )
  other['loss']['margin'] = None
  assert configs.check(other, FIELDS).loss.margin is None
  del other['loss']['margin']
  assert configs.check(other, FIELDS).loss.margin is None
  assert error_of(configs.check, changed('loss.margin', None), FIELDS).startswith(
    'config.loss.margin=None: a number of at least 0 is needed'
  )


def test_what_json_cannot_hold_is_named():
  config = configs.check(changed('net', {'name': Net, 'act': abs}), FIELDS)
  assert error_of(configs.to_json, config).startswith('config.net.act=')


@pytest.mark.parametrize(
  'damaged',
  ['', '{', '[1]', '3', '{"gen_jax": "0.2.0", "a.b": 1}', '{"a": [{"b": 1}]}', '[' * 100_000],
)
def test_text_that_is_no_config(damaged):
  assert error_of(configs.from_json, damaged).startswith('not a config as JSON')
  assert error_of(configs.from_json, damaged, Path('a/b')).startswith('a/b: not a config as JSON')


def test_a_config_of_before_names_the_version():
  old = json.loads(configs.to_json(configs.check(GOOD, FIELDS)))
  assert old.pop('gen_jax') == gen_jax.__version__
  message = error_of(configs.from_json, json.dumps(old), Path('runs/x/config.json'))
  assert message.startswith('runs/x/config.json: a config of a version before 0.2, which gen_jax ')


# Mutators: each draws (a bad config, the dotted path that the error must begin with).


def edits(word):
  """Every word one edit away: a letter left out, doubled, changed, put in, or two swapped."""
  letters = string.ascii_lowercase + '_'
  found = {word[:i] + word[i + 1 :] for i in range(len(word))}
  found |= {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)}
  found |= {word[:i] + c + word[i + 1 :] for i in range(len(word)) for c in letters}
  found |= {word[:i] + c + word[i:] for i in range(len(word) + 1) for c in letters}
  return sorted(w for w in found if w != word and w.isidentifier())


def mistyped():
  """(right path, mistyped path) for every field and group, every one-edit typo of its last name."""
  known = {*RULES, *GROUPS}
  for path in sorted(known):
    head, dot, name = path.rpartition('.')
    for wrong in edits(name):
      if head + dot + wrong not in known:
        yield path, head + dot + wrong


TYPOS = random.Random(0).sample(list(mistyped()), 1500)


def with_typo(path, wrong):
  config = copy.deepcopy(GOOD)
  head, _, name = path.rpartition('.')
  parent = get(config, head) if head else config
  parent[wrong.rpartition('.')[2]] = parent.pop(name)
  return config


@st.composite
def typo(draw):
  path, wrong = draw(st.sampled_from(TYPOS))
  return with_typo(path, wrong), wrong


@st.composite
def unknown(draw):
  group = draw(st.sampled_from(['', *GROUPS]))
  key = draw(st.text(min_size=1, max_size=12))
  path = f'{group}.{key}' if group else key
  if path in RULES or path in GROUPS:
    key, path = key + '_x', path + '_x'
  config = copy.deepcopy(GOOD)
  (get(config, group) if group else config)[key] = draw(st.integers() | st.none() | st.just({}))
  return config, path


def wrong_types(rule):
  bad = [b'bytes', object(), {1, 2}, 1 + 2j, {}, {'a': 1}]
  if rule.type != 'choice' or True not in rule.choices:
    bad += [True, False]
  if rule.type not in ('text', 'path', 'net') or rule.many:
    bad += ['abc', '', '3']
  if not rule.many:
    bad += [[1], (2, 3), [], ['a']]
  else:
    bad += [3, 0.5, [], (), [None], [[1]], (1,) * 7 if rule.length else (True,)]
    bad += [] if rule.type == 'text' else [['a']]
  if rule.type == 'integer':
    bad += [1.5, 2.0, [1.0]]
  if rule.type in ('text', 'path', 'choice', 'net'):
    bad += [17, 1.5, '', ' ']
  if rule.choices:
    bad += [
      type(v)(c)
      for c in rule.choices
      for v in (True, 1, 1.0)
      if type(v) is not type(c) and not isinstance(c, str)
    ]
  if rule.type == 'net':
    bad += ['unet.UNet', {'channels': 3}, {'name': 3}, {'name': 'UNet'}, {'name': 'unet.UNet()'}]
    bad += [
      {'name': 'a.B', 'c': math.nan},
      {'name': 'a.B', 'c': ({'d': 1},)},
      {'name': 'a.B', 3: 1},
    ]
    bad += [{'name': 'a.B', 'items': 1}, {'name': 'a.B', 'c.d': 1}]
  return bad


@st.composite
def wrong_type(draw):
  path, value = draw(st.sampled_from([(p, v) for p, r in RULES.items() for v in wrong_types(r)]))
  return changed(path, value), path


@st.composite
def out_of_range(draw):
  path = draw(st.sampled_from([p for p, r in RULES.items() if r.type in ('integer', 'number')]))
  rule = RULES[path]
  bad = [math.nan, math.inf, -math.inf, 10**400 if rule.type == 'number' else math.nan]
  if rule.low is not None:
    bad += [rule.low - 1, rule.low - draw(st.integers(1, 10**9))]
  if rule.high is not None:
    bad += [rule.high + 1, rule.high * 2 + 10**9, 10**5000]
  if rule.above is not None:
    bad += [rule.above, rule.above - 0.5, -1]
  if rule.below is not None:
    bad += [rule.below, rule.below + 0.5]
  value = draw(st.sampled_from(bad))
  if rule.many:
    value = [value] * (rule.length[0] if rule.length else 2)
  return changed(path, value), path


@st.composite
def none(draw):
  path = draw(st.sampled_from([p for p, r in RULES.items() if not r.optional] + OWN_GROUPS))
  return changed(path, None), path


@st.composite
def missing(draw):
  needed = [path for path, rule in RULES.items() if rule.default is REQUIRED]
  path = draw(st.sampled_from([*needed, 'data', 'optim', 'loss', 'optim.G', 'net.name']))
  config = copy.deepcopy(GOOD)
  head, _, name = path.rpartition('.')
  del (get(config, head) if head else config)[name]
  return config, path


@st.composite
def wrong_nesting(draw):
  if draw(st.booleans()):
    path = draw(st.sampled_from(GROUPS))
    value = draw(st.sampled_from([3, 'text', [1], (), 0.5, True]))
    return changed(path, value), path
  path = draw(st.sampled_from([p for p in RULES if p != 'net']))
  return changed(
    path, draw(st.sampled_from([{path.rpartition('.')[2]: get(GOOD, path)}, {}]))
  ), path


@pytest.mark.parametrize(
  'mutator', [typo, unknown, wrong_type, out_of_range, none, missing, wrong_nesting]
)
def test_a_bad_config_gets_one_line_that_names_the_field(mutator):
  seen = []

  @settings(max_examples=150, deadline=None, database=None)
  @given(mutator())
  def run(bad):
    config, path = bad
    message = error_of(configs.check, config, FIELDS)
    # UserError folds white space and escapes what cannot be printed, which a random key may hold.
    assert message.startswith(str(UserError(f'config.{path}'))), message
    seen.append(message)

  run()
  assert len(set(seen)) >= 10


@pytest.mark.parametrize('path', RULES)
def test_every_wrong_type_is_refused(path):
  for value in wrong_types(RULES[path]):
    assert error_of(configs.check, changed(path, value), FIELDS).startswith(f'config.{path}')


def test_a_one_edit_typo_gets_the_right_suggestion(tmp_path):
  right = 0
  for path, wrong in TYPOS:
    message = error_of(configs.check, with_typo(path, wrong), FIELDS)
    right += message == f'config.{wrong} is not a field; did you mean config.{path}?'
  assert right / len(TYPOS) >= 0.95

  # The same on the command line, where only the config itself says what a system's fields are.
  spec = saved(tmp_path)
  typos = [(path, wrong) for path, wrong in TYPOS if path not in GROUPS and path != 'net'][:500]
  right = 0
  for path, wrong in typos:
    if wrong.startswith('loss.'):
      continue
    message = error_of(configs.load, spec, [(wrong, '1')])
    right += message == f'config.{wrong} is not a field; did you mean config.{path}?'
  assert right / sum(not wrong.startswith('loss.') for _, wrong in typos) >= 0.95


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (
      with_typo('train.steps', 'train.stesp'),
      'train.stesp is not a field; did you mean config.train.steps?',
    ),
    (changed('batch_size', 8), 'batch_size is not a field; did you mean config.train.batch_size?'),
    (changed('train.lr', 0.1), 'train.lr is not a field; did you mean config.optim.lr?'),
    (changed('loss.zzzz', 1), 'loss.zzzz is not a field'),
    (with_typo('train', 'trian'), 'trian is not a field; did you mean config.train?'),
    (with_typo('net', 'nett'), 'nett is not a field; did you mean config.net?'),
    (changed('optim.lr', math.nan), 'optim.lr=nan: a number above 0 is needed'),
    (
      changed('train.batch_size', -7),
      'train.batch_size=-7: an integer from 1 to 1048576 is needed',
    ),
    (changed('seed', 2**32), 'seed=4294967296: an integer from 0 to 4294967295 is needed'),
    (
      changed('data.shape', 28),
      'data.shape=28: a tuple of 1 or 3 integers from 1 to 65536 is needed',
    ),
    (changed('data.flip', 1.5), 'data.flip=1.5: a number from 0 to 1 is needed'),
    (
      changed('data.storage', 'disk'),
      "data.storage='disk': 'auto' or 'device' or 'stream' is needed",
    ),
    (changed('optim.clip', 'x'), "optim.clip='x': a number above 0 or None is needed"),
    (
      changed('optim.betas', (0.5, 1.0)),
      'optim.betas=(0.5, 1.0): a tuple of 2 numbers of at least 0 and below 1 is needed',
    ),
    (changed('train', 3), 'train=3: it is a group of fields (config.train.steps, '),
    (
      changed('net', 'unet.UNet'),
      "net='unet.UNet': a group such as dict(name='module.Class', ...)",
    ),
    (changed('data.name', 'folder'), "data.path=None: config.data.name='folder' needs the folder"),
  ],
)
def test_messages(config, message):
  assert error_of(configs.check, config, FIELDS).startswith(f'config.{message}')


@pytest.mark.parametrize(
  ('batch', 'used', 'fsdp', 'devices', 'message'),
  [
    (16, None, 1, 4, (4, 1)),
    (16, 2, 1, 3, (2, 1)),
    (16, None, 4, 4, (1, 4)),
    (16, 1, 2, 4, (1, 2)),
    (10, None, 1, 4, 'config.train.batch_size=10 is not divisible by the 4 devices'),
    (10, 2, 2, 8, 'config.train.batch_size=10 is not divisible by the 4 devices'),
    (3, None, 1, 4, 'config.train.batch_size=3 is not divisible by the 4 devices'),
    (16, 8, 1, 4, 'config.parallel.data=8: there are 4 devices'),
    (16, 2, 4, 4, 'config.parallel.data=2 times config.parallel.fsdp=4: there are 4 devices'),
    (16, None, 8, 4, 'config.parallel.fsdp=8: there are 4 devices'),
    (15, None, 3, 4, 'config.parallel.fsdp=3 does not divide the 4 devices'),
  ],
)
def test_devices(batch, used, fsdp, devices, message):
  config = changed('train.batch_size', batch)
  config['parallel'].update(data=used, fsdp=fsdp)
  config = configs.check(config, FIELDS)
  if isinstance(message, tuple):
    sharding.check_devices(config, devices)
    assert sharding.mesh_shape(config, devices) == message
  else:
    assert error_of(sharding.check_devices, config, devices).startswith(message)


def test_parts_of_a_batch_divide_what_a_device_has():
  config = configs.check(changed('train.accumulate', 4), FIELDS)
  sharding.check_devices(config, 4)
  message = 'config.train.accumulate=4 does not divide the 2 examples of a device (config.train.'
  assert error_of(sharding.check_devices, config, 8).startswith(message)


def test_pmap_does_not_spread_the_state():
  config = changed('parallel', {'mode': 'pmap', 'data': None, 'fsdp': 2})
  config = configs.check(config, FIELDS)
  assert error_of(sharding.check_devices, config, 4).startswith('config.parallel.fsdp=2: ')


def test_the_nearest_good_batch_sizes_are_told():
  def near(batch):
    config = configs.check(changed('train.batch_size', batch), FIELDS)
    return error_of(sharding.check_devices, config, 4)

  assert '8 or 12 would' in near(10)
  assert '; 4 would' in near(3)


# Reading files.


def saved(folder, config=None):
  path = folder / 'config.json'
  path.write_text(configs.to_json(config or configs.check(GOOD, FIELDS)))
  return str(path)


def written(folder, body, name='ddpm_digits.py'):
  path = folder / name
  path.write_text(body)
  return str(path)


SOURCE = f"""
from ml_collections import ConfigDict

def get_config():
  return ConfigDict({GOOD!r})

SMOKE = {{'net.channels': 4, 'optim.lr': 2}}
"""


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  """A system of the name that `GOOD` has, with `FIELDS`."""
  find = systems.find_system
  module = types.SimpleNamespace(FIELDS=FIELDS)
  monkeypatch.setattr(systems, 'find_system', lambda n: module if n == 'tiny' else find(n))


def test_load_a_file_and_its_argument(tmp_path):
  spec = written(tmp_path, SOURCE)
  assert configs.load(spec) == configs.check(GOOD, FIELDS)
  small = configs.load(f'{spec}:smoke')
  assert small.train.steps == SHARED['train.steps'].smoke and small.net.channels == 4
  assert small.optim.lr == 2.0
  assert configs.load(f'{spec}:smoke', [('train.steps', '7')]).train.steps == 7
  assert configs.load(saved(tmp_path)).train.steps == 100
  assert not list(tmp_path.rglob('*.pyc'))


def sourced(folder, config=GOOD, smoke='{}'):
  body = f'def get_config():\n  return {config!r}\n\nSMOKE = {smoke}\n'
  return written(folder, body, 'mine.py')


@pytest.mark.parametrize(
  ('name', 'shape', 'said', 'found'),
  [
    ('mnist', (28, 28, 1), {}, 'shapes'),
    ('folder', (64, 64, 3), {}, 'shapes'),
    ('folder', (64, 64, 3), {'data.path': 'pics'}, 'folder'),
    ('folder', (64, 64, 3), {'data.name': 'digits'}, 'digits'),
    ('digits', (8, 8, 1), {}, 'digits'),
    ('ring', (2,), {}, 'ring'),
  ],
)
def test_smoke_needs_no_download_and_keeps_what_the_command_line_says(
  tmp_path, name, shape, said, found
):
  config = changed('data', {'name': name, 'shape': shape, 'split': 'train[:80%]'})
  spec = sourced(tmp_path, config, "{'net.channels': 2, 'net.mults': (1,)}")
  said = said | {'train.batch_size': '5', 'net.channels': '3'}
  small, origins = configs.resolve(f'{spec}:smoke', said.items())
  assert small.data.name == found
  assert small.data.split == ('train' if found == 'shapes' else 'train[:80%]')
  assert small.eval.network == ('classifier' if found == 'shapes' else 'auto')
  assert (small.data.path, small.train.batch_size) == (said.get('data.path'), 5)
  assert (small.net.channels, small.net.mults) == (3, (1,))
  assert small.sample.num_images == (64 if shape == (2,) else 8)
  assert origins['train.batch_size'] == origins['net.channels'] == 'command line'
  assert origins['train.steps'] == origins['net.mults'] == ':smoke'
  assert origins['data.shape'] == origins['net.norm'] == 'file'
  assert 'data.flip' not in origins


@pytest.mark.parametrize(
  'said, found',
  [
    ({}, 'shapes'),
    ({'data.path': 'mine'}, 'shapes'),
    ({'data.x.path': 'mine'}, 'folder'),
    ({'data.x.name': 'digits'}, 'digits'),
  ],
)
def test_smoke_keeps_the_domain_x_that_the_command_line_names(said, found):
  small = configs.load('cyclegan_emoji:smoke', said.items())
  assert small.data.x.name == found
  assert small.data.x.path == said.get('data.x.path', 'google/{split}')
  assert small.data.name == ('folder' if 'data.path' in said else 'shapes')


def test_a_fault_in_smoke_is_told(tmp_path):
  spec = sourced(tmp_path, GOOD, "{'nett.channels': 2}")
  assert error_of(configs.load, f'{spec}:smoke').startswith('config.nett.channels is not a field')
  spec = sourced(tmp_path, GOOD, '3')
  assert error_of(configs.load, f'{spec}:smoke') == (
    f'{spec}: SMOKE=3; {{dotted path: value}} is needed'
  )


def test_a_choice_on_the_command_line_clears_what_belonged_to_the_other(tmp_path):
  spec = sourced(tmp_path, changed('loss.margin', 0.25))
  assert configs.load(spec).loss.margin == 0.25
  config, origins = configs.resolve(spec, [('loss.name', 'non_saturating')])
  assert config.loss.margin is None and 'loss.margin' not in origins
  said = [('loss.name', 'non_saturating'), ('loss.margin', '0.25')]
  assert error_of(configs.load, spec, said).startswith(
    'config.loss.margin=0.25, but config.loss.na'
  )
  # And back, from the complete config of a run.
  spec = saved(tmp_path, config)
  assert configs.load(spec, [('loss.name', 'minimax')]).loss.margin == 0.5


def test_make_a_config_without_a_file():
  values = {
    'data.shape': (2,),
    'net': {'name': Net, 'channels': 8},
    'optim': {'lr': 1, 'betas': (0.9, 0.99), 'clip': None, 'warmup_steps': 0},
    'optim.G.decay': 0.5,
    'optim.G': {'decay_steps': None},
    'sample': {'steps': 3},
    'sample.sizes': [8],
    'loss': GOOD['loss'],
  }
  made = configs.make('tiny', values)
  assert isinstance(made, FrozenConfigDict) and hash(made)
  assert made.optim.G.decay == 0.5 and made.optim.lr == 1.0 and made.sample.sizes == (8,)
  assert made.net.name is Net and made.net.norm == 'layer' and made.seed == 0
  assert error_of(configs.make, 'tiny', {}) == (
    'config.data.shape is missing: a tuple of 1 or 3 integers from 1 to 65536 is needed'
  )
  assert error_of(configs.make, 'tiny', {'data.shpe': 3}).endswith(
    'did you mean config.data.shape?'
  )
  assert error_of(configs.make, 'tyny', {}).startswith("config.system='tyny': one of ")


@pytest.mark.parametrize(
  ('body', 'arg', 'message'),
  [
    ('def get_config(:\n', '', '{path}:1: SyntaxError: '),
    ('x = 1\n\ny = 1 / 0\n', '', '{path}:3: ZeroDivisionError: division by zero'),
    (
      'import no_such_module\n',
      '',
      "{path}:1: ModuleNotFoundError: No module named 'no_such_module'",
    ),
    ('def get_config():\n  return {}[0]\n', 'smoke', '{path}:2: KeyError: 0'),
    (
      'import json\ndef get_config():\n\n  return json.loads("{")\n',
      '',
      '{path}:4: JSONDecodeError',
    ),
    ('x = 1\n', '', '{path} has no function get_config()'),
    ('def get_config():\n  return 3\n', '', '{path}: get_config returned 3; a ConfigDict'),
    (SOURCE, 'smok', "{path}:smok: unknown argument 'smok'; the argument is 'smoke' or left out"),
    ('\0', '', '{path}'),
    ('x = "\udcff"', '', '{path}'),
  ],
)
def test_a_fault_in_a_config_file_is_told_with_its_line(tmp_path, body, arg, message):
  path = tmp_path / 'bad.py'
  path.write_bytes(body.encode(errors='surrogateescape'))
  told = error_of(configs.load, f'{path}:{arg}' if arg else str(path))
  assert told.startswith(message.replace('{path}', str(path)))


def test_a_missing_file_gets_a_suggestion(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  Path('configs').mkdir()
  written(Path('configs'), SOURCE)  # ddpm_digits.py
  for spec in ('configs/ddpm_digit.py', 'ddpm_digit', 'ddpm_digit.py:smoke'):
    message = error_of(configs.load, spec)
    assert message.endswith('no such config file; did you mean configs/ddpm_digits.py?')
  message = error_of(configs.load, 'gan_rin')  # a shipped one
  assert message == 'gan_rin: no such config file; did you mean configs/gan_ring.py?'
  assert error_of(configs.load, 'configs') == 'configs is a folder: a config file in it is needed'


def test_a_name_is_that_of_a_config_here_or_of_a_shipped_one(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  shipped = configs.load('configs/gan_ring.py')
  assert shipped == configs.load(str(CONFIGS / 'gan_ring.py'))
  for spec in ('gan_ring', 'gan_ring.py', 'configs/gan_ring'):
    assert configs.load(spec) == shipped
  for spec in ('gan_ring:smoke', 'configs/gan_ring:smoke', 'gan_ring.py:smoke'):
    assert configs.load(spec) == configs.load(f'{CONFIGS / "gan_ring.py"}:smoke')
  assert configs.default_workdir('gan_ring:smoke') == Path('runs/gan_ring_smoke')
  for spec in ('elsewhere/gan_ring.py', str(tmp_path / 'configs/gan_ring.py'), '../gan_ring.py'):
    assert 'no such config file' in error_of(configs.load, spec)
  Path('configs').mkdir()
  source = (CONFIGS / 'gan_ring.py').read_text()
  Path('configs/gan_ring.py').write_text(source.replace('system=', 'seed=7, system='))
  assert configs.load('gan_ring').seed == configs.load('configs/gan_ring.py').seed == 7


def test_only_python_files_are_executed(tmp_path):
  marker = tmp_path / 'executed'
  path = written(tmp_path, f'open({str(marker)!r}, "w")', 'config.txt')
  assert error_of(configs.load, path).startswith(f'{path}: a config file ends in .py')
  path = written(tmp_path, f'open({str(marker)!r}, "w")', 'config.json')
  assert error_of(configs.load, path).startswith(f'{path}: not a config as JSON')
  assert not marker.exists()


# Overrides.


@pytest.mark.parametrize(
  ('path', 'value', 'expected'),
  [
    ('train.steps', '1000', 1000),
    ('train.steps', '1_000', 1000),
    ('train.steps', '1e6', 1_000_000),
    ('sample.steps', '1e2', 100),  # None before
    ('data.flip', '1', 1.0),
    ('data.flip', '5e-1', 0.5),
    ('data.path', '/pictures/3', '/pictures/3'),
    ('data.path', '3', '3'),
    ('data.path', 'None', None),
    ('data.path', "'None'", 'None'),
    ('data.split', 'None', 'None'),
    ('data.split', 'train[:10%]', 'train[:10%]'),
    ('data.dequantize', 'none', 'none'),
    ('data.num_classes', '10', 10),
    ('data.shape', '(32, 32, 3)', (32, 32, 3)),
    ('data.shape', '[32, 32, 3]', (32, 32, 3)),
    ('data.shape', '32,32,3', (32, 32, 3)),
    ('data.shape', '2', (2,)),
    ('parallel.data', 'None', None),
    ('optim.lr', '1e-4', 1e-4),
    ('optim.clip', '1', 1.0),
    ('optim.clip', 'None', None),
    ('optim.betas', '0,.9', (0.0, 0.9)),
    ('loss.name', 'non_saturating', 'non_saturating'),
    ('loss.k', '2', 2),
    ('loss.learn_sigma', 'true', True),
    ('loss.learn_sigma', '1', True),
    ('loss.comment', 'two words', 'two words'),
    ('loss.weights', '(1, 2)', (1.0, 2.0)),
    ('net.name', 'test_config.Other', 'test_config.Other'),
    ('net.channels', '64', 64),
    ('net.mults', '1,2,4', (1, 2, 4)),
    ('net.mults', '3', (3,)),
    ('net.norm', '3', '3'),
    ('net.norm', 'None', None),
    ('net.residual', 'False', False),
    ('net.dropout', '0.1', 0.1),  # a new argument of the net
    ('net.act', 'relu', 'relu'),
    ('net.act', 'false', False),
    ('net.attention.heads', '4', 4),
  ],
)
def test_override(tmp_path, path, value, expected):
  checked = configs.check(configs.load(saved(tmp_path), [(path, value)]), FIELDS)
  assert get(checked, path) == expected
  assert type(get(checked, path)) is type(expected)
  assert configs.difference(checked, configs.check(GOOD, FIELDS)) is None or path not in (
    *configs.SAFE_TO_CHANGE,
  )


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    ('train.steps', 'abc', "train.steps='abc': an integer from 1 to 2147483647 is needed"),
    ('train.steps', '2.5', 'train.steps=2.5: an integer'),
    ('train.steps', '', "train.steps='': an integer"),
    ('train.steps', '0', 'train.steps=0: an integer'),
    ('train.steps', '[' * 5000, 'train.steps='),
    ('train.steps', '9' * 5000, 'train.steps='),
    ('data.flip', 'nan', 'data.flip=nan: a number from 0 to 1 is needed'),
    ('data.split', '', "data.split='': a non-empty text is needed"),
    ('data.storage', 'None', "data.storage='None': 'auto' or"),
    ('data.shape', '2x2', "data.shape='2x2': a tuple of 1 or 3 integers"),
    ('optim.lr', 'nan', 'optim.lr=nan: a number above 0 is needed'),
    ('optim.lr', 'fast', "optim.lr='fast': a number above 0 is needed"),
    ('net.residual', 'yes', "net.residual='yes': a value such as True is needed"),
    ('net.residual', '3', "net.residual='3': a value such as True is needed"),
    ('net.channels', 'many', "net.channels='many': a value such as 32 is needed"),
    ('train', '3', 'train is a group of fields: set one of them, such as config.train.'),
    ('net', 'my.Net', 'net is a group of fields: set one of them, such as config.net.'),
    ('train.stesp', '3', 'train.stesp is not a field; did you mean config.train.steps?'),
    ('train.steps.x', '3', 'train.steps.x is not a field'),
    ('batch_size', '3', 'batch_size is not a field; did you mean config.train.batch_size?'),
    ('loss.zzz', '3', 'loss.zzz is not a field'),
    ('zzz.zzz', '3', 'zzz.zzz is not a field'),
    ('', '3', ' is not a field'),
    ('net.', '3', 'net. is not a field'),
    ('net.items', '3', 'net.items is not a field'),
    ('net.__class__', '3', 'net.__class__ is not a field'),
    ('data.new', '3', 'data.new is not a field'),
  ],
)
def test_bad_override(tmp_path, path, value, message):
  spec = saved(tmp_path)
  told = error_of(lambda: configs.check(configs.load(spec, [(path, value)]), FIELDS))
  assert told.startswith(' '.join(f'config.{message}'.split()))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_value_can_be_given_on_the_command_line(tmp_path_factory, data):
  path = data.draw(st.sampled_from(sorted(set(RULES) - {'net', 'system'})))
  value = RULES[path].accept(data.draw(values_of(RULES[path])))
  spec = saved(tmp_path_factory.mktemp('saved'))
  loaded = configs.load(spec, [(path, repr(value))])
  got = get(configs.check(loaded, FIELDS), path)
  assert got == value and type(got) is type(value)


def test_the_last_of_two_overrides_wins(tmp_path):
  config = configs.load(saved(tmp_path), [('train.steps', '1'), ('train.steps', '2')])
  assert config.train.steps == 2


def test_split_overrides():
  argv = [
    '--config.a.b=1=2',
    '--mode=sample',
    '--config.c',
    '-1e-4',
    '--config=x.py',
    '--config.d=',
  ]
  overrides, others = configs.split_overrides(argv)
  assert overrides == [('a.b', '1=2'), ('c', '-1e-4'), ('d', '')]
  assert others == ['--mode=sample', '--config=x.py']
  for argv in (['--config.a'], ['--config.a', '--dry_run']):
    assert error_of(configs.split_overrides, argv).startswith('--config.a needs a value')


# Resuming.


@pytest.mark.parametrize(
  ('path', 'value', 'safe'),
  [
    ('train.steps', 7, True),
    ('train.log_steps', 7, True),
    ('train.sample_steps', 7, True),
    ('train.checkpoint_steps', 7, True),
    ('train.keep_checkpoints', 7, True),
    ('sample.num_images', 7, True),
    ('sample.steps', 7, True),
    ('data.path', 'moved', True),
    ('data.storage', 'stream', True),
    ('data.read_threads', 7, True),
    ('data.prefetch', 7, True),
    ('parallel.mode', 'pmap', True),
    ('parallel.data', 1, True),
    ('system', 'gan', False),
    ('seed', 1, False),
    ('train.batch_size', 8, False),
    ('train.accumulate', 2, False),
    ('train.steps_per_call', 4, True),
    ('data.name', 'ring', False),
    ('data.split', 'test', False),
    ('data.shape', (2,), False),
    ('data.num_classes', 10, False),
    ('data.flip', 0.5, False),
    ('data.dequantize', 'uniform', False),
    ('data.bad_files', 'skip', False),
    ('data.fit', 'crop', False),
    ('net.channels', 64, False),
    ('net.mults', (1, 2, 2), False),
    ('optim.lr', 2e-4, False),
    ('optim.warmup_steps', 5, False),
    ('optim.G.decay', 0.5, False),
    ('optim.G.decay_steps', 200, True),
    ('loss.k', 2, False),
  ],
)
def test_what_may_change_when_a_run_is_continued(path, value, safe):
  old, new = configs.check(GOOD, FIELDS), configs.check(changed(path, value), FIELDS)
  stored = json.loads(
    json.dumps(configs.to_dict(old))
  )  # as a checkpoint's manifest gives it back: with lists
  if safe:
    assert configs.difference(stored, configs.to_dict(new)) is None
    configs.check_resumable(stored, new, 'runs/x')
  else:
    before = get(old, path)
    assert configs.difference(stored, configs.to_dict(new)) == (path, before, value)
    message = error_of(configs.check_resumable, stored, new, 'runs/x')
    assert message.startswith(f'config.{path}={value!r}, but the run in runs/x was started with ')
    assert repr(before) in message and '--workdir' in message


def test_a_run_from_before_a_field_was_added_has_its_default():
  new = configs.to_dict(configs.check(GOOD, FIELDS))
  old = json.loads(json.dumps(new))
  del old['data']['background']
  configs.check_resumable(old, new, 'runs/x')
  new['data']['background'] = (255,)
  message = error_of(configs.check_resumable, old, new, 'runs/x')
  assert message.startswith('config.data.background=(255,), but the run in runs/x was started with')
  new['data']['background'] = None
  del old['data']['shape']  # has no default
  message = error_of(configs.check_resumable, old, new, 'runs/x')
  assert message.startswith('config.data.shape=(28, 28, 1), but the run in runs/x was started with')


def test_classes_are_texts_also_where_they_look_like_numbers():
  for written, value in (
    ('cat,dog', ('cat', 'dog')),
    ('0,1', ('0', '1')),
    ('007', ('007',)),
    ("('a b', 'c')", ('a b', 'c')),
    ('(0, 1)', ('0', '1')),
    ('None', None),
  ):
    fields = [('data.path', 'pictures'), ('data.classes', written)]
    assert configs.load('configs/dcgan_folder.py', fields).data.classes == value, written
  fields[1] = ('data.classes', 'cat,')
  message = error_of(configs.load, 'configs/dcgan_folder.py', fields)
  assert message.startswith("config.data.classes=('cat', ''): a tuple of texts")


def test_a_field_that_came_or_went_is_a_difference():
  with_act = changed('net.new', 'relu')
  assert configs.difference(GOOD, with_act) == ('net.new', '(absent)', 'relu')
  assert configs.difference(with_act, GOOD) == ('net.new', 'relu', '(absent)')


# The rest.


def test_describe_names_every_field_once():
  origins = {'train.steps': 'file', 'seed': 'command line'}
  lines = configs.describe(configs.check(GOOD, FIELDS), origins).splitlines()
  named = [line.split(' = ')[0].strip().removeprefix('config.') for line in lines]
  assert set(RULES) - {'net'} | {'net.name', 'net.mults'} <= set(named)
  assert len(named) == len(set(named))
  assert len({line.index(' = ') for line in lines}) == 1
  by_name = dict(zip(named, lines, strict=True))
  assert re.search(
    r' = 100 +file +training steps \(an integer from 1 to 2147483647\)$', by_name['train.steps']
  )
  assert re.search(r' = 0 +command line  seed of .* \(an integer from 0 to ', by_name['seed'])
  assert re.search(r"'jit' {5,}jit over a mesh", by_name['parallel.mode'])
  assert by_name['net.channels'].endswith('how wide (int)')
  margin = changed('loss', GOOD['loss'] | {'name': 'non_saturating', 'margin': None})
  lines = configs.describe(configs.check(margin, FIELDS)).splitlines()
  (line,) = (line for line in lines if line.startswith('config.loss.margin'))
  assert line.endswith("; not used with name='non_saturating'")


def test_the_default_workdir():
  assert configs.default_workdir('configs/ddpm_cifar.py') == Path('runs/ddpm_cifar')
  assert configs.default_workdir('configs/ddpm_cifar.py:smoke') == Path('runs/ddpm_cifar_smoke')
  assert configs.default_workdir('elsewhere/mine/config.json') == Path('elsewhere/mine')


def test_summaries_run_nothing(tmp_path):
  written(tmp_path, '"""A good one.\n\nMore."""\nraise SystemExit(9)\n', 'b_good.py')
  written(tmp_path, 'def (', 'a_broken.py')
  written(tmp_path, '', 'c_silent.py')
  written(tmp_path, '', '__init__.py')
  lines = configs.summaries(tmp_path).splitlines()
  assert [line.split()[0].split('/')[1] for line in lines] == [
    'a_broken.py',
    'b_good.py',
    'c_silent.py',
  ]
  assert '(cannot be read' in lines[0]
  assert lines[1].endswith(' A good one.')


def test_no_jax_is_imported_to_answer_a_typo():
  code = (
    'import sys, gen_jax.config; sys.exit(any(m in sys.modules for m in ("jax", "flax", "numpy")))'
  )
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0


@pytest.mark.parametrize(
  ('text', 'why'),
  [
    ('', 'the path is empty'),
    ('gs://bucket/pics', 'not a URL'),
    ('s3:/bucket', 'not a URL'),
    ('file:///pics', 'not a URL'),
    ('~nobody-of-this-name/x', 'there is no home folder of ~nobody-of-this-name'),
    ('caf\udce9', 'not valid UTF-8'),
    ('a\0b', 'a zero byte'),
  ],
)
def test_every_path_of_a_config_is_one_of_this_machine(text, why):
  paths = [path for path, rule in RULES.items() if rule.type == 'path']
  assert {'data.path', 'train.init_from', 'eval.weights', 'compilation_cache'} <= set(paths)
  for path in paths:
    message = error_of(configs.check, changed(path, text), FIELDS)
    assert message.startswith(f'config.{path}=') and why in message
    message.encode()  # it can be printed


def test_a_home_folder_is_meant_by_a_tilde(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  config = configs.check(changed('data.path', '~/pics'), FIELDS)
  assert config.data.path == '/home/me/pics'
  assert configs.check(changed('data.path', 'a~b/~'), FIELDS).data.path == 'a~b/~'
