"""Writes fixtures/dpm_solver.npz: DPM-Solver++ of diffusers 0.42.1, and of LuChengTHU/dpm-solver at
commit 52bc3fb.

    python -m pip install torch==2.14.1 diffusers==0.42.1
    python tests/diffusion/dpm_solver_reference.py CLONE_OF_DPM_SOLVER

A process of 1000 steps with linear betas 1e-4 to 0.02; the net is `eps_net` of authors.py, told the
index of the time. Sampling starts from `start` [2, 3, 2, 2]. All of it in float64.

diffusers, for S = 10 and 20 steps, spacing 'linspace', sigma 0 at the end: times_S [S], alphas_S
  and sigmas_S [S + 1] (the last ones are 1 and 0); path_S [S, 2, 3, 2, 2], the results of all steps
  of 2M; sde_path_S, those of its SDE form with the noises `noise` [20, 2, 3, 2, 2], the first S of
  them, also for the last step, which scales its own by 0. Fewer than 15 steps end with first order,
  and so does every grid that ends at sigma = 0.
DPM-Solver, 2M (multistep, order 2) on the grid of evenly spaced log SNR, for S = 10 and 20:
  snr_times_S [S + 1] from 1 to 1 / 1000 of the authors' time t = (index + 1) / 1000, log alpha
  interpolated linearly; snr_alphas_S, snr_sigmas_S; snr_path_S [S, 2, 3, 2, 2]. With one more
  evaluation, `denoise_to_zero`: snr_denoised_S [2, 3, 2, 2]. The grid of the linear VP SDE (0.1 to
  20) from t = 1 to 1e-3: vp_times_10 [11].
DDIM of diffusers: trailing_S and leading_S, the times of S = 10, 30, 50 steps.
"""

import importlib.util
import pathlib
import sys

import numpy as np
from authors import eps_net, in_float64, inputs, save

SHAPE = (2, 3, 2, 2)
BETAS = np.linspace(1e-4, 0.02, 1000)
STEPS = (10, 20)


def main(clone):
  import torch
  from diffusers import DDIMScheduler

  torch.set_default_dtype(torch.float64)
  name = 'diffusers.schedulers.scheduling_dpmsolver_multistep'
  origin = pathlib.Path(importlib.util.find_spec(name).origin)
  diffusers = in_float64(origin, name)
  solver = in_float64(clone / 'dpm_solver_pytorch.py', 'dpm_solver_pytorch')

  start, noise = inputs(5, SHAPE, (20, *SHAPE))
  out = dict(start=start, noise=noise)
  start, noise = torch.as_tensor(start), torch.as_tensor(noise)
  for steps in STEPS:
    for prefix, kind in (('', 'dpmsolver++'), ('sde_', 'sde-dpmsolver++')):
      scheduler = diffusers.DPMSolverMultistepScheduler(
        trained_betas=BETAS,
        algorithm_type=kind,
        timestep_spacing='linspace',
        final_sigmas_type='zero',
      )
      scheduler.set_timesteps(steps)
      alphas, sigmas = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas)
      out |= {f'times_{steps}': scheduler.timesteps}
      out |= {f'alphas_{steps}': alphas, f'sigmas_{steps}': sigmas}
      x, path = start, []
      for t, z in zip(scheduler.timesteps, noise, strict=False):
        eps = eps_net(x, t.double(), torch)
        x = scheduler.step(eps, t, x, variance_noise=z).prev_sample
        path.append(x)
      out[f'{prefix}path_{steps}'] = torch.stack(path)

  schedule = solver.NoiseScheduleVP('discrete', betas=torch.as_tensor(BETAS))
  eps = solver.model_wrapper(
    lambda x, label: eps_net(x, label.reshape(-1, 1, 1, 1), torch), schedule
  )
  ours = solver.DPM_Solver(eps, schedule, algorithm_type='dpmsolver++')
  for steps in STEPS:
    times = ours.get_time_steps('logSNR', 1.0, 1e-3, steps, 'cpu')
    options = dict(order=2, skip_type='logSNR', method='multistep')
    _, path = ours.sample(start, steps, return_intermediate=True, **options)
    denoised = ours.sample(start, steps, denoise_to_zero=True, **options)
    out |= {
      f'snr_times_{steps}': times,
      f'snr_alphas_{steps}': schedule.marginal_alpha(times),
      f'snr_sigmas_{steps}': schedule.marginal_std(times),
      f'snr_path_{steps}': torch.stack(path[1:]),
      f'snr_denoised_{steps}': denoised,
    }
  vp = solver.NoiseScheduleVP('linear', continuous_beta_0=0.1, continuous_beta_1=20.0)
  out['vp_times_10'] = solver.DPM_Solver(eps, vp).get_time_steps('logSNR', 1.0, 1e-3, 10, 'cpu')

  for spacing in ('trailing', 'leading'):
    for steps in (10, 30, 50):
      ddim = DDIMScheduler(num_train_timesteps=1000, timestep_spacing=spacing)
      ddim.set_timesteps(steps)
      out[f'{spacing}_{steps}'] = ddim.timesteps
  save('dpm_solver', **out)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
