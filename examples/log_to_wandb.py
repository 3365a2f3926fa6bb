"""A run of gen_jax that also reports to Weights & Biases (`pip install wandb`): callbacks.

python examples/log_to_wandb.py; without an account: WANDB_MODE=offline
"""

import sys

import wandb

from gen_jax import config as configs
from gen_jax import train


class Wandb:
  """The callbacks of `train.run`; a step may have several reports, which Weights & Biases joins."""

  def on_metrics(self, step, metrics):
    wandb.log(metrics | {'step': step})

  def on_images(self, step, name, path):
    wandb.log({name: wandb.Image(str(path)), 'step': step})


config = configs.load('gan_ring', [('train.steps', '1000'), ('train.sample_steps', '500')])
wandb.init(project='gen_jax', config=configs.to_dict(config))
wandb.define_metric('*', step_metric='step')  # a resumed run may report a step again
status = train.run(config, 'runs/gan_ring_wandb', callbacks=[Wandb()])
wandb.finish()
sys.exit(status)
