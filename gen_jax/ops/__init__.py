"""Workarounds for XLA's CPU backend, each behind a plain function.

Every public function here begins with its plain form, the only one that runs on GPU and TPU.
"""

import contextlib
import contextvars

import jax

_forward_mode = contextvars.ContextVar('forward_mode', default=False)


@contextlib.contextmanager
def forward_mode():
  """Within this context, functions can be differentiated in forward mode (`jax.jvp`), and the
  result in reverse mode, on every backend.

  On CPU, convolutions and group norms have custom derivatives in reverse mode only; here they take
  their plain form instead, which is slower. They do so when they are traced: under `jax.jit` the
  context belongs inside the function.
  """
  token = _forward_mode.set(True)
  try:
    yield
  finally:
    _forward_mode.reset(token)


def plain() -> bool:
  """Whether functions with derivatives of their own on CPU take their plain form."""
  return _forward_mode.get() or jax.default_backend() != 'cpu'
