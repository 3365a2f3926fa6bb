"""Writes fixtures/unets.npz: what the authors' U-Nets, tiny and with known weights, predict.

    python -m pip install torch==2.14.1 requests
    python tests/nets/unets_reference.py EDM IMPROVED_DIFFUSION FLOW_MATCHING PY_MEANFLOW

The arguments are clones of NVlabs/edm (commit 008a4e5), openai/improved-diffusion (1bc7bbb),
facebookresearch/flow_matching (11568d3) and Gsunshine/py-meanflow (1f6d72d). The test draws the
same weights and inputs again, by the names of the authors' parameters.
"""

import pathlib
import sys
import zlib

import numpy as np

FIXTURE = pathlib.Path(__file__).parent / 'fixtures' / 'unets.npz'
SIZE, LABELS, AUGMENT = 8, 3, 9
SONG = dict(model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4])
NCSNPP = dict(
  channel_mult=[1, 2, 2],
  embedding_type='fourier',
  channel_mult_noise=2,
  encoder_type='residual',
  resample_filter=[1, 3, 3, 1],
)
# Improved DDPM's class has no number of groups but 32, which must divide every width.
ADM = dict(
  in_channels=3,
  model_channels=32,
  out_channels=6,
  num_res_blocks=1,
  attention_resolutions=(2,),
  num_heads=2,
  use_scale_shift_norm=True,
)


def weight(name: str, shape) -> np.ndarray:
  """The value of the authors' parameter `name`, of PyTorch's shape."""
  draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
  if len(shape) > 1:
    return np.float32(draw / np.sqrt(np.prod(shape[1:])))
  norm = name.endswith('weight')  # 1 + noise for the factors of norms
  return np.float32(norm + 0.3 * draw)


def inputs() -> dict[str, np.ndarray]:
  """x [2, h, w, 3], times t and h, labels, augment."""
  draw = np.random.RandomState(0).standard_normal
  x, augment = np.float32(draw((2, SIZE, SIZE, 3))), np.float32(draw((2, AUGMENT)))
  times = dict(t=np.float32([0.3, 1.7]), h=np.float32([0.1, 0.8]))
  return dict(x=x, augment=augment, label=np.array([2, 0]), **times)


def main(edm, improved_diffusion, flow_matching, meanflow):
  import torch

  given = {k: torch.from_numpy(v) for k, v in inputs().items()}
  x = given['x'].permute(0, 3, 1, 2)
  t, h, augment = given['t'], given['h'], given['augment']
  hot = torch.nn.functional.one_hot(given['label'], LABELS).float()

  def module(folder, name):
    for loaded in [m for m in sys.modules if m.partition('.')[0] in ('models', 'training')]:
      del sys.modules[loaded]
    sys.path.insert(0, str(folder))
    found = __import__(name, fromlist=['_'])
    sys.path.remove(str(folder))
    return found

  def set_weights(net):
    with torch.no_grad():
      for name, parameter in net.named_parameters():
        parameter.copy_(torch.from_numpy(weight(name, tuple(parameter.shape))))
      for name, buffer in net.named_buffers():
        if name == 'map_noise.freqs':
          freqs = 16 * np.random.RandomState(0).standard_normal(len(buffer))
          buffer.copy_(torch.from_numpy(np.float32(freqs)))
    return net.eval()

  song = dict(SONG, img_resolution=SIZE, in_channels=3, out_channels=3, augment_dim=AUGMENT)
  net = module(edm, 'training.networks').SongUNet
  results = {}
  with torch.no_grad():
    labelled = set_weights(net(**song, label_dim=LABELS))
    results['ddpmpp'] = labelled(x, t, hot, augment)
    results['ncsnpp'] = set_weights(net(**{**song, **NCSNPP}))(x, t, None, augment)
    net = module(pathlib.Path(meanflow) / 'meanflow', 'models.unet').SongUNet
    fir = dict(channel_mult_noise=2, resample_filter=[1, 3, 3, 1])
    results['mean_flow'] = set_weights(net(**song, **fir))(x, (t, h), augment)
    net = module(improved_diffusion, 'improved_diffusion.unet').UNetModel
    labelled = set_weights(net(**ADM, channel_mult=(1, 2), num_classes=LABELS))
    results['improved_ddpm'] = labelled(x, t, given['label'])
    net = module(pathlib.Path(flow_matching) / 'examples/image', 'models.unet').UNetModel
    pooled = dict(conv_resample=False, use_new_attention_order=True)
    results['flow_matching'] = set_weights(net(**ADM, **pooled, channel_mult=(2, 1)))(x, t, {})
  FIXTURE.parent.mkdir(exist_ok=True)
  np.savez(FIXTURE, **{k: v.permute(0, 2, 3, 1).numpy() for k, v in results.items()})
  print({k: float(v.std()) for k, v in results.items()}, FIXTURE.stat().st_size, 'bytes')


if __name__ == '__main__':
  main(*sys.argv[1:])
