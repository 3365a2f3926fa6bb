"""WGAN-GP on CIFAR-10, the unconditional ResNet of the paper.

Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028.

    python launch.py --config=configs/wgan_gp_cifar.py

The paper reports an Inception score of 7.86 +- 0.07.
Not trained here: a step takes 21 s on two CPU cores (AMD EPYC), the 100,000 steps 25 days.
Out come grids of samples in runs/wgan_gp_cifar/samples/.
"""

from ml_collections import ConfigDict


def get_config(arg=''):
  """The whole config; `arg` is '' or 'smoke'."""
  if arg not in ('', 'smoke'):
    raise ValueError(f'argument {arg!r}: only smoke is known')
  config = ConfigDict()
  config.system = 'wgan_gp'  # file in gen_jax/systems
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
    flip=0.0,  # probability of a horizontal flip
    dequantize='uniform',  # none: x / 127.5 - 1; uniform: noise of one level, 2 (x + u) / 256 - 1
    storage='auto',  # device, stream, or auto: on the device if it fits
    bad_files='error',  # folder only: error or skip
    fit='exact',  # of folders and tensorflow-datasets: exact, or crop to the shape
    read_threads=8,  # that read ahead when streaming
    prefetch=8,  # batches read ahead when streaming
  )
  config.generator = dict(
    name='wgan_gp.ResNetGenerator',  # file.Class in gen_jax/nets, or a dotted path to a Flax module
    features=128,  # channels everywhere
    blocks=3,  # each doubles the size, from 4x4
  )
  config.critic = dict(
    name='wgan_gp.ResNetCritic',  # likewise; without batch norm
    features=128,  # channels everywhere
  )
  config.latent = dict(
    dim=128,  # entries of z
    distribution='normal',  # normal or uniform in [-1, 1]
  )
  config.loss = dict(
    penalty=10.0,  # lambda, weight of the gradient penalty
    n_critic=5,  # updates of the critic per update of G
    g_batch=2,  # G's batch as a multiple of the critic's
  )
  config.optim = dict(
    G=dict(
      lr=2e-4,  # learning rate of Adam
      b1=0.0,  # decay of Adam's first moment
      b2=0.9,  # decay of Adam's second moment
      eps=1e-8,  # of Adam
      warmup_steps=0,  # the rate grows linearly from 0 over so many steps
      decay_steps=100000,  # times a line from 1 at step 0 to 0 at this one; None: no line
      l2=0.0,  # weight decay, added to the gradient
      clip_norm=None,  # global norm that gradients are cut to; None: never
    ),
    D=dict(
      lr=2e-4,  # learning rate of Adam
      b1=0.0,  # decay of Adam's first moment
      b2=0.9,  # decay of Adam's second moment
      eps=1e-8,  # of Adam
      warmup_steps=0,  # the rate grows linearly from 0 over so many steps
      decay_steps=100000,  # times a line from 1 at step 0 to 0 at this one; None: no line
      l2=0.0,  # weight decay, added to the gradient
      clip_norm=None,  # global norm that gradients are cut to; None: never
    ),
  )
  config.train = dict(
    steps=100000,  # updates of G
    batch_size=64,  # of each critic update
    accumulate=1,  # parts of a batch, one after the other: less memory, more time
    steps_per_call=None,  # steps in one dispatch; None: 1 on CPU, 10 on accelerators
    log_steps=100,  # between lines of metrics.jsonl and of the console
    sample_steps=5000,  # between pictures
    checkpoint_steps=2500,  # between checkpoints
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
    num_samples=50000,  # generated for --mode=evaluate
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
    config.generator.features = config.critic.features = 8
    config.loss.n_critic = 2
    config.train.update(steps=20, batch_size=8, log_steps=5, sample_steps=20, checkpoint_steps=10)
    config.sample.update(num_images=8, batch_size=8)
    config.eval.update(num_samples=200, network='classifier')
  return config
