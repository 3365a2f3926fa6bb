"""What the systems that denoise share: dropped labels, guidance by their configs, and what their
configs may not ask for.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from denoisers import drawn_rows, init, make_config
from mixture import MEANS, SPREADS, exact, log_joint

from gen_jax import config as configs
from gen_jax import contract
from gen_jax.diffusion.paths import EDM, Linear
from gen_jax.diffusion.process import linear_betas, make_path
from gen_jax.errors import UserError
from gen_jax.state import Frozen
from gen_jax.systems import _denoising, edm, find_system

EACH = pytest.mark.parametrize('system', _denoising.SYSTEMS)
LABELS = {'data.num_classes': 3, 'label_drop': 0.1}
PREDICTS_X_0 = {'diffusion.prediction': 'x_0'}

draw_sample = jax.jit(_denoising.sample, static_argnames='config')


class Table(nn.Module):
  """A number for each label, the null label among them."""

  num_classes: int = 3

  @nn.compact
  def __call__(self, x, t, label=None, h=None, *, train):
    table = self.param('table', nn.initializers.zeros, (4,))
    return jnp.zeros_like(x) + table[label].reshape(-1, *[1] * (x.ndim - 1))


class Says(nn.Module):
  """x_0 is a number, in the terms of a system."""

  system: str = 'ddpm'

  @nn.compact
  def __call__(self, x, t, label=None, h=None, *, train):
    x_0, t = self.param('a', nn.initializers.zeros, ()), t[:, None]
    if self.system == 'edm':
      sigma = jnp.exp(4 * t)
      total = sigma**2 + 0.25
      c_skip, c_out, c_in = 0.25 / total, 0.5 * sigma / jnp.sqrt(total), 1 / jnp.sqrt(total)
      return (x_0 - c_skip * x / c_in) / c_out
    if self.system == 'flow_matching':
      return (x - x_0) / t
    if self.system == 'score_sde':  # told 999 t
      path = find_system('score_sde').path(make_config('score_sde'))
      return (x - path.alpha(t / 999) * x_0) / path.sigma(t / 999)
    return jnp.zeros_like(x) + x_0


def sample(state, config, n=6, **conditions):
  given = contract.conditions(config, n) | conditions
  return np.asarray(draw_sample(state, given, jax.random.key(0), config=config)['image'])


def labelled(config):
  n = config.train.batch_size
  return {'image': jnp.zeros((n, *config.data.shape)), 'label': jnp.arange(n) % 3}


# --- Dropped labels -------------------------------------------------------------------------------


@EACH
def test_labels_are_dropped_as_often_as_asked_for(system, monkeypatch):
  config = make_config(system, LABELS | {'net': {'name': Table}, 'label_drop': 0.2})
  label = np.arange(6000) % 3
  batch = {'image': jnp.zeros((6000, 2)), 'label': jnp.asarray(label)}
  found = np.asarray(drawn_rows(monkeypatch, config, batch)[1])
  dropped = found == 3  # the null label
  np.testing.assert_array_equal(found[~dropped], label[~dropped])
  assert dropped.mean() == pytest.approx(0.2, abs=0.02)
  assert dropped[label == 0].mean() == pytest.approx(0.2, abs=0.035)
  other = np.asarray(drawn_rows(monkeypatch, config, batch, key=1)[1])
  assert (other != found).any()
  never = configs.replace(config, {'label_drop': 0.0})
  np.testing.assert_array_equal(drawn_rows(monkeypatch, never, batch)[1], label)


@EACH
@pytest.mark.parametrize('drop, rows', [(0.0, 3), (0.1, 4)])
def test_the_null_label_is_a_row_of_its_own(system, drop, rows):
  net = dict(name='mlp.Denoiser', features=(4,), num_classes=3)
  config = make_config(system, LABELS | {'net': net, 'label_drop': drop})
  batch = jax.eval_shape(lambda: labelled(config))
  state = jax.eval_shape(lambda batch: init(config, batch), batch)
  assert state.net.params['Embed_0']['embedding'].shape == (rows, 4)


# --- Guidance of a net whose samples are its last x_0 ---------------------------------------------


def tabled(**changes):
  """A DDPM that predicts x_0 from the label alone, which deterministic samplers return."""
  values = LABELS | PREDICTS_X_0 | {'net': {'name': Table}, 'diffusion.steps': 50}
  values |= {'sample': dict(sampler='ddim', steps=4)}
  config = make_config('ddpm', values | {k.replace('__', '.'): v for k, v in changes.items()})
  state, params = init(config, labelled(config)), {'table': jnp.float32([0.1, -0.2, 0.3, 0.05])}
  return state.replace(net=state.net.replace(params=params, ema=params)), config


def test_classifier_free_guidance_extrapolates_from_the_null_label():
  own, null = np.tile([0.1, -0.2, 0.3], 2)[:, None], 0.05
  for w in (0.0, 0.5, 2.0):
    state, config = tabled(sample__guidance__w=w)
    expected = np.broadcast_to((1 + w) * own - w * null, (6, 2))
    np.testing.assert_allclose(sample(state, config), expected, rtol=1e-5)
  state, config = tabled(sample__guidance__w=0.0)
  unguided = find_system('ddpm').denoiser(state.net.ema, jnp.arange(3), config=config)
  x_0 = unguided(jnp.ones((3, 2)), jnp.zeros(3)).x_0
  np.testing.assert_array_equal(sample(state, config, 3), x_0)  # bit for bit


@pytest.mark.parametrize('system', ['edm', 'flow_matching', 'score_sde', 'ddpm'])
def test_autoguidance_extrapolates_from_a_run_of_any_system(system):
  """The weak net says x_0 = -0.15, in the terms of its system."""
  values = {'data.num_classes': 3, 'net': dict(name=Says, system=system)}
  values |= PREDICTS_X_0 if system == 'ddpm' else {}
  weak_config = make_config(system, values)
  weak = Frozen({'a': jnp.float32(-0.15)}, {}, weak_config)
  own = np.tile([0.1, -0.2, 0.3], 2)[:, None]
  for w in (1.0, 2.5):
    state, config = tabled(sample__guidance__weak_run='runs/weak', sample__guidance__weak_w=w)
    expected = np.broadcast_to(-0.15 + w * (own + 0.15), (6, 2))
    found = sample(state.replace(weak=weak), config)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    if w == 1:  # none, bit for bit
      np.testing.assert_array_equal(found, sample(state, config))


def test_the_interval_of_guidance():
  # What DDIM returns is the prediction at its last time, t = 0, where sigma / alpha is 0.01.
  state, config = tabled(sample__guidance__w=1.0, sample__steps=2)
  guided, plain = sample(state, config), sample(state, tabled()[1])
  assert np.abs(guided - plain).min() > 0.04
  sample_in = lambda *interval: sample(
    state, configs.replace(config, {'sample.guidance.interval': interval})
  )
  np.testing.assert_array_equal(sample_in(0.1, 1e3), plain)
  np.testing.assert_array_equal(sample_in(0.0, 0.1), guided)


def test_evaluations_are_counted_with_those_of_guidance():
  def count(**changes):
    return _denoising.evaluations(tabled(**changes)[1])

  weak = dict(sample__guidance__weak_run='runs/weak')
  assert count() == 4
  assert count(sample__sampler='heun') == 7
  assert count(sample__sampler='predictor_corrector', sample__corrector_steps=2) == 12
  assert count(sample__steps='diffusion.steps') == 50
  assert count(sample__guidance__w=1.0) == 8
  assert count(**weak) == 8
  assert count(**weak, sample__guidance__weak_w=1.0) == 4
  assert count(**weak, sample__guidance__w=1.0) == 12
  assert count(sample__guidance__run='runs/c') == 4  # a classifier denoises nothing
  assert count(sample__sampler='ode') is None
  # Of the times 36, 24, 12, 0 those whose noise is inside: sigma / alpha is 0.01 at the last.
  inside = dict(sample__guidance__interval=(0.1, 1e3))
  assert count(**inside) == 4
  assert count(sample__guidance__w=1.0, **inside) == 7
  assert count(sample__guidance__w=1.0, **weak, **inside) == 10


# --- Guidance by a classifier of another process --------------------------------------------------

DDPM = make_path(linear_betas(1000, 1e-4, 0.02))


class ExactClassifier(nn.Module):
  """p(y | x_t) of the mixture on DDPM's path."""

  @nn.compact
  def __call__(self, x, t, *, train):
    self.param('a', nn.initializers.zeros, ())
    return log_joint(DDPM)(x, t.astype(jnp.float32))


class ExactEDM(nn.Module):
  """F of EDM for the mixture: D = c_skip x + c_out F(c_in x, ln(sigma) / 4)."""

  @nn.compact
  def __call__(self, x, t, label=None, *, train):
    self.param('a', nn.initializers.zeros, ())
    sigma = jnp.exp(4 * t)
    total = (sigma**2 + 0.25)[:, None]
    x = x * jnp.sqrt(total)
    D = exact(EDM())(x, sigma).x_0
    return (D - 0.25 / total * x) / (0.5 * sigma[:, None] / jnp.sqrt(total))


class ExactFlow(nn.Module):
  """The velocity of the mixture."""

  @nn.compact
  def __call__(self, x, t, label=None, *, train):
    self.param('a', nn.initializers.zeros, ())
    x_0, eps, _ = exact(Linear())(x, t)
    return eps - x_0


MIXTURE = {'data.shape': (1,), 'data.num_classes': 2}


def classifier(**changes):
  values = MIXTURE | {'net': {'name': ExactClassifier}, 'optim.lr': 0.1}
  config = configs.make('noisy_classifier', values | changes)
  return Frozen({'a': jnp.float32(0)}, {}, config)


@pytest.mark.parametrize('system, net', [('edm', ExactEDM), ('flow_matching', ExactFlow)])
def test_a_classifier_of_ddpm_guides_an_edm_and_a_flow(system, net):
  drawing = dict(sampler='heun', steps=40, guidance=dict(run='runs/c', scale=1.0))
  config = make_config(system, MIXTURE | {'net': {'name': net}, 'sample': drawing})
  batch = {'image': jnp.zeros((4, 1)), 'label': jnp.zeros(4, jnp.int32)}
  state = init(config, batch)
  assert not _denoising.conditional(state, config=config)
  state = state.replace(guide=classifier())
  assert _denoising.conditional(state, config=config)
  label = np.arange(2000) % 2
  x = sample(state, config, 2000)[:, 0]
  for y in (0, 1):
    assert x[label == y].mean() == pytest.approx(MEANS[y], abs=0.025)
    assert x[label == y].std() == pytest.approx(SPREADS[y], rel=0.1)
  # With the scale 0 both components are there, as without the classifier.
  none = configs.replace(config, {'sample.guidance.scale': 0.0})
  plain = sample(state.replace(guide=None), config, 2000)
  np.testing.assert_allclose(sample(state, none, 2000), plain, atol=1e-4)
  assert np.mean(plain < 0) == pytest.approx(0.7, abs=0.03)


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('system', 'changes', 'message'),
  [
    (
      'edm',
      {'sample.guidance.w': 1.0, 'data.num_classes': 3},
      'config.sample.guidance.w=1.0: .* config.label_drop above 0',
    ),
    ('edm', {'label_drop': 0.1}, 'config.label_drop=0.1: a net without config.net.num_classes'),
    (
      'flow_matching',
      {'sample.guidance.interval': (1.0, 1.0)},
      r'config.sample.guidance.interval=\(1.0, 1.0\): the first',
    ),
    (
      'ddpm',
      {'sample.steps': 1001},
      'config.sample.steps=1001: at most config.diffusion.steps=1000',
    ),
    (
      'ddpm',
      {'sample.variance': 'learned'},
      "config.sample.variance='learned' with config.diffusion.learned_variance=False",
    ),
    (
      'flow_matching',
      {'sample': dict(sampler='heun', sigma_max=1e-4)},
      'config.sample.sigma_max=0.0001: more than 0.002 is needed',
    ),
    (
      'score_sde',
      {'sample': dict(sampler='ode', intermediates=3)},
      "config.sample.intermediates=3: .* config.sample.sampler='ode', 0 is needed",
    ),
    (
      'edm',
      {'eval.every_steps': 10, 'eval.quick': dict(sampler='ode', intermediates=2)},
      'config.eval.quick.intermediates=2',
    ),
  ],
  ids=str,
)
def test_contradictions_are_one_line(system, changes, message):
  contract.check_fields(make_config(system))
  with pytest.raises(UserError, match=message) as error:
    contract.check_fields(make_config(system, changes))
  assert '\n' not in str(error.value)


def test_values_that_are_out_of_range():
  with pytest.raises(UserError, match='config.sample.guidance.w=-1.0'):
    make_config('edm', {'sample.guidance.w': -1.0})
  with pytest.raises(UserError, match='config.sample.guidance.weak_w=0.5'):
    make_config('edm', {'sample.guidance': dict(weak_run='runs/w', weak_w=0.5)})
  for system in ('edm', 'ddpm'):
    with pytest.raises(UserError, match='config.sample.steps=None'):
      make_config(system, {'sample.steps': None})
  with pytest.raises(UserError, match='config.sample.tolerance=1e-08'):
    make_config('edm', {'sample': dict(sampler='ode', tolerance=1e-8)})


@pytest.mark.parametrize(
  ('field', 'player'), [('run', 'guide'), ('weak_run', 'weak')], ids=['classifier', 'weak']
)
def test_runs_of_other_data_or_systems_are_refused_before_compiling(field, player):
  config = make_config('edm', MIXTURE | {f'sample.guidance.{field}': 'runs/other'})
  batch = {'image': jnp.zeros((4, 1)), 'label': jnp.zeros(4, jnp.int32)}
  good = classifier()
  if player == 'weak':
    good = Frozen({'a': jnp.float32(0)}, {}, make_config('flow_matching', MIXTURE))

  def refusal(**changes):
    other = good.replace(
      config=configs.replace(good.config, {k.replace('__', '.'): v for k, v in changes.items()})
    )
    state = jax.eval_shape(lambda: init(config, batch).replace(**{player: other}))
    with pytest.raises(UserError) as error:
      contract.abstract_samples(config, edm, state)
    return str(error.value)

  run = f"config.sample.guidance.{field}='runs/other'"
  both = 'they must be equal'
  assert refusal(data__shape=(3,)) == (
    f'{run} has data.shape=(3,), but config.data.shape=(1,): {both}'
  )
  assert refusal(data__num_classes=5) == (
    f'{run} has data.num_classes=5, but config.data.num_classes=2: {both}'
  )
  assert refusal(system='gan').startswith(f"{run} is a run of system 'gan': one of ")
  assert '\n' not in refusal(system='gan')


def test_a_net_that_predicts_another_shape_is_refused():
  class Grey(nn.Module):
    @nn.compact
    def __call__(self, x, t, label=None, h=None, *, train):
      return nn.Dense(1)(x)

  for system in _denoising.SYSTEMS:
    config = make_config(system, {'net': {'name': Grey}})
    with pytest.raises(UserError, match=r'config.net: Grey maps \(.*, 2\) to \(.*, 1\)'):
      contract.check_fields(config)
