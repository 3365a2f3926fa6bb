"""DCGAN on Fashion-MNIST, small convolutional nets for 28x28, as courses teach them.

After Radford, Metz and Chintala 2016, https://arxiv.org/abs/1511.06434.

    python launch.py --config=configs/dcgan_fashion_mnist.py

8,000 steps, 8 minutes on two CPU cores (AMD EPYC with AVX-512), 30 to 40 without AVX-512.
Out come grids of clothes in runs/dcgan_fashion_mnist/samples/.
"""

from ml_collections import ConfigDict


def get_config(arg=''):
  """The whole config; `arg` is '' or 'smoke'."""
  if arg not in ('', 'smoke'):
    raise ValueError(f'argument {arg!r}: only smoke is known')
  config = ConfigDict()
  config.system = 'gan'  # file in gen_jax/systems
  config.seed = 0  # of everything random in the run
  config.precision = 'float32'  # in which nets compute, or bfloat16; their state is float32
  config.compilation_cache = 'auto'  # keeps compiled programs: auto, a folder, or None
  config.profile_steps = None  # (first, last) of the steps to trace for TensorBoard; None: none
  config.data = dict(
    name='fashion_mnist',  # from tensorflow-datasets, prepared on first use
    path=None,  # TFDS's folder; None: ~/tensorflow_datasets or $TFDS_DATA_DIR
    split='train',  # part of the data set
    shape=(28, 28, 1),  # height, width, channels
    num_classes=None,  # classes of the labels; None leaves labels unused
    flip=0.0,  # probability of a horizontal flip
    dequantize='none',  # none: x / 127.5 - 1; uniform: noise of one level, 2 (x + u) / 256 - 1
    storage='auto',  # device, stream, or auto: on the device if it fits
    bad_files='error',  # folder only: error or skip
    fit='exact',  # of folders and tensorflow-datasets: exact, or crop to the shape
    read_threads=8,  # that read ahead when streaming
    prefetch=8,  # batches read ahead when streaming
  )
  config.generator = dict(
    name='dcgan.Generator28',  # file.Class in gen_jax/nets, or a dotted path to a Flax module
    features=(128, 64),  # channels at 7x7 and 14x14
  )
  config.discriminator = dict(
    name='dcgan.Discriminator28',  # likewise
    features=(64, 128),  # channels at 14x14 and 7x7
    negative_slope=0.2,  # of LeakyReLU
    dropout=0.4,  # after every convolution
  )
  config.latent = dict(
    dim=100,  # entries of z
    distribution='normal',  # normal or uniform in [-1, 1]
  )
  config.loss = dict(
    generator='non_saturating',  # minimax, non_saturating or maximum_likelihood
    real_target=1.0,  # one-sided label smoothing: target for real examples
    d_steps=1,  # updates of D per update of G
  )
  config.optim = dict(
    G=dict(
      lr=5e-4,  # learning rate of Adam; with Radford's 2e-4 the same takes twice the steps
      b1=0.5,  # decay of Adam's first moment
      b2=0.999,  # decay of Adam's second moment
      eps=1e-8,  # of Adam
      warmup_steps=0,  # the rate grows linearly from 0 over so many steps
      decay_steps=None,  # times a line from 1 at step 0 to 0 at this one; None: no line
      l2=0.0,  # weight decay, added to the gradient
      clip_norm=None,  # global norm that gradients are cut to; None: never
    ),
    D=dict(
      lr=5e-4,  # learning rate of Adam; with Radford's 2e-4 the same takes twice the steps
      b1=0.5,  # decay of Adam's first moment
      b2=0.999,  # decay of Adam's second moment
      eps=1e-8,  # of Adam
      warmup_steps=0,  # the rate grows linearly from 0 over so many steps
      decay_steps=None,  # times a line from 1 at step 0 to 0 at this one; None: no line
      l2=0.0,  # weight decay, added to the gradient
      clip_norm=None,  # global norm that gradients are cut to; None: never
    ),
  )
  config.train = dict(
    steps=8000,  # updates of G, 9 epochs
    batch_size=64,  # examples per step, over all devices
    accumulate=1,  # parts of a batch, one after the other: less memory, more time
    steps_per_call=None,  # steps in one dispatch; None: 1 on CPU, 10 on accelerators
    log_steps=100,  # between lines of metrics.jsonl and of the console
    sample_steps=2000,  # between pictures
    checkpoint_steps=2000,  # between checkpoints
    keep_checkpoints=2,  # the newest ones
  )
  config.sample = dict(
    num_images=64,  # pictures in the grid, and for --mode=sample
    batch_size=64,  # drawn at once
    seed=0,  # of --mode=sample
  )
  config.eval = dict(
    network='auto',  # inception, efficientnet_lite0, classifier, or auto: the best at hand
    weights=None,  # file of Inception's weights; None: fetched once
    metrics=None,  # such as ('frechet', 'modes'); None: all that apply
    split='train',  # reference set
    num_reference=10000,  # examples of it, drawn once; None: all
    num_samples=10000,  # generated for --mode=evaluate
    seed=0,  # of them
    every_steps=None,  # between quick evaluations in training; None: none
    quick_samples=500,  # generated for a quick evaluation
    best='frechet',  # metric whose best checkpoint is kept when evaluating in training
  )
  config.parallel = dict(
    mode='jit',  # jit over a mesh of devices, or pmap
    data=None,  # devices that share a batch; None: all, or all over fsdp
    fsdp=1,  # devices that share parameters, optimiser state and moving average too
  )
  if arg == 'smoke':
    # The same program for a laptop's minute: small nets, made-up pictures, no download.
    config.data.name = 'shapes'
    config.generator.features = (8, 4)
    config.discriminator.features = (4, 8)
    config.train.update(steps=20, batch_size=8, log_steps=5, sample_steps=20, checkpoint_steps=10)
    config.sample.update(num_images=8, batch_size=8)
    config.eval.update(num_samples=200)
  return config
