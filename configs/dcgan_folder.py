"""DCGAN on a folder of your own pictures, 64x64: Radford's nets for faces and bedrooms.

Radford, Metz and Chintala 2016, https://arxiv.org/abs/1511.06434.

    python launch.py --config=configs/dcgan_folder.py --config.data.path=FOLDER

PNG, JPEG and WebP, cropped to the middle and resized; sub-folders, if any, are classes.
Not trained here: a step takes 32 s on two CPU cores (AMD EPYC), the 50,000 steps 18 days.
Out come grids of samples in runs/dcgan_folder/samples/.
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
    name='folder',  # a folder of pictures
    path=None,  # the folder
    split='train',  # part of the data set
    shape=(64, 64, 3),  # height, width, channels
    num_classes=None,  # classes of the labels; None leaves labels unused
    flip=0.0,  # probability of a horizontal flip
    dequantize='none',  # none: x / 127.5 - 1; uniform: noise of one level, 2 (x + u) / 256 - 1
    storage='auto',  # device, stream, or auto: on the device if it fits
    bad_files='error',  # folder only: error or skip
    fit='crop',  # of folders and tensorflow-datasets: exact, or crop to the shape
    read_threads=8,  # that read ahead when streaming
    prefetch=8,  # batches read ahead when streaming
  )
  config.generator = dict(
    name='dcgan.Generator',  # file.Class in gen_jax/nets, or a dotted path to a Flax module
    features=(1024, 512, 256, 128),  # channels from 4x4 up; each doubles the size
  )
  config.discriminator = dict(
    name='dcgan.Discriminator',  # likewise
    features=(128, 256, 512, 1024),  # channels, each halves the size
    negative_slope=0.2,  # of LeakyReLU
  )
  config.latent = dict(
    dim=100,  # entries of z
    distribution='uniform',  # normal or uniform in [-1, 1]
  )
  config.loss = dict(
    generator='non_saturating',  # minimax, non_saturating or maximum_likelihood
    real_target=1.0,  # one-sided label smoothing: target for real examples
    d_steps=1,  # updates of D per update of G
  )
  config.optim = dict(
    G=dict(
      lr=2e-4,  # learning rate of Adam
      b1=0.5,  # decay of Adam's first moment
      b2=0.999,  # decay of Adam's second moment
      eps=1e-8,  # of Adam
      warmup_steps=0,  # the rate grows linearly from 0 over so many steps
      decay_steps=None,  # times a line from 1 at step 0 to 0 at this one; None: no line
      l2=1e-5,  # weight decay, added to the gradient
      clip_norm=None,  # global norm that gradients are cut to; None: never
    ),
    D=dict(
      lr=2e-4,  # learning rate of Adam
      b1=0.5,  # decay of Adam's first moment
      b2=0.999,  # decay of Adam's second moment
      eps=1e-8,  # of Adam
      warmup_steps=0,  # the rate grows linearly from 0 over so many steps
      decay_steps=None,  # times a line from 1 at step 0 to 0 at this one; None: no line
      l2=5e-6,  # weight decay, added to the gradient; half of 1e-5, as D's loss is
      clip_norm=None,  # global norm that gradients are cut to; None: never
    ),
  )
  config.train = dict(
    steps=50000,  # updates of G
    batch_size=128,  # examples per step, over all devices
    accumulate=1,  # parts of a batch, one after the other: less memory, more time
    steps_per_call=None,  # steps in one dispatch; None: 1 on CPU, 10 on accelerators
    log_steps=100,  # between lines of metrics.jsonl and of the console
    sample_steps=1000,  # between pictures
    checkpoint_steps=1000,  # between checkpoints
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
    num_reference=None,  # examples of it, drawn once; None: all
    num_samples=10000,  # generated for --mode=evaluate
    seed=0,  # of them
    every_steps=None,  # between quick evaluations in training; None: none
    quick_samples=2500,  # generated for a quick evaluation
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
    config.generator.features = (32, 16, 8, 4)
    config.discriminator.features = (4, 8, 16, 32)
    config.train.update(steps=20, batch_size=8, log_steps=5, sample_steps=20, checkpoint_steps=10)
    config.sample.update(num_images=8, batch_size=8)
    config.eval.update(num_samples=200, network='classifier')
  return config
