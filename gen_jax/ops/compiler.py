"""Options of XLA's CPU compiler."""

import functools
import os

import jax


@functools.cache
def compiler_options(by_ynnpack: tuple[str, ...] = ('DOT', 'REDUCE')) -> dict | None:
  """Options for `jax.jit` of what runs often; None on GPU and TPU, and where the user's XLA_FLAGS
  name them.

  Eigen computes convolutions, YNNPACK what is named: products and sums for a training step or a
  sampler. By default XLA gives convolutions to YNNPACK too, which takes twice as long for them on
  some processors. Level 1 of LLVM's optimisation makes a step as fast as the default, 3, and
  compiles in two thirds of the time (docs/performance_notebook.md).
  """
  if jax.default_backend() != 'cpu':
    return None
  types = ','.join(f'LIBRARY_FUSION_TYPE_{name}' for name in by_ynnpack)
  libraries = _unless_user_set(xla_cpu_experimental_ynn_fusion_type=types)
  if libraries is not None:
    try:
      jax.jit(lambda: 0, compiler_options=libraries).lower().compile()
    except jax.errors.JaxRuntimeError:  # the option is experimental: other releases may lack it
      libraries = None
  return (libraries or {}) | (_unless_user_set(xla_backend_optimization_level=1) or {}) or None


def options_for_one_run() -> dict | None:
  """Options for `jax.jit` of what runs once, such as an initialiser; None on GPU and TPU.

  With full optimisation the random draws of a U-Net's parameters take longer to compile than its
  training step; with none they take five times as long to run.
  """
  if jax.default_backend() != 'cpu':
    return None
  return _unless_user_set(xla_backend_optimization_level=1)


def _unless_user_set(**options) -> dict | None:
  """The options, if the user's XLA_FLAGS name none of them."""
  flags = os.environ.get('XLA_FLAGS', '')
  return None if any(name in flags for name in options) else options
