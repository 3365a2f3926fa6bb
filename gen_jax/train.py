"""The loop that trains every system: `run(config, workdir)`.

It restores the run in the workdir or starts one, compiles the step, and then steps, logs, samples,
saves and evaluates, each on its own cadence, the last step always included. It knows systems by
their contract only (gen_jax.contract).
"""

import contextlib
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax

from gen_jax import checkpoint, contract, data, evaluate, parallel, records, signals, writers
from gen_jax import config as configs
from gen_jax import sample as sampling
from gen_jax.errors import Diverged, UserError
from gen_jax.workdir import open_workdir


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
  system = contract.check(config)
  contract.check_training(config)
  with open_workdir(workdir) as folder:
    # What the checkpoint says counts, in `_train`; this one answers before data are fetched.
    if any(folder.checkpoints.glob('[0-9]*')) and (earlier := folder.read_config()):
      configs.check_resumable(earlier, configs.to_dict(config), folder.path)
    with signals.exit_in_order():
      source = data.open_source(config)
      batches = data.Batches(source, config, minibatches=contract.minibatches(config, system))
      quick = evaluate.Quick(config, system) if config.eval.every_steps else None
    saver = checkpoint.Checkpointer(
      folder.checkpoints,
      config=configs.to_dict(config),
      data_fingerprint=source.fingerprint,
      keep=config.train.keep_checkpoints,
    )
    try:
      with signals.Stop() as stop:
        return _train(config, system, batches, quick, folder, saver, stop, started)
    except Diverged as error:
      print(f'error: {error}', file=sys.stderr)
      return 1
    finally:
      saver.close()


def itstime(step: int, every: int, total: int) -> bool:
  """Whether a cadence of `every` steps is due after `step` of `total` steps;
  the last one always is.
  """
  return step % every == 0 or step == total


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
      print(f'{folder.path}: no checkpoint is there, starting from step 0', file=sys.stderr)
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
    """Around what belongs to a step; it is traced from the first one on."""
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
      print(f'{self._folder}: steps {self.first} to {number} are traced', file=sys.stderr)

  def close(self) -> None:
    """Writes what is traced so far."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()


def _train(config, system, batches, quick, folder, saver, stop, started) -> int:
  total = config.train.steps
  manifest = saver.latest()
  start = 0 if manifest is None else manifest.step
  _check_start(config, batches.source, manifest, folder)
  # The run may have been stopped between the checkpoint and the pictures, or the evaluation, of a
  # step.
  undrawn = (
    start > 0
    and itstime(start, config.train.sample_steps, total)
    and not folder.image_path(start, 'samples').exists()
  )
  lines = records.read(folder)
  unmeasured = (
    start > 0
    and quick is not None
    and itstime(start, config.eval.every_steps, total)
    and not records.is_measured(lines, start)
  )
  if start >= total and not undrawn and not unmeasured:
    print(
      f'{folder.path} is finished: step {start} of {total}; pictures in {folder.samples}. '
      f'{_to_go_on(config)} goes on.'
    )
    return 0

  mesh = parallel.make_mesh(config)
  whole = parallel.replicated(mesh)
  # The run key is constant: a step folds its own number in, so that resuming needs no saved key.
  init_key, data_key, step_key, sample_key = jax.random.split(jax.random.key(config.seed), 4)
  keys = jax.device_put({'data': data_key, 'step': step_key}, whole)
  resident = jax.device_put(batches.resident, whole)

  def init(fed, resident):
    batch = data.finish(resident, fed, jax.random.fold_in(data_key, 0), config=config)
    return system.init_state(init_key, batch, config=config)

  def step(state, fed, resident, keys, *, axis_name):
    key = jax.random.fold_in(keys['data'], state.step)
    batch = data.finish(resident, fed, key, config=config, axis_name=axis_name)
    return system.train_step(state, batch, keys['step'], config=config, axis_name=axis_name)

  # Restore or initialise. A start is mostly compilation: that of the step goes on meanwhile.
  fed = batches.fed(0)
  target = parallel.placed(jax.eval_shape(init, fed, resident), mesh)
  init = parallel.compile_once(init, target)
  if manifest is not None:
    checkpoint.check_fits(manifest, target)  # at once, rather than when the step is compiled
  with ThreadPoolExecutor(1) as pool:
    if start < total:
      compiled = pool.submit(
        parallel.compile_step,
        step,
        mesh,
        target,
        fed,
        resident,
        keys,
        mode=config.parallel.mode,
        minibatches=len(batches.shape) > 1,
      )
    state = init(fed, resident) if manifest is None else saver.restore(manifest, target)
  if start < total:
    step = compiled.result()
    folder.write_config(configs.to_dict(config))
  if 0 < start < total:
    print(f'{folder.path}: going on from step {start} of {total}', file=sys.stderr)

  records.forget_quick(folder, start)
  saver.protect(records.best_step(records.read(folder), config.eval.best))
  draw = sampling.make_sampler(config, system)
  writer = writers.Writers(
    folder,
    total_steps=total,
    images_per_step=math.prod(batches.shape),
    start_step=start,
  )
  trace = _Trace(config, folder, start)
  picture = None

  def settle(done, metrics):
    """Waits for the metrics of step `done`, stops the run if one is not finite,
    logs them if it is time.
    """
    metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
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
    return metrics

  def show(done, state):
    """Draws and writes the pictures of step `done`, unless a stop is requested first."""
    images = draw(state, sample_key, config.sample.num_images, stop)
    return None if images is None else sampling.write(writer, done, images, batches.source)

  def measure(done, state):
    """Writes the quick evaluation of step `done`, unless a stop is requested first, and keeps the
    checkpoint of the best.
    """
    made = quick(state, stop)
    if made is None:
      return
    records.append(folder, done, made)
    writer.evaluation(done, {row.metric: row.value for row in made})
    best = records.best_step(records.read(folder), config.eval.best)
    if best == done and done > start:  # that of `start` is there
      save(done, state)
    saver.protect(best)  # waits for it: the best before goes when this one is safe

  def save(done, state):
    try:
      saver.save(done, state)
    except ValueError as error:  # names the leaf that is not finite
      raise Diverged(f'after step {done} the state cannot be saved: {error}') from error

  feed = batches.iterate(start)
  try:
    if undrawn:
      picture = show(start, state)
    if unmeasured:
      measure(start, state)
    if stop.requested is not None:
      return 128 + stop.requested  # the state is the checkpoint's
    pending = None
    for done, fed in zip(range(start + 1, total + 1), feed, strict=False):
      with trace.step(done):
        state, metrics = step(state, fed, resident, keys)
      trace.end(done, state)
      # The metrics of the step before are fetched while this one runs.
      if pending is not None:
        settle(*pending)
      pending = (done, metrics)
      if done == start + 1:
        settle(*pending)
        pending = None
        print(f'first step after {time.monotonic() - started:.1f} s', file=sys.stderr)

      saves = itstime(done, config.train.checkpoint_steps, total)
      shows = itstime(done, config.train.sample_steps, total)
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
      # The stop may have come in any line above: this step is done, and no later one starts.
      if stop.requested is not None:
        if pending is not None:
          settle(*pending)
        save(done, state)
        saver.wait()
        print(f'{folder.path}: saved at step {done} of {total}', file=sys.stderr)
        return 128 + stop.requested
    saver.wait()
  finally:
    trace.close()
    if hasattr(feed, 'close'):
      feed.close()
    writer.close()
  print(f'{folder.path} is finished after {total} steps; pictures: {picture}')
  best = records.best_step(records.read(folder), config.eval.best)
  if best in saver.steps():
    print(f'best by {config.eval.best} of the quick evaluations: --step={best}')
  return 0
