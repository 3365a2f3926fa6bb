"""Writes fixtures/guided_diffusion.npz: openai/guided-diffusion at commit 22e0df8.

    python -m pip install torch==2.14.1 numpy
    python tests/diffusion/guided_diffusion_reference.py CLONE

Inputs: `x_0` (8-bit levels in [-1, 1]), `x_t`, `noise` [6, 3, 2, 2] and times `t` [6]. The nets are
`eps_net` and `sigma_net` of authors.py, both told the index of the time. Axis 1 has the channels;
all but the split of the net's output is elementwise. The process has the linear betas, 1e-4 to
0.02 in 1000 steps, unless said otherwise.

variance: log_variance_learned, mean_clipped, mean (unclipped) of p(x_{t-1} | x_t) at x_t.
bound: terms `vb_clipped`, `vb` [6] in bits per dimension, at q_sample(x_0, t, noise); with the
  fixed variance beta_t `vb_large_clipped`, `vb_large`; `prior` [6], the KL of q(x_T | x_0).
losses [6]: mse, vb as scaled in the hybrid loss (rescaled MSE), their sum `hybrid`; the pure bound
  times T (rescaled KL) `rescaled_vb`; hybrid_gradient [2], of the hybrid loss's mean with respect
  to factors of eps and v, at 1. With 4000 steps, linear betas 2.5e-5 to 0.005, and labels
  of 0 to 1000 (rescale_timesteps): `hybrid_4000` at the times 4 t.
steps [6, ...]: p_sample with learned variance, and with clipping or without; ddim_sample with eta
  0 and 0.7, clipped or not; ddim_reverse_sample, clipped or not (t < 999).
respacing: kept times of '250', '50', 'ddim25' of 1000, '100' of 4000, '10,15,20' of 300; betas and
  log variances of '50' of 1000; a p_sample step of the respaced process at `spaced_t`, whose net is
  told the original times.
cosine: `cosine_1000`, and every 40th beta of 4000 steps, `cosine_4000`.
"""

import pathlib
import sys

import numpy as np
from authors import Queue, eps_net, in_float64, inputs, save, sigma_net

SHAPE = (6, 3, 2, 2)
T = np.array([0, 1, 10, 300, 800, 999])


def main(clone):
  import torch

  torch.set_default_dtype(torch.float64)
  sys.path.insert(0, str(clone))
  import guided_diffusion

  folder = clone / 'guided_diffusion'
  gd = in_float64(folder / 'gaussian_diffusion.py', 'guided_diffusion.gaussian_diffusion')
  guided_diffusion.gaussian_diffusion = gd
  respace = in_float64(folder / 'respace.py', 'guided_diffusion.respace')

  def learned(x, label):
    label = label.double().reshape(-1, 1, 1, 1)
    return torch.cat([eps_net(x, label, torch), sigma_net(x, label, torch)], 1)

  def fixed(x, label):
    return eps_net(x, label.double().reshape(-1, 1, 1, 1), torch)

  def process(steps=1000, spacing=None, loss='RESCALED_MSE', variance='LEARNED_RANGE', **kwargs):
    betas = gd.get_named_beta_schedule('linear', steps)
    return respace.SpacedDiffusion(
      use_timesteps=respace.space_timesteps(steps, spacing or [steps]),
      betas=betas,
      model_mean_type=gd.ModelMeanType.EPSILON,
      model_var_type=gd.ModelVarType[variance],
      loss_type=gd.LossType[loss],
      **kwargs,
    )

  level, x_t, noise = inputs(0, SHAPE, SHAPE, SHAPE)
  x_0 = np.float64(np.float32(np.clip(np.round(127.5 + 60 * level), 0, 255) / 127.5 - 1))
  x_0[0].flat[:4] = -1, 1, -1 + 2 / 255, 1 - 2 / 255
  out = dict(x_0=x_0, x_t=x_t, noise=noise, t=T)
  x_0, x_t, noise, t = (torch.as_tensor(o) for o in (x_0, x_t, noise, T))

  d, large = process(), process(variance='FIXED_LARGE')
  p = d.p_mean_variance(learned, x_t, t)
  out |= dict(mean_clipped=p['mean'], log_variance_learned=p['log_variance'])
  out['mean'] = d.p_mean_variance(learned, x_t, t, clip_denoised=False)['mean']

  q = d.q_sample(x_0, t, noise)
  for name, clip in dict(vb_clipped=True, vb=False).items():
    out[name] = d._vb_terms_bpd(learned, x_0, q, t, clip_denoised=clip)['output']
    name = name.replace('vb', 'vb_large')
    out[name] = large._vb_terms_bpd(fixed, x_0, q, t, clip_denoised=clip)['output']
  out['prior'] = d._prior_bpd(x_0)

  losses = d.training_losses(learned, x_0, t, noise=noise)
  out |= dict(mse=losses['mse'], hybrid_vb=losses['vb'], hybrid=losses['loss'])
  factors = torch.ones(2, requires_grad=True)

  def scaled(x, label):
    eps, v = learned(x, label).chunk(2, 1)
    return torch.cat([factors[0] * eps, factors[1] * v], 1)

  loss = d.training_losses(scaled, x_0, t, noise=noise)['loss'].mean()
  (out['hybrid_gradient'],) = torch.autograd.grad(loss, factors)
  kl = process(loss='RESCALED_KL')
  out['rescaled_vb'] = kl.training_losses(learned, x_0, t, noise=noise)['loss']
  fine = process(4000, rescale_timesteps=True)
  out['hybrid_4000'] = fine.training_losses(learned, x_0, 4 * t, noise=noise)['loss']

  def step(name, method, *args, **kwargs):
    torch.randn_like = Queue(noise)
    out[name] = method(*args, **kwargs)['sample']

  for suffix, clip in {'_clipped': True, '': False}.items():
    step(f'p_sample{suffix}', d.p_sample, learned, x_t, t, clip_denoised=clip)
    step(f'p_sample_large{suffix}', large.p_sample, fixed, x_t, t, clip_denoised=clip)
    for eta in (0, 0.7):
      step(f'ddim_{eta}{suffix}', large.ddim_sample, fixed, x_t, t, clip_denoised=clip, eta=eta)
    step(f'ddim_reverse{suffix}', large.ddim_reverse_sample, fixed, x_t, t, clip_denoised=clip)

  for steps, spacing in ((1000, '250'), (1000, '50'), (1000, 'ddim25'), (4000, '100')):
    out[f'times_{steps}_{spacing}'] = sorted(respace.space_timesteps(steps, spacing))
  out['times_300_sections'] = sorted(respace.space_timesteps(300, '10,15,20'))
  spaced = process(spacing='50')
  out['spaced_betas'] = spaced.betas
  out['spaced_log_betas_small'] = spaced.posterior_log_variance_clipped
  out['spaced_t'] = spaced_t = np.array([0, 1, 7, 20, 40, 49])
  step('spaced_p_sample', spaced.p_sample, learned, x_t, torch.as_tensor(spaced_t))

  out['cosine_1000'] = gd.get_named_beta_schedule('cosine', 1000)
  out['cosine_4000'] = gd.get_named_beta_schedule('cosine', 4000)[::40]
  save('guided_diffusion', **out)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
