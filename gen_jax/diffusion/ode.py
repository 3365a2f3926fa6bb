MEASURES = {}
FIELDS = {}


def sample(*a):
  pass


def evaluate(*a):
  return {}
