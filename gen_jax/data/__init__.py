"""Data sets by name, and batches that are a pure function of seed and step."""

from gen_jax.data.opening import held_out, open_domain, open_source, open_training
from gen_jax.data.pictures import Pictures
from gen_jax.data.pipeline import Batches, preprocess
from gen_jax.data.pixels import from_pixels, to_pixels
from gen_jax.data.sources import Source

__all__ = [
  'Batches',
  'Pictures',
  'Source',
  'from_pixels',
  'held_out',
  'open_domain',
  'open_source',
  'open_training',
  'preprocess',
  'to_pixels',
]
