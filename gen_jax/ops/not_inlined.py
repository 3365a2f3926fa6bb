"""Functions that XLA's CPU backend does not fuse with what is around them.

It computes what it deems cheap anew in every operation that reads it, such as the sum over the 25
entries of a kernel in each derivative that asks for its sign, and drops
`lax.optimization_barrier` before it does so (jaxlib 0.10 and 0.11). A call that it may not inline
keeps its arguments and results in memory, computed once (docs/performance.md).
"""

import functools

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def not_inlined(f, static_argnums=()):
  """f, of arrays, as such a call on CPU with one device; elsewhere, where compilers need no such
  help or would gather what devices share, f itself. Same values.

  Derivatives of it are inlined: it is for what is not differentiated, or has its own rule.
  """
  traced_once = jax.jit(f, static_argnums=static_argnums)  # for a shape

  @functools.wraps(f)
  def call(*args):
    if jax.default_backend() != 'cpu' or jax.device_count() > 1:
      return f(*args)
    with set_xla_metadata(inlineable='false'):
      return traced_once(*args)

  return call
