"""How much memory there is, so that what cannot fit is refused before it is tried."""

import contextlib
import pathlib

import jax

from gen_jax.devices import sharding


def of_a_device() -> int | None:
  """Bytes that are free on a device; on CPU, of the host. None: unknown."""
  device = sharding.find_devices()[0]
  if device.platform == 'cpu':
    return of_the_host()
  stats = jax.local_devices()[0].memory_stats() or {}
  limit = stats.get('bytes_limit')
  return limit and limit - stats.get('bytes_in_use', 0)


def of_the_host() -> int | None:
  """Bytes that this process may still take; None: unknown (not on Linux)."""
  found = [_left_in(folder) for folder in _control_groups()]
  with contextlib.suppress(OSError, ValueError, IndexError):
    lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
    (line,) = (line for line in lines if line.startswith('MemAvailable:'))
    found.append(1024 * int(line.split()[1]))
  return min((size for size in found if size is not None), default=None)


def _control_groups() -> list[pathlib.Path]:
  """The folders of the control groups that limit this process: of a container, of a job."""
  root = pathlib.Path('/sys/fs/cgroup')
  folders = [root]
  with contextlib.suppress(OSError):
    for line in pathlib.Path('/proc/self/cgroup').read_text().splitlines():
      if line.startswith('0::/'):
        folder = root / line.removeprefix('0::/')
        folders += [folder, *folder.parents][: len(folder.parts) - len(root.parts)]
  return folders


def _left_in(group: pathlib.Path) -> int | None:
  try:
    limit = int((group / 'memory.max').read_text())  # or 'max'
    lines = (group / 'memory.stat').read_text().splitlines()
    stats = dict(line.split() for line in lines)
    used = int((group / 'memory.current').read_text()) - int(stats.get('inactive_file', 0))
    return max(limit - used, 0)
  except (OSError, ValueError):
    return None


def text(size: float) -> str:
  """A number of bytes as text: '1.5 GiB'."""
  units = ('bytes', 'KiB', 'MiB', 'GiB', 'TiB')
  power = min((max(int(size), 1).bit_length() - 1) // 10, len(units) - 1)
  return f'{size / 1024**power:,.1f} {units[power]}'
