"""The verb of `--mode=import`: published weights as an export that `gen_jax.load` reads.

One format is known: diffusers' `UNet2DModel` of DDPM, as in google/ddpm-cifar10-32 and its
siblings. A folder of it holds config.json, diffusion_pytorch_model.safetensors and perhaps
scheduler_config.json, or these in the folders `unet` and `scheduler` of a pipeline. Its net is our
`unet.UNet`, parameter for parameter, where the fields below have these values.
"""

import hashlib
import math
import pathlib
import reprlib
import sys
import tempfile
from typing import Any

import numpy as np
import safetensors

from gen_jax import config as configs
from gen_jax import contract, fields
from gen_jax.errors import UserError, writing
from gen_jax.fields import REQUIRED
from gen_jax.host import console
from gen_jax.host.files import JSON_BYTES, open_file, read_file
from gen_jax.run import export_format, signals
from gen_jax.run.leaves import state_leaves
from gen_jax.run.workdir import check_place, parse_json

FILE = 'diffusion_pytorch_model.safetensors'
# Fields of UNet2DModel: (the library's default, the values that our net can have).
NET = {
  'act_fn': ('silu', ('silu', 'swish')),
  'add_attention': (True, (True,)),
  'attention_head_dim': (8, (None,)),
  'attn_norm_num_groups': (None, (None,)),
  'center_input_sample': (False, (False,)),
  'class_embed_type': (None, (None,)),
  'downsample_padding': (1, (0,)),
  'downsample_type': ('conv', ('conv',)),
  'flip_sin_to_cos': (True, (False,)),
  'freq_shift': (0, (1,)),
  'mid_block_scale_factor': (1, (1,)),
  'mid_block_type': ('UNetMidBlock2D', ('UNetMidBlock2D',)),
  'norm_eps': (1e-5, (1e-6,)),
  'num_train_timesteps': (None, (None,)),
  'resnet_time_scale_shift': ('default', ('default',)),
  'time_embedding_dim': (None, (None,)),
  'time_embedding_type': ('positional', ('positional',)),
  'upsample_type': ('conv', ('conv',)),
}
# Those that vary from net to net: (the library's default, rule).
SIZES = {
  'sample_size': (REQUIRED, fields.integers(length=(1, 2))),  # or one integer
  'in_channels': (3, fields.integer(1)),
  'out_channels': (3, fields.integer(1)),
  'down_block_types': (REQUIRED, fields.Field('text', many=True)),
  'up_block_types': (REQUIRED, fields.Field('text', many=True)),
  'block_out_channels': (REQUIRED, fields.integers()),
  'layers_per_block': (2, fields.integer(1)),
  'norm_num_groups': (32, fields.integer(1)),
  'num_class_embeds': (None, fields.integer(1, optional=True)),
  'dropout': (0.0, fields.number(0, below=1)),
}
SCHEDULER = {
  'beta_schedule': ('linear', ('linear', 'squaredcos_cap_v2')),
  'prediction_type': ('epsilon', ('epsilon',)),
  'trained_betas': (None, (None,)),
  'rescale_betas_zero_snr': (False, (False,)),
}


@signals.exit_in_order()
def run(source, workdir, overrides=()) -> int:
  """Writes an export with the weights and the config that a folder holds, and prints its path.

  Args:
    source: the folder of published weights.
    workdir: the new folder.
    overrides: of the config, as `config.load` takes them. The data are unknown until they say.

  Returns:
    The exit status, 0.

  Raises:
    UserError: a file is missing, or describes what our net is not; a parameter is missing, left
      over or has another shape.
  """
  if not source or not workdir:
    raise UserError('--mode=import needs --from=FOLDER of published weights and a new --workdir')
  source, out = pathlib.Path(source), pathlib.Path(workdir)
  if export_format.is_export(out) or (out / 'checkpoints').exists():
    raise UserError(f'--workdir={out} holds a run: another folder is needed')
  check_place(out, ())
  folder = source / 'unet' if (source / 'unet').is_dir() else source
  values = _net(folder / 'config.json') | _process(source)
  weights = folder / FILE
  if not weights.is_file():
    pickled = ' (.bin is a pickle, which is not read)' if [*folder.glob('*.bin')] else ''
    raise UserError(f'--from={source}: {weights} is missing{pickled}')
  config = configs.make('ddpm', values)
  with writing(f'--workdir={out}'):
    out.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as folder:  # the other is written when all is known to fit
    file = pathlib.Path(folder, 'config.json')
    file.write_text(configs.to_json(config))
    config = configs.load(str(file), overrides)
  state = contract.abstract_state(config, contract.check(config))
  arrays = {f'net/params/{name}': x for name, x in read_params(weights, state.net.params).items()}
  export_format.write(
    out,
    arrays | {'step': np.zeros((), np.int32)},
    step=0,
    config=configs.to_json(config),
    weights='raw',
    dtype='float32',
    data_fingerprint='unknown',
    environment={},
    source=_sha256(weights),
  )
  console.tell(out, sys.stdout)
  return 0


# --- Configs ------------------------------------------------------------------------------------


def _net(path: pathlib.Path) -> dict[str, Any]:
  """The fields of our config that the config.json of a UNet2DModel says."""
  given = _json(path)
  if (name := given.get('_class_name')) != 'UNet2DModel':
    raise UserError(f'{path}: _class_name={name!r}; UNet2DModel is needed')
  for field in given:
    if field not in NET and field not in SIZES and not field.startswith('_'):
      raise UserError(f'{path}: field {field} is unknown')
  _check(path, given, NET)
  found = {field: _size(path, field, given) for field in SIZES}
  (height, *_, width), widths = found['sample_size'] * 2, found['block_out_channels']
  down = [_attention(path, name, 'Down') for name in found['down_block_types']]
  up = [_attention(path, name, 'Up') for name in found['up_block_types']]
  if up != down[::-1] or len(down) != len(widths):
    raise UserError(
      f'{path}: down_block_types, up_block_types and block_out_channels differ; the same levels, '
      'upwards in reverse order, are needed'
    )
  if bad := [w for w in widths if w % widths[0]]:
    raise UserError(
      f'{path}: block_out_channels={list(widths)}: {bad[0]} is no multiple of {widths[0]}'
    )
  if found['in_channels'] != found['out_channels']:
    raise UserError(
      f'{path}: in_channels={found["in_channels"]}, out_channels={found["out_channels"]}; as many '
      'are needed'
    )
  return {
    'data.name': 'unknown',
    'data.shape': (height, width, found['in_channels']),
    'data.num_classes': found['num_class_embeds'],
    'net': dict(
      name='unet.UNet',
      features=widths[0],
      multipliers=tuple(w // widths[0] for w in widths),
      blocks=found['layers_per_block'],
      attention=tuple(height // 2**level for level, has_it in enumerate(down) if has_it),
      dropout=found['dropout'],
      groups=found['norm_num_groups'],
      num_classes=found['num_class_embeds'],
    ),
    'optim.lr': 2e-4,  # for training that starts from these weights; the paper's for CIFAR-10
    'sample.weights': 'raw',  # as published
  }


def _size(path, field: str, given: dict):
  default, rule = SIZES[field]
  value = default if given.get(field) is None else given[field]
  if value is REQUIRED:
    raise UserError(f'{path}: {field} is missing')
  try:
    return rule.accept([value] if rule.many and isinstance(value, int) else value)
  except ValueError as error:
    raise UserError(f'{path}: {field}={reprlib.repr(value)}: {rule} is needed') from error


def _attention(path, name: str, direction: str) -> bool:
  known = {f'{direction}Block2D': False, f'Attn{direction}Block2D': True}
  if name not in known:
    raise UserError(f'{path}: block {name!r}; {" or ".join(known)} is needed')
  return known[name]


def _process(source: pathlib.Path) -> dict[str, Any]:
  """The fields that scheduler_config.json says, where it is there: the process and the sampler."""
  path = source / 'scheduler' / 'scheduler_config.json'
  path = path if path.is_file() else source / 'scheduler_config.json'
  if not path.is_file():
    return {}
  given = _json(path)
  _check(path, given, SCHEDULER)
  values = {'diffusion.steps': given.get('num_train_timesteps', 1000)}
  if given.get('beta_schedule', 'linear') == 'linear':
    values |= {
      'diffusion.beta_min': given.get('beta_start', 1e-4),
      'diffusion.beta_max': given.get('beta_end', 0.02),
    }
  else:
    values['diffusion.schedule'] = 'cosine'
  variance = {'fixed_large': 'large', 'fixed_small': 'small'}.get(str(given.get('variance_type')))
  return values | ({'sample.variance': variance} if variance else {})


def _json(path: pathlib.Path) -> dict:
  try:
    found = parse_json(read_file(path, JSON_BYTES))
  except OSError as error:
    raise UserError(f'--from: {path} cannot be read: {error.strerror}') from error
  except ValueError as error:
    raise UserError(f'--from: {path} is not JSON: {error}') from error
  if not isinstance(found, dict):
    raise UserError(f'--from: {path} is no JSON object')
  return found


def _check(path, given: dict, table: dict) -> None:
  for field, (default, allowed) in table.items():
    if (value := given.get(field, default)) not in allowed:
      raise UserError(f'{path}: {field}={value!r}; {" or ".join(map(repr, allowed))} is needed')


def _sha256(path: pathlib.Path) -> str:
  with open_file(path) as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


# --- Parameters ---------------------------------------------------------------------------------


def read_params(path, params) -> dict[str, np.ndarray]:
  """The parameters of our `unet.UNet` from a file of UNet2DModel: {'conv_in/kernel': float32, ...}.

  Args:
    path: the safetensors file.
    params: our tree of parameters, or of `jax.ShapeDtypeStruct`.

  Raises:
    UserError: a parameter is missing, left over or has another shape.
  """
  wanted = state_leaves(params)
  levels = 1 + max(int(key[0][2]) for key in wanted if key[0].startswith('up'))
  made = {}
  try:
    with safetensors.safe_open(path, framework='np') as file:
      left = set(file.keys())
      for key, leaf in wanted.items():
        names = _names(key, levels)
        if not (found := [name for name in names if name in left]):
          raise UserError(f'{path}: {names[0]} is missing')
        left.remove(found[0])
        if (size := math.prod(file.get_slice(found[0]).get_shape())) > 2 * math.prod(leaf.shape):
          raise UserError(
            f'{path}: {found[0]} has {size:,} numbers, and {list(leaf.shape)} follows from '
            'config.json'
          )
        x = _ours(file.get_tensor(found[0]), key)
        if x.shape != leaf.shape:
          raise UserError(
            f'{path}: {found[0]} is {list(x.shape)} in our order of axes, and {list(leaf.shape)} '
            'follows from config.json'
          )
        made['/'.join(key)] = x
  except (OSError, TypeError, safetensors.SafetensorError) as error:
    raise UserError(f'{path} cannot be read: {error}') from error
  if left:
    raise UserError(f'{path}: {min(left)} belongs to no layer that config.json describes')
  return made


_LAYERS = {
  'temb1': 'time_embedding.linear_1',
  'temb2': 'time_embedding.linear_2',
  'class': 'class_embedding',
  'conv_in': 'conv_in',
  'mid1': 'mid_block.resnets.0',
  'mid_attention': 'mid_block.attentions.0',
  'mid2': 'mid_block.resnets.1',
  'norm_out': 'conv_norm_out',
  'conv_out': 'conv_out',
}
# Of blocks; attention's names of today, and those of the published files.
_PARTS = {
  'temb': ('time_emb_proj',),
  'shortcut': ('conv_shortcut',),
  'norm': ('group_norm',),
  'q': ('to_q', 'query'),
  'k': ('to_k', 'key'),
  'v': ('to_v', 'value'),
  'out': ('to_out.0', 'proj_attn'),
}


def _names(key: tuple[str, ...], levels: int) -> list[str]:
  """The names that a parameter of ours may have in the file."""
  layer, *part, kind = key
  if (place := _LAYERS.get(layer)) is None:
    direction, level = ('up', layer[2:]) if layer.startswith('up') else ('down', layer[4:])
    level, _, block = level.removesuffix('_attention').partition('_')
    place = f'{direction}_blocks.{levels - 1 - int(level) if direction == "up" else level}'
    if not block:
      place += f'.{direction}samplers.0.conv'
    else:
      place += f'.{"attentions" if layer.endswith("_attention") else "resnets"}.{block}'
  end = 'bias' if kind == 'bias' else 'weight'
  if not part:
    return [f'{place}.{end}']
  return [f'{place}.{name}.{end}' for name in _PARTS.get(part[0], (part[0],))]


def _ours(x: np.ndarray, key: tuple[str, ...]) -> np.ndarray:
  """PyTorch's order of axes as ours, float32."""
  x = x.astype(np.float32)
  if key[-1] != 'kernel':
    return x
  if x.ndim == 4 and key[-2] == 'shortcut':  # a 1x1 convolution, which is a dense layer here
    x = x[:, :, 0, 0]
  return x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T
