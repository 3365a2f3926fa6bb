r"""Guidance: samples that follow a class, or the data, more closely than the net alone would.

**By a classifier** of noisy images (Dhariwal and Nichol 2021, arXiv 2105.05233, section 4). The
gradient g = grad log p(y | x_t), times a scale s, enters the step of a sampler in one of two forms:

    ancestral (Algorithm 1)    mean + s Sigma g, with Sigma the variance of p(x_{t-1} | x_t)
    all others (Algorithm 2)   eps_hat - s sigma g

With s = 1 and an exact classifier, samples follow p(x | y). s g is the gradient of
log p(y | x_t)^s, so s > 1 sharpens the classifier: closer to the class, less diverse. The
derivation evaluates g at the mean of p(x_{t-1} | x_t); here it is evaluated at x_t, as in the
released code.

**Classifier-free** (Ho and Salimans 2022, arXiv 2207.12598, Eq. 6), by a net that was trained with
labels dropped. Their w, from 0, extrapolates from the unconditional prediction through the
conditional one; many codes have s = 1 + w instead:

    (1 + w) eps(x, y) - w eps(x)  =  eps(x) + s (eps(x, y) - eps(x))

**Autoguidance** (Karras et al. 2024, arXiv 2406.02507, Eq. 3), by a weaker run for the same data
and labels: D_weak + w (D - D_weak), with w = 1 for none.

The last two may be limited to an interval of noise levels (Kynkaanniemi et al. 2024, arXiv
2404.07724).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_jax import fields
from gen_jax.diffusion.paths import Denoise, Path, Prediction, per_row
from gen_jax.errors import UserError

FIELDS = {
  # The protocol of numbers about the samples has the checksum of the run instead of its path.
  'sample.guidance.run': fields.path(
    optional=True,
    default=None,
    protocol=False,
    meaning='run of a noisy_classifier that guides sampling (but not in training); None: none',
  ),
  'sample.guidance.scale': fields.number(
    0,
    default=1.0,
    when=('.run', fields.GIVEN),
    meaning='scale of the gradient; 1: samples of p(x | y); more: closer to y, less diverse',
  ),
  'sample.guidance.w': fields.number(
    0,
    default=0.0,
    meaning="classifier-free guidance in Ho and Salimans' convention: (1 + w) conditional - w "
    'unconditional, which is the scale s = 1 + w of other codes; 0: none',
  ),
  'sample.guidance.weak_run': fields.path(
    optional=True,
    default=None,
    protocol=False,
    meaning='a weaker run of the same data, for autoguidance (but not in training); None: none',
  ),
  'sample.guidance.weak_w': fields.number(
    1,
    default=2.0,
    when=('.weak_run', fields.GIVEN),
    meaning='autoguidance: weak + w (own - weak), so that 1 is none',
  ),
  'sample.guidance.interval': fields.numbers(
    0,
    length=(2,),
    optional=True,
    default=None,
    meaning='classifier-free and autoguidance only where sigma / alpha is above the first and at '
    'most the second of these; None: everywhere',
  ),
}


def runs(config) -> dict[str, str]:
  """The finished runs that guided sampling needs, {field of the state: path}."""
  c = config.sample.guidance
  named = {'guide': c.run, 'weak': c.weak_run}
  return {field: path for field, path in named.items() if path is not None}


def check_interval(config) -> None:
  """Raises a UserError for an interval that is empty."""
  interval = config.sample.guidance.interval
  if interval is not None and interval[0] >= interval[1]:
    raise UserError(
      f'config.sample.guidance.interval={interval}: the first of the two must be the smaller one'
    )


def check_run(config, other, field: str, systems: tuple[str, ...]) -> None:
  """Checks that another run can guide this one.

  Args:
    config: of the diffusion model.
    other: the config of the other run.
    field: the field of config.sample.guidance that names it.
    systems: what it may be a run of.

  Raises:
    UserError: it is a run of another system, or its data differ.
  """
  run = f'config.sample.guidance.{field}={config.sample.guidance[field]!r}'
  if other.system not in systems:
    raise UserError(
      f'{run} is a run of system {other.system!r}: one of {" or ".join(map(repr, systems))} is '
      'needed'
    )
  for path in ('data.shape', 'data.num_classes'):
    mine, its = config[path], other[path]
    if mine != its:
      raise UserError(f'{run} has {path}={its!r}, but config.{path}={mine!r}: they must be equal')


# --- By a classifier ----------------------------------------------------------------------------


def make_guide(logits: Callable, label, scale: float, path: Path, trained_on: Path) -> Callable:
  """`guide(x, t) -> s g`, [b, ...] for x [b, ...] and t float32 [b] of a path: the gradient of a
  classifier that was trained on a path of its own, at the same sigma / alpha. 0 where alpha is 0.

  Args:
    logits: maps x [b, ...] and t float32 [b] to logits [b, classes]; rows do not interact.
    label: the class of each row, int32 [b].
    scale: s.
    path: that of x and t.
    trained_on: that of the classifier.
  """

  def log_probability(x, t):
    log_p = jax.nn.log_softmax(logits(x, t).astype(jnp.float32))
    return jnp.take_along_axis(log_p, label[:, None], axis=1).sum()

  if path == trained_on:
    return lambda x, t: scale * jax.grad(log_probability)(x, t)

  def guide(x, t):
    alpha = path.alpha(t)
    safe = jnp.where(alpha > 0, alpha, 1.0)
    other = trained_on.time_of(path.sigma(t) / safe)
    factor = per_row(jnp.where(alpha > 0, trained_on.alpha(other) / safe, 0.0), x.ndim)
    return scale * factor * jax.grad(log_probability)(factor * x, other)

  return guide


def by_classifier(denoise: Denoise, guide: Callable, path: Path) -> Denoise:
  """Algorithm 2: eps - sigma (s g), and x_0 that follows from it."""

  def guided(x, t):
    x_0, eps, variance = denoise(x, t)
    shift = per_row(path.sigma(t), x.ndim) * guide(x, t)
    alpha, sigma = per_row(path.alpha(t), x.ndim), per_row(path.sigma(t), x.ndim)
    safe = jnp.where(alpha > 0, alpha, 1.0)  # where alpha is 0, so is the shift
    return Prediction(x_0 + sigma / safe * shift, eps - shift, variance)

  return guided


# --- By another prediction ----------------------------------------------------------------------


def extrapolated(good: Denoise, base: Denoise, scale: float) -> Denoise:
  """base + scale (good - base), of x_0 and of eps; with scale 1 `good` itself.

  `base` is the unconditional net and scale 1 + w for classifier-free guidance, the weaker net and
  scale w for autoguidance.
  """
  if scale == 1:
    return good

  def guided(x, t):
    a, b = good(x, t), base(x, t)
    x_0 = b.x_0 + scale * (a.x_0 - b.x_0)
    return Prediction(x_0, b.eps + scale * (a.eps - b.eps), a.variance)

  return guided


def is_inside(path: Path, t, interval):
  """Whether sigma / alpha at t is above interval[0] and at most interval[1]."""
  alpha, sigma = path.alpha(t), path.sigma(t)
  return (sigma > interval[0] * alpha) & (sigma <= interval[1] * alpha)


def within(guided: Denoise, plain: Denoise, path: Path, interval) -> Denoise:
  """`guided` at the noise levels of an interval, `plain` at all others, where nothing else is
  evaluated; None: everywhere. All rows have the same t.
  """
  if interval is None or guided is plain:
    return guided
  return lambda x, t: jax.lax.cond(is_inside(path, t[0], interval), guided, plain, x, t)
