from gen_jax import fields

FIELDS = {'augment.probability': fields.number(0, 1, default=0.0, meaning='of each transform')}


def check(config):
  pass


def apply(x, key, config, axis_name):
  return x, None
