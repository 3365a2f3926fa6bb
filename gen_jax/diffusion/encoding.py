def encode(*a):
  pass


def decode(*a):
  pass
