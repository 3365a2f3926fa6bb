"""Makes fixtures/inception.npz: what PyTorch's port of FID's network gives for made-up weights.

    python -m pip install torch==2.13.0 && python -m pip install --no-deps torch-fidelity==0.4.0
    python tests/metrics/inception_reference.py

The weights come from a seed, on both sides; the real ones are 95 MB. torch-fidelity's port was
checked against the TensorFlow graph by its authors.
"""

import importlib.util
import pathlib
import sys
import tempfile
import types

import numpy as np

FIXTURE = pathlib.Path(__file__).parent / 'fixtures' / 'inception.npz'


def made_up_weights(shapes: dict) -> dict:
  """{name: float32 array} for {name: shape} of the port's state dict, such that no layer dies out.

  RandomState's stream never changes between versions of NumPy.
  """
  rng = np.random.RandomState(0)
  weights = {}
  for name, shape in sorted(shapes.items()):
    if name.endswith(('conv.weight', 'fc.weight')):
      value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith(('bn.weight', 'running_var')):
      value = rng.uniform(0.5, 1.5, shape)
    else:
      value = 0.1 * rng.standard_normal(shape)
    weights[name] = value.astype(np.float32)
  return weights


def made_up_pictures() -> dict:
  """uint8 pictures of several sizes: one that grows, one of the net's own, one that shrinks."""
  rng = np.random.RandomState(1)
  return {
    f'{h}x{w}': rng.randint(0, 256, (2, h, w, 3), dtype=np.uint8)
    for h, w in ((32, 32), (299, 299), (400, 310))
  }


def summary(x) -> np.ndarray:
  """Of a layer's output [b, h, w, c]: mean of every channel, and the pixel in the middle,
  [2, b, c]; of [b, c] itself.
  """
  x = np.asarray(x)
  if x.ndim == 2:
    return x[None]
  middle = x[:, x.shape[1] // 2, x.shape[2] // 3]
  return np.stack([x.mean((1, 2), dtype=np.float64).astype(np.float32), middle])


def main():
  import torch

  # The package imports torchvision for other networks; its Inception needs only PyTorch.
  package = types.ModuleType('torch_fidelity')
  package.__path__ = importlib.util.find_spec('torch_fidelity').submodule_search_locations
  sys.modules['torch_fidelity'] = package
  port = importlib.import_module('torch_fidelity.feature_extractor_inceptionv3')

  def build(weights):
    with tempfile.NamedTemporaryFile(suffix='.pth') as file:
      torch.save(weights, file.name)
      names = ['2048', 'logits_unbiased']
      return port.FeatureExtractorInceptionV3(
        'inception', names, feature_extractor_weights_path=file.name
      )

  # Its constructor wants weights before it can tell their shapes.
  load = port.FeatureExtractorInceptionV3.load_state_dict
  port.FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
  shapes = {name: tuple(w.shape) for name, w in build({}).state_dict().items()}
  port.FeatureExtractorInceptionV3.load_state_dict = load
  counts = {name for name in shapes if name.endswith('num_batches_tracked')}
  weights = made_up_weights({name: s for name, s in shapes.items() if name not in counts})
  state = {name: torch.from_numpy(w) for name, w in weights.items()}
  net = build(state | {name: torch.tensor(0) for name in counts})

  results = {}

  def note(name):
    def hook(module, inputs, output):
      outputs[name] = output.permute(0, 2, 3, 1).numpy()

    return hook

  def note_input(module, inputs):
    outputs['input'] = inputs[0].permute(0, 2, 3, 1).numpy()

  net.Conv2d_1a_3x3.register_forward_pre_hook(note_input)
  for name, block in net.named_children():
    if name.startswith(('Conv2d', 'Mixed')):
      block.register_forward_hook(note(name))
  for size, pictures in made_up_pictures().items():
    outputs = {}
    pool_3, logits = net(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    outputs |= {'pool_3': pool_3.numpy(), 'logits': logits.numpy()}
    for name, output in outputs.items():
      if size == '32x32' or name in ('input', 'pool_3'):
        results[f'{size}/{name}'] = summary(output)
  shapes = {name: shape for name, shape in shapes.items() if name not in counts}
  FIXTURE.parent.mkdir(exist_ok=True)
  np.savez_compressed(
    FIXTURE, names=list(shapes), shapes=[str(list(s)) for s in shapes.values()], **results
  )
  print(f'{FIXTURE}: {FIXTURE.stat().st_size:,} bytes, {len(results)} layers')


if __name__ == '__main__':
  main()
