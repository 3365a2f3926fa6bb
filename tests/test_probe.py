"""The linear probe of benchmarks/probe.py: its regression against SciPy's, and rows of a run."""

import importlib.util
import json

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from cases import ROOT

import gen_jax
from gen_jax import config as configs
from gen_jax import train
from gen_jax.errors import UserError
from gen_jax.systems import aae

spec = importlib.util.spec_from_file_location('probe', ROOT / 'benchmarks/probe.py')
probe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(probe)


def test_the_probe_is_at_the_minimum_of_logistic_regression():
  rng = np.random.default_rng(0)
  label = rng.integers(0, 3, 200)
  features = np.float32(rng.normal(size=(200, 2)) + np.array([[0, 1], [1, -1], [-1, 0]])[label])

  def loss(flat):
    logits = features @ flat[:6].reshape(2, 3) + flat[6:]
    log_p = logits - scipy.special.logsumexp(logits, 1, keepdims=True)
    return -log_p[np.arange(200), label].mean() + 0.5 * 0.01 * (flat[:6] ** 2).sum()

  wanted = scipy.optimize.minimize(loss, np.zeros(9)).x
  p = probe.fit(features, label, 3, 0.01, 100)
  np.testing.assert_allclose(p['w'], wanted[:6].reshape(2, 3), atol=2e-3)
  np.testing.assert_allclose(p['b'] - p['b'].mean(), wanted[6:] - wanted[6:].mean(), atol=2e-3)
  share, error = probe.accuracy(p, features, label)
  logits = features @ wanted[:6].reshape(2, 3) + wanted[6:]
  assert share == pytest.approx((logits.argmax(1) == label).mean(), abs=0.011)
  assert error == pytest.approx(np.sqrt(share * (1 - share) / 200))


def test_features_are_standardised_by_those_of_training():
  train_part = np.array([[0.0, 5, 1], [2, 5, 3]])
  made = probe.standardised(train_part, np.array([[4.0, 5, 0]]))
  np.testing.assert_allclose(made[0], [[-1, 0, -1], [1, 0, 1]])
  np.testing.assert_allclose(made[1], [[3, 0, -2]])


def test_rows_of_a_run(tmp_path):
  fields = {
    'data.name': 'ring',
    'data.split': 'train[:1000]',
    'data.shape': '(2,)',
    'data.num_classes': '8',
    'latent.components': '8',
    'eval.held_out_split': 'train[1000:1500]',
    'train.steps': '2',
  }
  config = configs.load(f'{ROOT}/configs/aae_mnist.py:smoke', [*fields.items()])
  assert train.run(config, tmp_path) == 0
  lines = []
  rows = probe.main(str(tmp_path), steps=30, log=lines.append)
  assert [row['features'] for row in rows] == ['E(x)', 'E(x) untrained', 'pixels']
  assert json.loads((tmp_path / 'probe/step_0000002.json').read_text()) == rows
  assert rows[2]['accuracy'] > 0.99  # eight Gaussians on a ring, apart
  assert rows[0]['test'] == 'ring train[1000:1500], 500' and len(lines) == 3
  run, points = gen_jax.load(tmp_path), np.float32(np.random.default_rng(0).normal(size=(1100, 2)))
  found = probe.codes(aae, run.state, points, run.config)
  np.testing.assert_allclose(
    found, run.encode(points, np.zeros(1100, int))['z'], rtol=1e-5, atol=1e-8
  )


def test_a_run_without_an_encoder_is_one_line(tmp_path):
  config = configs.load(f'{ROOT}/configs/gan_ring.py:smoke', [('train.steps', '1')])
  assert train.run(config, tmp_path) == 0
  with pytest.raises(UserError, match="config.system='gan' has no encoder"):
    probe.main(str(tmp_path))
