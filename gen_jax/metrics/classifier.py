"""A small convolutional classifier trained on a labelled data set, for small images (28x28, 8x8),
on which networks trained on photographs work badly.

Its last hidden layer gives features for distances, its predictions the classes that a generator
covers. Its numbers are specific to the data set and to this file: they are called FD-classifier and
so on, and are not comparable with any others.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_jax.nets import layers
from gen_jax.ops import compiler

FEATURES = 128
RECIPE = 'v1'  # part of the key of a cached classifier: raise it when anything here changes
EPOCHS, LEAST_STEPS, BATCH, RATE = 4, 1000, 128, 1e-3


class Features(NamedTuple):
  hidden: jax.Array  # float32 [b, 128], after the ReLU
  logits: jax.Array  # float32 [b, classes]


class Classifier(nn.Module):
  """Images [b, h, w, c] in 0 to 255 -> `Features`."""

  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = x.astype(jnp.float32) / 127.5 - 1
    for width, stride in ((32, 1), (64, 2), (128, 2)):
      x = nn.relu(
        layers.Conv(width, kernel=3, stride=stride, kernel_init=nn.initializers.he_normal())(x)
      )
    x = layers.flatten(x)
    hidden = nn.relu(nn.Dense(FEATURES)(x))
    return Features(hidden, nn.Dense(self.num_classes)(hidden))


def train(image, label, num_classes: int, *, seed: int = 0, progress=lambda steps: steps) -> dict:
  """Trains a classifier; returns its parameters.

  Args:
    image: uint8 [n, h, w, c].
    label: int [n].
    num_classes: number of classes.
    seed: seed of the initial weights and of the order.
    progress: wraps the iterator over steps, as tqdm does.

  Raises:
    ValueError: there are fewer images than a batch.
  """
  n = len(image)
  if n < BATCH:
    raise ValueError(f'{n} images: a classifier needs at least {BATCH}')
  net = Classifier(num_classes)
  init_key, order_key = jax.random.split(jax.random.key(seed))
  params = net.init(init_key, image[:1])['params']
  steps = max(EPOCHS * (n // BATCH), LEAST_STEPS)
  optimizer = optax.adam(optax.linear_schedule(RATE, 0, steps))
  opt_state = optimizer.init(params)

  def loss(params, x, y):
    logits = net.apply({'params': params}, x).logits
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  options = compiler.compiler_options()

  @functools.partial(jax.jit, donate_argnums=(0, 1), compiler_options=options)
  def step(params, opt_state, x, y):
    updates, opt_state = optimizer.update(jax.grad(loss)(params, x, y), opt_state)
    return optax.apply_updates(params, updates), opt_state

  for i in progress(range(steps)):
    epoch, at = divmod(i, n // BATCH)
    if at == 0:
      order = np.asarray(jax.random.permutation(jax.random.fold_in(order_key, epoch), n))
    rows = order[at * BATCH : (at + 1) * BATCH]
    params, opt_state = step(params, opt_state, image[rows], label[rows])
  return jax.device_get(params)


def accuracy(predictions, label) -> float:
  """Share of predictions [n, classes] whose largest entry is the label [n]."""
  return float(np.mean(np.argmax(predictions, -1) == label))
