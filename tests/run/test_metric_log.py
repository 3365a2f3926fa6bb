"""Metrics of calls: which steps are logged, when they are fetched, and what is refused."""

import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from gen_jax.errors import Diverged
from gen_jax.run.metric_log import MetricLog


class Writer:
  def __init__(self):
    self.scalars_of, self.progress_of = {}, []

  def scalars(self, step, metrics, rate):
    assert rate == 10.0 * step
    self.scalars_of[step] = metrics

  def rate(self, step):
    return 10.0 * step

  def show(self, step, metrics):
    self.progress_of.append(step)


@pytest.fixture
def opened():
  """(log, writer, steps of which metrics were fetched) of a run that resumes at step 3."""
  writer, fetched = Writer(), []
  config = FrozenConfigDict(dict(train=dict(log_steps=2, steps=9)))
  log = MetricLog(
    config,
    writer,
    writer,
    3,
    players=('step', 'G', 'D'),
    fetched=fetched.append,
    saved=lambda: 'step 3 is saved in runs/x',
    rates={},
  )
  return log, writer, fetched


def test_metrics_of_a_call_wait_for_the_next_one(opened):
  log, writer, fetched = opened
  log.add(4, {'g/loss': np.float32(0.5)})
  assert fetched == [] and writer.scalars_of == {}
  log.add(7, {'g/loss': np.array([1.0, 2.0, 3.0])})
  assert fetched == [4] and writer.scalars_of == {4: {'g/loss': 0.5}}
  log.flush()
  log.flush()
  assert fetched == [4, 7]
  assert writer.scalars_of == {4: {'g/loss': 0.5}, 6: {'g/loss': 2.0}}


def test_progress_is_shown_for_the_first_step_too_and_the_last_one_is_logged(opened):
  log, writer, _ = opened
  log.add(9, {'d/loss': np.arange(6.0)})
  log.flush()
  assert writer.progress_of == [4, 6, 8, 9] and list(writer.scalars_of) == [4, 6, 8, 9]
  writer.progress_of.clear()
  log._start = 4
  log.add(5, {'d/loss': np.float32(0)})
  log.flush()
  assert writer.progress_of == [5] and 5 not in writer.scalars_of


def test_a_metric_that_is_not_finite_is_told_by_step_and_net(opened):
  log, writer, _ = opened
  log.add(6, {'g/loss': np.ones(3), 'd/grad_norm': np.array([1.0, np.inf, np.nan])})
  with pytest.raises(Diverged) as error:
    log.flush()
  assert str(error.value) == (
    'grad_norm of D is inf at step 5: training has diverged and is stopped '
    '(step 3 is saved in runs/x); a smaller learning rate usually helps'
  )
  assert list(writer.scalars_of) == [4]


def test_learning_rates_are_noted_with_the_metrics(opened):
  log, writer, _ = opened
  log._rates = {'g/lr': lambda step: 0.5**step}
  log.add(4, {'g/loss': np.float32(2)})
  log.flush()
  assert writer.scalars_of == {4: {'g/loss': 2.0, 'g/lr': 0.0625}}
