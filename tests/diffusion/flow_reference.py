"""Writes fixtures/flow.npz: facebookresearch/flow_matching at commit 11568d3, and
Gsunshine/py-meanflow at commit 1f6d72d.

    python -m pip install torch==2.14.1 torchdiffeq==0.2.5
    python tests/diffusion/flow_reference.py CLONE_OF_FLOW_MATCHING CLONE_OF_PY_MEANFLOW

Inputs: `x` (data), `e` (noise) [4, 3, 2, 2], `draws`, `draws_r` [8] (normal), `uniform` [8].

flow_matching, in the authors' time, where t = 1 is data:
  skewed_times [8], from `draws`; edm_grid_N for N = 18 and 50 [N + 1], from nearly 0 to 1.
  path_t [4], path_x and path_dx [4, 3, 2, 2]: points of the linear path and its velocity, data
  minus noise. flow_loss: the mean square of the net's error; the net's velocity is the negative of
  `velocity_net` of authors.py, told our time 1 - t. flow_sample and flow_heun [4, 3, 2, 2]: their
  solver from e on edm_grid_18, with the methods euler and heun2.
MeanFlow, where t = 1 is noise:
  v0_t, v0_r, v1_t, v1_r [8]: times of the two samplers from `draws` (t), `draws_r` (r) and
  `uniform`, of which the share 0.75 has r != t; v0: mean -2, sd 2 for both; v1: -0.6, 1.6 and
  -4, 1.6.
  loss, with the net `mean_velocity_net` at `t`, `r` [4]: the mean over the batch of squared
  errors' sums with the adaptive weight, norm_p 0.75 and norm_eps 1e-3; loss_p1 with norm_p 1,
  norm_eps 0.01. gradient: of the loss with respect to a factor of u, at 1.
  sample [4, 3, 2, 2]: one step from e.
"""

import pathlib
import sys
import types

import numpy as np
from authors import Queue, in_float64, inputs, mean_velocity_net, save, velocity_net

SHAPE = (4, 3, 2, 2)


def main(flow, meanflow):
  import torch

  torch.set_default_dtype(torch.float64)
  x, e, draws, draws_r = inputs(6, SHAPE, SHAPE, 8, 8)
  draws[0], draws_r[0] = -3, 2  # r > t, before they are ordered
  uniform = np.float64(np.float32(np.random.default_rng(7).uniform(size=8)))
  path_t = np.float64(np.float32([0.05, 0.3, 0.7, 1.0]))
  t, r = np.float64(np.float32([[0.05, 0.4, 0.9, 1.0], [0.05, 0.1, 0.2, 0.0]]))
  out = dict(x=x, e=e, draws=draws, draws_r=draws_r, uniform=uniform, path_t=path_t, t=t, r=r)
  x, e, path_t = (torch.as_tensor(o) for o in (x, e, path_t))

  # flow_matching
  sys.path[:0] = [str(flow)]
  from flow_matching.path import CondOTProbPath
  from flow_matching.solver.ode_solver import ODESolver

  examples = flow / 'examples/image/training'
  text = (examples / 'train_loop.py').read_text()
  text = text[text.index('def skewed_timestep_sample') : text.index('def train_one_epoch')]
  found = {'torch': torch}
  exec(text, found)
  torch.randn = Queue(draws)
  out['skewed_times'] = found['skewed_timestep_sample'](8, 'cpu')
  grids = in_float64(examples / 'edm_time_discretization.py', 'edm_time_discretization')
  for steps in (18, 50):
    out[f'edm_grid_{steps}'] = grids.get_time_discretization(steps)

  path = CondOTProbPath().sample(t=path_t, x_0=e, x_1=x)
  out |= dict(path_x=path.x_t, path_dx=path.dx_t)

  def velocity(x, t, **kwargs):
    t = torch.as_tensor(t).reshape(-1, *[1] * (x.ndim - 1))
    return -velocity_net(x, 1 - t, torch)

  out['flow_loss'] = torch.pow(velocity(path.x_t, path_t) - path.dx_t, 2).mean()
  for key, method in {'flow_sample': 'euler', 'flow_heun': 'heun2'}.items():
    out[key] = ODESolver(velocity_model=velocity).sample(
      time_grid=torch.as_tensor(out['edm_grid_18']), x_init=e, method=method, step_size=None
    )

  # MeanFlow
  sys.modules['models'] = types.ModuleType('models')
  models = meanflow / 'meanflow/models'
  sampler = in_float64(models / 'time_sampler.py', 'models.time_sampler')
  sys.modules['models.ema'] = types.SimpleNamespace(init_ema=None, update_ema_net=None)
  mean_flow = in_float64(models / 'meanflow.py', 'models.meanflow').MeanFlow

  versions = {'v0': (-2.0, 2.0, -2.0, 2.0), 'v1': (-0.6, 1.6, -4.0, 1.6)}
  for version, (mean_t, std_t, mean_r, std_r) in versions.items():
    args = types.SimpleNamespace(tr_sampler=version, ratio=0.75)
    args.P_mean_t, args.P_std_t, args.P_mean_r, args.P_std_r = mean_t, std_t, mean_r, std_r
    torch.randn, torch.rand = Queue(draws, draws_r), Queue(uniform)
    times = sampler.sample_two_timesteps(args, 8, 'cpu')
    out |= {f'{version}_t': times[0], f'{version}_r': times[1]}

  factor = torch.tensor(1.0, requires_grad=True)

  def net(z, times, aug_cond):
    t, h = (o.reshape(-1, 1, 1, 1) for o in times)
    return factor * mean_velocity_net(z, t, h, torch)

  mean_flow_module = sys.modules['models.meanflow']
  mean_flow_module.sample_two_timesteps = lambda *args, **kwargs: (
    torch.as_tensor(t),
    torch.as_tensor(r),
  )
  for key, p, c in (('loss_p1', 1.0, 0.01), ('loss', 0.75, 1e-3)):
    torch.randn_like = Queue(e)
    this = types.SimpleNamespace(net=net, args=types.SimpleNamespace(norm_p=p, norm_eps=c))
    loss = mean_flow.forward_with_loss(this, x, None)
    out[key] = loss.detach()
  (out['gradient'],) = torch.autograd.grad(loss, factor)
  torch.randn = Queue(e)
  out['sample'] = mean_flow.sample(this, SHAPE, net=net).detach()
  save('flow', **out)


if __name__ == '__main__':
  main(*map(pathlib.Path, sys.argv[1:]))
