"""Functions that XLA's CPU backend does not fuse with their consumers.

The backend recomputes values that it considers cheap in every consumer, such as the sum over kernel
positions in each derivative that needs its sign, and drops `lax.optimization_barrier` before it
does so (jaxlib 0.10 and 0.11). The results of a call that it may not inline are computed once and
stay in memory (docs/performance_notebook.md).
"""

import functools

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def not_inlined(f, static_argnums=()):
  """f, a function of arrays, as a call that is not inlined on CPU with one device; elsewhere f
  itself, as compilers do not need this or would gather sharded arrays. Same values.

  Its derivatives are inlined: use it for functions that are not differentiated or have a custom
  rule.
  """
  traced_once = jax.jit(f, static_argnums=static_argnums)  # once per shape

  @functools.wraps(f)
  def call(*args):
    if jax.default_backend() != 'cpu' or jax.device_count() > 1:
      return f(*args)
    with set_xla_metadata(inlineable='false'):
      return traced_once(*args)

  return call
