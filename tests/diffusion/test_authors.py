"""Paths, samplers, bounds and losses against the numbers of the authors' code, see authors.py.

A system's net is replaced by a function of what the net would be told.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from authors import (
  eps_net,
  load,
  mean_velocity_net,
  raw_net,
  score_net,
  sigma_net,
  velocity_net,
)
from ml_collections import ConfigDict

from gen_jax import draws
from gen_jax.diffusion import bound, grids, paths, predictions, process, samplers
from gen_jax.diffusion.paths import Prediction, per_row
from gen_jax.systems import _denoising, ddpm, edm, flow_matching, mean_flow, score_sde

LINEAR = paths.Discrete(np.cumprod(1 - process.linear_betas(1000, 1e-4, 0.02)))
SDES = {'vp': paths.VP(), 'subvp': paths.SubVP(), 've': paths.VE(0.01, 50.0)}


def close(found, expected, rtol=1e-5):
  """Within rtol of the largest value."""
  np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


def denoise_of(path, net, label=lambda t: t, kind='eps'):
  """A net of authors.py as a `Denoise` on a path."""

  def denoise(x, t):
    output = net(x, per_row(label(t), x.ndim), jnp)
    return predictions.to_prediction(kind, output, x, path.alpha(t), path.sigma(t))

  return denoise


def first_steps(methods, denoise, x, noise):
  """The first step of each of the samplers, with one example and its noise for each."""
  rows = [method.rows for method in methods]
  stacked = {name: np.array([row[name][0] for row in rows]) for name in rows[0]}
  row = {k: per_row(v if v.dtype == bool else np.float32(v), x.ndim) for k, v in stacked.items()}
  x, noise, t = (jnp.float32(o) for o in (x, noise, stacked['t']))
  return methods[-1].step(x, jnp.zeros_like(x), row, denoise(x, t), noise)[0]


def step_grid(path, t, following):
  """The grid of a step from t to the next time, or to the end where that is negative."""
  t = np.array([t, following], np.float64)[: 1 + (following >= 0)]
  return grids.Grid(path, t, np.append(path.alpha(t), 1.0), np.append(path.sigma(t), 0.0))


@pytest.fixture
def run(monkeypatch):
  """`samplers.run` with given noises, one for each evaluation: returns x after each."""

  def run(method, denoise, x, noises=None):
    total = len(method.rows['t'])
    if noises is not None:
      noises = jnp.asarray(noises, jnp.float32)
      monkeypatch.setattr(jax.random, 'fold_in', lambda rng, left: total - 1 - left)
      monkeypatch.setattr(jax.random, 'normal', lambda i, shape: noises[i])
    x, kept = samplers.run(method, denoise, jnp.float32(x), jax.random.key(0), keep=total)
    np.testing.assert_array_equal(x, kept[-1])
    return np.asarray(kept)

  return run


@pytest.fixture
def loss_of(monkeypatch):
  """The loss of a system whose net is a function of x, of what it is told of t, and of h."""

  def loss_of(system, net, config, rows, **how):
    def apply(model, params, x, told, label, *channels, **more):
      assert more.pop('train')
      times = {'label': told, **{name: more[name] for name in more if name == 'h'}}
      return net(x, **{name: per_row(time, x.ndim) for name, time in times.items()})

    monkeypatch.setattr(_denoising, 'apply', apply)
    as_jax = lambda o: jnp.asarray(o, jnp.float32 if o.dtype == np.float64 else None)  # noqa: E731
    rows = [None if row is None else as_jax(np.asarray(row)) for row in rows]
    config = ConfigDict(config)
    loss, (metrics, _) = system.loss_fn(None, rows, None, model=None, config=config, **how)
    assert metrics['net/loss'] is loss
    return loss, metrics

  return loss_of


# --- guided-diffusion -----------------------------------------------------------------------------

GUIDED = load('guided_diffusion')


def test_the_cosine_schedule():
  close(process.cosine_betas(1000), GUIDED.cosine_1000, 1e-12)
  close(process.cosine_betas(4000)[::40], GUIDED.cosine_4000, 1e-12)


def learned(x, t):
  found = denoise_of(LINEAR, eps_net)(x, t)
  return found._replace(variance=sigma_net(x, per_row(t, x.ndim), jnp))


def guided_step(given, make, clip):
  denoise = samplers.clipped(learned, LINEAR) if clip else learned
  return first_steps([make(grid) for grid in given], denoise, GUIDED.x_t, GUIDED.noise)


@pytest.mark.parametrize('clip', [True, False])
def test_steps_of_guided_diffusion(clip):
  given = [step_grid(LINEAR, t, t - 1) for t in GUIDED.t]
  makers = {
    'p_sample': lambda grid: samplers.ancestral(grid, variance='learned'),
    'p_sample_large': samplers.ancestral,
    'ddim_0': samplers.ddim,
    'ddim_0.7': lambda grid: samplers.ddim(grid, eta=0.7),
  }
  for name, make in makers.items():
    found, expected = (
      guided_step(given, make, clip),
      getattr(GUIDED, name + '_clipped' * clip),
    )
    for i in range(6):
      close(found[i], expected[i], 2e-5)


def test_a_respaced_step_of_guided_diffusion():
  """Its process of fewer steps is a grid of ours; the net is told the original times."""
  kept, t = GUIDED.times_1000_50, GUIDED.spaced_t
  given = [step_grid(LINEAR, kept[i], kept[i - 1] if i else -1) for i in t]
  betas = [grids.steps_of(grid).variance[0] for grid in given]
  np.testing.assert_allclose(betas, GUIDED.spaced_betas[t], 1e-9)
  found = guided_step(given, lambda grid: samplers.ancestral(grid, variance='learned'), clip=True)
  close(found, GUIDED.spaced_p_sample, 2e-5)


@pytest.mark.parametrize('total, steps', [(1000, 250), (1000, 50), (4000, 100)])
def test_even_times_are_those_of_respacing(total, steps):
  found = grids.discrete_times(total, steps, 'even')
  np.testing.assert_array_equal(found, getattr(GUIDED, f'times_{total}_{steps}'))


TABLES = process.make_process(process.linear_betas(1000, 1e-4, 0.02))


@pytest.mark.parametrize('clip', [True, False])
@pytest.mark.parametrize('variance', ['large', 'learned'])
def test_the_terms_of_the_bound(variance, clip):
  name = 'vb' + '_large' * (variance == 'large') + '_clipped' * clip
  t, x_0, noise = jnp.asarray(GUIDED.t), jnp.float32(GUIDED.x_0), jnp.float32(GUIDED.noise)
  x_t = process.q_sample(TABLES, x_0, t, noise)
  how = dict(variance=variance, clip=clip, bin_width=bound.BIN_WIDTH['none'])
  found = bound.term(learned(x_t, jnp.float32(t)), x_0, x_t, t, TABLES, **how) / np.log(2)
  # Near t = 0 the mean's float32 error is compared with beta_tilde.
  np.testing.assert_allclose(found, getattr(GUIDED, name), rtol=2e-4)


def test_the_moments_of_a_learned_variance():
  x_t, t = jnp.float32(GUIDED.x_t), jnp.asarray(GUIDED.t)
  prediction = learned(x_t, jnp.float32(t))
  for name, clip in (('mean', False), ('mean_clipped', True)):
    mean, log_variance = process.p_mean_variance(
      prediction, x_t, t, TABLES, variance='learned', clip=clip
    )
    for i in range(6):
      close(mean[i], getattr(GUIDED, name)[i], 2e-5)
    close(log_variance, GUIDED.log_variance_learned, 1e-6)


def test_the_prior_term():
  found = bound.prior_kl(TABLES, jnp.float32(GUIDED.x_0)).mean((1, 2, 3)) / np.log(2)
  np.testing.assert_allclose(found, GUIDED.prior, rtol=1e-3)  # 1e-5 as the difference of two ones


def hybrid(x, label, factors=(1, 1)):
  nets = eps_net(x, label, jnp), sigma_net(x, label, jnp)
  return jnp.concatenate([a * o for a, o in zip(factors, nets, strict=True)], axis=-1)


@pytest.mark.parametrize('steps', [1000, 4000])
def test_the_hybrid_loss_of_improved_ddpm(loss_of, steps):
  """By 4000 steps the net is told times of 0 to 1000."""
  config = dict(
    data=dict(dequantize='none'),
    diffusion=dict(
      steps=steps,
      prediction='eps',
      weighting='simple',
      learned_variance=True,
      vlb_weight=0.001,
      time_scale=1000 / steps,
    ),
  )
  tables = process.make_process(process.linear_betas(steps, 0.1 / steps, 20 / steps))
  rows = GUIDED.x_0, None, GUIDED.t * (steps // 1000), GUIDED.noise
  how = dict(tables=tables)
  loss, metrics = loss_of(ddpm, hybrid, config, rows, **how)
  if steps == 4000:
    np.testing.assert_allclose(loss, GUIDED.hybrid_4000.mean(), rtol=1e-5)
    return
  np.testing.assert_allclose(loss, GUIDED.hybrid.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics['net/simple'], GUIDED.mse.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics['net/vlb'] / 1000, GUIDED.hybrid_vb.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics['net/vlb'], GUIDED.rescaled_vb.mean(), rtol=1e-5)
  of_factors = lambda factors: loss_of(  # noqa: E731
    ddpm, functools.partial(hybrid, factors=factors), config, rows, **how
  )[0]
  # The bound does not reach the mean.
  found = jax.grad(of_factors)(jnp.ones(2))
  np.testing.assert_allclose(found, GUIDED.hybrid_gradient, rtol=1e-4)


# --- score_sde ------------------------------------------------------------------------------------

SDE = load('score_sde')


def of(name, key):
  return getattr(SDE, f'{name}_{key}')


def sde_net(name):
  """The net as the authors call it: told t * 999, or sigma."""
  path = SDES[name]
  if name == 've':
    return denoise_of(path, score_net, path.sigma, 'score')
  return denoise_of(path, eps_net, lambda t: t * 999)


@pytest.mark.parametrize('name', SDES)
def test_the_sdes_of_score_sde(name):
  path, t = SDES[name], SDE.t
  close(path.alpha(t), of(name, 'mean_coef'), 1e-12)
  np.testing.assert_allclose(path.sigma(t), of(name, 'std'), rtol=1e-9)
  np.testing.assert_allclose(path.drift(t), of(name, 'drift_coef'), rtol=1e-9)
  np.testing.assert_allclose(path.diffusion_squared(t) ** 0.5, of(name, 'diffusion'), rtol=1e-9)
  single = jnp.float32(t)
  np.testing.assert_allclose(path.sigma(single), of(name, 'std'), rtol=2e-6)
  eps = sde_net(name)(jnp.float32(SDE.x), single).eps
  close(-eps / per_row(path.sigma(single), 4), of(name, 'score'))


@pytest.mark.parametrize('name', SDES)
def test_a_step_of_euler_and_maruyama(name):
  # Their step of 1 / 1000 from t = 1e-3 ends at 0, where ours has other rules.
  given = [step_grid(SDES[name], t, max(t - 1e-3, 1e-12)) for t in SDE.t]
  methods = [samplers.euler_maruyama(grid) for grid in given]
  found = first_steps(methods, sde_net(name), SDE.x, SDE.z)
  for i in range(4):
    close(found[i], of(name, 'euler_maruyama')[i], 2e-5)


def discrete(name):
  """The process of 1000 steps in which the authors discretise an SDE: alpha and sigma [1001], from
  no noise on, but for a trace of it.
  """
  if name == 'vp':
    alpha_bar = np.cumprod(1 - np.append(1e-20, np.linspace(0.1, 20, 1000) / 1000))
    return alpha_bar**0.5, np.maximum(1 - alpha_bar, 1e-20) ** 0.5
  return np.ones(1001), np.append(1e-10, np.geomspace(0.01, 50, 1000))


def discretised(name):
  """Grids of the authors' steps from `SDE.t` in their process of 1000 steps, and the net: its score
  is that of the time t, its eps that score by the sigma of the process.
  """
  alphas, sigmas = discrete(name)
  indices, given = (SDE.t * 999).astype(int), []
  for t, i in zip(SDE.t, indices, strict=True):
    alpha, sigma = (np.append(o[[i + 1, i]], end) for o, end in ((alphas, 1.0), (sigmas, 0.0)))
    given.append(grids.Grid(SDES[name], np.array([t, 0.5]), alpha, sigma))
  alpha, sigma = (per_row(np.float32(o[indices + 1]), 4) for o in (alphas, sigmas))

  def denoise(x, t):
    eps = sde_net(name)(x, t).eps / per_row(SDES[name].sigma(t), x.ndim) * sigma
    return Prediction((x - sigma * eps) / alpha, eps)

  return given, denoise


@pytest.mark.parametrize('name', ['vp', 've'])
def test_ancestral_reverse_diffusion_and_langevin_steps(name):
  given, denoise = discretised(name)
  variance = {'vp': 'large', 've': 'small'}[name]
  makers = {
    'ancestral': lambda grid: samplers.ancestral(grid, variance=variance),
    'reverse_diffusion': lambda grid: samplers.predictor_corrector(grid, corrector_steps=0),
    'langevin': samplers.predictor_corrector,  # its first row; norms are means over the batch
  }
  for key, make in makers.items():
    found = first_steps([make(grid) for grid in given], denoise, SDE.x, SDE.z)
    for i in range(4):
      close(found[i], of(name, key)[i], 2e-5)


def test_the_predictor_and_corrector_of_score_sde(run):
  t = np.linspace(1, 1e-5, 10)
  # Coefficients are those of the sigmas of a process of 10 steps, labels and scores those of t.
  sigma = np.geomspace(50, 0.01, 10)
  grid = grids.Grid(SDES['ve'], t, np.ones(11), np.append(sigma, 0.0))
  method = samplers.predictor_corrector(grid, snr=0.16, corrector_steps=1)

  def denoise(x, t):
    own = per_row(jnp.interp(t, np.linspace(1e-5, 1, 10), jnp.float32(sigma[::-1])), 4)
    score = score_net(x, per_row(SDES['ve'].sigma(t), 4), jnp)
    return Prediction(x + own**2 * score, -own * score)

  found = run(method, denoise, 50 * SDE.pc_start, SDE.pc_noise)
  for i in range(9):
    close(found[2 * i + 1], SDE.ve_pc_path[i], 2e-5)
  close(found[-1], SDE.ve_pc, 2e-5)


@pytest.mark.parametrize('weighting', ['sigma', 'likelihood'])
@pytest.mark.parametrize('name', SDES)
def test_the_losses_of_score_sde(loss_of, name, weighting):
  def net(x, label):
    if name != 've':
      return eps_net(x, label, jnp)
    sigma = 2 * jnp.exp(label)  # told log(sigma / 2)
    return -sigma * score_net(x, sigma, jnp)

  sde = dict(name={'subvp': 'sub_vp'}.get(name, name), weighting=weighting)
  sde |= dict(beta_min=0.1, beta_max=20.0, sigma_min=0.01, sigma_max=50.0)
  rows = SDE.x_0, None, SDE.t, SDE.z
  loss, _ = loss_of(score_sde, net, dict(sde=sde), rows)
  suffix = '_likelihood' * (weighting == 'likelihood')
  np.testing.assert_allclose(loss, of(name, f'loss_mean{suffix}'), rtol=1e-5)


# --- EDM ------------------------------------------------------------------------------------------

HEUN = load('edm')


def edm_denoise(x, sigma):
  """EDM's preconditioning of `raw_net` (Karras et al. 2022, table 1)."""
  sigma = per_row(sigma, x.ndim)
  c_skip, c_out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / (sigma**2 + 0.25) ** 0.5
  x_0 = c_skip * x + c_out * raw_net(x / (sigma**2 + 0.25) ** 0.5, jnp.log(sigma) / 4, jnp)
  return Prediction(x_0, (x - x_0) / sigma)


def test_the_deterministic_heun_sampler_of_edm(run):
  grid = grids.make_grid(paths.EDM(), 18, 'karras')
  np.testing.assert_allclose(np.append(grid.t, 0), HEUN.heun_sigmas, rtol=1e-9)
  method = samplers.heun(grid)
  np.testing.assert_allclose(method.rows['t'], HEUN.heun_levels, rtol=1e-9)
  found = run(method, edm_denoise, 80 * HEUN.start)
  for i in range(34):  # what one evaluation leads to is where the next one is
    close(found[i], HEUN.heun_at[i + 1])
  close(found[-1], HEUN.heun)


def test_the_stochastic_heun_sampler_of_edm(run):
  grid = grids.make_grid(paths.EDM(), 5, 'karras')
  method = samplers.heun(grid, churn=4, churn_range=(0.05, 50), churn_noise=1.003)
  np.testing.assert_allclose(method.rows['t'], HEUN.churn_levels, rtol=1e-9)
  noises = np.zeros((9, *HEUN.start.shape))
  noises[::2] = HEUN.churn_noise  # the second evaluation of a step has none
  close(run(method, edm_denoise, 80 * HEUN.start, noises)[-1], HEUN.churn)


def test_the_preconditioning_and_the_loss_of_edm(loss_of):
  found = edm.coefficients(jnp.float32(HEUN.sigma), 0.5)
  for name, c in zip(('c_skip', 'c_out', 'c_in', 'c_noise'), found, strict=True):
    np.testing.assert_allclose(c, getattr(HEUN, f'edm_{name}'), rtol=1e-6)
  close(edm_denoise(jnp.float32(HEUN.at), jnp.float32(HEUN.sigma)).x_0, HEUN.edm_denoised)
  sigma = np.exp(-1.2 + 1.2 * HEUN.draw_normal)
  np.testing.assert_allclose(sigma, HEUN.edm_loss_sigma, rtol=1e-9)
  rows = HEUN.x_0, None, sigma, HEUN.z, None
  config = dict(edm=dict(sigma_data=0.5))
  loss, _ = loss_of(edm, lambda x, label: raw_net(x, label, jnp), config, rows)
  np.testing.assert_allclose(loss, HEUN.edm_loss.sum() / 4, rtol=1e-5)


# --- DPM-Solver++ ---------------------------------------------------------------------------------

DPM = load('dpm_solver')
dpm_denoise = denoise_of(LINEAR, eps_net)


@pytest.mark.parametrize('steps', [10, 20])
@pytest.mark.parametrize('stochastic', [False, True])
def test_dpm_solver_pp_of_diffusers(run, stochastic, steps):
  times, alphas, sigmas = (
    getattr(DPM, f'{name}_{steps}') for name in ('times', 'alphas', 'sigmas')
  )
  close(LINEAR.alpha(np.float64(times)), alphas[:-1], 1e-9)
  grid = grids.Grid(LINEAR, np.float64(times), alphas, sigmas)
  found = run(
    samplers.dpm_solver_pp(grid, stochastic=stochastic), dpm_denoise, DPM.start, DPM.noise[:steps]
  )
  expected = getattr(DPM, f'{"sde_" * stochastic}path_{steps}')
  # float32, where alpha = 0.006 divides the noise.
  close(found, expected, 1e-4)


@pytest.mark.parametrize('steps', [10, 20])
def test_dpm_solver_pp_on_the_grid_of_its_authors(run, steps):
  """Their steps, and the last evaluation that they call denoise_to_zero."""
  grid = grids.make_grid(LINEAR, steps + 1, 'logsnr')
  np.testing.assert_allclose((grid.t + 1) / 1000, getattr(DPM, f'snr_times_{steps}'), rtol=1e-6)
  np.testing.assert_allclose(grid.alpha[:-1], getattr(DPM, f'snr_alphas_{steps}'), rtol=1e-6)
  np.testing.assert_allclose(grid.sigma[:-1], getattr(DPM, f'snr_sigmas_{steps}'), rtol=1e-6)
  found = run(samplers.dpm_solver_pp(grid), dpm_denoise, DPM.start)
  close(found[:-1], getattr(DPM, f'snr_path_{steps}'), 1e-4)
  close(found[-1], getattr(DPM, f'snr_denoised_{steps}'), 1e-4)


def test_the_log_snr_grid_of_a_continuous_process():
  path = paths.VP()
  np.testing.assert_allclose(grids.make_grid(path, 11, 'logsnr').t, DPM.vp_times_10, rtol=1e-6)


@pytest.mark.parametrize('steps', [10, 30, 50])
def test_trailing_times(steps):
  expected = getattr(DPM, f'trailing_{steps}')
  np.testing.assert_array_equal(grids.discrete_times(1000, steps, 'trailing')[::-1], expected)


# --- Flow matching --------------------------------------------------------------------------------

FLOW = load('flow')


def test_the_linear_path():
  close(paths.add_noise(paths.Linear(), FLOW.x, 1 - FLOW.path_t, FLOW.e), FLOW.path_x, 1e-6)
  close(predictions.target('velocity', FLOW.x, FLOW.e, 1.0, 0.0), -FLOW.path_dx, 1e-6)


def test_eulers_method_of_flow_matching_is_ddim_on_its_grid(run):
  path = paths.Linear()
  for steps in (18, 50):
    grid = grids.make_grid(path, steps, 'karras')
    close(np.append(grid.t, 0), 1 - getattr(FLOW, f'edm_grid_{steps}'), 1e-9)
  grid = grids.make_grid(path, 18, 'karras')
  denoise = denoise_of(path, velocity_net, kind='velocity')
  close(run(samplers.ddim(grid), denoise, FLOW.e)[-1], FLOW.flow_sample)


def test_the_loss_and_the_times_of_flow_matching(loss_of, monkeypatch):
  rows = FLOW.x, None, 1 - FLOW.path_t, FLOW.e
  net = lambda x, label: velocity_net(x, label / 10, jnp)  # noqa: E731
  loss, _ = loss_of(flow_matching, net, dict(flow=dict(time_scale=10.0)), rows)
  np.testing.assert_allclose(loss, FLOW.flow_loss, rtol=1e-5)
  monkeypatch.setattr(draws, 'normal', lambda key, *args: key)
  config = ConfigDict(dict(flow=dict(times='logit_normal', mean=-1.2, std=1.2)))
  t = flow_matching.draw_times(FLOW.draws, (8,), config)
  np.testing.assert_allclose(1 - t, FLOW.skewed_times, rtol=1e-5)


# --- MeanFlow -------------------------------------------------------------------------------------


def test_the_times_of_mean_flow(monkeypatch):
  for name in ('normal', 'uniform'):
    monkeypatch.setattr(draws, name, lambda key, *args: key)
  flow = dict(t_mean=-0.6, t_std=1.6, r_mean=-4.0, r_std=1.6, equal=0.25)
  keys = dict(t=FLOW.draws, r=FLOW.draws_r, equal=FLOW.uniform)
  t, r = mean_flow.draw_times(keys, (8,), ConfigDict(dict(flow=flow)))
  np.testing.assert_allclose(t, FLOW.v1_t, rtol=1e-5)
  np.testing.assert_allclose(r, FLOW.v1_r, rtol=1e-5)
  assert 0 < (t == r).sum() < 8


def test_one_step_of_mean_flow(monkeypatch):
  net = lambda model, params, z, t, *args, h, train: mean_velocity_net(  # noqa: E731
    z, per_row(t, 4), per_row(h, 4), jnp
  )
  monkeypatch.setattr(_denoising, 'apply', net)
  monkeypatch.setattr(mean_flow, 'build', lambda config: None)
  monkeypatch.setattr(draws, 'normal', lambda *args: jnp.float32(FLOW.e))
  config = dict(
    sample=dict(sampler='mean_flow', steps=1, weights='raw', intermediates=0),
    flow=dict(time_scale=1.0),
    data=dict(shape=(3, 2, 2)),
  )
  state = types.SimpleNamespace(net=types.SimpleNamespace(params=None))
  given = {'label': np.zeros(4, np.int32)}
  found = mean_flow.sample(state, given, jax.random.key(0), config=ConfigDict(config))
  close(found['image'], np.clip(FLOW.sample, -1, 1))


@pytest.mark.parametrize('key, p, c', [('loss', 0.75, 1e-3), ('loss_p1', 1.0, 0.01)])
def test_the_loss_of_mean_flow(loss_of, key, p, c):
  def loss(factor):
    net = lambda x, label, h: factor * mean_velocity_net(x, label, h, jnp)  # noqa: E731
    rows = FLOW.x, None, FLOW.t, FLOW.r, FLOW.e
    return loss_of(mean_flow, net, dict(flow=dict(p=p, c=c, time_scale=1.0)), rows)[0]

  found, slope = jax.value_and_grad(loss)(1.0)
  np.testing.assert_allclose(found, getattr(FLOW, key), rtol=1e-5)
  if key == 'loss':
    np.testing.assert_allclose(slope, FLOW.gradient, rtol=1e-4)
