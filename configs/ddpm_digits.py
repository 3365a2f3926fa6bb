"""DDPM on handwritten digits, 8x8: a diffusion model in minutes, without a download.

Ho, Jain and Abbeel 2020, https://arxiv.org/abs/2006.11239.

    python launch.py --config=configs/ddpm_digits.py

The net is told the digit, so that in the grids every column is one: 0 to 9.

1,000 steps; 1.5 to 4 minutes on two cores of an AMD EPYC, the first step after 12 to 28 s.
Out comes runs/ddpm_digits/samples/: grids of digits that anyone can read.
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
    name='digits',  # scikit-learn's 1,797 digits; in the package
    path=None,  # not used
    split='train[:80%]',  # part of the data set; the rest is held out
    shape=(8, 8, 1),  # height, width, channels
    num_classes=10,  # classes of the labels; None leaves labels unused
    flip=0.0,  # probability of a horizontal flip
    dequantize='none',  # none: x / 127.5 - 1; uniform: noise of one level, 2 (x + u) / 256 - 1
    storage='auto',  # device, stream, or auto: on the device if it fits
    bad_files='error',  # folder only: error or skip
    fit='exact',  # of folders and tensorflow-datasets: exact, or crop to the shape
    read_threads=8,  # that read ahead when streaming
    prefetch=8,  # batches read ahead when streaming
  )
  config.net = dict(
    name='unet.UNet',  # file.Class in gen_jax/nets, or a dotted path to a Flax module
    features=32,  # channels of the first level
    multipliers=(1, 2),  # of the channels, level by level; each level halves the size
    blocks=1,  # residual blocks per level
    attention=(),  # sizes with self-attention, besides the middle
    dropout=0.0,  # in the residual blocks
    groups=8,  # of the group norms
    remat=False,  # computes the blocks anew for the gradient: less memory, more time
    num_classes=10,  # class-conditional: the number of classes, as in config.data
  )
  config.diffusion = dict(
    steps=1000,  # T
    schedule='cosine',  # linear or cosine
    beta_min=1e-4,  # linear: first and
    beta_max=0.02,  # last beta
  )
  config.ema_decay = 0.995  # of the averaged parameters that sampling uses
  config.optim = dict(
    lr=2e-3,  # learning rate of Adam
    b1=0.9,  # decay of Adam's first moment
    b2=0.999,  # decay of Adam's second moment
    eps=1e-8,  # of Adam
    warmup_steps=100,  # the rate grows linearly from 0 over so many steps
    decay_steps=1000,  # times a line from 1 at step 0 to 0 at this one; None: no line
    l2=0.0,  # weight decay, added to the gradient
    clip_norm=1.0,  # global norm that gradients are cut to; None: never
  )
  config.train = dict(
    steps=1000,  # updates of the net
    batch_size=64,  # examples per step, over all devices
    accumulate=1,  # parts of a batch, one after the other: less memory, more time
    steps_per_call=None,  # steps in one dispatch; None: 1 on CPU, 10 on accelerators
    log_steps=50,  # between lines of metrics.jsonl and of the console
    sample_steps=500,  # between pictures
    checkpoint_steps=500,  # between checkpoints
    keep_checkpoints=2,  # the newest ones
  )
  config.sample = dict(
    num_images=100,  # pictures in the grid, and for --mode=sample
    batch_size=100,  # drawn at once
    seed=0,  # of --mode=sample
    sampler='ddim',  # ancestral (DDPM, every step) or ddim
    variance='large',  # ancestral: sigma^2 = beta (large) or beta tilde (small)
    steps=100,  # ddim: evaluations of the net
    spacing='uniform',  # ddim: uniform or quadratic
    # Fresh noise in every step repairs what a net after a short training gets wrong.
    eta=1.0,  # ddim: 0 deterministic, 1 as random as DDPM
    clip=None,  # cut x_0 to [-1, 1] at every step; None: as published, ancestral only
    intermediates=0,  # pictures of the way from noise to data
    weights='ema',  # ema or raw
  )
  config.eval = dict(
    network='auto',  # inception, efficientnet_lite0, classifier, or auto: the best at hand
    weights=None,  # file of Inception's weights; None: fetched once
    metrics=None,  # such as ('frechet', 'modes'); None: all that apply
    split='train[:80%]',  # reference set
    num_reference=None,  # examples of it, drawn once; None: all
    num_samples=1400,  # generated for --mode=evaluate
    seed=0,  # of them
    every_steps=None,  # between quick evaluations in training; None: none
    quick_samples=500,  # generated for a quick evaluation
    best='frechet',  # metric whose best checkpoint is kept when evaluating in training
    quick_steps=20,  # of DDIM in a quick evaluation
    likelihood_split='train[80%:]',  # held out, for the variational bound
    likelihood_examples=100,  # of it; None: no likelihood
  )
  config.parallel = dict(
    mode='jit',  # jit over a mesh of devices, or pmap
    data=None,  # devices that share a batch; None: all, or all over fsdp
    fsdp=1,  # devices that share parameters, optimiser state and moving average too
  )
  if arg == 'smoke':
    # The same program for a laptop's minute.
    config.net.update(features=8, groups=4)
    config.optim.warmup_steps = 0
    config.train.update(steps=20, batch_size=8, log_steps=5, sample_steps=20, checkpoint_steps=10)
    config.sample.update(num_images=8, batch_size=8, sampler='ddim', steps=5, intermediates=2)
    config.eval.update(num_samples=200, quick_steps=5, likelihood_examples=8)
  return config
