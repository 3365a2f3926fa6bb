"""Lines and events as they are on disk."""

import glob
import json
import math
import os
import pathlib

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2, plugin_hparams_pb2

from gen_jax.run.pictures import scatter_plot
from gen_jax.run.workdir import Workdir
from gen_jax.run.writers import Writers


@pytest.fixture
def workdir(tmp_path):
  return Workdir(tmp_path)


def make(workdir, start=0, callbacks=()):
  return Writers(workdir, start_step=start, callbacks=callbacks)


def lines(workdir):
  found = [json.loads(line) for line in workdir.metrics.read_text().splitlines()]
  for line in found:
    assert line.pop('time') > 1.7e9
    assert line.pop('rate', None) is None
  return found


def events(workdir):
  found = []
  for path in sorted(glob.glob(f'{workdir.tensorboard}/events*')):
    data = pathlib.Path(path).read_bytes()
    while data:
      size = int.from_bytes(data[:8], 'little')
      found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
  return found


def test_scalars_reach_both_files(workdir):
  w = make(workdir)
  w.scalars(1, {'g/loss': np.float32(0.5), 'd/loss': -2})
  w.scalars(2, {'g/loss': math.nan, 'd/loss': math.inf})
  assert lines(workdir) == [
    {'step': 1, 'g/loss': 0.5, 'd/loss': -2.0},
    {'step': 2, 'g/loss': None, 'd/loss': None},
  ]
  points = [(e.step, v.tag, v.simple_value) for e in events(workdir) for v in e.summary.value]
  assert points[:2] == [(1, 'g/loss', 0.5), (1, 'd/loss', -2.0)]
  assert len(points) == 4


def test_an_interrupted_run_leaves_the_metrics_of_an_uninterrupted_one(tmp_path):
  whole, cut = Workdir(tmp_path / 'a'), Workdir(tmp_path / 'b')
  for workdir in (whole, cut):
    workdir.path.mkdir()
  w = make(whole)
  for step in range(1, 9):
    w.scalars(step, {'loss': 1 / step})
  w = make(cut)
  for step in range(1, 7):
    w.scalars(step, {'loss': 1 / step})
  # The process dies in the middle of a line; its last checkpoint was that of step 4.
  with open(cut.metrics, 'a') as file:
    file.write('{"step": 7, "ti')
  w = make(cut, start=4)
  for step in range(5, 9):
    w.scalars(step, {'loss': 1 / step})
  assert lines(cut) == lines(whole)
  starts = [e.step for e in events(cut) if e.HasField('session_log')]
  assert 5 in starts


def test_a_torn_line_alone_is_dropped(workdir):
  workdir.metrics.write_text('{"step": 1, "time": 2e9}\n{"step": 2, "time": 2e9}')
  make(workdir, start=4)
  assert lines(workdir) == [{'step': 1}]


def test_a_fresh_run_has_no_past(workdir):
  workdir.metrics.write_text('{"step": 0, "time": 2e9}\n{"step": 2, "time": 2e9}\n')
  make(workdir)
  assert lines(workdir) == []


def test_images_reach_both_places(workdir):
  w = make(workdir)
  grid = np.random.default_rng(0).integers(0, 256, (20, 30, 1), np.uint8)
  path = w.image(3, 'samples/ema', grid)
  assert path == workdir.samples / '0000003_samples_ema.png'
  assert np.array_equal(np.asarray(Image.open(path)), grid[:, :, 0])
  plot = w.image_path(3, 'points')
  scatter_plot(np.eye(2), np.eye(2), plot)
  before = plot.read_bytes()
  assert w.image(3, 'points', plot) == plot and plot.read_bytes() == before
  assert w.image(4, 'copy', plot).read_bytes() == before
  images = [(e.step, v) for e in events(workdir) for v in e.summary.value]
  assert [(step, v.tag) for step, v in images] == [(3, 'samples/ema'), (3, 'points'), (4, 'copy')]
  assert (images[0][1].image.height, images[0][1].image.width) == (20, 30)
  (workdir.path / 'tb.png').write_bytes(images[0][1].image.encoded_image_string)
  shown = np.asarray(Image.open(workdir.path / 'tb.png').convert('L'))
  assert np.array_equal(shown, grid[:, :, 0])


def test_callbacks_get_what_is_written(workdir):
  class Metrics:
    def __init__(self):
      self.seen = []

    def on_metrics(self, step, metrics):
      self.seen.append((step, metrics))

  class Images:
    def __init__(self):
      self.seen = []

    def on_images(self, step, name, path):
      self.seen.append((step, name, path.read_bytes()[:4]))

  metrics, images = Metrics(), Images()
  w = make(workdir, callbacks=[metrics, images])
  w.scalars(1, {'g/loss': np.float32(0.5)}, rate=10.0)
  w.evaluation(2, {'frechet': 3.0})
  w.image(2, 'samples', np.zeros((4, 4, 1), np.uint8))
  assert metrics.seen == [(1, {'g/loss': 0.5, 'rate': 10.0}), (2, {'quick/frechet': 3.0})]
  assert images.seen == [(2, 'samples', b'\x89PNG')]


def test_hyperparameters_reach_the_table_of_tensorboard(workdir):
  make(workdir).hyperparameters({'optim.lr': 0.5, 'system': 'gan', 'clip': None}, ['g/loss'])
  found = [v for e in events(workdir) for v in e.summary.value]
  data = {v.tag: v.metadata.plugin_data for v in found}
  assert data and {plugin.plugin_name for plugin in data.values()} == {'hparams'}
  start = plugin_hparams_pb2.HParamsPluginData.FromString(
    data['_hparams_/session_start_info'].content
  )
  values = start.session_start_info.hparams
  assert values['optim.lr'].number_value == 0.5 and values['system'].string_value == 'gan'
  assert values['clip'].string_value == 'None'


def test_other_processes_write_nothing(workdir, capsys):
  w = Writers(workdir, start_step=0, process_is_primary=False, callbacks=[None])
  w.scalars(1, {'loss': 1.0})
  w.hyperparameters({'seed': 0}, [])
  w.evaluation(1, {'frechet': 1.0})
  w.image(1, 'samples', np.zeros((4, 4, 1), np.uint8))
  assert os.listdir(workdir.path) == [] and capsys.readouterr().err == ''
