"""The classifier of noisy images: nets whose answers are known, and the samples that it guides."""

import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
from gen_jax import config as configs
from gen_jax import contract
from gen_jax.errors import UserError
from gen_jax.metrics import classifier as feature_network
from gen_jax.run import checkpoint
from gen_jax.run.workdir import Workdir
from gen_jax.state import Frozen
from gen_jax.systems import ddpm, noisy_classifier

ROOT = pathlib.Path(__file__).parent.parent.parent
STEPS = 12

train_step = jax.jit(noisy_classifier.train_step, static_argnames='config')
evaluate = jax.jit(noisy_classifier.evaluate, static_argnames='config')
draw_sample = jax.jit(ddpm.sample, static_argnames='config')


class UntilHalf(nn.Module):
  """Right where t is below T / 2, for examples whose first entry is their label; certain of class 0
  elsewhere.
  """

  @nn.compact
  def __call__(self, x, t, *, train):
    a = self.param('a', nn.initializers.ones, ())
    label = jnp.where(t < STEPS // 2, jnp.round(x[:, 0]).astype(jnp.int32), 0)
    return 20.0 * a * jax.nn.one_hot(label, 3)


class Blind(nn.Module):
  """Learns the prior p(y), sees nothing."""

  @nn.compact
  def __call__(self, x, t, *, train):
    logits = self.param('logits', nn.initializers.zeros, (3,))
    return jnp.broadcast_to(logits, (len(x), 3))


class Columns(nn.Module):
  """The wrong number of logits."""

  @nn.compact
  def __call__(self, x, t, *, train):
    return nn.Dense(2)(x)


def make_config(**changes):
  values = {
    'data.shape': (3,),
    'data.num_classes': 3,
    'net': {'name': Blind},
    # Almost no noise, so that the nets above can read x_0.
    'diffusion': dict(steps=STEPS, beta_min=1e-6, beta_max=2e-6),
    'optim.lr': 0.05,
    'eval.time_steps': 4,
  }
  return configs.make('noisy_classifier', values | changes)


def init(config, n=4):
  batch = {'image': jnp.zeros((n, 3)), 'label': jnp.zeros(n, jnp.int32)}
  return noisy_classifier.init_state(jax.random.key(0), batch, config=config)


def labelled(label):
  x = np.zeros((len(label), 3), np.float32)
  x[:, 0] = label
  return {'image': jnp.asarray(x), 'label': jnp.asarray(label, jnp.int32)}


def test_the_loss_is_the_cross_entropy_and_learns_the_prior():
  config = make_config(**{'optim.lr': 0.2})
  batch = labelled([0, 0, 1, 2])
  state, metrics = train_step(init(config), batch, jax.random.key(0), config=config)
  assert metrics['net/loss'] == pytest.approx(np.log(3), rel=1e-6)
  assert metrics['net/accuracy'] == 0.5  # of equal logits the first wins
  for _ in range(200):
    state, metrics = train_step(state, batch, jax.random.key(0), config=config)
  # The entropy of (1/2, 1/4, 1/4) is 3/2 log 2.
  assert metrics['net/loss'] == pytest.approx(1.5 * np.log(2), abs=1e-3)


def test_accuracy_falls_where_the_net_sees_nothing():
  config = make_config(net={'name': UntilHalf})
  assert noisy_classifier.time_steps(config).tolist() == [0, 4, 7, 11]
  found = evaluate(init(config), labelled([0, 1, 2]), jax.random.key(0), config=config)
  by_step = [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
  np.testing.assert_array_equal(found['accuracy_by_step'], by_step)
  np.testing.assert_array_equal(found['accuracy'], [1, 0.5, 0.5])
  wrong = np.logaddexp(20, np.log(2))  # log(e^20 + 2) - 0, against log(e^20 + 2) - 20
  expected = [wrong - 20, wrong - 10, wrong - 10]
  np.testing.assert_allclose(found['cross_entropy'], expected, rtol=1e-5, atol=1e-6)
  assert set(found) == set(noisy_classifier.MEASURES)


def test_the_images_are_noisy_by_the_process():
  """A net that sees x_t = 0 x_0 + eps alone is right by chance only."""
  config = make_config(
    net={'name': UntilHalf}, diffusion=dict(steps=STEPS, beta_min=0.98, beta_max=0.99)
  )
  label = np.tile([0, 1, 2], 500)
  found = evaluate(init(config), labelled(label), jax.random.key(0), config=config)
  right = np.asarray(found['accuracy_by_step']).mean(0)
  assert right[1] == pytest.approx(1 / 3, abs=0.04)  # at t = 4


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'data.num_classes': None}, 'config.data.num_classes=None: a classifier needs'),
    ({'eval.time_steps': 13}, 'config.eval.time_steps=13: at most config.diffusion.steps=12'),
    ({'net': {'name': Columns}}, r'Columns maps \(64, 3\) to \(64, 2\); logits \(64, 3\) are'),
  ],
)
def test_faults_of_a_config_are_one_line(changes, message):
  with pytest.raises(UserError, match=message) as error:
    contract.check(make_config(**changes))
  assert '\n' not in str(error.value)


# --- Guided samples -------------------------------------------------------------------------------

SMALL = {'net.multipliers': '(1,)', 'diffusion.steps': '40', 'data.split': 'train'}


def load_config(name, **changes):
  return configs.load(f'{ROOT}/configs/{name}.py:smoke', list((SMALL | changes).items()))


def untrained(config, seed=0):
  """A state whose leaves are random: a fresh net predicts 0."""
  rng = np.random.RandomState(seed)
  state = contract.abstract_state(config, contract.check(config))
  return jax.tree.map(
    lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape) if leaf.ndim else 7, leaf.dtype),
    state,
  )


def guided(**changes):
  """The state of a diffusion model with a classifier, and a config that has a scale."""
  classifier = load_config('noisy_classifier_digits')
  config = load_config(
    'ddpm_digits', **{'sample.guidance.run': 'runs/c', 'sample.batch_size': '4'} | changes
  )
  net = untrained(classifier, seed=1).net
  return untrained(config).replace(guide=Frozen(net.params, net.stats, classifier)), config


def samples(state, config):
  given = contract.conditions(config, 4)
  return np.asarray(draw_sample(state, given, jax.random.key(3), config=config)['image'])


def test_scale_0_changes_no_bit_of_ancestral_samples():
  state, config = guided(
    **{'sample.sampler': 'ancestral', 'sample.guidance.scale': '0', 'sample.intermediates': '0'}
  )
  plain = samples(state.replace(guide=None), config)
  np.testing.assert_array_equal(samples(state, config), plain)
  strong = configs.replace(config, {'sample.guidance.scale': 500.0})
  assert np.abs(samples(state, strong) - plain).max() > 0.05


@pytest.mark.parametrize('clip', ['True', 'False'])
def test_scale_0_changes_ddim_samples_within_rounding(clip):
  state, config = guided(**{'sample.guidance.scale': '0', 'sample.clip': clip})
  plain = samples(state.replace(guide=None), config)
  np.testing.assert_allclose(samples(state, config), plain, atol=1e-4)
  strong = configs.replace(config, {'sample.guidance.scale': 500.0})
  assert np.abs(samples(state, strong) - plain).max() > 0.05


def test_other_data_or_another_system_are_refused_by_both_names():
  state, config = guided()

  def refusal(**changes):
    other = configs.replace(
      state.guide.config, {k.replace('__', '.'): v for k, v in changes.items()}
    )
    with pytest.raises(UserError) as error:
      samples(state.replace(guide=state.guide.replace(config=other)), config)
    return str(error.value)

  run = "config.sample.guidance.run='runs/c'"
  assert 'data.num_classes=9, but config.data.num_classes=10' in refusal(data__num_classes=9)
  assert 'data.shape=(4, 4, 1), but config.data.shape=(8, 8, 1)' in refusal(data__shape=(4, 4, 1))
  assert refusal(system='ddpm') == (
    f"{run} is a run of system 'ddpm': one of 'noisy_classifier' is needed"
  )


def test_a_classifier_of_another_process_may_guide():
  state, config = guided()
  for changes in ({'diffusion.steps': 80}, {'diffusion.schedule': 'linear'}):
    other = configs.replace(state.guide.config, changes)
    contract.abstract_samples(config, ddpm, state.replace(guide=state.guide.replace(config=other)))


# --- By the verbs ---------------------------------------------------------------------------------


def save(config, folder):
  workdir = Workdir(folder)
  workdir.path.mkdir(parents=True)
  workdir.write_config(configs.to_json(config))
  saver = checkpoint.Checkpointer(
    workdir.checkpoints, config=configs.to_dict(config), data_fingerprint='data/7', keep=1
  )
  saver.save(7, untrained(config))
  saver.close()
  return workdir


def rows(workdir):
  return [json.loads(line) for line in workdir.evaluations.read_text().splitlines()]


def test_the_classifier_stands_in_the_protocol_of_guided_samples(tmp_path, monkeypatch):
  for name, value in dict(LEAST_STEPS=60, EPOCHS=1, RECIPE='test').items():
    monkeypatch.setattr(feature_network, name, value)
  small = {'eval.num_reference': '300', 'eval.num_samples': '40', 'sample.batch_size': '20'}
  small |= {'eval.held_out_examples': 'None', 'eval.metrics': "('precision_recall', 'modes')"}
  classifier = save(load_config('noisy_classifier_digits'), tmp_path / 'classifier')
  model = save(load_config('ddpm_digits', **small), tmp_path / 'model')
  common = [f'--config={model.config}', f'--workdir={model.path}', '--mode=evaluate']
  run = f'--config.sample.guidance.run={classifier.path}'
  assert launch.main([*common, run, '--config.sample.guidance.scale=3']) == 0
  assert launch.main(common) == 0
  found = {row['metric']: row for row in rows(model)[: len(rows(model)) // 2]}
  manifest = next(classifier.checkpoints.glob('*/manifest.sha256')).read_text().split()[0]
  assert found['precision']['runs'] == f'guide sha256 {manifest[:16]}'
  assert 'guidance.scale 3' in found['precision']['sampler']
  assert 0 <= found['class_accuracy']['value'] <= 1
  plain = {row['metric']: row for row in rows(model)[len(rows(model)) // 2 :]}
  assert plain['precision']['runs'] is None and 'scale' not in plain['precision']['sampler']
  assert launch.main([f'--config={classifier.config}', f'--workdir={classifier.path}',
                      '--mode=evaluate']) == 0  # fmt: skip
  assert [row['metric'] for row in rows(classifier)] == ['accuracy', 'cross_entropy']
  assert next(classifier.evaluation.glob('*accuracy_by_step.npz')).exists()


def test_quick_evaluations_and_guidance_exclude_each_other():
  config = load_config('ddpm_digits', **{'sample.guidance.run': 'runs/c', 'eval.every_steps': '10'})
  with pytest.raises(UserError, match='config.eval.every_steps=10: .* names runs/c; None is'):
    contract.check_training(config)
