"""gen_jax: GANs and diffusion models in JAX and Flax, one file per system."""

__version__ = '0.2.0'


def load(path, step=None, weights=None):
  """A trained run, or an export of one, as an object that samples and evaluates; see
  `gen_jax.run.trained.load`. (JAX is imported here, so that `import gen_jax` stays fast.)
  """
  from gen_jax.run import trained

  return trained.load(path, step, weights)
