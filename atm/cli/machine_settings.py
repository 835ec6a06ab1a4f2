"""What a run's own config.gin says of the machine that the run was on.

MODEL_DIR/config.gin starts the run again, perhaps elsewhere: on other devices,
by another number of processes. Of the machine it decides nothing there.
`sharding.start.*` are not taken from the file, and a mesh is fitted to the
devices. What files of the user's own and arguments bind, stands.
"""

import os
from collections.abc import Mapping

from atm import storage
from atm.cli.gin_reader import Configuration
from atm.cli.gin_text import Binding
from atm.cli.run_settings import START, get_target
from atm.cli.settings_check import CONFIG

MESH = 'atm.sharding.mesh'


def is_run_folder(path: str) -> bool:
  """Tells whether a training run has been at work in a folder."""
  checkpoints = os.path.join(path, 'checkpoints')
  if storage.is_remote(path):
    return storage.exists(checkpoints)
  return os.path.lexists(checkpoints)


def is_of_run(binding: Binding) -> bool:
  """Tells whether a binding is in a file that a run wrote into its folder."""
  folder, name = os.path.split(binding.file or '')
  return name == CONFIG and is_run_folder(folder)


def leave_out(configuration: Configuration) -> None:
  """Removes the devices and processes that a run's own config.gin names."""
  configuration.bindings = [
    b
    for b in configuration.bindings
    if not (b.parameter and get_target(b) == START and is_of_run(b))
  ]


def fit_mesh_sizes(
  configuration: Configuration, bound: Mapping
) -> tuple[dict, str] | None:
  """Fits a mesh that only a run's own config.gin binds to the devices.

  Args:
    configuration: all that was read.
    bound: parameters of `mesh.make_mesh` that were bound.

  Returns:
    Sizes by axis, and what to tell of them; None where the mesh stays as it is.
  """
  of_mesh = [
    b for b in configuration.bindings if b.parameter and get_target(b) == MESH
  ]
  last = {b.parameter: b for b in of_mesh}.values()
  numbers = all(isinstance(size, int) for size in bound.values())
  if not last or not numbers or not all(map(is_of_run, last)):
    return None
  import jax

  from atm.parallel import mesh

  count = jax.device_count()
  written = {'slice': 1, 'data': -1, 'fsdp': 1, 'tensor': 1, **bound}
  fitted = dict(zip(written, mesh.fit_sizes(count, **written), strict=True))
  if all(size in (-1, fitted[name]) for name, size in written.items()):
    return None
  there, here = map(mesh.format_sizes, (written, fitted))
  return fitted, (
    f'the mesh of {of_mesh[-1].file} ({there}) does not fit {count} device(s) '
    f'and becomes {here}; sharding.mesh.* set another'
  )
