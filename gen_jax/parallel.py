"""Devices: how many, what lies where, and how a step is compiled for them."""

import functools
import hashlib
import logging
import math
import os
import pathlib
import platform
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gen_jax import config as configs
from gen_jax import fsdp, loops
from gen_jax.cache import cache_folder
from gen_jax.errors import UserError

AXIS = 'data'  # of the devices that hold the same state
_log = logging.getLogger(__name__)


def make_mesh(config) -> Mesh:
  """A mesh with the axes `data` and `fsdp` of config.parallel, over as many devices as their
  product.

  Raises:
    UserError: there are fewer devices, or they do not divide by config.parallel.fsdp.
  """
  devices = jax.devices()
  shape = configs.mesh_shape(config, len(devices))
  return jax.make_mesh(
    shape,
    (AXIS, fsdp.AXIS),
    devices=devices[: math.prod(shape)],
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )


def mesh_of_all(config) -> Mesh:
  """A mesh of all devices there are, whatever config.parallel.data says, with as many of
  config.parallel.fsdp as divide them: for what a run's training is not asked, such as sampling.
  """
  parts = math.gcd(config.parallel.fsdp, jax.device_count())
  return make_mesh(configs.replace(config, {'parallel.data': None, 'parallel.fsdp': parts}))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
  """The batch axis, which comes after `leading` axes of steps and minibatches, is spread over the
  devices of both axes.
  """
  return NamedSharding(mesh, PartitionSpec(*(None,) * leading, (AXIS, fsdp.AXIS)))


def own_rows(mesh: Mesh, batch: int) -> np.ndarray | None:
  """The rows of a batch that lie on devices of this process, ascending; None: all of them."""
  if jax.process_count() == 1:
    return None
  slices = by_rows(mesh).addressable_devices_indices_map((batch,)).values()
  return np.unique(np.concatenate([np.arange(batch)[rows] for (rows,) in slices]))


def spread(fed, mesh: Mesh, shape: tuple[int, ...]):
  """What the host feeds, as a step takes it.

  Args:
    fed: host arrays; of several processes, each has its `own_rows`.
    mesh: where the step runs.
    shape: leading axes of the whole batch: (steps, minibatches, rows) or the last of them.
  """
  if jax.process_count() == 1:
    return fed
  sharding = by_rows(mesh, leading=len(shape) - 1)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x, shape + x.shape[len(shape) :]),
    fed,
  )


def put(tree, shardings):
  """`jax.device_put` of arrays that all processes hold; `shardings` may be a prefix of the tree."""
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings)

  def place(sharding, x):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(
        place(sharding, jax.random.key_data(x)), impl=jax.random.key_impl(x)
      )
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

  return jax.tree.map(
    lambda sharding, part: jax.tree.map(functools.partial(place, sharding), part), shardings, tree
  )


def placed(state, mesh: Mesh):
  """The shapes and dtypes of a state with where its leaves lie, by the rule of `fsdp.spec`."""

  def place(leaf):
    sharding = NamedSharding(mesh, fsdp.spec(leaf.shape, mesh.shape[fsdp.AXIS]))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree.map(place, state)


def keep_compiled(config) -> None:
  """Lets JAX keep compiled programs as config.compilation_cache says, so that a later start of the
  same program does not compile it again.

  A folder that the user has given to JAX itself stays (`JAX_COMPILATION_CACHE_DIR`). On CPU every
  kind of processor has a folder of its own: machines may share a home, and a program compiled for
  one may use instructions that another does not have.

  Raises:
    UserError: the folder that the config names cannot be made.
  """
  where = config.compilation_cache
  if where is None or jax.config.jax_compilation_cache_dir:
    return
  try:
    folder = cache_folder('compiled') if where == 'auto' else pathlib.Path(where).expanduser()
    folder /= f'{jax.default_backend()}_{_processor()}'
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, UserError) as error:
    if where != 'auto':
      raise UserError(
        f'config.compilation_cache={where!r} cannot be made ({error.strerror}): a folder that can, '
        'auto or None is needed'
      ) from error
    _log.warning('compiled programs are not kept: %s', error)
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))


def _processor() -> str:
  """What a program compiled for this CPU depends on, as a short name."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  kinds = ('vendor_id', 'cpu family', 'model', 'flags', 'CPU part', 'Features')
  said = {line for line in lines if line.partition(':')[0].strip() in kinds}
  text = platform.processor() + ''.join(sorted(said))
  return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def compiler_options(by_ynnpack: tuple[str, ...] = ('DOT', 'REDUCE')) -> dict | None:
  """Options for `jax.jit` on CPU of what runs often, where the user's XLA_FLAGS do not say.

  Convolutions by Eigen (those that are not oneDNN's, see nets/convolutions.py), and by YNNPACK what
  is named, products and sums for a training step or a sampler. XLA's default gives convolutions to
  YNNPACK too: on some processors it takes twice as long for them (docs/performance.md). And level 1
  of LLVM's optimisation, which makes a training step as fast as the default, 3, and compiles in two
  thirds of the time.
  """
  types = ','.join(f'LIBRARY_FUSION_TYPE_{name}' for name in by_ynnpack)
  libraries = _on_cpu(xla_cpu_experimental_ynn_fusion_type=types)
  if libraries is not None:
    try:
      jax.jit(lambda: 0, compiler_options=libraries).lower().compile()
    except jax.errors.JaxRuntimeError:  # the option is experimental: other releases may lack it
      libraries = None
  level = _on_cpu(xla_backend_optimization_level=1)
  return (libraries or {}) | (level or {}) or None


def _on_cpu(**options) -> dict | None:
  """The options if they are for this backend and the user's XLA_FLAGS do not name them."""
  said = os.environ.get('XLA_FLAGS', '')
  if jax.default_backend() != 'cpu' or any(name in said for name in options):
    return None
  return options


class Forward:
  """`f(state, batch, rng)`, which takes no gradients, such as a sampler, on the devices that hold
  the state.

  The rows of the batch are spread over them where they divide, otherwise every device does all; the
  results are whole everywhere. It is compiled when it is first called, or by `compile`.
  """

  def __init__(self, f: Callable):
    self._f, self._compiled = f, None

  def compile(self, state, batch, rng) -> 'Forward':
    """Compiles it for arguments like these."""
    meshes = {getattr(leaf.sharding, 'mesh', None) for leaf in jax.tree.leaves(state)}
    mesh = meshes.pop() if len(meshes) == 1 else None
    if mesh is None:  # a state that somebody has put on one device
      self._given = None
      compiled = jax.jit(self._f, compiler_options=compiler_options()).lower(state, batch, rng)
    else:
      whole = replicated(mesh)
      spread = all(leaf.shape[0] % mesh.size == 0 for leaf in jax.tree.leaves(batch))
      self._given = by_rows(mesh) if spread else whole, whole
      jitted = jax.jit(
        self._f,
        in_shardings=(_shardings(state), *self._given),
        out_shardings=whole,
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
  """Compiles a function that runs once, such as an initialiser; its result lies as `target`, the
  shapes of it with shardings, says.

  On CPU it is compiled quickly rather than well: with full optimisation the random draws of a
  U-Net's parameters take longer to compile than its whole training step. (With none at all they
  take five times as long to run.)
  """
  quickly = _on_cpu(xla_backend_optimization_level=1)
  return jax.jit(f, out_shardings=_shardings(target), compiler_options=quickly)


def compile_step(
  step: Callable,
  mesh: Mesh,
  *args,
  mode: str,
  leading: int = 0,
  steps: int = 1,
  compiler: Callable = jax.stages.Lowered.compile,
) -> Callable:
  """Compiles `step(state, fed, resident, rng, *, axis_name) -> (state, metrics)` for the mesh.

  Args:
    step: pure; `state` is donated, `fed` has the global batch, `resident` and `rng` are whole
      everywhere.
    mesh: where to run.
    *args: state, fed, resident and rng, or their shapes and dtypes: what the step is compiled for.
      The state lies, before and after, as its leaves' shardings say.
    mode: 'jit', one program on global arrays, or 'pmap', one program per device on its own rows.
    leading: axes that leaves of `fed` have before the batch axis.
    steps: done in one call, one after the other. Of several, `fed` has the parts along its first
      axis, and so have the metrics.
    compiler: of a lowered program and options, such as that of `gen_jax.prefetch`.
  """
  if steps > 1:
    step = functools.partial(_one_by_one, step)
  if mode == 'jit':
    whole, rows = replicated(mesh), by_rows(mesh, leading=leading)
    state = _shardings(args[0])
    jitted = jax.jit(
      functools.partial(step, axis_name=None),
      in_shardings=(state, rows, whole, whole),
      out_shardings=(state, whole),
      donate_argnums=0,
    )
    with jax.set_mesh(mesh):
      return compiler(jitted.lower(*args), compiler_options())

  devices = mesh.size
  mapped = jax.pmap(
    functools.partial(step, axis_name=AXIS),
    axis_name=AXIS,
    in_axes=(None, leading, None, None),
    out_axes=(None, None),
    devices=list(mesh.devices.flat),
  )

  def split(state, fed, resident, rng):
    def by_device(leaf):
      before, (rows, *after) = leaf.shape[:leading], leaf.shape[leading:]
      return leaf.reshape(*before, devices, rows // devices, *after)

    return state, jax.tree.map(by_device, fed), resident, rng

  compiled = compiler(mapped.lower(*split(*args)), compiler_options())
  return lambda *args: compiled(*split(*args))


def _one_by_one(step, state, fed, resident, rng, *, axis_name):
  def one(state, fed):
    return step(state, fed, resident, rng, axis_name=axis_name)

  return loops.scan(one, state, fed)


def _shardings(tree):
  return jax.tree.map(lambda leaf: leaf.sharding, tree)
