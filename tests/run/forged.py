"""Runs whose files were edited under right checksums, as a sender could."""

import hashlib
import json
import pathlib


def text(content) -> bytes:
  return content if isinstance(content, bytes) else json.dumps(content).encode()


def seal(folder: pathlib.Path) -> None:
  """Makes the checksum of a checkpoint's manifest right."""
  digest = hashlib.sha256((folder / 'manifest.json').read_bytes()).hexdigest()
  (folder / 'manifest.sha256').write_text(f'{digest}  manifest.json\n')


def replace_file(folder: pathlib.Path, name: str, content) -> None:
  """Replaces a file of a checkpoint or an export, JSON or bytes, and its checksums."""
  (folder / name).write_bytes(text(content))
  manifest = json.loads((folder / 'manifest.json').read_bytes())
  data = text(content)
  manifest['files'][name] = dict(size=len(data), sha256=hashlib.sha256(data).hexdigest())
  (folder / 'manifest.json').write_bytes(text(manifest))
  seal(folder)
