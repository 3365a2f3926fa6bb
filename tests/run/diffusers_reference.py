"""Writes fixtures/diffusers/: two tiny UNet2DModel of diffusers, and what they predict.

    python -m pip install torch==2.14.1 diffusers==0.42.1
    python tests/run/diffusers_reference.py

Both have the form of google/ddpm-cifar10-32, with random weights, none of them zero. `plain` is as
the library saves it today; `labels` is conditional, has another depth, and the names of attention's
parameters that the published files have.
"""

import pathlib
import shutil

FIXTURES = pathlib.Path(__file__).parent / 'fixtures' / 'diffusers'
# As in google/ddpm-cifar10-32, but for sizes and widths.
FORM = dict(
  act_fn='silu',
  attention_head_dim=None,
  center_input_sample=False,
  downsample_padding=0,
  flip_sin_to_cos=False,
  freq_shift=1,
  mid_block_scale_factor=1,
  norm_eps=1e-6,
  time_embedding_type='positional',
  block_out_channels=(4, 8),
  norm_num_groups=2,
)
NETS = dict(
  plain=dict(
    sample_size=8,
    in_channels=3,
    out_channels=3,
    layers_per_block=1,
    down_block_types=('DownBlock2D', 'AttnDownBlock2D'),
    up_block_types=('AttnUpBlock2D', 'UpBlock2D'),
  ),
  labels=dict(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    layers_per_block=2,
    num_class_embeds=5,
    down_block_types=('AttnDownBlock2D', 'DownBlock2D'),
    up_block_types=('UpBlock2D', 'AttnUpBlock2D'),
  ),
)
OLD_NAMES = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}


def main():
  import numpy as np
  import torch
  from diffusers import DDPMScheduler, UNet2DModel
  from safetensors.torch import save_file

  for name, sizes in NETS.items():
    torch.manual_seed(0)
    net = UNet2DModel(**FORM, **sizes).eval()
    with torch.no_grad():
      for key, parameter in sorted(net.named_parameters()):
        scale = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        one = 1.0 if 'norm' in key and key.endswith('weight') else 0.0
        parameter.copy_(one + scale * torch.randn(parameter.shape))
      x, t, label = torch.randn(3, net.config.in_channels, 8, 8), [0, 7, 999], [4, 0, 2]
      labels = {'class_labels': torch.tensor(label)} if name == 'labels' else {}
      y = net(x, torch.tensor(t), **labels).sample
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    net.save_pretrained(folder)
    if name == 'plain':
      DDPMScheduler(variance_type='fixed_large').save_pretrained(folder)
    else:
      state = {}
      for key, parameter in net.state_dict().items():
        for new, old in OLD_NAMES.items():
          key = key.replace(f'.{new}.', f'.{old}.')
        state[key] = parameter.contiguous()
      save_file(state, folder / 'diffusion_pytorch_model.safetensors')
    channels_last = lambda a: a.permute(0, 2, 3, 1).numpy()
    np.savez(folder / 'forward.npz', x=channels_last(x), t=t, label=label, y=channels_last(y))
    print(folder, float(y.std()))
  print(sum(p.stat().st_size for p in FIXTURES.rglob('*')), 'bytes')


if __name__ == '__main__':
  main()
