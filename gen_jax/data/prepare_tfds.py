"""Prepares one TFDS data set as array_record: `python -m gen_jax.data.prepare_tfds NAME DATA_DIR`.

The only module that needs TensorFlow. It runs in a process of its own, so that a training process
never imports TensorFlow. Progress goes to stderr; when something fails, the reason is the one line
on stdout and the exit status is 1. TFDS writes into a folder `incomplete.*` and renames it at the
very end: an interrupted preparation is never mistaken for a complete one.
"""

import contextlib
import importlib.util
import json
import pathlib
import sys

from absl import logging

from gen_jax.host import imports

SECONDS_TO_ANSWER = 5.0


def _cached_urls(downloads: pathlib.Path) -> set[str]:
  """URLs whose archives TFDS has already downloaded; each has an `.INFO` file beside it."""
  urls = set()
  for path in downloads.glob('**/*.INFO'):
    with contextlib.suppress(OSError, ValueError, KeyError):
      urls.update(json.loads(path.read_text())['urls'])
  return urls


def _check_network(builder) -> None:
  """Raises ConnectionError within seconds where TFDS would retry for minutes."""
  import requests

  urls = {url for url in builder.url_infos if url.startswith('http')}
  cached = urls & _cached_urls(pathlib.Path(builder.data_dir_root) / 'downloads')
  # TFDS lists the archives of all configs together, and also those to be fetched manually.
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS or (builder.BUILDER_CONFIGS and cached) or urls == cached:
    return
  url = min(urls - cached)
  try:
    requests.head(url, timeout=SECONDS_TO_ANSWER)
  except requests.ConnectionError as error:
    raise ConnectionError(f'no network, {url} cannot be reached') from error
  except requests.RequestException:
    pass  # the server answers, but slowly or unexpectedly: TFDS has longer timeouts


def prepare(name: str, data_dir: str | None) -> None:
  """Downloads and prepares the TFDS data set `name` under `data_dir` (`None`: TFDS's default).

  Does nothing if it is prepared. Raises ImportError without TensorFlow, ConnectionError without a
  network, and whatever TFDS raises.
  """
  import tensorflow_datasets as tfds

  logging.set_verbosity(logging.ERROR)
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  builder = tfds.builder(name, data_dir=data_dir, file_format='array_record')
  if builder.is_prepared():
    return
  # Quick checks come before the import of TensorFlow, which takes seconds.
  if importlib.util.find_spec('tensorflow') is None:
    raise ModuleNotFoundError(name='tensorflow')
  pathlib.Path(builder.data_dir_root).mkdir(parents=True, exist_ok=True)
  _check_network(builder)
  print(f'Preparing {name} in {builder.data_dir_root}, once', flush=True)
  builder.download_and_prepare()


def _reason(error: BaseException) -> str:
  if isinstance(error, ModuleNotFoundError) and error.name:
    package = error.name.split('.')[0]
    return f'preparing needs the Python package {package}, which is missing: pip install {package}'
  if isinstance(error, ConnectionError):
    return str(error)
  return ' '.join(f'{type(error).__name__}: {error}'.split())[:300]


def main(name: str, data_dir: str | None = None) -> int:
  """Runs `prepare`; a failure becomes one line on stdout. Returns the exit status."""
  try:
    with contextlib.redirect_stdout(sys.stderr), imports.guarded():
      prepare(name, data_dir)
  # The parent shows one line; TFDS's traceback would not help.
  except Exception as error:
    print(_reason(error))
    return 1
  except KeyboardInterrupt:
    return 130
  return 0


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:3]))
