"""Published weights: what diffusers predicts with them, our net predicts."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import gen_jax
import launch
from gen_jax.run import published
from gen_jax.systems import ddpm

FIXTURES = pathlib.Path(__file__).parent / 'fixtures' / 'diffusers'


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
  """Runs of both fixtures, made by the command line."""
  folder = tmp_path_factory.mktemp('runs')
  for name in ('plain', 'labels'):
    argv = ['--mode=import', f'--from={FIXTURES / name}', f'--workdir={folder / name}']
    assert launch.main(argv) == 0
  return folder


@pytest.mark.parametrize('name', ['plain', 'labels'])
def test_the_net_predicts_what_diffusers_predicts(imported, name):
  run = gen_jax.load(imported / name)
  with np.load(FIXTURES / name / 'forward.npz') as file:
    x, t, label, y = (file[key] for key in ('x', 't', 'label', 'y'))
  assert y.std() > 0.3
  denoise = ddpm.denoiser(run.params('net'), label if name == 'labels' else None, config=run.config)
  np.testing.assert_allclose(jax.jit(denoise)(x, np.float32(t)).eps, y, atol=1e-5)


def test_the_config_is_derived(imported):
  plain, labels = (gen_jax.load(imported / name).config for name in ('plain', 'labels'))
  assert plain.data.shape == (8, 8, 3) and plain.net.attention == (4,)
  assert (plain.net.features, plain.net.multipliers, plain.net.blocks) == (4, (1, 2), 1)
  assert (plain.net.groups, plain.net.num_classes) == (2, None)
  process = dict(steps=1000, schedule='linear', beta_min=1e-4, beta_max=0.02, prediction='eps')
  assert process.items() <= plain.diffusion.to_dict().items()
  assert (plain.sample.variance, plain.sample.weights) == ('large', 'raw')
  assert labels.data.shape == (8, 8, 1) and labels.net.attention == (8,) and labels.net.blocks == 2
  assert labels.data.num_classes == labels.net.num_classes == 5


def test_it_samples_like_any_run(imported):
  made = gen_jax.load(imported / 'labels').sample(2, labels=4, sampler='ddim', steps=2)
  assert made.shape == (2, 8, 8, 1) and made.dtype == np.uint8


def test_data_and_pipelines(tmp_path):
  """The folder of a whole pipeline; and the data that evaluation needs are told by flags."""
  for path, name in (('unet', 'config.json'), ('unet', published.FILE)):
    (tmp_path / path).mkdir(exist_ok=True)
    shutil.copy(FIXTURES / 'plain' / name, tmp_path / path / name)
  (tmp_path / 'scheduler').mkdir()
  settings = dict(beta_schedule='squaredcos_cap_v2', num_train_timesteps=50)
  settings |= dict(variance_type='fixed_small', prediction_type='epsilon')
  (tmp_path / 'scheduler/scheduler_config.json').write_text(json.dumps(settings))
  argv = ['--mode=import', f'--from={tmp_path}', f'--workdir={tmp_path / "out"}']
  assert launch.main([*argv, '--config.data.name=shapes']) == 0
  config = gen_jax.load(tmp_path / 'out').config
  assert (config.data.name, config.diffusion.steps, config.diffusion.schedule) == (
    'shapes',
    50,
    'cosine',
  )
  assert config.sample.variance == 'small'


def change(field, value):
  def edit(folder):
    config = json.loads((folder / 'config.json').read_text())
    config.pop(field) if value is None else config.update({field: value})
    (folder / 'config.json').write_text(json.dumps(config))

  return edit


def change_weights(edit):
  def apply(folder):
    arrays = safetensors.numpy.load_file(folder / published.FILE)
    edit(arrays)
    safetensors.numpy.save_file(arrays, folder / published.FILE)

  return apply


def schedule(**fields):
  return lambda folder: (folder / 'scheduler_config.json').write_text(json.dumps(fields))


@pytest.mark.parametrize(
  'edit, message',
  [
    (change('_class_name', 'UNet2DConditionModel'), "_class_name='UNet2DConditionModel'; UNet2DM"),
    (change('attention_head_dim', 8), 'attention_head_dim=8; None is needed'),
    (change('downsample_padding', None), 'downsample_padding=1; 0 is needed'),
    (change('norm_eps', 1e-5), 'norm_eps=1e-05; 1e-06 is needed'),
    (change('cross_attention_dim', 64), 'field cross_attention_dim is unknown'),
    (change('sample_size', None), 'sample_size is missing'),
    (change('block_out_channels', [4, 6]), 'block_out_channels=[4, 6]: 6 is no multiple of 4'),
    (change('up_block_types', ['UpBlock2D', 'AttnUpBlock2D']), 'the same levels, upwards in rev'),
    (change('down_block_types', ['SkipDownBlock2D', 'DownBlock2D']), "block 'SkipDownBlock2D'; D"),
    (change('out_channels', 6), 'in_channels=3, out_channels=6'),
    (change('block_out_channels', [4, 12]), 'follows from config.json'),
    (change('layers_per_block', 2), 'resnets.1.conv1.bias is missing'),
    (schedule(prediction_type='sample'), "prediction_type='sample'; 'epsilon' is needed"),
    (schedule(beta_schedule='sigmoid'), "beta_schedule='sigmoid'; 'linear' or 'squaredcos_cap_v2'"),
    (change_weights(lambda a: a.pop('conv_in.bias')), f'{published.FILE}: conv_in.bias is missing'),
    (change_weights(lambda a: a.update(extra=a['conv_in.bias'])), 'extra belongs to no layer that'),
    (
      change_weights(lambda a: a.update({'conv_in.bias': np.zeros(3, np.float32)})),
      'conv_in.bias is [3] in our order of axes, and [4] follows from config.json',
    ),
    (lambda folder: (folder / published.FILE).write_bytes(b'x'), 'cannot be read'),
    (lambda folder: (folder / published.FILE).unlink(), f'{published.FILE} is missing'),
    (
      lambda folder: (folder / published.FILE).rename(folder / 'diffusion_pytorch_model.bin'),
      '(.bin is a pickle, which is not read)',
    ),
    (lambda folder: (folder / 'config.json').unlink(), 'cannot be read: No such file'),
    (lambda folder: (folder / 'config.json').write_text('['), 'is not JSON'),
  ],
)
def test_what_is_no_such_net_is_one_line(tmp_path, capsys, edit, message):
  folder = shutil.copytree(FIXTURES / 'plain', tmp_path / 'in')
  edit(folder)
  argv = ['--mode=import', f'--from={folder}', f'--workdir={tmp_path / "out"}']
  assert launch.main(argv) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.count('\n') == 1 and message in err


def test_flags_of_the_import(imported, capsys):
  for argv, message in (
    ([], '--mode=import needs --from=FOLDER'),
    ([f'--from={FIXTURES / "plain"}'], 'and a new --workdir'),
    ([f'--from={FIXTURES / "plain"}', f'--workdir={imported / "plain"}'], 'holds a run'),
  ):
    assert launch.main(['--mode=import', *argv]) == 2
    assert message in capsys.readouterr().err
  assert launch.main(['--mode=train', '--from=x', '--config=c.py']) == 2
  assert capsys.readouterr().err == 'error: --from is for --mode=import\n'
