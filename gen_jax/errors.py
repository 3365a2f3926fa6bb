"""What stops a run: a mistake that the user can put right, and training that diverges."""


class Diverged(Exception):
  """Values that are not finite, where only a smaller learning rate or an older checkpoint helps."""


class UserError(Exception):
  """Something the user can fix: printed as one line, without a traceback, exit status 2.

  The message names the config field or the file, the value found, and what would be right. Anything
  else that goes wrong is a bug of ours and keeps its traceback.
  """

  def __init__(self, message: str):
    # One line is a promise of the interface, so a quoted library message may not break it.
    super().__init__(' '.join(str(message).split()))
