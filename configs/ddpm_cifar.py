"""DDPM on CIFAR-10, the configuration of the paper: 35,746,307 parameters.

Ho, Jain and Abbeel 2020, https://arxiv.org/abs/2006.11239.

    python launch.py --config=configs/ddpm_cifar.py

The paper trained 800,000 steps on 8 TPU v3 cores and reports FID 3.17 (50,000 samples, against the
training set, ancestral sampling with 1000 steps, averaged weights). It clips the gradient of each
core's 16 images to norm 1 and averages; here the gradient of the whole batch is clipped.
Not trained here: a step takes 26 s and 14 GB on two CPU cores (AMD EPYC); 1.6 s and 4 GB at batch
8. One H100 would take 4.5 hours in bfloat16 (docs/performance.md).
Out come grids of samples in runs/ddpm_cifar/samples/.
"""

from ml_collections import ConfigDict


def get_config(arg=''):
  """The whole config; `arg` is '' or 'smoke'."""
  if arg not in ('', 'smoke'):
    raise ValueError(f'argument {arg!r}: only smoke is known')
  config = ConfigDict()
  config.system = 'ddpm'  # file in gen_jax/systems
  config.seed = 0  # of everything random in the run
  config.precision = 'float32'  # in which nets compute, or bfloat16; their state is float32
  config.compilation_cache = 'auto'  # keeps compiled programs: auto, a folder, or None
  config.profile_steps = None  # (first, last) of the steps to trace for TensorBoard; None: none
  config.data = dict(
    name='cifar10',  # from tensorflow-datasets, prepared on first use
    path=None,  # TFDS's folder; None: ~/tensorflow_datasets or $TFDS_DATA_DIR
    split='train',  # part of the data set
    shape=(32, 32, 3),  # height, width, channels
    num_classes=None,  # classes of the labels; None leaves labels unused
    flip=0.5,  # probability of a horizontal flip
    dequantize='none',  # none: x / 127.5 - 1; uniform: noise of one level, 2 (x + u) / 256 - 1
    storage='auto',  # device, stream, or auto: on the device if it fits
    bad_files='error',  # folder only: error or skip
    fit='exact',  # of folders and tensorflow-datasets: exact, or crop to the shape
    read_threads=8,  # that read ahead when streaming
    prefetch=8,  # batches read ahead when streaming
  )
  config.net = dict(
    name='unet.UNet',  # file.Class in gen_jax/nets, or a dotted path to a Flax module
    features=128,  # channels of the first level
    multipliers=(1, 2, 2, 2),  # of the channels, level by level; each level halves the size
    blocks=2,  # residual blocks per level
    attention=(16,),  # sizes with self-attention
    dropout=0.1,  # in the residual blocks
    groups=32,  # of the group norms
    remat=False,  # computes the blocks anew for the gradient: less memory, more time
    num_classes=None,  # class-conditional: the number of classes, as in config.data
  )
  config.diffusion = dict(
    steps=1000,  # T
    schedule='linear',  # linear or cosine
    beta_min=1e-4,  # linear: first and
    beta_max=0.02,  # last beta
  )
  config.ema_decay = 0.9999  # of the averaged parameters that sampling uses
  config.optim = dict(
    lr=2e-4,  # learning rate of Adam
    b1=0.9,  # decay of Adam's first moment
    b2=0.999,  # decay of Adam's second moment
    eps=1e-8,  # of Adam
    warmup_steps=5000,  # the rate grows linearly from 0 over so many steps
    decay_steps=None,  # times a line from 1 at step 0 to 0 at this one; None: no line
    l2=0.0,  # weight decay, added to the gradient
    clip_norm=1.0,  # global norm that gradients are cut to; None: never
  )
  config.train = dict(
    steps=800000,  # updates of the net
    batch_size=128,  # examples per step, over all devices
    accumulate=1,  # parts of a batch, one after the other: less memory, more time
    steps_per_call=None,  # steps in one dispatch; None: 1 on CPU, 10 on accelerators
    log_steps=100,  # between lines of metrics.jsonl and of the console
    sample_steps=10000,  # between pictures
    checkpoint_steps=5000,  # between checkpoints
    keep_checkpoints=2,  # the newest ones
  )
  config.sample = dict(
    num_images=64,  # pictures in the grid, and for --mode=sample
    batch_size=64,  # drawn at once
    seed=0,  # of --mode=sample
    sampler='ancestral',  # ancestral (DDPM, every step) or ddim
    variance='large',  # ancestral: sigma^2 = beta (large) or beta tilde (small)
    steps=50,  # ddim: evaluations of the net
    spacing='quadratic',  # ddim: uniform or quadratic
    eta=0.0,  # ddim: 0 deterministic, 1 as random as DDPM
    clip=None,  # cut x_0 to [-1, 1] at every step; None: as published, ancestral only
    intermediates=0,  # pictures of the way from noise to data
    weights='ema',  # ema or raw
  )
  config.eval = dict(
    network='auto',  # inception, efficientnet_lite0, classifier, or auto: the best at hand
    weights=None,  # file of Inception's weights; None: fetched once
    metrics=None,  # such as ('frechet', 'modes'); None: all that apply
    split='train',  # reference set
    num_reference=None,  # examples of it, drawn once; None: all
    num_samples=50000,  # generated for --mode=evaluate
    seed=0,  # of them
    every_steps=None,  # between quick evaluations in training; None: none
    quick_samples=2500,  # generated for a quick evaluation
    best='frechet',  # metric whose best checkpoint is kept when evaluating in training
    quick_steps=20,  # of DDIM in a quick evaluation
    likelihood_split='test',  # held out, for the variational bound
    likelihood_examples=1000,  # of it; None: no likelihood
  )
  config.parallel = dict(
    mode='jit',  # jit over a mesh of devices, or pmap
    data=None,  # devices that share a batch; None: all, or all over fsdp
    fsdp=1,  # devices that share parameters, optimiser state and moving average too
  )
  if arg == 'smoke':
    # The same program for a laptop's minute: small nets, made-up pictures, no download.
    config.data.name = 'shapes'
    config.net.update(features=8, groups=4, multipliers=(1, 2), blocks=1)
    config.optim.warmup_steps = 0
    config.train.update(steps=20, batch_size=8, log_steps=5, sample_steps=20, checkpoint_steps=10)
    config.sample.update(num_images=8, batch_size=8, sampler='ddim', steps=5, intermediates=2)
    config.eval.update(
      num_samples=200,
      network='classifier',
      quick_steps=5,
      likelihood_split='train',
      likelihood_examples=8,
    )
  return config
