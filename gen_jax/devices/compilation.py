"""Compiling programs for the devices: training steps, samplers, and JAX's compilation cache."""

import functools
import hashlib
import logging
import pathlib
import platform
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from gen_jax.devices.sharding import (
  AXIS,
  BatchAxes,
  by_rows,
  find_devices,
  mesh_of,
  put,
  replicated,
)
from gen_jax.errors import UserError
from gen_jax.ops.compiler import compiler_options, options_for_one_run
from gen_jax.ops.scan import scan
from gen_jax.run.cache import cache_folder

_log = logging.getLogger(__name__)


def keep_programs(config) -> None:
  """Sets JAX's compilation cache as config.compilation_cache says, so that a later start of the
  same program does not compile it again.

  `JAX_COMPILATION_CACHE_DIR`, if the user has set it, takes precedence. On CPU every processor
  model has its own folder: machines may share a home folder, and a program compiled for one may use
  instructions that another lacks.

  Raises:
    UserError: the folder that the config names cannot be created; no device is found.
  """
  find_devices()
  where = config.compilation_cache
  if where is None or jax.config.jax_compilation_cache_dir:
    return
  try:
    folder = cache_folder('compiled') if where == 'auto' else pathlib.Path(where)
    folder /= f'{jax.default_backend()}_{_processor()}'
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, UserError) as error:
    if where != 'auto':
      raise UserError(
        f'config.compilation_cache={where!r} cannot be created ({error.strerror}): a writable '
        'folder, auto or None is needed'
      ) from error
    _log.warning('compiled programs are not cached: %s', error)
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))


def _processor() -> str:
  """A short name of everything about this CPU that a compiled program depends on."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  kinds = ('vendor_id', 'cpu family', 'model', 'flags', 'CPU part', 'Features')
  said = {line for line in lines if line.partition(':')[0].strip() in kinds}
  text = platform.processor() + ''.join(sorted(said))
  return hashlib.sha256(text.encode()).hexdigest()[:12]


class ShardedForward:
  """A sharded forward pass: `f(state, batch, rng)`, which takes no gradients, such as a sampler, on
  the devices that hold the state.

  The batch is sharded by rows if their number is divisible by that of the devices, otherwise every
  device computes all rows. The results are replicated. The first call, or `compile`, compiles it.
  """

  def __init__(self, f: Callable):
    self._f, self._compiled = f, None

  def compile(self, state, batch, rng) -> 'ShardedForward':
    """Compiles it for arguments of these shapes and dtypes."""
    mesh = mesh_of(state)
    if mesh is None:  # a state on one device, without a mesh
      self._given = None
      compiled = jax.jit(self._f, compiler_options=compiler_options()).lower(state, batch, rng)
    else:
      everywhere = replicated(mesh)
      divides = all(leaf.shape[0] % mesh.size == 0 for leaf in jax.tree.leaves(batch))
      self._given = by_rows(mesh) if divides else everywhere, everywhere
      jitted = jax.jit(
        self._f,
        in_shardings=(_shardings(state), *self._given),
        out_shardings=everywhere,
        compiler_options=compiler_options(),
      )
      like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (batch, rng))
      with jax.set_mesh(mesh):
        compiled = jitted.lower(state, *like)
    self._compiled = compiled.compile()
    return self

  def __call__(self, state, batch, rng):
    if self._compiled is None:
      self.compile(state, batch, rng)
    return self._compiled(state, *put((batch, rng), self._given))


def compile_once(f: Callable, target) -> Callable:
  """Compiles a function that runs once, such as an initialiser; its result is sharded like the
  abstract state `target`.
  """
  return jax.jit(f, out_shardings=_shardings(target), compiler_options=options_for_one_run())


def compile_step(
  step: Callable,
  mesh: Mesh,
  *args,
  mode: str,
  axes: BatchAxes,
) -> Callable:
  """Compiles `step(state, host_batch, device_data, rng, *, axis_name) -> (state, metrics)` for the
  mesh.

  Args:
    step: pure; `state` is donated, `host_batch` has the global batch, `device_data` and `rng` are
      replicated.
    mesh: where to run.
    *args: state, host_batch, device_data and rng, or their shapes and dtypes, for which the step is
      compiled. The shardings of the state's leaves are those of the new state, too.
    mode: 'jit', one program on global arrays, or 'pmap', one program per device on its own rows.
    axes: the leading axes of `host_batch`. If the call does several steps, metrics have a leading
      axis of steps, too.
  """
  if axes.steps > 1:
    step = functools.partial(_one_by_one, step)
  if mode == 'jit':
    everywhere, rows = replicated(mesh), axes.sharding(mesh)
    state = _shardings(args[0])
    jitted = jax.jit(
      functools.partial(step, axis_name=None),
      in_shardings=(state, rows, everywhere, everywhere),
      out_shardings=(state, everywhere),
      donate_argnums=0,
    )
    with jax.set_mesh(mesh):
      return jitted.lower(*args).compile(compiler_options())

  mapped = jax.pmap(
    functools.partial(step, axis_name=AXIS),
    axis_name=AXIS,
    in_axes=(None, axes.row_axis, None, None),
    out_axes=(None, None),
    devices=list(mesh.devices.flat),
  )

  def split(state, host_batch, device_data, rng):
    return state, axes.by_device(host_batch, mesh.size), device_data, rng

  compiled = mapped.lower(*split(*args)).compile(compiler_options())
  shardings = _shardings(args[0])

  def call(*args):
    state, metrics = compiled(*split(*args))
    # pmap returns arrays on a mesh of its own, which has only the axis that it maps over. Samplers
    # and checkpoints need ours; the devices are the same, so nothing is copied.
    return jax.device_put(state, shardings), metrics

  return call


def _one_by_one(step, state, host_batch, device_data, rng, *, axis_name):
  def one(state, host_batch):
    return step(state, host_batch, device_data, rng, axis_name=axis_name)

  return scan(one, state, host_batch)


def _shardings(tree):
  return jax.tree.map(lambda leaf: leaf.sharding, tree)
