"""What stops a run: a user error, and training that diverges."""


class Diverged(Exception):
  """Values are not finite; only a smaller learning rate or an older checkpoint helps."""


class UserError(Exception):
  """Something the user can fix: printed as one line, without a traceback, exit status 2.

  The message names the config field or the file, the value found, and what is allowed. Any other
  exception is a bug of ours and keeps its traceback.
  """

  def __init__(self, message: str):
    # The interface promises one line, even where a quoted library message has several.
    super().__init__(' '.join(str(message).split()))
