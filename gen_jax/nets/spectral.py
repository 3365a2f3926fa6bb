"""Spectral normalisation (Miyato et al. 2018, arXiv 1802.05957): weights divided by their largest
singular value.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


def spectral_norm(w: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
  """One power iteration (Algorithm 1) for w [..., d], read as the matrix W [n, d].

  Args:
    w: any float dtype; the iteration is computed in float32.
    u: [d], an estimate of W's first right singular vector, of any length.

  Returns:
    sigma, float32 [], and the next u of length 1, both float32. The singular vectors are constants
    in derivatives: d sigma / dW = v u^T.
  """
  W = w.reshape(-1, w.shape[-1]).astype(jnp.float32)
  with jax.default_matmul_precision('highest'):  # the vectors of many steps accumulate here
    constant = jax.lax.stop_gradient(W)
    v = _normalised(constant @ u)
    u = _normalised(v @ constant)
    return v @ (W @ u), u


def _normalised(x):
  return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


class SpectralNorm(nn.Module):
  """A layer with one matrix or convolution kernel, which is divided by its largest singular value.

  The layer keeps its own parameters and its name; u and sigma are in `batch_stats`. Every pass
  makes one power iteration from the u there and uses its sigma; only training stores the new ones,
  so that samples do not depend on how many were drawn before.

  Unlike in Flax's SpectralNorm, u, sigma and their products are float32 in every compute dtype.
  """

  layer: nn.Module

  @nn.compact
  def __call__(self, *inputs: jax.Array, train: bool) -> jax.Array:
    """The layer's output for its `inputs`."""

    def normalised(variables):
      return jax.tree.map(lambda w: self._normalised(w, train) if w.ndim > 1 else w, variables)

    forward = nn.map_variables(
      lambda layer: layer(*inputs),
      'params',
      trans_in_fn=normalised,
      init=self.is_initializing(),
      mutable=True,
    )
    return forward(self.layer)

  def _normalised(self, w, train):
    first = lambda: jax.random.normal(self.make_rng('params'), w.shape[-1:])
    u = self.variable('batch_stats', 'u', first)
    sigma = self.variable('batch_stats', 'sigma', jnp.ones, ())
    now, next_u = spectral_norm(w, u.value)
    if self.is_initializing():
      return w  # what is returned here becomes the initial weight
    if train:
      u.value, sigma.value = next_u, jax.lax.stop_gradient(now)
    return (w / jnp.where(now == 0, 1, now)).astype(w.dtype)
