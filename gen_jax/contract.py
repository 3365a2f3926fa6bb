"""What the verbs (train, sample, evaluate) know of a system: its contract.

A system is a module in gen_jax.systems with

    FIELDS                                                    {dotted path: rule} of its fields
    init_state(rng, batch, *, config)                         -> State
    train_step(state, batch, rng, *, config, axis_name=None)  -> (State, {'player/name': scalar})

and optionally

    sample(state, given, rng, *, config)    -> {name: float32 [n, ...] or [n, m, ...]}
    evaluate(state, batch, rng, *, config)  -> {name: [b] or [b, k]}
    encode(state, batch, rng, *, config)    -> {'z': [b, ...], 'reconstruction': [b, ...]}
    decode(state, z, given, *, config)      -> {'image': [n, ...]}
    prior(rng, n, *, config)                -> [n, ...]
    translate(state, images, to, rng, *, config)  -> [n, ...]

`sample` returns one image (or point) for each row of `given` as 'image', in [-1, 1], and under
other names additional images of each sample: one, or a sequence of m. Every name is written as an
image grid of its own; but 'evaluations', int32 [n], are the passes of a net for each sample, where
an adaptive solver decides on them (`evaluations(config)` is None then). A system without `sample`,
such as a classifier, is trained and evaluated like any other. Where images are generated for people
to look at, `given` also holds the leaves of held-out examples that `CONDITIONS` of the module
names, such as ('image',), by row number. Of a system with `inputs` it always holds them: without
them, nothing can be translated.

`evaluate` returns values of each example of a held-out batch. `MEASURES`, {name: fields.Measure} of
the module, describes each that it may return; the first one represents the system in comparisons.
Values [b] become a row with mean and standard error; values [b, k] a file and a plot of their means
against k or, of points in the plane (`Measure.points`), of the points in the colours of labels.

`encode` returns a latent of each example of a batch (`image`, and `label` where samples depend on
labels), and what becomes of it, in [-1, 1]. `decode` makes images of latents z [n, ...], with the
labels in `given`; it raises a UserError for a z of another shape. `prior` draws n such latents.

`translate` maps images [n, h, w, c] of one domain, in [-1, 1] and of any size, to the domain `to`,
'y' or 'x'; it raises a UserError where the system has no way there.

`METRICS`, {'player/name': meaning} of the module, describes the metrics of `train_step` that the
system computes, without those that `state.update` adds.

Where needed:

    inputs(config) -> {leaf: shape}       leaves of a batch and shapes of an example, (): an int32
                                          label; if not 'image' and, with labels, 'label'
    minibatches(config, step) -> int      minibatches of a step: leaves of the batch are [k, b, ...]
    check(config)                         raises a UserError for fields that are inconsistent
    evaluations(config) -> int or None    forward passes per sample, if not one
    conditional(state, *, config) -> bool whether `sample` depends on the labels, if ever
    runs(config) -> {field of the state: path}    finished runs that sampling needs, {} for none

Fields `eval.quick.<name>` in FIELDS replace `sample.<name>` in evaluations during training.

`runs` may also name a player, (path, player), of a run with several networks. Its fields are None
in training. Where a verb, or `gen_jax.load(...)`, samples or evaluates, `run.restoring.attach`
first sets each to a `state.Frozen`: the weights that the other run samples with, its batch
statistics and its config. The checksums of these runs are part of the protocol of every number.
`sample` must also accept None: samples during training are generated without the other run.
"""

import functools
import math
import traceback
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import config as configs
from gen_jax import nets
from gen_jax.devices import memory, sharding
from gen_jax.errors import UserError
from gen_jax.fields import Measure
from gen_jax.state import UPDATE_METRICS, make_schedule
from gen_jax.systems import find_system

_BLOCK = 2**16  # steps


def check(config):
  """Checks what can be checked without data, and returns the module of the system.

  Raises:
    UserError: a field is inconsistent with another one or with the nets, or samples do not fit in
      the memory there is.
  """
  system = check_fields(config)
  check_memory(config, system)
  return system


def check_fields(config):
  """As `check`, on a machine of any size."""
  system = find_system(config.system)
  getattr(system, 'check', lambda config: None)(config)
  held_out = config.eval.held_out_examples
  if held_out is not None and not measures(system):
    raise UserError(
      f'config.eval.held_out_examples={held_out}: config.system={config.system!r} has no '
      '`evaluate` for held-out examples; None is needed'
    )
  count = config.sample.batch_size
  for cached in (abstract_state, initialiser, _samples):
    cached.cache_clear()  # a notebook may have changed the net since
  try:
    state = abstract_state(config, system)
    if has_samples(system):
      shape = _samples(config, system)['image'].shape
    else:
      step = functools.partial(system.train_step, config=config)
      jax.eval_shape(step, state, abstract_batch(config, system), jax.random.key(0))
  except UserError:
    raise
  except Exception as error:
    groups = [path for path, rule in system.FIELDS.items() if rule.type == 'net']
    if not _comes_from_our_nets(error, [config[path].name for path in groups]):
      raise  # the author of the net, or of the system, needs the traceback
    named = ' or '.join(f'config.{path}' for path in groups)
    why = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
    raise UserError(
      f'{named} cannot be built for config.data.shape={tuple(config.data.shape)}: another value '
      f'is needed ({why})'
    ) from error
  if has_samples(system) and shape != (count, *config.data.shape):
    raise UserError(
      f'config.data.shape={tuple(config.data.shape)}, but the nets of this config make '
      f'{shape[1:]}; set config.data.shape to that, or change the nets'
    )
  return system


def check_memory(config, system, training: bool = False) -> None:
  """Compares the memory there is with what is certainly needed: the state, a batch of examples in
  training, a batch of samples, and on the host all samples of `--mode=sample`.

  Raises:
    UserError: there is less.
  """
  free, free_on_host = memory.of_a_device(), memory.of_the_host()
  on_cpu = jax.default_backend() == 'cpu'
  shards, rows = (1, 1) if on_cpu else (config.parallel.fsdp, jax.device_count())
  state = abstract_state(config, system)
  if not training:
    kept = {name: p.replace(opt_state=None) for name, p in vars(state).items() if _is_player(p)}
    state = state.replace(**kept)
  held = _bytes(state) / shards

  def afford(size: float, available: int | None, what: str, besides: float = 0.0) -> None:
    if available is not None and size + besides > available:
      more = f' besides {memory.text(besides)} of the nets' * (besides > 0)
      raise UserError(
        f'{what} need {memory.text(size)} of memory{more}, and {memory.text(available)} are free'
      )

  groups = ' and '.join(f'config.{p}' for p, rule in system.FIELDS.items() if rule.type == 'net')
  number = sum(parameters(state).values())
  afford(held, free, f'{groups}: {number:,} parameters' + ' in training' * training)
  shape = f'of config.data.shape={tuple(config.data.shape)}'
  if training:
    k = minibatches(config, system)
    times = f' times {k} minibatches' if (k or 1) > 1 else ''
    what = f'config.train.batch_size={config.train.batch_size}{times}: examples {shape}'
    afford(_bytes(abstract_batch(config, system)) / rows, free, what, held)
  if has_samples(system):
    size, number = config.sample.batch_size, config.sample.num_images
    made = _bytes(_samples(config, system))
    afford(made / rows, free, f'config.sample.batch_size={size}: samples {shape}', held)
    what = f'config.sample.num_images={number}: samples {shape}'
    afford(made / size * number, free_on_host, what)


def _is_player(value) -> bool:
  return hasattr(value, 'params')


def _bytes(tree) -> int:
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def has_samples(system) -> bool:
  """Whether a system generates anything; a classifier does not."""
  return hasattr(system, 'sample')


def abstract_samples(config, system, state) -> dict:
  """Shapes and dtypes of a batch of samples, without computing one.

  Raises:
    UserError: the nets do not fit the config, or a finished run in the state does not fit this one.
  """
  number = config.sample.batch_size
  given = conditions(config, number)
  if always := needed(system):
    given |= {name: jnp.zeros((number, *inputs(config, system)[name])) for name in always}
  return jax.eval_shape(
    lambda state: system.sample(state, given, jax.random.key(0), config=config), state
  )


@functools.lru_cache(maxsize=1)  # tracing a large net takes a second
def _samples(config, system) -> dict:
  return abstract_samples(config, system, abstract_state(config, system))


def inputs(config, system) -> dict[str, tuple[int, ...]]:
  """The leaves of a batch, and the shape of an example in each; () is a label, int32."""
  if hasattr(system, 'inputs'):
    return system.inputs(config)
  label = {} if config.data.num_classes is None else {'label': ()}
  return {'image': tuple(config.data.shape)} | label


def needed(system) -> tuple[str, ...]:
  """The leaves of held-out examples without which the system has no samples."""
  return getattr(system, 'CONDITIONS', ()) if hasattr(system, 'inputs') else ()


def runs(config, system) -> dict:
  """The finished runs that the system needs to sample, {field of the state: path}."""
  return system.runs(config) if hasattr(system, 'runs') else {}


def check_samples(config, system) -> None:
  """Checks that a system can generate samples.

  Raises:
    UserError: it has no `sample`.
  """
  if not has_samples(system):
    raise UserError(
      f'config.system={config.system!r} generates no samples; it can be trained and, with '
      '--mode=evaluate, evaluated'
    )


def measures(system) -> dict[str, Measure]:
  """What each value of `system.evaluate` is, by name; empty for a system without `evaluate`."""
  return system.MEASURES if hasattr(system, 'evaluate') else {}


def metrics(system) -> dict[str, str]:
  """The meaning of each metric that a step logs, by name."""
  own = getattr(system, 'METRICS', {})
  players = dict.fromkeys(name.partition('/')[0] for name in own)
  added = {f'{player}/{name}': text for player in players for name, text in UPDATE_METRICS.items()}
  return own | added | {name: 'learning rate' for name in _optimizers(system)}


def learning_rates(config, system) -> dict[str, Callable[[int], float]]:
  """{metric: step -> learning rate of that step} of every optimiser of a config."""

  def of(group):
    rate = make_schedule(config[group])

    @functools.lru_cache(maxsize=2)
    def block(i):  # many steps at once: an operation on the device waits for the running step
      return np.broadcast_to(rate(np.arange(i * _BLOCK, (i + 1) * _BLOCK)), _BLOCK)

    # The first step, whose number is 1, counts from 0.
    return lambda step: float(f'{block((step - 1) // _BLOCK)[(step - 1) % _BLOCK]:.6g}')

  return {name: of(group) for name, group in _optimizers(system).items()}


def _optimizers(system) -> dict[str, str]:
  """{metric: config group} of the learning rate of every optimiser; that of `optim` is the one of a
  system with one player.
  """
  groups = [path.removesuffix('.lr') for path in system.FIELDS if path.endswith('.lr')]
  single = next((name.partition('/')[0] for name in getattr(system, 'METRICS', ())), 'net')
  names = (group.rpartition('.')[2].lower() if '.' in group else single for group in groups)
  return {f'{name}/lr': group for name, group in zip(names, groups, strict=True)}


def _comes_from_our_nets(error, names) -> bool:
  """Whether the nets of these names are all of this package, and one of them raised `error`."""
  files = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
  ours = all(nets.find(name).__module__.startswith(nets.__name__) for name in names)
  return ours and bool(files & nets.files())


def check_training(config) -> None:
  """Checks what only training depends on.

  Raises:
    UserError: the config cannot be saved, the batch is not divisible by the devices, training does
      not fit in the memory there is, a learning rate is 0 before the last step,
      the steps to trace are out of range, or the config does not support several processes.
  """
  configs.to_json(config)  # which is written later
  sharding.check_devices(config, jax.device_count())
  check_memory(config, find_system(config.system), training=True)
  if jax.process_count() > 1:
    used = math.prod(sharding.mesh_shape(config, jax.device_count()))
    if config.parallel.mode == 'pmap':
      raise UserError(
        "config.parallel.mode='pmap' is for one process; for several, 'jit' is needed"
      )
    if used < jax.device_count():
      raise UserError(
        f'config.parallel.data={config.parallel.data}: with several processes, all '
        f'{jax.device_count()} devices are used; None is needed'
      )
  first, last = config.profile_steps or (1, 1)
  if not first <= last <= config.train.steps:
    raise UserError(
      f'config.profile_steps={tuple(config.profile_steps)}: the first and the last step to trace, '
      f'from 1 to config.train.steps={config.train.steps}, are needed'
    )
  system = find_system(config.system)
  if config.eval.every_steps is not None and not has_samples(system):
    raise UserError(
      f'config.eval.every_steps={config.eval.every_steps}: quick evaluations are of samples, and '
      f'config.system={config.system!r} generates none; None is needed'
    )
  if config.eval.every_steps is not None and (needed := runs(config, system)):
    named = ', '.join(map(str, needed.values()))
    raise UserError(
      f'config.eval.every_steps={config.eval.every_steps}: in training, samples are drawn without '
      f'another run, but config.sample names {named}; None is needed for one of the two'
    )
  for path, value in configs.leaves(config):
    if path.endswith('.decay_steps') and value is not None and value < config.train.steps:
      raise UserError(
        f'config.{path}={value} makes the learning rate 0 before '
        f'config.train.steps={config.train.steps}: at least that many, or '
        f"config.{path.replace('decay_steps', 'schedule')}='constant', is needed"
      )
    if path.endswith('.constant_steps') and value is not None:
      decay = path.replace('constant_steps', 'decay_steps')
      if value >= config[decay]:
        raise UserError(
          f'config.{path}={value}: fewer than config.{decay}={config[decay]} are needed'
        )


def describe(config) -> str:
  """A table of the parameters of every net: number and shape of each group, and totals."""
  state = abstract_state(config, check_fields(config))
  lines = []
  for name, count in parameters(state).items():
    for group, leaves in getattr(state, name).params.items():
      lines.append((f'{name}/{group}', _count(leaves)))
    lines.append((f'{name} in all', count))
  width = max(len(name) for name, _ in lines)
  return '\n'.join(f'{name:{width}}  {count:>12,} parameters' for name, count in lines)


def parameters(state) -> dict[str, int]:
  """The number of parameters of every player."""
  return {name: _count(p.params) for name, p in vars(state).items() if _is_player(p)}


def _count(tree) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@functools.lru_cache(maxsize=1)  # called twice at a start, and tracing a large net takes a second
def abstract_state(config, system):
  """Shapes and dtypes of a state, without computing one."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.eval_shape(initialiser(config, system), key, abstract_batch(config, system))


def abstract_batch(config, system) -> dict:
  """Shapes and dtypes of the batch that a state is initialised with; a batch may hold more, such as
  labels that the config does not use.
  """
  k = minibatches(config, system)
  rows = (config.train.batch_size,) if k is None else (k, config.train.batch_size)
  return {
    leaf: jax.ShapeDtypeStruct((*rows, *shape), jnp.float32 if shape else jnp.int32)
    for leaf, shape in inputs(config, system).items()
  }


@functools.lru_cache(maxsize=1)
def initialiser(config, system):
  """`init(rng, batch) -> State` for an `abstract_batch`, jitted: the trace made for
  `abstract_state` is reused by the program.
  """
  return jax.jit(functools.partial(system.init_state, config=config))


def minibatches(config, system, step: int = 0) -> int | None:
  """Number of minibatches of a step; None: batches have no minibatch axis. The step is compiled
  once for each number.
  """
  return system.minibatches(config, step) if hasattr(system, 'minibatches') else None


def asked_labels(config, system, state, n: int) -> np.ndarray | None:
  """The classes of the first n samples of a state, int32 [n], as `conditions` asks for them; None:
  its samples do not depend on labels.
  """
  label = conditions(config, n).get('label')
  conditional = label is not None and hasattr(system, 'conditional')
  return np.asarray(label) if conditional and system.conditional(state, config=config) else None


def conditions(config, n: int, start: int = 0) -> dict:
  """The batch passed to `sample`: `index` int32 [n], counting from `start`, and, for labelled data,
  `label`, which cycles through the classes.
  """
  batch = {'index': jnp.arange(start, start + n, dtype=jnp.int32)}
  if config.data.num_classes is not None:
    batch['label'] = batch['index'] % config.data.num_classes
  return batch


class Sampling(NamedTuple):
  """How a system samples: part of the protocol of every number about its samples."""

  text: str  # the sampler and its settings
  evaluations: int | None  # of a net, per example; None: the sampler decides
  weights: str  # 'raw', or 'ema' for their moving average


def sampling(config, system) -> Sampling:
  """How `system.sample` samples with this config: the system's own fields of `config.sample` that
  matter.
  """
  settings = [
    f'{path.removeprefix("sample.")} {_text(config[path])}'
    for path, rule in system.FIELDS.items()
    if path.startswith('sample.')
    and path != 'sample.weights'
    and rule.protocol
    and rule.matters(path, lambda other: config[other])
  ]
  if config.precision != 'float32':
    settings.append(config.precision)
  return Sampling(
    text=', '.join(settings) or 'one pass',
    evaluations=system.evaluations(config) if hasattr(system, 'evaluations') else 1,
    weights=config.sample.get('weights', 'raw'),
  )


def _text(value) -> str:
  return f'{value:g}' if isinstance(value, float) else str(value)


def quick(config):
  """The config of evaluations in training: `eval.quick.<name>` replaces `sample.<name>`."""
  own = config.eval.get('quick', {})
  return configs.replace(config, {f'sample.{name}': value for name, value in own.items()})
