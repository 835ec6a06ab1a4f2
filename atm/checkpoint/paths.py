"""Where a run's checkpoints lie: in MODEL_DIR, or elsewhere."""

import os

from etils import epath

from atm import fileio, storage
from atm.messages import quote

CHECKPOINTS = 'checkpoints'


def find_checkpoint_dir(model_dir: str) -> epath.Path:
  """Returns MODEL_DIR/checkpoints, or the folder that a file there names.

  Raises ValueError if that file names none.
  """
  path = os.path.join(storage.absolute(model_dir), CHECKPOINTS)
  if not storage.is_file(path):
    return epath.Path(path)
  with storage.open_binary(path) as f:
    name = f.read(2**16).strip()
  # An empty name would be the working directory.
  if b'\0' in name or not (name.startswith(b'/') or b'://' in name):
    raise ValueError(
      f'{path} holds {quote(name)}: expected the path of a folder, as '
      'CHECKPOINT_DIR has written it'
    )
  return epath.Path(os.fsdecode(name))


def set_checkpoint_dir(model_dir: str, directory: str) -> None:
  """Makes a folder, which may be a store's, that of a run's checkpoints.

  Raises ValueError if the run has checkpoints in another folder, or nothing can
  be written there.
  """
  directory = storage.absolute(directory)
  path = os.path.join(model_dir, CHECKPOINTS)
  now = os.fspath(find_checkpoint_dir(model_dir))
  if now == directory and not storage.is_file(path):
    return  # where they lie anyway
  if storage.exists(path) and now != directory:
    raise ValueError(
      f'CHECKPOINT_DIR = {directory!r}, but the checkpoints of MODEL_DIR = '
      f'{model_dir!r} are in {now}: set CHECKPOINT_DIR to that or to None, or '
      'use another MODEL_DIR'
    )
  # Before it is written down: a run may not move its checkpoints later.
  fileio.check_output_folder('CHECKPOINT_DIR', directory)
  storage.make_folder(model_dir)
  fileio.write_atomically(path, directory + '\n')
