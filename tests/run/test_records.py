"""Lines of evaluation.jsonl and metrics.jsonl that are no records are skipped and counted."""

import dataclasses
import json
import logging

import pytest

from gen_jax.run import history, records, writers
from gen_jax.run.records import Row
from gen_jax.run.workdir import Workdir

GOOD = dict(step=10, time=1.5) | dataclasses.asdict(Row('frechet', 'FID', 3.0, version='quick'))
NO_JSON = [b'{', b'\xff\xfe{}', b'[' * 2000 + b']' * 2000, b'{"a":' * 2000, b'1' * 5000, b'NaN']
NO_RECORDS = [b'null', b'{}', b'5', b'[]', b'"text"', b'true', b'{"step": 1}', b'[{"step": 1}]']


def changed(**fields) -> bytes:
  return json.dumps(GOOD | fields).encode()


WRONG = [
  changed(step='10'),
  changed(step=True),
  changed(step=1.5),
  changed(step=10**400),
  changed(metric=None),
  changed(metric=['frechet']),
  changed(label='\ud800'),
  changed(value='3'),
  changed(value=float('nan')),
  changed(value=float('inf')),
  changed(value=10**400),
  changed(spread={}),
  changed(version=['quick']),
  changed(reference=[]),
  changed(seed='0'),
  changed(time='now'),
  changed(step=None),
]


@pytest.fixture
def folder(tmp_path):
  return Workdir(tmp_path)


@pytest.mark.parametrize('line', [*NO_JSON, *NO_RECORDS, *WRONG])
def test_a_line_that_is_no_row_is_skipped(folder, caplog, line):
  folder.evaluations.write_bytes(b'\n'.join([changed(), line, changed(step=20, value=2), b'']))
  found = records.read(folder)
  assert [row['step'] for row in found] == [10, 20]
  assert records.best_step(found, 'frechet') == 20 and records.is_measured(found, 10)
  assert [row['step'] for row in records.read(folder)] == [10, 20]
  (told,) = [r.getMessage() for r in caplog.records]
  assert told == f'{folder.evaluations}: 1 line is no record: skipped'
  records.forget_quick(folder, 10)
  assert [row['step'] for row in records.read(folder)] == [10]


def test_lines_of_every_version_and_the_end_of_a_killed_process(folder, caplog):
  short = {name: GOOD[name] for name in ('step', 'metric', 'label', 'value', 'version')}
  lines = [
    short,
    GOOD | {'value': None},
    GOOD | {'step': None, 'version': 'full', 'new': [1]},
    GOOD | {'value': 3},
  ]
  text = ''.join(f'{json.dumps(line)}\n' for line in lines)
  folder.evaluations.write_text(f'{text}\n{{"step": 3')
  assert records.read(folder) == lines
  assert not caplog.records
  folder.evaluations.unlink()
  folder.evaluations.mkdir()
  assert records.read(folder) == []


@pytest.mark.parametrize(
  'line',
  [
    *NO_JSON,
    *NO_RECORDS,
    b'{"step": "5", "time": 1}',
    b'{"step": 5, "time": null}',
    b'{"step": 5, "time": NaN}',
    b'{"step": 5, "time": 1e999}',
    b'{"step": 7.5, "time": 1}',
    b'{"step": true, "time": 1}',
    b'{"step": 1%s, "time": 1}' % (b'0' * 400),
    b'{"time": 1}',
  ],
)
def test_the_time_of_training_needs_records(folder, caplog, line):
  times = [json.dumps({'step': step, 'time': step / 2}).encode() for step in (5, 10, 15)]
  folder.metrics.write_bytes(b'\n'.join([times[0], line, *times[1:], b'']))
  assert history.training_time(records.read_metrics(folder)) == (0.5, 7.5)
  assert [r.getMessage() for r in caplog.records] == [
    f'{folder.metrics}: 1 line is no record: skipped'
  ]
  writers._forget(folder.metrics, 10)  # as a run that resumes
  assert folder.metrics.read_bytes() == b'\n'.join([*times[:2], b''])
  writers._forget(folder.metrics, 0)
  assert folder.metrics.read_bytes() == b''


def test_a_clock_that_went_back(folder):
  points = [(5, 10.0), (10, 2.0), (15, 4.5), (20, 7.0)]
  lines = (json.dumps(dict(zip(('step', 'time'), point, strict=True))) for point in points)
  folder.metrics.write_text(''.join(f'{line}\n' for line in lines))
  assert history.training_time(records.read_metrics(folder))[0] == 0.5


def test_many_lines_are_counted_in_one(folder, caplog):
  with caplog.at_level(logging.WARNING):
    folder.evaluations.write_bytes(b'\n'.join([*NO_RECORDS, changed(), b'']))
    assert len(records.read(folder)) == 1
  assert [r.getMessage() for r in caplog.records] == [
    f'{folder.evaluations}: {len(NO_RECORDS)} lines are no records: skipped'
  ]


@pytest.mark.parametrize('environment', [{}, {'backend': 'cpu'}, {'device': 'x'}])
def test_a_machine_of_few_words(environment):
  assert 'unknown' in records.machine(environment)
