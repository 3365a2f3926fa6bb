"""Writes fixtures/edm.npz: NVlabs/edm at commit 008a4e5.

    python -m pip install torch==2.14.1 numpy
    python tests/diffusion/edm_reference.py CLONE

Inputs: `x_0` (the clean images), `z` [4, 3, 2, 2], `draw_normal` and `draw_uniform` [4], `sigma`
[5], `start` [2, 3, 2, 2]. F of all preconditionings is `raw_net` of authors.py, told c_noise.

coefficients [5] at sigma: c_skip, c_out, c_in, c_noise of each of edm_, vp_, ve_; denoised [5, ...]
  at the noise level sigma and `at` [5, 3, 2, 2].
losses [4, 3, 2, 2], elementwise (training sums over all and divides by the batch size), noise
  sigma * z: edm_loss with ln sigma = -1.2 + 1.2 draw_normal; vp_loss with t = 1 + draw_uniform *
  (1e-5 - 1); ve_loss with sigma = 0.02 * 5000^draw_uniform; loss_sigma [4] of each.
Heun from 80 * start: heun, 18 steps; heun_sigmas [19]; heun_at [35, 2, 3, 2, 2] and heun_levels
  [35], the arguments of all evaluations. churn: 5 steps with S_churn 4, S_min 0.05, S_max 50,
  S_noise 1.003 and the noises `churn_noise` [5, 2, 3, 2, 2], one for every step, whether it is
  scaled by 0 or not; churn_levels [9].
"""

import pathlib
import sys
import types

import numpy as np
from authors import Queue, in_float64, inputs, raw_net, save


def main(clone):
  import torch

  torch.set_default_dtype(torch.float64)
  utils = sys.modules['torch_utils'] = types.ModuleType('torch_utils')
  utils.persistence = types.SimpleNamespace(persistent_class=lambda cls: cls)
  utils.distributed = utils.misc = None
  for name in ('click', 'tqdm', 'dnnlib', 'PIL', 'PIL.Image'):
    sys.modules.setdefault(name, types.ModuleType(name))
  losses = in_float64(clone / 'training/loss.py', 'edm_loss')
  networks = in_float64(clone / 'training/networks.py', 'edm_networks')
  text = (clone / 'generate.py').read_text()
  sampler = {'torch': torch, 'np': np}
  exec(text[text.index('def edm_sampler') : text.index('def ablation_sampler')], sampler)

  class Raw(torch.nn.Module):
    def __init__(self, **kwargs):
      super().__init__()

    def forward(self, x, c_noise, **kwargs):
      return raw_net(x, c_noise.reshape(-1, 1, 1, 1), torch)

  networks.Raw = Raw
  kinds = {'edm': networks.EDMPrecond, 'vp': networks.VPPrecond, 've': networks.VEPrecond}
  nets = {name: kind(2, 3, model_type='Raw') for name, kind in kinds.items()}

  shape = (4, 3, 2, 2)
  x_0, z, at, start, normal, churn_noise = inputs(
    4, shape, shape, (5, 3, 2, 2), (2, 3, 2, 2), 4, (5, 2, 3, 2, 2)
  )
  sigma = np.float64(np.float32([0.002, 0.1, 0.5, 3.0, 80.0]))
  uniform = np.float64(np.float32([0.0, 0.2, 0.7, 0.99]))
  out = dict(x_0=x_0, z=z, at=at, start=start, sigma=sigma, churn_noise=churn_noise)
  out |= dict(draw_normal=normal, draw_uniform=uniform)
  x_0, at, sigma = (torch.as_tensor(o) for o in (x_0, at, sigma))

  losses_of = {'edm': losses.EDMLoss(), 'vp': losses.VPLoss(), 've': losses.VELoss()}
  for name, net in nets.items():
    out[f'{name}_denoised'] = net(at, sigma)
    # The coefficients, from what the net is given and from what becomes of its output.
    seen = {}

    def probe(x, c_noise, seen=seen, **kwargs):
      seen.update(c_in=x[:, 0, 0, 0], c_noise=c_noise)
      return torch.full_like(x, seen['value'])

    forward, net.model.forward = net.model.forward, probe
    seen['value'] = 0.0
    skip = net(torch.ones(5, 1, 1, 1), sigma).flatten()
    seen['value'] = 1.0
    c_out = net(torch.ones(5, 1, 1, 1), sigma).flatten() - skip
    out |= {f'{name}_c_in': seen['c_in'], f'{name}_c_noise': seen['c_noise']}
    out |= {f'{name}_c_skip': skip, f'{name}_c_out': c_out}
    net.model.forward = forward

    torch.randn_like, torch.rand = Queue(z), Queue(uniform.reshape(-1, 1, 1, 1))
    torch.randn = Queue(normal.reshape(-1, 1, 1, 1))
    levels = []

    def recorded(x, sigma, *args, net=net, levels=levels, **kwargs):
      levels.append(sigma.flatten())
      return net(x, sigma)

    out[f'{name}_loss'] = losses_of[name](recorded, x_0, None)
    out[f'{name}_loss_sigma'] = levels[0]

  class Recorded:
    sigma_min, sigma_max = 0, float('inf')
    round_sigma = staticmethod(torch.as_tensor)

    def __init__(self):
      self.at, self.levels = [], []

    def __call__(self, x, sigma, labels):
      self.at.append(x)
      self.levels.append(sigma)
      return nets['edm'](x, sigma)

  net = Recorded()
  start = torch.as_tensor(start)
  out['heun'] = sampler['edm_sampler'](net, start)
  out |= dict(heun_at=torch.stack(net.at), heun_levels=torch.stack(net.levels))
  i = np.arange(18) / 17
  grid = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
  # The first evaluation of each step is at its level.
  np.testing.assert_allclose(out['heun_levels'][::2], grid, rtol=1e-12)
  out['heun_sigmas'] = np.append(out['heun_levels'][::2], 0)

  net = Recorded()
  out['churn'] = sampler['edm_sampler'](
    net,
    start,
    randn_like=Queue(*churn_noise),
    num_steps=5,
    S_churn=4,
    S_min=0.05,
    S_max=50,
    S_noise=1.003,
  )
  out['churn_levels'] = torch.stack(net.levels)
  save('edm', **out)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
