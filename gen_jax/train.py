"""The loop that trains every system: `run(config, workdir)`.

It restores the run in the workdir or starts one, compiles the step, and then steps, logs, samples,
saves and evaluates, each on its own cadence, the last step always included. It knows systems by
their contract only (gen_jax.contract).
"""

import contextlib
import itertools
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from gen_jax import config as configs
from gen_jax import contract, data, evaluate
from gen_jax import sample as sampling
from gen_jax.devices import compilation, processes, sharding
from gen_jax.devices.heartbeat import Watch
from gen_jax.devices.program_cache import Prefetch
from gen_jax.errors import Diverged, UserError
from gen_jax.run import checkpoint, records, signals, writers
from gen_jax.run.workdir import Workdir, open_workdir


def run(config, workdir, started: float | None = None) -> int:
  """Trains until config.train.steps, or until a signal; going on where the run in `workdir`
  stopped.

  Args:
    config: checked config (`gen_jax.config.check`).
    workdir: folder of the run; made if need be.
    started: `time.monotonic()` at the start of the program, from where the time to the first step
      is told; None: now.

  Returns:
    0: finished. 1: stopped by a loss that is not finite. 128 + n: saved and stopped by signal n.

  Raises:
    UserError: something in the config, the data or the workdir has to be put right first.
    SystemExit, KeyboardInterrupt: SIGTERM or Ctrl-C came before there was anything to save.
  """
  started = time.monotonic() if started is None else started
  mesh = sharding.make_mesh(config)
  prefetch = Prefetch(config, mesh)  # as early as can be: it is what a later start waits for
  system = contract.check(config)
  contract.check_training(config)
  first = processes.is_first()
  with (
    Watch() as watch,
    open_workdir(workdir) if first else contextlib.nullcontext(Workdir(workdir)) as folder,
  ):
    # What the checkpoint says counts, in `_train`; this one answers before data are fetched.
    if any(folder.checkpoints.glob('[0-9]*')) and (earlier := folder.read_config()):
      configs.check_resumable(earlier, configs.to_dict(config), folder.path)
    with signals.exit_in_order():
      with processes.first_alone():  # may download and prepare the data, or train a classifier
        source = data.open_source(config)
        quick = evaluate.Quick(config, system) if config.eval.every_steps else None
      processes.check_same(_of_all_processes(config, source))
      batches = data.Batches(
        source,
        config,
        minibatches=contract.minibatches(config, system),
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
          config, system, mesh, prefetch, batches, quick, folder, saver, stop, watch, started
        )
    except Diverged as error:
      _tell(f'error: {error}')
      return 1
    finally:
      with watch.resting():
        saver.close()


def _of_all_processes(config, source) -> dict:
  """What the processes of a run must have in common, by name: the config, but for what each of them
  may have its own, and the data.
  """
  own = ('compilation_cache', 'data.path', 'data.read_threads', 'data.prefetch')
  fields = {f'config.{path}': value for path, value in configs.leaves(config) if path not in own}
  return fields | {'config.data': source.fingerprint}


def _tell(text: str, file=None) -> None:
  """Prints a line, to stderr by default, once for all processes of the run."""
  if processes.is_first():
    print(text, file=file or sys.stderr)


def itstime(step: int, every: int, total: int) -> bool:
  """Whether a cadence of `every` steps is due after `step` of `total` steps;
  the last one always is.
  """
  return step % every == 0 or step == total


def call_length(config, done: int) -> int:
  """Steps of the call after `done` steps: config.train.steps_per_call, and never beyond the next
  multiple of it, the next checkpoint, pictures or evaluation, an end of a trace, or the last step.

  A function of the config and `done` only, so that a resumed run has the calls of an uninterrupted
  one. (Steps of one call are compiled together, and may differ from others in the last bits.)
  """
  most = config.train.steps_per_call
  if most is None:
    most = 1 if jax.default_backend() == 'cpu' else 10
  cadences = (most, config.train.checkpoint_steps, config.train.sample_steps)
  if config.eval.every_steps is not None:
    cadences += (config.eval.every_steps,)
  first, last = config.profile_steps or (1, config.train.steps)
  ends = (first - 1, last, config.train.steps)
  return min(
    *(every - done % every for every in cadences), *(end - done for end in ends if end > done)
  )


def _to_go_on(config) -> str:
  """What a finished run needs to train further."""
  ends = [
    f'--config.{path}'
    for path, value in configs.leaves(config)
    if path == 'train.steps' or (path.endswith('.decay_steps') and value is not None)
  ]
  return f'A larger {" and ".join(reversed(ends))}'


def _check_start(config, source, manifest, folder) -> None:
  """Refuses to go on with another config or other data, and tells of a start from step 0 where a
  run has been.
  """
  if manifest is None:
    if folder.config.exists():
      _tell(f'{folder.path}: no checkpoint is there, starting from step 0')
    return
  configs.check_resumable(manifest.config, configs.to_dict(config), folder.path)
  if manifest.data_fingerprint != source.fingerprint:
    raise UserError(
      f'config.data: the run in {folder.path} was trained on {manifest.data_fingerprint}, '
      f'now the data are {source.fingerprint}; give it the same data or choose another --workdir'
    )


class _Trace:
  """The trace of config.profile_steps by `jax.profiler`, in `tensorboard/` of the run."""

  def __init__(self, config, folder, start: int):
    first, self.last = config.profile_steps or (0, 0)
    self.first = max(first, start + 1)
    self._folder, self._running = folder.tensorboard, False

  @contextlib.contextmanager
  def step(self, number: int):
    """Around a call whose first step is `number`; it is traced from the first one on."""
    if self.first <= number <= self.last and not self._running:
      jax.profiler.start_trace(str(self._folder))
      self._running = True
    mark = jax.profiler.StepTraceAnnotation('train', step_num=number)
    with mark if self._running else contextlib.nullcontext():
      yield

  def end(self, number: int, state) -> None:
    """After a step that leaves `state`: writes the trace if it was the last one."""
    if self._running and number >= self.last:
      jax.block_until_ready(state)
      self.close()
      _tell(f'{self._folder}: steps {self.first} to {number} are traced')

  def close(self) -> None:
    """Writes what is traced so far."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()


def _train(
  config, system, mesh, prefetch, batches, quick, folder, saver, stop, watch, started
) -> int:
  total = config.train.steps
  manifest = saver.latest()
  found = 'none' if manifest is None else f'step {manifest.step}, sha256 {manifest.sha256[:16]}'
  processes.check_same({f'the newest intact checkpoint in {folder.checkpoints}': found})
  start = 0 if manifest is None else manifest.step
  _check_start(config, batches.source, manifest, folder)
  draws = contract.has_samples(system)
  # The run may have been stopped between the checkpoint and the pictures, or the evaluation, of a
  # step.
  undrawn, unmeasured = processes.from_first(
    lambda: [
      start > 0
      and draws
      and itstime(start, config.train.sample_steps, total)
      and not folder.image_path(start, 'samples').exists(),
      start > 0
      and quick is not None
      and itstime(start, config.eval.every_steps, total)
      and not records.is_measured(records.read(folder), start),
    ]
  )
  if start >= total and not undrawn and not unmeasured:
    _tell(
      f'{folder.path} is finished: step {start} of {total}'
      + f'; pictures in {folder.samples}' * draws
      + f'. {_to_go_on(config)} goes on.',
      sys.stdout,
    )
    return 0

  whole = sharding.replicated(mesh)
  # The run key is constant: a step folds its own number in, so that resuming needs no saved key.
  init_key, data_key, step_key, sample_key = jax.random.split(jax.random.key(config.seed), 4)
  keys = sharding.put({'data': data_key, 'step': step_key}, whole)
  device_data = sharding.put(batches.device_data, whole)

  def init(host_batch, device_data):
    batch = data.preprocess(device_data, host_batch, jax.random.fold_in(data_key, 0), config=config)
    batch = {name: batch[name] for name in contract.abstract_batch(config, system)}
    return contract.initialiser(config, system)(init_key, batch)

  def step(state, host_batch, device_data, keys, *, axis_name):
    key = jax.random.fold_in(keys['data'], state.step)
    batch = data.preprocess(device_data, host_batch, key, config=config, axis_name=axis_name)
    return system.train_step(state, batch, keys['step'], config=config, axis_name=axis_name)

  def spread(host_batch):
    """What one call takes, of what the host feeds for each of its steps."""
    if len(host_batch) == 1:
      return sharding.shard_batch(host_batch[0], mesh, batches.shape)
    host_batch = jax.tree.map(lambda *leaves: np.stack(leaves), *host_batch)
    return sharding.shard_batch(
      host_batch, mesh, (len(jax.tree.leaves(host_batch)[0]), *batches.shape)
    )

  def compile_call(length, **how):
    """The program of so many steps."""
    return compilation.compile_step(
      step,
      mesh,
      target,
      spread([batches.host_batch(0)] * length),
      device_data,
      keys,
      mode=config.parallel.mode,
      leading=len(batches.shape) - 1 + (length > 1),
      steps=length,
      **how,
    )

  # Restore or initialise. A start is mostly compilation: that of the initialiser, or reading the
  # checkpoint, goes on while the step is traced and compiled.
  host_batch = spread([batches.host_batch(0)])
  target = sharding.abstract_state(contract.abstract_state(config, system), mesh)
  calls = {}  # compiled, by length; few, most often one
  with ThreadPoolExecutor(1) as pool:
    if manifest is None:
      lowered = compilation.compile_once(init, target).lower(host_batch, device_data)
      begun = pool.submit(lambda: lowered.compile()(host_batch, device_data))
    else:
      checkpoint.check_fits(manifest, target)  # at once, rather than when the step is compiled
      begun = pool.submit(saver.restore, manifest, target)
    if start < total:
      length = call_length(config, start)
      calls[length] = compile_call(length, compiler=prefetch.compile)
    state = begun.result()
  if start < total and processes.is_first():
    folder.write_config(configs.to_dict(config))
  if 0 < start < total:
    _tell(f'{folder.path}: going on from step {start} of {total}')

  if processes.is_first():
    records.forget_quick(folder, start)

  def best_step():
    return processes.from_first(lambda: records.best_step(records.read(folder), config.eval.best))

  saver.protect(best_step())
  requests = processes.Requests(stop, mesh)
  # Of several processes none may leave a drawing, in which the others wait for it.
  leave = signals.Stop() if processes.several() else stop
  draw = sampling.make_sampler(config, system) if draws else None
  writer = writers.Writers(
    folder,
    total_steps=total,
    images_per_step=math.prod(batches.shape),
    start_step=start,
    process_is_primary=processes.is_first(),
  )
  trace = _Trace(config, folder, start)
  picture = None

  def settle(done, metrics):
    """Waits for the metrics of the call that ended with step `done`, stops the run if one is not
    finite, logs those of its steps whose time it is.
    """
    metrics = {name: np.atleast_1d(values) for name, values in jax.device_get(metrics).items()}
    watch.beat(done)
    length = len(next(iter(metrics.values())))
    for i in range(length):
      note(done - length + 1 + i, {name: float(values[i]) for name, values in metrics.items()})

  def note(done, metrics):
    for name, value in metrics.items():
      if not math.isfinite(value):
        player, _, what = name.partition('/')
        net = {field.lower(): field for field in vars(state)}.get(player, player)
        last = saver.steps()
        saved = f'step {last[-1]} is saved' if last else 'nothing is saved yet'
        raise Diverged(
          f'{what} of {net} is {value} at step {done}: training has diverged and is stopped '
          f'({saved} in {folder.path}); a smaller learning rate is the usual cure'
        )
    if itstime(done, config.train.log_steps, total):
      writer.scalars(done, metrics)
    if done == start + 1 or itstime(done, config.train.log_steps, total):
      writer.progress(done, metrics)

  def show(done, state):
    """Draws and writes the pictures of step `done`, unless a stop is requested first."""
    with watch.resting():
      images = draw(state, sample_key, config.sample.num_images, leave)
    if images is None or not processes.is_first():
      return None
    return sampling.write(writer, done, images, batches.source)

  def measure(done, state):
    """Writes the quick evaluation of step `done`, unless a stop is requested first, and keeps the
    checkpoint of the best.
    """
    with watch.resting():
      made = quick(state, leave)
    if made is None:
      return
    if processes.is_first():
      records.append(folder, done, made)
    writer.evaluation(done, {row.metric: row.value for row in made})
    best = best_step()
    if best == done and done > start:  # that of `start` is there
      save(done, state)
    with watch.resting():
      saver.protect(best)  # waits for it: the best before goes when this one is safe

  def save(done, state):
    try:
      with watch.resting():
        saver.save(done, state)
    except ValueError as error:  # names the leaf that is not finite
      raise Diverged(f'after step {done} the state cannot be saved: {error}') from error

  feed = batches.iterate(start)
  try:
    if undrawn:
      picture = show(start, state)
    if unmeasured:
      measure(start, state)
    if (number := requests.answer(requests.ask())) is not None:
      return 128 + number  # the state is the checkpoint's
    pending, done = None, start
    while done < total:
      asked = requests.ask()
      length = call_length(config, done)
      if length not in calls:
        with watch.resting():
          calls[length] = compile_call(length)
      with trace.step(done + 1):
        host_batch = spread(list(itertools.islice(feed, length)))
        state, metrics = calls[length](state, host_batch, device_data, keys)
      is_first, done = done == start, done + length
      trace.end(done, state)
      # The metrics of the call before are fetched while this one runs.
      if pending is not None:
        settle(*pending)
      pending = (done, metrics)
      if is_first:
        settle(*pending)
        pending = None
        _tell(f'first step after {time.monotonic() - started:.1f} s')

      saves = itstime(done, config.train.checkpoint_steps, total)
      shows = draws and itstime(done, config.train.sample_steps, total)
      measures = quick is not None and itstime(done, config.eval.every_steps, total)
      if (saves or shows or measures) and pending is not None:
        settle(*pending)
        pending = None
      if saves:
        save(done, state)
      if shows:
        picture = show(done, state)
      if measures:
        measure(done, state)
      # The stop may have come in any line above: these steps are done, and no later one starts.
      if (number := requests.answer(asked)) is not None:
        if pending is not None:
          settle(*pending)
        save(done, state)
        with watch.resting():
          saver.wait()
        _tell(f'{folder.path}: saved at step {done} of {total}')
        return 128 + number
    with watch.resting():
      saver.wait()
  finally:
    trace.close()
    if hasattr(feed, 'close'):
      feed.close()
    writer.close()
  pictures = f'; pictures: {picture}' * draws
  _tell(f'{folder.path} is finished after {total} steps{pictures}', sys.stdout)
  best = best_step()
  if best in saver.steps():
    _tell(f'best by {config.eval.best} of the quick evaluations: --step={best}', sys.stdout)
  return 0
