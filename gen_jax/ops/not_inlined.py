"""Functions that XLA's CPU backend does not fuse with their readers.

It recomputes what it deems cheap in every operation that reads it, such as the sum over the
positions of a kernel in each derivative that asks for its sign, and drops
`lax.optimization_barrier` before it does so (jaxlib 0.10 and 0.11). The results of a call that it
may not inline are computed once and stay in memory (docs/performance_notebook.md).
"""

import functools

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def not_inlined(f, static_argnums=()):
  """f, a function of arrays, as such a call on CPU with one device; f itself elsewhere, where
  compilers need no such help or would gather sharded arrays. Same values.

  Its derivatives are inlined: it is for what is not differentiated, or has a rule of its own.
  """
  traced_once = jax.jit(f, static_argnums=static_argnums)  # once per shape

  @functools.wraps(f)
  def call(*args):
    if jax.default_backend() != 'cpu' or jax.device_count() > 1:
      return f(*args)
    with set_xla_metadata(inlineable='false'):
      return traced_once(*args)

  return call
