"""Writes fixtures/score_sde.npz: yang-song/score_sde_pytorch at commit cb1f359.

    python -m pip install torch==2.14.1 numpy scipy
    python tests/diffusion/score_sde_reference.py CLONE

Inputs: `x_0`, `x`, `z` [4, 3, 2, 2] and times `t` [4] in (0, 1]. The nets: `eps_net` (VP, sub-VP),
which the authors' code tells t * 999 and whose output it divides by -std, and `score_net` (VE),
which is told sigma and gives the score. Names start with vp_, subvp_ or ve_ (sigma 0.01 to 50).

of t: mean_coef, std (marginal_prob), drift_coef (of x), diffusion, score [4, ...] at x.
losses (means over the batch): loss_mean, loss_sum (half the sum over dimensions),
  loss_mean_likelihood, loss_sum_likelihood, of x_0, t, noise z.
steps at x, t with noise z, and the same without it (_mean), 1000 steps: reverse_diffusion,
  euler_maruyama, ancestral; langevin with snr 0.16, whose norms are batch means.
  euler_maruyama_ode: the step of the probability-flow ODE.
PC: ve_pc, the corrector and then the predictor (langevin, reverse_diffusion) at N = 10 times from
  1 to 1e-5, snr 0.16, from 50 * `pc_start` [4, 3, 2, 2] with `pc_noise` [20, 4, 3, 2, 2] in that
  order (corrector, predictor, corrector, ...); the last step is without noise. ve_pc_path
  [10, 4, 3, 2, 2]: after each predictor, the last one with noise.
prior_logp at x, of each SDE.
likelihood: `likelihood_x` [4, 1, 1, 2] under N(0.3, 0.5^2) in each of 2 dimensions, whose exact eps
  is the net: vp_bpd [4] with inverse_scaler (x + 1) / 2, i.e. plus 7 bits, vp_latent [4, 1, 1, 2],
  by RK45 from 1e-5 to 1. In closed form, with a and s^2 = 0.25 a^2 + std^2 at 1e-5 and at 1, the
  latent is z = 0.3 a_1 + (x - 0.3 a_0) s_1 / s_0, and log p = log N(z; 0, 1) + log(s_1 / s_0).
"""

import pathlib
import sys
import types

import numpy as np
from authors import Queue, eps_net, in_float64, inputs, save, score_net

SHAPE = (4, 3, 2, 2)
T = np.float64(np.float32([1e-3, 0.1, 0.55, 1.0]))


class Net:
  """A function as the authors' code wants a net."""

  def __init__(self, net):
    self.net = net

  def train(self):
    pass

  eval = train

  def __call__(self, x, label):
    import torch

    return self.net(x, label.reshape(-1, 1, 1, 1), torch)


def main(clone):
  import torch

  torch.set_default_dtype(torch.float64)
  sde_lib = in_float64(clone / 'sde_lib.py', 'sde_lib')
  models = sys.modules['models'] = types.ModuleType('models')
  models.utils = in_float64(clone / 'models/utils.py', 'models.utils')
  losses = in_float64(clone / 'losses.py', 'losses')
  sampling = in_float64(clone / 'sampling.py', 'sampling')
  likelihood = in_float64(clone / 'likelihood.py', 'likelihood')

  x_0, x, z, start = inputs(1, SHAPE, SHAPE, SHAPE, SHAPE)
  (noise,) = inputs(2, (20, *SHAPE))
  out = dict(x_0=x_0, x=x, z=z, t=T, pc_start=start, pc_noise=noise)
  t, x_0, x = (torch.as_tensor(o) for o in (T, x_0, x))
  ones = torch.ones(SHAPE)

  def feed(*arrays):
    torch.randn_like = torch.randn = Queue(*arrays)

  sdes = {
    'vp': (sde_lib.VPSDE, eps_net),
    'subvp': (sde_lib.subVPSDE, eps_net),
    've': (sde_lib.VESDE, score_net),
  }
  for name, (kind, net) in sdes.items():
    sde, net = kind(N=1000), Net(net)
    score = models.utils.get_score_fn(sde, net, continuous=True)
    mean, std = sde.marginal_prob(ones, t)
    drift, diffusion = sde.sde(ones, t)
    found = dict(
      mean_coef=mean[:, 0, 0, 0],
      std=std,
      drift_coef=drift[:, 0, 0, 0],
      diffusion=diffusion,
      score=score(x, t),
      prior_logp=sde.prior_logp(x),
    )
    for reduce, mean in (('mean', True), ('sum', False)):
      for suffix, likely in (('', False), ('_likelihood', True)):
        feed(z)
        # The loss draws t = rand * (1 - eps) + eps.
        torch.rand = Queue((T - 1e-5) / (1 - 1e-5))
        loss = losses.get_sde_loss_fn(
          sde, train=True, reduce_mean=mean, continuous=True, likelihood_weighting=likely
        )
        found[f'loss_{reduce}{suffix}'] = loss(net, x_0)

    def step(key, update, found=found):
      feed(z)
      found[key], found[f'{key}_mean'] = update.update_fn(x, t)

    step('reverse_diffusion', sampling.ReverseDiffusionPredictor(sde, score))
    step('euler_maruyama', sampling.EulerMaruyamaPredictor(sde, score))
    # With a diffusion of 0. the authors' update fails on its shape: from the drift itself.
    ode = sde.reverse(score, probability_flow=True).sde(x, t)[0]
    found['euler_maruyama_ode'] = x - ode / sde.N
    if name != 'subvp':
      step('ancestral', sampling.AncestralSamplingPredictor(sde, score))
      step('langevin', sampling.LangevinCorrector(sde, score, snr=0.16, n_steps=1))

    out |= {f'{name}_{key}': value for key, value in found.items()}

  path = []

  class Recorded(sampling.ReverseDiffusionPredictor):
    def update_fn(self, x, t):
      x, mean = super().update_fn(x, t)
      path.append(x)
      return x, mean

  feed(start, *noise)
  sampler = sampling.get_pc_sampler(
    sde_lib.VESDE(N=10),
    SHAPE,
    Recorded,
    sampling.LangevinCorrector,
    inverse_scaler=lambda x: x,
    snr=0.16,
    continuous=True,
    eps=1e-5,
    device='cpu',
  )
  out['ve_pc'], _ = sampler(Net(score_net))
  out['ve_pc_path'] = torch.stack(path)

  sde = sde_lib.VPSDE()

  class Exact(Net):
    def __call__(self, x, label):
      a, std = sde.marginal_prob(torch.ones_like(x), label / 999)
      std = std.reshape(-1, 1, 1, 1)
      return std * (x - 0.3 * a) / (0.25 * a**2 + std**2)

  (points,) = inputs(3, (4, 1, 1, 2))
  out['likelihood_x'] = points
  bpd = likelihood.get_likelihood_fn(sde, lambda x: (x + 1) / 2, rtol=1e-9, atol=1e-9)
  out['vp_bpd'], out['vp_latent'], _ = bpd(Exact(None), torch.as_tensor(points))
  save('score_sde', **out)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
