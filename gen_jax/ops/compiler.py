"""Options of XLA's CPU compiler."""

import functools
import os

import jax


@functools.cache
def compiler_options(by_ynnpack: tuple[str, ...] = ('DOT', 'REDUCE')) -> dict | None:
  """Options for `jax.jit` of programs that run often; None on GPU and TPU, and where the user's
  XLA_FLAGS set one of them.

  Convolutions run in Eigen, and the named operations in YNNPACK: products and reductions for a
  training step or a sampler. By default XLA runs convolutions in YNNPACK, too, which is slower on
  some processors. With LLVM's optimisation level 1 a step is as fast as with the default, 3, and
  compiles faster (docs/performance_notebook.md).
  """
  if jax.default_backend() != 'cpu':
    return None
  types = ','.join(f'LIBRARY_FUSION_TYPE_{name}' for name in by_ynnpack)
  libraries = _unless_user_set(xla_cpu_experimental_ynn_fusion_type=types)
  if libraries is not None:
    try:
      jax.jit(lambda: 0, compiler_options=libraries).lower().compile()
    except jax.errors.JaxRuntimeError:  # the option is experimental; other releases may lack it
      libraries = None
  return (libraries or {}) | (_unless_user_set(xla_backend_optimization_level=1) or {}) or None


def options_for_one_run() -> dict | None:
  """Options for `jax.jit` of programs that run once, such as an initialiser; None on GPU and TPU.

  With full optimisation the random initialisation of a U-Net takes longer to compile than its
  training step; without optimisation it takes several times longer to run.
  """
  if jax.default_backend() != 'cpu':
    return None
  return _unless_user_set(xla_backend_optimization_level=1)


def _unless_user_set(**options) -> dict | None:
  """The options, if the user's XLA_FLAGS set none of them."""
  flags = os.environ.get('XLA_FLAGS', '')
  return None if any(name in flags for name in options) else options
