"""When the events of a training run are due, and how many steps a call does between them."""

import jax


def every(config) -> dict[str, int]:
  """Steps between events of each kind, in the order in which the events of one step happen: `save`
  a checkpoint, `draw` samples, `measure` the state by a quick evaluation.
  """
  steps = dict(save=config.train.checkpoint_steps, draw=config.train.sample_steps)
  if config.eval.every_steps is not None:
    steps['measure'] = config.eval.every_steps
  return steps


def due(config, done: int) -> list[str]:
  """The events that are due after step `done`; after the last step all are."""
  return [name for name, steps in every(config).items() if _is_due(config, done, steps)]


def to_come(config, name: str, done: int) -> int:
  """How often the event `name` happens after step `done`; 0 for one that has no cadence."""
  steps, total = every(config).get(name), config.train.steps
  if steps is None:
    return 0
  return total // steps - done // steps + (total % steps > 0)


def is_logged(config, done: int) -> bool:
  """Whether the metrics of step `done` are logged."""
  return _is_due(config, done, config.train.log_steps)


def _is_due(config, done: int, steps: int) -> bool:
  return done % steps == 0 or done == config.train.steps


def call_length(config, done: int) -> int:
  """Steps of the call after `done` steps: config.train.steps_per_call, and never beyond the next
  multiple of it, the next event, an end of a trace, or the last step.

  It depends on the config and `done` only, so that a resumed run makes the same calls as an
  uninterrupted one. (Steps of one call are compiled together; the last bits of their results may
  differ from those of single steps.)
  """
  most = config.train.steps_per_call
  if most is None:
    most = 1 if jax.default_backend() == 'cpu' else 10
  first, last = config.profile_steps or (1, config.train.steps)
  ends = (first - 1, last, config.train.steps)
  return min(
    *(steps - done % steps for steps in (most, *every(config).values())),
    *(end - done for end in ends if end > done),
  )
