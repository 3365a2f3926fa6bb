"""Accuracy of a linear probe on the codes of a run's encoder, beside raw pixels and the encoder
before any training.

    python benchmarks/probe.py --workdir=runs/bigbigan_mnist

The probe is multinomial logistic regression on all examples of the run's training split, with
features standardised by their mean and standard deviation there, and a small penalty; L-BFGS takes
it to its minimum. Accuracy is that on the held-out split (config.eval.held_out_split). Labels reach
the probe only. The rows, with their protocol, go to `probe/step_<step>.json` in the run's folder.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gen_jax
from gen_jax import contract, data, sampling
from gen_jax.errors import UserError, in_one_line
from gen_jax.systems import find_system

BLOCK = 1000  # examples encoded at once
SOLVER = optax.lbfgs()
LEAST = 1e-3  # of a feature's standard deviation, relative to the largest one: pixels may not vary


def standardised(train, test):
  """Both [n, d] with the mean and standard deviation of `train`, float32."""
  mean, sd = train.mean(0), train.std(0)
  sd = np.maximum(sd, LEAST * sd.max())
  return [np.float32((features - mean) / sd) for features in (train, test)]


def fit(features, label, classes: int, penalty: float, steps: int):
  """Weights [d, classes] and biases [classes] of multinomial logistic regression.

  Args:
    features: float32 [n, d].
    label: int [n].
    classes: number of classes.
    penalty: times half the sum of squared weights, added to the mean cross-entropy.
    steps: of L-BFGS, at most; fewer where the gradient's largest entry falls below 1e-5.
  """
  features, label = jnp.asarray(features), jnp.asarray(label)
  p = {'w': jnp.zeros((features.shape[1], classes)), 'b': jnp.zeros(classes)}
  state = SOLVER.init(p)
  for _ in range(steps):
    p, state, largest = _step(p, state, features, label, penalty)
    if largest < 1e-5:
      break
  return jax.device_get(p)


@jax.jit
def _step(p, state, features, label, penalty):
  """A step of L-BFGS; also the gradient's largest entry."""

  def loss(p):
    logits = features @ p['w'] + p['b'][None]
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
    return entropy + 0.5 * penalty * jnp.sum(p['w'] ** 2)

  value, grad = optax.value_and_grad_from_state(loss)(p, state=state)
  update, state = SOLVER.update(grad, state, p, value=value, grad=grad, value_fn=loss)
  largest = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(grad)]))
  return optax.apply_updates(p, update), state, largest


def accuracy(p, features, label) -> tuple[float, float]:
  """Share of examples whose class the probe finds, and its standard error."""
  right = np.argmax(features @ p['w'] + p['b'], 1) == label
  return float(right.mean()), float(right.std() / np.sqrt(len(right)))


def codes(system, state, images, config) -> np.ndarray:
  """z of images in the data's dtype [n, ...], float32 [n, d], by a state's encoder."""
  encode = jax.jit(lambda state, batch, rng: system.encode(state, batch, rng, config=config)['z'])
  label = jnp.zeros(BLOCK, jnp.int32)  # the probe's labels are not for the encoder
  found = []
  for start in range(0, len(images), BLOCK):
    block = np.resize(images[start : start + BLOCK], (BLOCK, *images.shape[1:]))
    batch = sampling.as_trained({'image': block, 'label': label}, config)
    z = encode(state, batch, jax.random.key(0))
    found.append(np.asarray(z).reshape(BLOCK, -1))
  return np.concatenate(found)[: len(images)]


def main(workdir: str, penalty: float = 1e-4, steps: int = 300, log=print) -> list[dict]:
  """Probes the newest checkpoint of a run; returns the rows, which it also writes.

  Raises:
    UserError: there is no run, its system has no encoder, or its data have no labels.
  """
  run = gen_jax.load(workdir)
  config, system = run.config, find_system(run.config.system)
  if not hasattr(system, 'encode'):
    raise UserError(f'config.system={config.system!r} has no encoder to be probed')
  splits = [data.open_source(config), data.open_source(config, 'eval.held_out_split')]
  rows = [source.read(range(len(source))) for source in splits]
  if any('label' not in part for part in rows):
    raise UserError(f'config.data.name={config.data.name!r} has no labels to be found')
  labels = [np.asarray(part['label']) for part in rows]
  images = [np.asarray(part['image']) for part in rows]
  fresh = contract.initialiser(config, system)(
    jax.random.key(config.seed), _zeros(contract.abstract_batch(config, system))
  )
  features = {
    'E(x)': lambda x: codes(system, run.state, x, config),
    'E(x) untrained': lambda x: codes(system, fresh, x, config),
    'pixels': lambda x: np.float32(x).reshape(len(x), -1),
  }
  made = []
  for name, of in features.items():
    train, test = standardised(*map(of, images))
    p = fit(train, labels[0], int(max(labels[0])) + 1, penalty, steps)
    on_test, error = accuracy(p, test, labels[1])
    on_train, _ = accuracy(p, train, labels[0])
    row = dict(
      features=name,
      dimensions=train.shape[1],
      accuracy=on_test,
      standard_error=error,
      training_accuracy=on_train,
      step=run.step,
      train=f'{splits[0].name} {config.data.split}, {len(images[0]):,}',
      test=f'{splits[1].name} {config.eval.held_out_split}, {len(images[1]):,}',
      penalty=penalty,
    )
    made.append(row)
    log(f'{name:16} {train.shape[1]:5} features  accuracy {on_test:.4f} +- {error:.4f}')
  path = Path(workdir, 'probe', f'step_{run.step:07d}.json')
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(made, indent=1) + '\n')
  return made


def _zeros(batch):
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), batch)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', required=True, help='a run whose system has an encoder')
  parser.add_argument('--penalty', type=float, default=1e-4, help='of squared weights')
  parser.add_argument('--steps', type=int, default=300, help='of L-BFGS, at most')
  flags = parser.parse_args()
  in_one_line()
  main(flags.workdir, flags.penalty, flags.steps)
