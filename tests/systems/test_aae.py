"""The priors' moments, the three updates of a step against ones by hand, and the codes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ROOT
from scipy.special import expit

from gen_jax import config as configs
from gen_jax import evaluate, train
from gen_jax.errors import UserError
from gen_jax.nets import aae as nets
from gen_jax.run import pictures
from gen_jax.systems import aae

SHAPE = (3,)
X = np.float32([[0.5, -1.0, 0.2], [-0.3, 0.8, 0.9], [1.0, 0.1, -0.6], [-0.2, -0.4, 0.7]])
LABEL = np.int32([0, 1, 1, 0])
A, B, W, C = np.array([0.4, -0.3, 0.8]), np.array([0.9, 0.2, -0.5]), -0.6, 0.3
SGD = dict(name='sgd')


class Projection(nn.Module):
  """The code a . x, with a row of a for each output."""

  outputs: int
  log_variance: float = 0.0

  @nn.compact
  def __call__(self, x):
    mean = x @ self.param('a', lambda _: jnp.float32(A))
    if self.outputs == 1:
      return mean[:, None]
    return jnp.stack([mean, jnp.full(len(x), self.log_variance)], -1)


class Line(nn.Module):
  """G(z) = b z, of the first entry of z."""

  @nn.compact
  def __call__(self, z):
    return z[:, :1] * self.param('b', lambda _: jnp.float32(B))[None]


class Logit(nn.Module):
  """D(z) = w z + c."""

  @nn.compact
  def __call__(self, z, label=None, *, train):
    w, c = self.param('w', lambda _: jnp.float32(W)), self.param('c', lambda _: jnp.float32(C))
    return w * z[:, 0] + c


class Identity(nn.Module):
  """A decoder that shows z."""

  @nn.compact
  def __call__(self, z):
    return z + 0 * self.param('unused', nn.initializers.zeros, (1,))[None]


def make_config(shape=SHAPE, **fields):
  return configs.make(
    'aae',
    {
      'data': dict(name='ring', shape=shape, num_classes=None),
      'encoder': dict(name=Projection),
      'decoder': dict(name=Line),
      'discriminator': dict(name=Logit),
      'latent.dim': 1,
      'latent.prior': 'normal',
      'optim': dict(G=dict(SGD, lr=0.01), D=dict(SGD, lr=0.2), E=dict(SGD, lr=0.3)),
    }
    | {name.replace('__', '.'): value for name, value in fields.items()},
  )


def of_the_plane(prior, n, **latent):
  """Draws of a prior in the plane, float64 [n, 2]."""
  config = make_config((2,), latent__dim=2, latent__prior=prior, **latent)
  return np.asarray(aae.draw_prior(jax.random.key(0), n, config), np.float64)


def step(config, label=None):
  batch = {'image': jnp.asarray(X)} | ({} if label is None else {'label': jnp.asarray(label)})
  state = aae.init_state(jax.random.key(0), batch, config=config)
  program = jax.jit(aae.train_step, static_argnames='config')
  return (state, *program(state, batch, jax.random.key(1), config=config))


# --- Priors -------------------------------------------------------------------------------------


@pytest.mark.parametrize('k', [0, 1, 4, 9])
def test_a_component_of_the_mixture_has_its_moments(k):
  n = 100_000
  noise = jax.random.normal(jax.random.key(k), (n, 2))
  z = np.asarray(aae.mixture(jnp.full((n,), k), noise, 10), np.float64)
  angle = np.deg2rad(36 * k)
  turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
  np.testing.assert_allclose(z.mean(0), turn @ [4, 0], atol=0.015)
  np.testing.assert_allclose(np.cov(z.T), turn @ np.diag([1, 1 / 16]) @ turn.T, atol=0.015)


def test_the_components_of_the_mixture_are_equally_likely():
  z = of_the_plane('mixture', 100_000)
  nearest = np.rint(np.arctan2(z[:, 1], z[:, 0]) / np.deg2rad(36)).astype(int) % 10
  np.testing.assert_allclose(np.bincount(nearest) / len(z), 0.1, atol=0.004)
  np.testing.assert_allclose(np.cov(z.T), (16 + 1 + 1 / 16) / 2 * np.eye(2), atol=0.1)


def test_the_swiss_roll_is_a_spiral_of_sections():
  component, u = np.repeat(np.arange(10), 11), np.tile(np.linspace(0, 1, 11), 10)
  none = np.zeros((110, 2), np.float32)
  z = np.asarray(aae.swiss_roll(jnp.asarray(component), jnp.float32(u), none, 10), np.float64)
  radius = np.hypot(*z.T)
  # Two and a half turns less one: from 1.5 pi to 4.5 pi, the radius 0.4 of the angle.
  np.testing.assert_allclose(radius[[0, -1]], [0.6 * np.pi, 1.8 * np.pi], rtol=1e-5)
  np.testing.assert_allclose(np.diff(radius)[np.diff(component) == 0], 0.012 * np.pi, rtol=1e-3)
  np.testing.assert_allclose(z[10::11][:-1], z[11::11], atol=1e-5)  # where sections meet
  angle = radius / 0.4
  np.testing.assert_allclose(
    z, radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1), atol=1e-4
  )
  noisy = aae.swiss_roll(
    jnp.zeros(50_000, int), jnp.zeros(50_000), jax.random.normal(jax.random.key(0), (50_000, 2)), 10
  )
  np.testing.assert_allclose(np.cov(np.asarray(noisy).T), 0.01 * np.eye(2), atol=3e-4)
  z = of_the_plane('swiss_roll', 100_000)
  np.testing.assert_allclose(np.hypot(*z.T).mean(), 1.2 * np.pi, rtol=0.01)


def test_the_normal_prior_has_its_sd():
  z = np.asarray(aae.draw_prior(jax.random.key(0), 50_000, make_config(latent__dim=3)))
  np.testing.assert_allclose(np.cov(z.T), 25 * np.eye(3), atol=0.5)
  z = np.asarray(aae.draw_prior(jax.random.key(0), 50_000, make_config(latent__sd=0.5)))
  assert abs(z.std() - 0.5) < 0.01 and abs(z.mean()) < 0.01


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'latent__prior': 'mixture'}, ('config.latent.dim=1', 'mixture', '2 is')),
    ({'latent__labels': True}, ('config.latent.prior', 'config.latent.labels', 'mixture')),
    (
      {
        'latent__prior': 'swiss_roll',
        'latent__dim': 2,
        'latent__labels': True,
        'data__num_classes': 8,
      },
      ('config.latent.components=10', 'config.data.num_classes=8'),
    ),
    (
      {'latent__prior': 'mixture', 'latent__dim': 2, 'latent__labels': True},
      ('config.latent.components=10', 'config.data.num_classes=None'),
    ),
  ],
)
def test_a_prior_that_does_not_fit_is_refused(change, words):
  with pytest.raises(UserError) as error:
    aae.check(make_config(**change))
  assert all(word in str(error.value) for word in words) and '\n' not in str(error.value)


# --- The step -----------------------------------------------------------------------------------


def reconstructed():
  """a and b after the first update, the gradients of mean ||x - b (a . x)||^2, in float64."""
  x = X.astype(np.float64)
  z = x @ A
  residual = x - z[:, None] * B
  grad_b = -2 * np.mean(residual * z[:, None], 0)
  grad_a = -2 * np.mean((residual @ B)[:, None] * x, 0)
  return A - 0.01 * grad_a, B - 0.01 * grad_b, np.mean((residual**2).sum(1))


def test_a_step_is_autoencoder_then_discriminator_then_encoder():
  config = make_config()
  _, after, metrics = step(config)
  x = X.astype(np.float64)
  a, b, error = reconstructed()
  # D, on draws of the prior as the step draws them, and on codes of the new encoder.
  key = jax.random.split(jax.random.fold_in(jax.random.key(1), 0), 7)[3]
  prior, code = np.asarray(aae.draw_prior(key, 4, config), np.float64)[:, 0], x @ a
  on_prior, on_code = expit(W * prior + C) - 1, expit(W * code + C)
  w = W - 0.2 * 0.5 * (np.mean(on_prior * prior) + np.mean(on_code * code))
  c = C - 0.2 * 0.5 * (np.mean(on_prior) + np.mean(on_code))
  d_loss = -0.5 * (np.log(expit(W * prior + C)).mean() + np.log(expit(-W * code - C)).mean())
  # The encoder, against the new D: it descends -log D, so that its gradient is (D - 1) w x.
  slope = (expit(w * code + c) - 1) * w
  a_after = a - 0.3 * np.mean(slope[:, None] * x, 0)
  np.testing.assert_allclose(after.G.params['b'], b, rtol=1e-5)  # nothing of the adversarial part
  np.testing.assert_allclose(after.D.params['w'], w, rtol=1e-5)
  np.testing.assert_allclose(after.D.params['c'], c, rtol=1e-5)
  np.testing.assert_allclose(after.E.params['a'], a_after, rtol=1e-5)
  np.testing.assert_allclose(metrics['g/loss'], error, rtol=1e-5)
  np.testing.assert_allclose(metrics['d/loss'], d_loss, rtol=1e-5)
  np.testing.assert_allclose(metrics['e/loss'], -np.log(expit(w * code + c)).mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics['d/prior_prob'], expit(W * prior + C).mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics['d/code_prob'], on_code.mean(), rtol=1e-5)


def test_two_devices_train_as_one_with_a_discriminator_that_has_dropout():
  config = make_config(discriminator=dict(name='mlp.Discriminator', features=(8,), dropout=0.5))
  before, one, _ = step(config)
  program = functools.partial(aae.train_step, config=config, axis_name='batch')
  rows = {'image': jnp.asarray(X).reshape(2, 2, 3)}
  mapped = jax.pmap(program, axis_name='batch', in_axes=(None, 0, None))
  two, _ = mapped(before, rows, jax.random.key(1))
  for name in 'EGD':
    a, b = getattr(one, name).params, getattr(two, name).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, jnp.stack([a, a]), 1e-4, 1e-6), a, b)


def test_a_plain_autoencoder_only_reconstructs():
  before, after, metrics = step(make_config(loss__adversarial=False))
  a, b, _ = reconstructed()
  np.testing.assert_allclose(after.E.params['a'], a, rtol=1e-5)
  np.testing.assert_allclose(after.G.params['b'], b, rtol=1e-5)
  assert before.D.params == after.D.params and set(metrics) == {'g/loss', 'g/grad_norm'}
  assert int(after.step) == 1


def test_the_encoder_still_learns_where_the_discriminator_wins():
  """The saturating form, log(1 - D), would have a gradient of e^-20."""
  model = aae.build(make_config())
  D = aae.Player({'w': jnp.float32(1.0), 'c': jnp.float32(-20.0)}, {}, None)
  rows = (jnp.asarray(X), jnp.zeros((4, 1)), None)
  loss = lambda params: aae.e_loss(params, rows, jax.random.key(0), D=D, model=model)[0]
  np.testing.assert_allclose(jax.grad(loss)({'a': jnp.float32(A)})['a'], -X.mean(0), rtol=1e-5)


@pytest.mark.parametrize(('log_variance', 'sd'), [(-2.0, np.exp(-1)), (90.0, np.exp(5))])
def test_a_gaussian_encoder_adds_noise_of_its_variance(log_variance, sd):
  config = make_config(
    encoder=dict(name=Projection, log_variance=log_variance), latent__posterior='gaussian'
  )
  model, n = aae.build(config), 20_000
  x = jnp.asarray(np.tile(X[:1], (n, 1)))
  z = model.encode({'a': jnp.float32(A)}, x, jax.random.normal(jax.random.key(0), (n, 1)))
  assert abs(z.mean() - X[0] @ A) < 0.04 * sd and abs(z.std() / sd - 1) < 0.03
  _, after, metrics = step(config)
  # E ||x - b z||^2 grows by ||b||^2 sigma^2 E eps^2, and no draw of eps is that of another phase.
  assert float(metrics['g/loss']) != pytest.approx(reconstructed()[2], rel=1e-3)
  coded = aae.encode(after, {'image': jnp.asarray(X)}, jax.random.key(0), config=config)
  np.testing.assert_allclose(coded['z'][:, 0], X @ after.E.params['a'], rtol=1e-5)


# --- Labels, samples, codes ---------------------------------------------------------------------


def labelled(**fields):
  return make_config(
    (2,),
    decoder=dict(name=Identity),
    latent__dim=2,
    latent__prior='mixture',
    latent__labels=True,
    data__num_classes=10,
    **fields,
  )


def test_samples_are_of_the_component_of_their_label():
  config = labelled()
  state = aae.State(None, None, aae.Player({'unused': jnp.zeros(1)}, {}, None), None)
  label = jnp.arange(2000) % 10
  z = aae.sample(state, {'label': label}, jax.random.key(0), config=config)['image']
  found = np.rint(np.arctan2(z[:, 1], z[:, 0]) / np.deg2rad(36)).astype(int) % 10
  assert np.mean(found == np.asarray(label)) > 0.99
  assert aae.conditional(state, config=config)
  without = configs.replace(config, {'latent.labels': False})
  other = aae.sample(state, {'label': label}, jax.random.key(0), config=without)['image']
  assert not aae.conditional(state, config=without)
  assert np.corrcoef(z[:, 0], other[:, 0])[0, 1] < 0.9


def test_the_discriminator_sees_labels_in_training():
  """A prior draw is paired with the label of its row: D learns a component of each class only."""

  class ByLabel(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, z, label, *, train):
      w = self.param('w', nn.initializers.zeros, (self.num_classes, 2))
      return jnp.sum(jax.nn.one_hot(label, self.num_classes) @ w * z, -1)

  class Nothing(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x):
      return jnp.zeros((len(x), 2)) * self.param('a', nn.initializers.ones, ())

  config = labelled(discriminator=dict(name=ByLabel), encoder=dict(name=Nothing))
  x, label = jnp.zeros((4000, 2)), jnp.arange(4000) % 10
  batch = {'image': x, 'label': label}
  state = aae.init_state(jax.random.key(0), batch, config=config)
  after, _ = aae.train_step(state, batch, jax.random.key(1), config=config)
  # At w = 0: 1/2 of 1/2 the mean of z over the rows of class k, a tenth of all, times the rate.
  angle = np.deg2rad(36) * np.arange(10)
  wanted = 0.2 * 0.25 * 0.1 * 4 * np.stack([np.cos(angle), np.sin(angle)], -1)
  np.testing.assert_allclose(after.D.params['w'], wanted, atol=0.1 * 0.02)


def test_codes_in_the_plane_are_measured_and_others_are_not():
  config = make_config()
  state, _, _ = step(config)
  found = aae.evaluate(state, {'image': jnp.asarray(X)}, jax.random.key(0), config=config)
  residual = X - (X @ A)[:, None] * B
  np.testing.assert_allclose(found['squared_error'], (residual**2).sum(1), rtol=1e-5)
  assert set(found) == {'squared_error'}
  with pytest.raises(UserError, match=r"z is \(4, 2\): \('n', 1\) is needed"):
    aae.decode(state, jnp.zeros((4, 2)), {}, config=config)


def test_an_evaluation_plots_codes_in_the_colours_of_labels(tmp_path, monkeypatch):
  seen = {}
  plot = pictures.points_plot

  def keep(points, path, *, title, labels):
    seen.update(points=points, labels=labels, title=title)
    plot(points, path, title=title, labels=labels)

  monkeypatch.setattr(pictures, 'points_plot', keep)
  points = {
    'data.name': 'ring',
    'data.split': 'train[:80%]',
    'data.shape': '(2,)',
    'data.num_classes': '8',
    'latent.components': '8',
    'eval.held_out_split': 'train[80%:]',
    'train.steps': '2',
  }
  config = configs.load(f'{ROOT}/configs/aae_mnist.py:smoke', [*points.items()])
  assert train.run(config, tmp_path) == 0
  assert evaluate.run(config, tmp_path) == 0
  assert (tmp_path / 'evaluation/0000002_code.png').exists()
  assert (
    seen['points'].shape == (8, 2) and 'step 2: codes z ~ q(z|x) of 8 examples' in seen['title']
  )
  with np.load(tmp_path / 'evaluation/0000002_code.npz') as file:
    np.testing.assert_array_equal(file['code'], seen['points'])
  source = evaluate.data.open_source(config, 'eval.held_out_split')
  rows = evaluate.scores.chosen(len(source), 8)
  np.testing.assert_array_equal(seen['labels'], source.read(rows)['label'])


# --- Nets ---------------------------------------------------------------------------------------


def test_the_nets_have_two_layers_of_1000_and_small_weights():
  """784 x 1000 + 1000, 1000 x 1000 + 1000 and the last layer of the encoder, and so on."""
  key = jax.random.key(0)
  x, z, label = jnp.zeros((1, 28, 28, 1)), jnp.zeros((1, 2)), jnp.zeros(1, jnp.int32)
  made = {
    785_000 + 1_001_000 + 2002: jax.jit(nets.Encoder(2).init)(key, x),
    3000 + 1_001_000 + 784_784: jax.jit(nets.Decoder((28, 28, 1)).init)(key, z),
    13_000 + 1_001_000 + 1001: jax.jit(lambda *a: nets.Discriminator(10).init(*a, train=True))(
      key, z, label
    ),
  }
  for number, variables in made.items():
    leaves = jax.tree.leaves(variables)
    assert sum(leaf.size for leaf in leaves) == number
    assert max(float(jnp.abs(leaf).max()) for leaf in leaves) <= 0.02  # two standard deviations
  D = nets.Discriminator(3, features=(4,))
  variables = D.init(key, z, label, train=True)
  logits = [D.apply(variables, z, label + k, train=True) for k in range(3)]
  assert len({float(logit[0]) for logit in logits}) == 3
  out = nets.Decoder((28, 28, 1), features=(8,))
  image = out.apply(out.init(key, z), z + 3)
  assert image.shape == (1, 28, 28, 1) and jnp.abs(image).max() < 1
