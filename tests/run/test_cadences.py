"""When events are due, and that calls of several steps end there."""

import itertools

import jax
from ml_collections import FrozenConfigDict

from gen_jax.run import cadences


def config_of(profile_steps=None, every_steps=None, **train):
  """A run of 25 steps with a checkpoint every 10; samples at the end only."""
  fields = dict(steps=25, checkpoint_steps=10, sample_steps=100, log_steps=5, steps_per_call=None)
  return FrozenConfigDict(
    dict(train=fields | train, eval=dict(every_steps=every_steps), profile_steps=profile_steps)
  )


def test_events_are_due_at_multiples_in_their_order_and_all_of_them_at_the_end():
  config = config_of(sample_steps=4, every_steps=20)
  found = {done: cadences.due(config, done) for done in range(1, 26)}
  assert {done: names for done, names in found.items() if names} == {
    **{done: ['draw'] for done in (4, 8, 12, 16, 24)},
    10: ['save'],
    20: ['save', 'draw', 'measure'],
    25: ['save', 'draw', 'measure'],
  }
  assert cadences.due(config_of(), 20) == ['save']
  assert cadences.due(config_of(), 25) == ['save', 'draw']


def test_the_last_step_is_logged_too():
  config = config_of(steps=7)
  assert [done for done in range(1, 8) if cadences.is_logged(config, done)] == [5, 7]


def call_lengths(start=0, **fields):
  """Of all calls of the run."""
  config, lengths = config_of(**fields), []
  while start + sum(lengths) < config.train.steps:
    lengths.append(cadences.call_length(config, start + sum(lengths)))
  return lengths


def test_calls_of_several_steps_end_where_an_event_is_due(monkeypatch):
  four = dict(steps_per_call=4)
  assert call_lengths(**four) == [4, 4, 2, 2, 4, 4, 4, 1]
  assert call_lengths(**four, start=13) == [3, 4, 4, 1]
  assert call_lengths(**four, sample_steps=7) == [4, 3, 1, 2, 2, 2, 2, 4, 1, 3, 1]
  assert call_lengths(**four, every_steps=5) == [4, 1, 3, 2, 2, 3, 1, 4, 4, 1]
  assert call_lengths(**four, profile_steps=(7, 9)) == [4, 2, 2, 1, 1, 2, 4, 4, 4, 1]
  assert call_lengths() == [1] * 25
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert call_lengths() == [10, 10, 5]


def test_events_to_come_are_those_that_will_be_due():
  for total, every in itertools.product((1, 7, 20, 21), (1, 3, 7, 50)):
    train = dict(steps=total, checkpoint_steps=every, sample_steps=every)
    config = FrozenConfigDict(dict(train=train, eval=dict(every_steps=None)))
    for done in range(total):
      later = [n for n in range(done + 1, total + 1) if 'save' in cadences.due(config, n)]
      assert cadences.to_come(config, 'save', done) == len(later)
