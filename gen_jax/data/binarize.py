"""Static binarisation: images of two levels, the same in every run."""

import hashlib

import numpy as np

from gen_jax.data.sources import Source, content_hash

SEED = 0  # the images are data, not randomness of a run: the same under every `config.seed`


def binarize(images: np.ndarray) -> np.ndarray:
  """Each value v of uint8 images [n, ...] becomes 255 with probability v / 255, else 0.

  The random words of an image are Philox's under a key that is the hash of its bytes, so an image
  has one binarised form, in whatever split and at whatever position it stands. The probability is
  exact to within 2^-16.
  """
  images = np.ascontiguousarray(images)
  size = images[0].size
  words = np.empty((len(images), -(-size // 4)), '<u8')
  for image, row in zip(images, words, strict=True):
    digest = hashlib.blake2b(image, digest_size=16, salt=SEED.to_bytes(16, 'little')).digest()
    row[:] = np.random.Philox(key=np.frombuffer(digest, '<u8')).random_raw(row.size)
  noise = words.view('<u2')[:, :size].reshape(images.shape).astype(np.uint32)
  return np.where(noise * 255 < images.astype(np.uint32) << 16, 255, 0).astype(np.uint8)


class Binarized(Source):
  """The examples of another source, images binarised when they are read."""

  def __init__(self, source: Source):
    self.name, self.shape, self.dtype = source.name, source.shape, source.dtype
    self.num_classes, self.classes = source.num_classes, source.classes
    self.content = source.content
    name, split, length, _ = source.fingerprint.rsplit('/', 3)
    content = content_hash(source.fingerprint.encode(), f'binarized {SEED} v1'.encode())
    self.fingerprint = f'{name}/{split}, binarised/{length}/{content}'
    self._source = source

  def __len__(self):
    return len(self._source)

  def read(self, indices):
    batch = self._source.read(indices)
    return batch | {'image': binarize(batch['image'])}

  def arrays(self):
    arrays = self._source.arrays()  # with several threads where that is faster
    return arrays | {'image': binarize(arrays['image'])}
