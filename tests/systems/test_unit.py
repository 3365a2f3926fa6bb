"""UNIT, for images and for domain adaptation, CoGAN and the classifier: gradients equal to those of
the authors' trainers (nets/unit_reference.py), what labels a step sees, translations.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import test_unit_reference as nets
from nets import unit_reference as reference

from gen_jax import config as configs
from gen_jax import draws
from gen_jax.errors import UserError
from gen_jax.ops.compiler import options_for_one_run
from gen_jax.systems import cogan, find_system, image_classifier, unit, unit_adaptation

TOLERANCE = dict(rtol=2e-3, atol=2e-4)
ADAM = dict(name='adam', lr=1e-3)


def make(system, size, **fields):
  values = {
    'data.name': 'shapes',
    'data.shape': (size, size, 1),
    'data.x.shape': (size, size, 3),
    'data.x.name': 'shapes',
  }
  optimizers = {'optim.G': ADAM, 'optim.D': ADAM}
  return configs.make(system, values | optimizers | fields)


def shape_of_state(system, batch, config):
  init = functools.partial(system.init_state, config=config)
  return jax.eval_shape(init, jax.random.key(0), batch)


def compiled(function, *args):
  return jax.jit(function, compiler_options=options_for_one_run())(*args)


def assert_gradients(found, name_of, where):
  """Gradients of our parameters of one axis against the authors' of the same names."""
  names = []
  for path, value in jax.tree.leaves_with_path(found):
    *keys, kind = (part.key for part in path)
    if value.ndim > 1:
      continue
    names.append(f'gradients/{where}/{name_of(keys)}.{"weight" if kind == "a" else "bias"}')
    want = nets.fixture()[names[-1]].reshape(value.shape)
    np.testing.assert_allclose(value, want, err_msg=names[-1], **TOLERANCE)
  assert set(names) == {name for name in nets.fixture() if name.startswith(f'gradients/{where}/')}


@pytest.fixture
def known_noise(monkeypatch):
  monkeypatch.setattr(draws, 'normal', lambda key, shape, *_: jnp.full(shape, reference.DEVIATIONS))


# --- Against the authors' -------------------------------------------------------------------------


def test_the_losses_of_unit_have_the_authors_gradients(known_noise):
  config = make(
    'unit',
    32,
    generator=dict(name='unit.Generator', features=2, blocks=2),
    discriminator=dict(name='unit.MultiScaleDiscriminator', features=2, layers=3),
    loss=dict(gan=10.0, reconstruction=100.0, cycle=90.0, kl=0.1, cycle_kl=0.2),
  )
  x, y = reference.inputs(32)
  state = shape_of_state(unit, {'x': x, 'y': y}, config)
  G = nets.filled_as(nets.image_name, {'params': state.G.params})['params']
  D = nets.filled_as(nets.multi_scale_name, {'params': state.D.params})['params']
  game = unit.build(config)

  def both(G, D):
    key, images = jax.random.key(0), {'x': x, 'y': y}
    noise = unit.draw_noise(key, game, G, images)
    z = unit.codes_of(game, G, images, noise, key)
    made = unit.images_of(game, G, z['y'], 'x', key), unit.images_of(game, G, z['x'], 'y', key)
    d_loss = functools.partial(unit.d_loss, game=game, config=config)
    D_now = state.D.replace(params=D, opt_state=())
    g_loss = functools.partial(unit.g_loss, D=D_now, game=game, config=config)
    return (
      jax.grad(d_loss, has_aux=True)(D, (x, y, *made), ())[0],
      jax.grad(g_loss, has_aux=True)(G, (x, y, noise, noise), key)[0],
    )

  of_D, of_G = compiled(both, G, D)
  assert_gradients(of_D, nets.multi_scale_name, 'image/D')
  assert_gradients(of_G, nets.image_name, 'image/G')


def test_the_losses_of_unit_with_classes_have_the_authors_gradients(known_noise):
  config = make(
    'unit_adaptation',
    32,
    generator=dict(name='unit_digits.Generator', features=2),
    discriminator=dict(name='unit_digits.Discriminator', features=2, dropout=(0.0,) * 4),
    loss=dict(classes=10.0, features=0.1, reconstruction=0.01, kl=0.1),
    **{'data.num_classes': 10},
  )
  x, y = reference.inputs(32)
  label = np.array(reference.LABELS)
  state = shape_of_state(unit_adaptation, {'x': x, 'y': y}, config)
  variables = {'params': state.G.params, 'batch_stats': state.G.stats}
  variables = nets.filled_as(nets.digits_name, variables)
  G = state.G.replace(params=variables['params'], stats=variables['batch_stats'])
  D = state.D.replace(
    params=nets.filled_as(nets.digits_judge_name, {'params': state.D.params})['params']
  )
  game, key = unit_adaptation.build(config), jax.random.key(0)
  keys = dict.fromkeys(('real', 'fake', 'noise', 'D'), key)

  def both(G, D):
    made, _, _ = unit_adaptation.make(game, G.variables(), {'x': x, 'y': y}, key)
    d_loss = functools.partial(unit_adaptation.d_loss, game=game, config=config)
    how = dict(state=state.replace(G=G, D=D), game=game, config=config, axis_name=None)
    g_loss = functools.partial(unit_adaptation.g_loss, **how)
    return (
      jax.grad(d_loss, has_aux=True)(D.params, (x, y, label, made), keys)[0],
      jax.grad(g_loss, has_aux=True)(G.params, (x, y), keys)[0],
    )

  of_D, of_G = compiled(both, G, D)
  assert_gradients(of_D, nets.digits_judge_name, 'digits/D')
  assert_gradients(of_G, nets.digits_name, 'digits/G')


def test_the_losses_of_cogan_have_the_authors_gradients():
  config = make(
    'cogan',
    28,
    generator=dict(name='cogan.Generator'),
    discriminator=dict(name='cogan.Discriminator'),
    loss=dict(classes=10.0, features=0.02),
    latent=dict(dim=reference.LATENT),
    **{'data.num_classes': 10, 'data.x.shape': (28, 28, 1)},
  )
  x, y = reference.inputs(28, (1, 1))
  batch, z = {'x': x, 'y': y}, reference.latents()
  state = shape_of_state(cogan, batch, config)
  variables = {'params': state.G.params, 'batch_stats': state.G.stats}
  variables = nets.filled_as(nets.cogan_name, variables)
  G = state.G.replace(params=variables['params'], stats=variables['batch_stats'])
  D = state.D.replace(
    params=nets.filled_as(nets.cogan_judge_name, {'params': state.D.params})['params']
  )
  state, game = state.replace(G=G, D=D), cogan.build(config)

  def both(G, D):
    made, _ = cogan.generate(game.G, state.G, z, G)
    rows = x, y, np.array(reference.LABELS), made['x'], made['y']
    d_loss = functools.partial(cogan.d_loss, game=game, config=config)
    g_loss = functools.partial(cogan.g_loss, state=state, game=game)
    return (
      jax.grad(d_loss, has_aux=True)(D, rows, ())[0],
      jax.grad(g_loss, has_aux=True)(G, z, ())[0],
    )

  of_D, of_G = compiled(both, G.params, D.params)
  assert_gradients(of_D, nets.cogan_judge_name, 'cogan/D')
  assert_gradients(of_G, nets.cogan_name, 'cogan/G')


def test_K_of_a_code_of_zeros_is_0():
  assert unit.K(jnp.zeros((2, 3, 3, 4))) == 0
  assert unit.K(jnp.full((2, 3, 3, 4), -2.0)) == 4
  # Per example and entry mu^2 + sigma^2 - log sigma^2.
  mu, sigma = jnp.full((5, 1, 1, 3), 2.0), jnp.full((5, 1, 1, 3), 0.5)
  assert unit_adaptation.kl(mu, sigma) == pytest.approx(3 * (4 + 0.25 + 2 * np.log(2)))


@pytest.mark.parametrize(
  ('name', 'system'), [('unit_folder', unit), ('unit_mnist_usps', unit_adaptation)]
)
def test_a_translation_has_no_noise_and_does_not_depend_on_its_neighbours(name, system):
  config = configs.load(f'configs/{name}.py:smoke', [('init.tied', 'False')])
  shape = config.data.shape
  batch = {d: jnp.zeros((1, *shape)) for d in 'xy'}
  state = compiled(functools.partial(system.init_state, config=config), jax.random.key(0), batch)
  images = np.tanh(np.random.RandomState(0).standard_normal((3, *shape)).astype('float32'))
  y, again, alone, x = compiled(
    lambda state: (
      *(system.translate(state, images, 'y', jax.random.key(i), config=config) for i in (0, 1)),
      system.translate(state, images[1:], 'y', jax.random.key(2), config=config),
      system.translate(state, images, 'x', jax.random.key(3), config=config),
    ),
    state,
  )
  np.testing.assert_array_equal(y, again)
  np.testing.assert_allclose(alone, y[1:], atol=1e-6)
  assert y.shape == images.shape and np.abs(x - y).max() > 1e-3


def test_images_of_any_size_are_translated_by_unit_and_of_one_by_that_of_digits():
  config = configs.load('configs/unit_folder.py:smoke')
  state = shape_of_state(unit, {d: jnp.zeros((1, 16, 16, 3)) for d in 'xy'}, config)
  how = functools.partial(unit.translate, to='y', rng=None, config=config)
  assert jax.eval_shape(how, state, jnp.zeros((2, 21, 18, 3))).shape == (2, 21, 18, 3)
  with pytest.raises(UserError, match=r'config.data.x.shape=\(15, 16, 3\): .* multiples of 2'):
    unit.check(configs.load('configs/unit_folder.py:smoke', [('data.x.shape', '(15, 16, 3)')]))
  config = configs.load('configs/unit_mnist_usps.py:smoke')
  state = shape_of_state(unit_adaptation, {d: jnp.zeros((1, 16, 16, 1)) for d in 'xy'}, config)
  with pytest.raises(UserError, match=r'images of 21x18: .*, 16x16'):
    unit_adaptation.translate(state, jnp.zeros((2, 21, 18, 1)), 'y', None, config=config)


@pytest.mark.parametrize('name', ['unit_folder', 'unit_mnist_usps', 'cogan_mnist_usps'])
def test_tied_ends_start_alike(name):
  """A translation is then the reconstruction; without, the ends are drawn apart."""
  for tied in (True, False):
    config = configs.load(f'configs/{name}.py:smoke', [('init.tied', str(tied))])
    system = find_system(config.system)
    x = jax.random.normal(jax.random.key(1), (3, *config.data.shape))
    batch = {'x': x, 'y': x}
    state = system.init_state(jax.random.key(0), batch, config=config)
    made = system.sample(state, batch, jax.random.key(2), config=config)
    pair = ('image', 'x') if name.startswith('cogan') else ('image', 'image_x')
    assert np.array_equal(made[pair[0]], made[pair[1]]) == tied


def test_tied_ends_have_equal_channels():
  fields = [('init.tied', 'True'), ('data.x.shape', '(16, 16, 1)')]
  with pytest.raises(UserError, match=r'init\.tied=True, but x has 1 channels and y 3: False'):
    unit.check(configs.load('configs/unit_folder.py:smoke', fields))


# --- Labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['unit', 'cogan', 'classifier'])
def test_a_step_sees_the_labels_of_x_alone(name):
  """Traced, the labels of y reach nothing that a step returns."""
  config = configs.load(f'configs/{name}_mnist_usps.py:smoke')
  system = {'unit': unit_adaptation, 'cogan': cogan, 'classifier': image_classifier}[name]
  size = config.data.shape
  batch = {d: jnp.zeros((4, *size)) for d in 'xy'}
  batch |= {f'{d}_label': jnp.zeros(4, jnp.int32) for d in 'xy'}
  state = shape_of_state(system, batch, config)
  step = functools.partial(system.train_step, config=config)
  made = jax.make_jaxpr(step)(state, batch, jax.random.key(1))
  used = {id(v) for equation in made.jaxpr.eqns for v in equation.invars}
  order = len(jax.tree.leaves(state))
  leaves = dict(zip(sorted(batch), made.jaxpr.invars[order:], strict=False))
  assert id(leaves['x_label']) in used and id(leaves['y_label']) not in used


@pytest.mark.parametrize('name', ['unit', 'cogan', 'classifier'])
def test_wrong_fields_are_said_in_one_line(name):
  path = f'configs/{name}_mnist_usps.py:smoke'
  system = {'unit': unit_adaptation, 'cogan': cogan, 'classifier': image_classifier}[name]
  with pytest.raises(UserError, match=r'config\.data\.num_classes=None: .*is needed'):
    system.check(configs.load(path, [('data.num_classes', 'None')]))
  with pytest.raises(UserError, match=r'config\.data\.x\.shape=\(8, 8, 1\): .*is needed'):
    system.check(configs.load(path, [('data.x.shape', '(8, 8, 1)')]))


@pytest.mark.parametrize('name', ['cogan', 'classifier'])
def test_the_accuracy_is_that_of_y(name):
  config = configs.load(f'configs/{name}_mnist_usps.py:smoke')
  system = {'cogan': cogan, 'classifier': image_classifier}[name]
  draw = np.random.RandomState(0).standard_normal
  batch = {d: np.tanh(np.float32(draw((12, *config.data.shape)))) for d in 'xy'}
  state = compiled(functools.partial(system.init_state, config=config), jax.random.key(0), batch)
  if name == 'cogan':
    judged = cogan.build(config).D.apply(state.D.variables(), batch['x'], batch['y'])
    classes = {d: of.classes.argmax(-1) for d, of in zip('xy', judged, strict=True)}
  else:
    net, variables = image_classifier.build(config)[0], state.net.variables()
    classes = {d: net.apply(variables, a, train=False).argmax(-1) for d, a in batch.items()}
  count = config.data.num_classes
  batch |= {'y_label': classes['y'], 'x_label': (classes['x'] + (np.arange(12) < 3)) % count}
  found = system.evaluate(state, batch, None, config=config)
  np.testing.assert_array_equal(found['accuracy'], 1)
  np.testing.assert_array_equal(found['accuracy_x'], np.arange(12) >= 3)
