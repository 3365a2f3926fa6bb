"""gen_jax: GANs and diffusion models in JAX and Flax, one file per system."""

__version__ = '0.2.0'
