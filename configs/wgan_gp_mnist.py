"""WGAN-GP on MNIST with the nets of the released code.

Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028.

    python launch.py --config=configs/wgan_gp_mnist.py

The released code trains 200,000 steps at a third of this learning rate, which learns in 500 steps
what the smaller one does in 1,300. Most digits are good after 2,000 steps, 99 minutes beside other
work on two CPU cores (AMD EPYC), 1.4 to 1.8 s a step alone.
Out come grids of handwritten digits in runs/wgan_gp_mnist/samples/.
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
    name='mnist',  # from tensorflow-datasets, prepared on first use
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
    name='wgan_gp.Generator28',  # file.Class in gen_jax/nets, or a dotted path to a Flax module
    features=64,  # channels at 14x14; twice and four times as many below
  )
  config.critic = dict(
    name='wgan_gp.Critic28',  # likewise; without batch norm
    features=64,  # channels at 14x14
    negative_slope=0.2,  # of LeakyReLU
  )
  config.latent = dict(
    dim=128,  # entries of z
    distribution='normal',  # normal or uniform in [-1, 1]
  )
  config.loss = dict(
    penalty=10.0,  # lambda, weight of the gradient penalty, for data in [-1, 1]
    n_critic=5,  # updates of the critic per update of G
    g_batch=1,  # G's batch as a multiple of the critic's
  )
  config.optim = dict(
    G=dict(
      lr=3e-4,  # learning rate of Adam; in the released code 1e-4
      b1=0.5,  # decay of Adam's first moment
      b2=0.9,  # decay of Adam's second moment
      eps=1e-8,  # of Adam
      warmup_steps=0,  # the rate grows linearly from 0 over so many steps
      decay_steps=None,  # times a line from 1 at step 0 to 0 at this one; None: no line
      l2=0.0,  # weight decay, added to the gradient
      clip_norm=None,  # global norm that gradients are cut to; None: never
    ),
    D=dict(
      lr=3e-4,  # learning rate of Adam; in the released code 1e-4
      b1=0.5,  # decay of Adam's first moment
      b2=0.9,  # decay of Adam's second moment
      eps=1e-8,  # of Adam
      warmup_steps=0,  # the rate grows linearly from 0 over so many steps
      decay_steps=None,  # times a line from 1 at step 0 to 0 at this one; None: no line
      l2=0.0,  # weight decay, added to the gradient
      clip_norm=None,  # global norm that gradients are cut to; None: never
    ),
  )
  config.train = dict(
    steps=2000,  # updates of G, after 5 of the critic each
    batch_size=50,  # of each critic update
    accumulate=1,  # parts of a batch, one after the other: less memory, more time
    steps_per_call=None,  # steps in one dispatch; None: 1 on CPU, 10 on accelerators
    log_steps=50,  # between lines of metrics.jsonl and of the console
    sample_steps=250,  # between pictures
    checkpoint_steps=250,  # between checkpoints
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
    config.generator.features = config.critic.features = 4
    config.loss.n_critic = 2
    config.train.update(steps=20, batch_size=8, log_steps=5, sample_steps=20, checkpoint_steps=10)
    config.sample.update(num_images=8, batch_size=8)
    config.eval.update(num_samples=200)
  return config
