"""The loop that trains every system: `run(config, workdir)`.

    Setup     what the parts below share: config, system, mesh, data, folder, checkpoints
    Start     where the run begins: at step 0, or at the newest intact checkpoint
    Programs  the initialiser and the training step, compiled (gen_jax.devices.programs)
    Events    what happens between steps: metrics, checkpoints, samples, evaluations
    _loop     the loop itself

It uses systems only through their contract (gen_jax.contract).
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from gen_jax import config as configs
from gen_jax import contract, data, evaluate, sampling
from gen_jax.devices import processes, sharding
from gen_jax.devices.heartbeat import Watch
from gen_jax.devices.programs import Programs
from gen_jax.errors import Diverged, UserError
from gen_jax.host import console
from gen_jax.run import (
  cadences,
  checkpoint,
  curves,
  grids,
  pictures,
  records,
  signals,
  starting,
  writers,
)
from gen_jax.run.leaves import check_fits
from gen_jax.run.manifest import Manifest
from gen_jax.run.metric_log import MetricLog
from gen_jax.run.progress import Progress
from gen_jax.run.trace import Trace
from gen_jax.run.workdir import Workdir, open_workdir

CURVES_SECONDS = 60  # between two drawings of the curves


@dataclasses.dataclass(frozen=True)
class Setup:
  """What the parts of a training run share."""

  config: Any  # checked
  system: Any  # module of gen_jax.systems
  mesh: jax.sharding.Mesh
  batches: data.Batches
  quick: evaluate.Quick | None  # evaluates in training; None: config.eval.every_steps is None
  conditions: Callable  # (n, start) -> what samples are given
  folder: Workdir
  saver: checkpoint.Checkpointer
  stop: signals.Stop
  watch: Watch
  started: float  # `time.monotonic()` at the start of the program
  callbacks: Sequence[Any]  # see `run`

  @property
  def draws(self) -> bool:
    """Whether the system has samples."""
    return contract.has_samples(self.system)

  def due(self, done: int) -> list[str]:
    """The events that are due after step `done`."""
    return [name for name in cadences.due(self.config, done) if name != 'draw' or self.draws]

  def call_length(self, done: int) -> int:
    """Number of steps of the call after `done` steps; all have batches of the same shape."""
    longest = cadences.call_length(self.config, done)
    shapes = (self.batches.shape(step) for step in range(done, done + longest))
    first = next(shapes)
    return 1 + sum(1 for _ in itertools.takewhile(first.__eq__, shapes))

  def keys(self) -> dict:
    """The keys of the run, {purpose: key}. They are constant: a step folds in its own number, so
    that no key has to be saved for resuming.
    """
    keys = jax.random.split(jax.random.key(self.config.seed), 4)
    return dict(zip(('init', 'data', 'step', 'sample'), keys, strict=True))


def run(config, workdir, started: float | None = None, callbacks: Sequence[Any] = ()) -> int:
  """Trains until config.train.steps, or until a signal; resumes the run that is in `workdir`.

  Args:
    config: checked config (`gen_jax.config.check`).
    workdir: folder of the run; created if it does not exist.
    started: `time.monotonic()` at the start of the program, from which the time to the first step
      is counted; None: now.
    callbacks: objects with one or both of the methods `on_metrics(step, metrics)`, which gets
      {name: float} at every config.train.log_steps and after a quick evaluation, and
      `on_images(step, name, path)`, which gets every grid, or plot, as a PNG file. With several
      processes, those of the first one are called. After a stop, a resumed run may report a step
      again.

  Returns:
    0: finished. 1: stopped by a loss that is not finite. 128 + n: saved and stopped by signal n.

  Raises:
    UserError: a user error in the config, the data or the workdir.
    SystemExit, KeyboardInterrupt: SIGTERM or Ctrl-C before there was anything to save.
  """
  started = time.monotonic() if started is None else started
  mesh = sharding.make_mesh(config)
  system = contract.check(config)
  contract.check_training(config)
  starting.check_trainable(workdir)
  first = processes.is_first()
  with (
    Watch() as watch,
    open_workdir(workdir) if first else contextlib.nullcontext(Workdir(workdir)) as folder,
  ):
    # `Start.find` compares with the checkpoint's config; this earlier check needs no data.
    if any(folder.checkpoints.glob('[0-9]*')) and (earlier := folder.read_config()):
      earlier = configs.from_json(earlier, folder.config)
      configs.check_resumable(earlier, configs.to_dict(config), folder.path)
    with signals.exit_in_order():
      with processes.first_alone():  # may download and prepare the data, or train a classifier
        source = data.open_training(config)
        quick = evaluate.Quick(config, system) if config.eval.every_steps else None
        conditions = sampling.held_out_conditions(config, system)
      processes.check_same(_of_all_processes(config, source))
      batches = data.Batches(
        source,
        config,
        minibatches=functools.partial(contract.minibatches, config, system),
        rows=sharding.own_rows(mesh, config.train.batch_size),
      )
    saver = checkpoint.Checkpointer(
      folder.checkpoints,
      config=configs.to_dict(config),
      data_fingerprint=source.fingerprint,
      keep=config.train.keep_checkpoints,
    )
    try:
      with signals.Stop() as stop:
        return _train(
          Setup(
            config=config,
            system=system,
            mesh=mesh,
            batches=batches,
            quick=quick,
            conditions=conditions,
            folder=folder,
            saver=saver,
            stop=stop,
            watch=watch,
            started=started,
            callbacks=callbacks,
          )
        )
    except Diverged as error:
      _tell(f'error: {error}')
      return 1
    finally:
      with watch.resting():
        saver.close()


def _train(setup: Setup) -> int:
  """Start, programs, events, loop; returns the exit status."""
  folder, total = setup.folder, setup.config.train.steps
  start = Start.find(setup)
  if start.step >= total and not start.missing:
    _tell(
      f'{folder.path} is finished: step {start.step} of {total}'
      + f'; samples in {folder.samples}' * setup.draws
      + f'. {_to_train_further(setup.config)} continues training.',
      sys.stdout,
    )
    return 0
  if start.step < total:
    _tell(_opening(setup, start.step))
  programs = make_programs(setup)
  state = start.make_state(setup, programs)
  with contextlib.closing(Events(setup, start.step)) as events:
    number = _loop(setup, start, programs, events, state)
  if number is not None:
    return 128 + number
  samples = f'; samples: {events.picture}' * setup.draws
  _tell(f'{folder.path} is finished after {total} steps{samples}', sys.stdout)
  if processes.is_first():
    pictures.animate(folder.images('samples'), folder.path / 'samples.gif')
  best = events.best_step()
  if best in setup.saver.steps():
    name = setup.config.eval.best
    _tell(f'best by {name} of the quick evaluations: --step={best}', sys.stdout)
  return 0


def _loop(setup: Setup, start: 'Start', programs: Programs, events: 'Events', state) -> int | None:
  """Trains from `start` to the end; returns the number of the signal that stops it, or None."""
  config, folder, done = setup.config, setup.folder, start.step
  requests = processes.Requests(setup.stop, setup.mesh)
  trace = Trace(config.profile_steps, folder.tensorboard, done)
  feed = setup.batches.iterate(done)
  with contextlib.closing(feed), contextlib.closing(trace):
    try:
      events.happen(start.missing, done, state)
      if (number := requests.answer(requests.ask())) is not None:
        return number  # the state is still that of the checkpoint
      while done < config.train.steps:
        asked = requests.ask()
        steps = setup.call_length(done)
        call = programs.of(done, steps)
        with trace.call(done + 1):
          state, metrics = call(state, list(itertools.islice(feed, steps)))
          done += steps
        if trace.end(done, state):
          _tell(f'{folder.tensorboard}: steps {trace.first} to {done} are traced')
        events.log.add(done, metrics)
        if done == start.step + steps:
          events.log.flush()
          _tell(f'first step after {time.monotonic() - setup.started:.1f} s')
        events.happen(setup.due(done), done, state)
        setup.saver.check()
        # A signal may have arrived during any line above: the finished steps are saved.
        if (number := requests.answer(asked)) is not None:
          events.happen(['save'], done, state)
          with setup.watch.resting():
            setup.saver.wait()
          _tell(f'{folder.path}: saved at step {done} of {config.train.steps}')
          return number
      with setup.watch.resting():
        setup.saver.wait()
    except UserError as error:  # a file cannot be written, or examples cannot be read
      raise events.rescued(error, done, state) from error
  return None


class Start(NamedTuple):
  """Where a run begins."""

  step: int  # number of steps done
  manifest: Manifest | None  # of the checkpoint to restore; None: there is none
  missing: list[str]  # events of `step` that the stopped run did not reach

  @classmethod
  def find(cls, setup: Setup) -> 'Start':
    """The newest intact checkpoint of the folder, or step 0.

    Raises:
      UserError: it was trained with another config or on other data.
    """
    config, folder = setup.config, setup.folder
    manifest = setup.saver.latest()
    found = 'none' if manifest is None else f'step {manifest.step}, sha256 {manifest.sha256[:16]}'
    processes.check_same({f'the newest intact checkpoint in {folder.checkpoints}': found})
    setup.saver.runs = starting.initial_weights(config, manifest)
    if manifest is None:
      if folder.config.exists():
        _tell(f'{folder.path}: no checkpoint, starting from step 0')
      return cls(0, None, [])
    configs.check_resumable(manifest.config, configs.to_dict(config), folder.path)
    fingerprint = setup.batches.source.fingerprint
    if manifest.data_fingerprint != fingerprint:
      raise UserError(
        f'config.data: the run in {folder.path} was trained on {manifest.data_fingerprint}, now '
        f'the data are {fingerprint}; give it the same data or choose another --workdir'
      )

    def missing():
      happened = dict(
        save=True,
        draw=folder.image_path(manifest.step, 'samples').exists(),
        measure=records.is_measured(records.read(folder), manifest.step),
      )
      return [name for name in setup.due(manifest.step) if not happened[name]]

    return cls(manifest.step, manifest, processes.from_first(missing))

  def make_state(self, setup: Setup, programs: Programs):
    """Restores or initialises the state in parallel with compiling the first call, which takes most
    of the start-up time.
    """
    config, resumes = setup.config, self.step < setup.config.train.steps
    init_from = config.train.init_from if self.manifest is None else None
    if init_from is not None:
      starting.start_from(init_from, programs.target)  # before a call is compiled for it
    with ThreadPoolExecutor(1) as pool:
      if self.manifest is None:
        state = pool.submit(programs.initialiser())
      else:
        check_fits(self.manifest, programs.target)  # before a call is compiled for it
        state = pool.submit(setup.saver.restore, self.manifest, programs.target)
      if resumes:
        programs.of(self.step, setup.call_length(self.step))
      state = state.result()
    if init_from is not None:
      state = starting.start_from(init_from, state)
    if resumes and processes.is_first():
      setup.folder.write_config(configs.to_json(config))
    return state


def make_programs(setup: Setup) -> Programs:
  """The initialiser and the step of the system, both including the preprocessing of the batch."""
  config, system, batches, keys = setup.config, setup.system, setup.batches, setup.keys()

  def init(host_batch, device_data):
    key = jax.random.fold_in(keys['data'], 0)
    batch = data.preprocess(device_data, host_batch, key, config=config)
    batch = {name: batch[name] for name in contract.abstract_batch(config, system)}
    return contract.initialiser(config, system)(keys['init'], batch)

  def step(state, host_batch, device_data, keys, *, axis_name):
    key = jax.random.fold_in(keys['data'], state.step)
    batch = data.preprocess(device_data, host_batch, key, config=config, axis_name=axis_name)
    return system.train_step(state, batch, keys['step'], config=config, axis_name=axis_name)

  replicated = sharding.replicated(setup.mesh)
  return Programs(
    init,
    step,
    target=sharding.abstract_state(contract.abstract_state(config, system), setup.mesh),
    mesh=setup.mesh,
    example=batches.host_batch,
    axes=batches.shape,
    device_data=sharding.put(batches.device_data, replicated),
    keys=sharding.put({name: keys[name] for name in ('data', 'step')}, replicated),
    mode=config.parallel.mode,
    compiling=setup.watch.resting,
  )


class Events:
  """What happens between calls, each on its own cadence (`gen_jax.run.cadences`).

  Attributes:
    log: the log of metrics.
    picture: path of the latest grid, or plot, of samples; their folder before the first one.
  """

  def __init__(self, setup: Setup, start: int):
    config, folder, system = setup.config, setup.folder, setup.system
    self._setup, self._start, self.picture = setup, start, folder.samples
    if processes.is_first():
      records.forget_quick(folder, start)
    setup.saver.protect(self.best_step())
    # With several processes, none may leave `draw` alone: the others would wait for it.
    self._leave = signals.Stop() if processes.several() else setup.stop
    self._sample = None
    if setup.draws:
      self._sample = sampling.make_sampler(config, system, setup.conditions)
    first = processes.is_first()
    self._writer = writers.Writers(
      folder, start_step=start, callbacks=setup.callbacks, process_is_primary=first
    )
    self._writer.hyperparameters(dict(configs.leaves(config)), contract.metrics(system))
    self._drawn = time.monotonic()
    self._progress = Progress(
      start,
      config.train.steps,
      math.prod(setup.batches.shape(config.train.steps - 1)),
      unit='points' if len(config.data.shape) == 1 else 'img',
      to_come=functools.partial(cadences.to_come, config),
      shown=first,
    )

    def saved():
      try:
        setup.saver.wait()
      except UserError as error:
        return str(error)
      steps = setup.saver.steps()
      what = f'step {steps[-1]} is saved' if steps else 'nothing is saved yet'
      return f'{what} in {folder.path}'

    self.log = MetricLog(
      config,
      self._writer,
      self._progress,
      start,
      players=vars(contract.abstract_state(config, system)),
      fetched=setup.watch.beat,
      saved=saved,
      rates=contract.learning_rates(config, system),
    )

  def happen(self, names: list[str], done: int, state) -> None:
    """Runs the events of these names (`save`, `draw`, `measure`) after step `done`. Metrics up to
    that step are checked first: a state with metrics that are not finite is neither saved nor
    sampled from.
    """
    if names:
      self.log.flush()
    for name in names:
      with self._progress.aside(name):
        getattr(self, name)(done, state)
    if names and processes.is_first() and self._are_curves_due(done):
      with self._progress.aside('curves'):
        curves.draw(self._setup.folder)
      self._drawn = time.monotonic()

  def _are_curves_due(self, done: int) -> bool:
    """At the end, and with the events of a longer run."""
    late = time.monotonic() - self._drawn > CURVES_SECONDS
    return late or done == self._setup.config.train.steps

  def save(self, done: int, state) -> None:
    """Saves a checkpoint of step `done`, in the background."""
    try:
      with self._setup.watch.resting():
        self._setup.saver.save(done, state)
    except ValueError as error:  # names the leaf that is not finite
      raise Diverged(f'after step {done} the state cannot be saved: {error}') from error

  def draw(self, done: int, state) -> None:
    """Writes samples of step `done`, unless a stop is requested first."""
    setup = self._setup
    with setup.watch.resting():
      count = setup.config.sample.num_images
      samples = self._sample(state, setup.keys()['sample'], count, self._leave)
    if samples is not None and processes.is_first():
      labels = contract.asked_labels(setup.config, setup.system, state, count)
      self.picture = grids.write(self._writer, done, samples, setup.batches.source, labels)

  def measure(self, done: int, state) -> None:
    """Writes the quick evaluation of step `done`, unless a stop is requested first, and keeps the
    checkpoint of the best one.
    """
    setup = self._setup
    with setup.watch.resting():
      rows = setup.quick(state, self._leave)
    if rows is None:
      return
    if processes.is_first():
      records.append(setup.folder, done, rows)
    values = {row.metric: row.value for row in rows}
    self._writer.evaluation(done, values)
    numbers = '  '.join(f'{name} {value:.4g}' for name, value in values.items())
    self._progress.tell(f'step {done}  quick evaluation  {numbers}')
    best = self.best_step()
    if best == done and done > self._start:  # the start has a checkpoint already
      self.save(done, state)
    with setup.watch.resting():
      setup.saver.protect(best)  # waits for `save`, then releases the previous best checkpoint

  def rescued(self, error: UserError, done: int, state) -> UserError:
    """Saves the state after step `done`, from which training cannot continue, if that is possible;
    returns the error, which then says so.
    """
    if done == self._start or processes.several():  # a save of several needs them all
      return error
    try:
      with contextlib.suppress(UserError):
        self.log.flush()
      self.save(done, state)
      self._setup.saver.wait()
    except (UserError, Diverged):
      return error
    return UserError(f'{error}; step {done} is saved')

  def best_step(self) -> int | None:
    """The step of the best quick evaluation so far; None: there is none."""
    folder, name = self._setup.folder, self._setup.config.eval.best
    return processes.from_first(lambda: records.best_step(records.read(folder), name))

  def close(self) -> None:
    """Ends the display of the progress; all else is on disk already."""
    self._progress.close()


def _of_all_processes(config, source) -> dict:
  """What all processes of a run must agree on: the data, and the config except for fields that each
  process may set for itself.
  """
  own = ('compilation_cache', 'data.path', 'data.x.path', 'data.read_threads', 'data.prefetch')
  fields = {f'config.{path}': value for path, value in configs.leaves(config) if path not in own}
  return fields | {'config.data': source.fingerprint}


def _opening(setup: Setup, step: int) -> str:
  """What is trained, on what, where, and that it is compiled first."""
  config, batches, mesh = setup.config, setup.batches, setup.mesh
  what = (
    'points' if len(config.data.shape) == 1 else f'images {"x".join(map(str, config.data.shape))}'
  )
  where = 'on the device' if batches.storage == 'device' else 'streamed'
  size = contract.parameters(contract.abstract_state(config, setup.system))
  return (
    f'{setup.folder.path}: {f"resuming from step {step} of" if step else "training"} '
    f'{config.train.steps} steps, {config.system} with '
    f'{", ".join(f"{name} {count:,}" for name, count in size.items())} parameters on '
    f'{len(batches.source):,} {what} of {batches.source.name}, {where}; '
    f'{mesh.size} x {mesh.devices.flat[0].device_kind}; compiling'
  )


def _to_train_further(config) -> str:
  """Which fields need larger values to continue a finished run."""
  ends = [
    f'--config.{path}'
    for path, value in configs.leaves(config)
    if path.endswith('.decay_steps') and value is not None
  ]
  also = f" (and {' and '.join(ends)}, where it is not 'train.steps')" if ends else ''
  return f'A larger --config.train.steps{also}'


def _tell(text: str, file=None) -> None:
  """Prints a line, to stderr by default, once for all processes of the run."""
  if processes.is_first():
    console.tell(text, file)
