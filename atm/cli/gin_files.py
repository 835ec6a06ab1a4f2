"""Finds and reads gin files: which ones may be named, which ones included."""

import os

from atm import fileio, storage
from atm.cli.gin_text import MOST_CHARACTERS, UserError
from atm.messages import check_path, did_you_mean, quote


def gin_folders() -> list[str]:
  """Lists where gin files are looked up: here, checkout, installed copy."""
  package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  shipped = (
    os.path.join(os.path.dirname(package), 'gin'),
    os.path.join(package, 'configs'),
  )
  return ['.', *(d for d in shipped if os.path.isdir(os.path.join(d, 'runs')))]


def shipped_files() -> list[str]:
  """Lists the gin files that come with atm: models/tiny.gin, ..."""
  root = gin_folders()[1]
  return sorted(
    os.path.relpath(os.path.join(folder, name), root)
    for folder, _, names in os.walk(root)
    for name in names
    if name.endswith('.gin')
  )


def run_file(run: str) -> str:
  """Returns the path of the file of a run, which is always the shipped one."""
  # A folder `runs` in the working directory is where models are.
  return _look_up(f'runs/{run}.gin', gin_folders()[1:])


def find_file(name: str) -> str:
  """Returns the path of a gin file; raises UserError with the nearest name."""
  return _look_up(name, gin_folders())


def find_include(name: str, including: str) -> str:
  """Returns the path of a file that another one includes.

  Args:
    name: what is included. It is looked up in the working directory, among the
      shipped files and beside the including one; for a shipped file among the
      shipped ones only.
    including: path of the including file.

  Raises:
    UserError: there is none; or it is, with symbolic links resolved, neither
      shipped nor below the including file's folder or the working directory.
  """
  here, *shipped = gin_folders()
  beside = os.path.dirname(os.path.realpath(including))
  if is_shipped(including):
    return _look_up(name, shipped)
  path = _look_up(name, [here, *shipped, beside])
  if not any(_is_below(path, f) for f in (here, *shipped, beside)):
    raise UserError(
      f'include of {quote(name)} is refused: with links resolved, expected a '
      'file that comes with atm, or one below '
      f'{quote(os.path.dirname(including) or ".")} or the working directory'
    )
  return path


def is_shipped(path: str) -> bool:
  """Tells whether a file is one that comes with atm."""
  return any(_is_below(path, folder) for folder in gin_folders()[1:])


def _is_below(path: str, folder: str) -> bool:
  """Tells whether a path is in a folder, both with links resolved."""
  root = os.path.realpath(folder)
  return (
    not storage.is_remote(path)
    and os.path.commonpath([root, os.path.realpath(path)]) == root
  )


def _look_up(name: str, folders: list[str]) -> str:
  """Returns the first file of a name in `folders`; raises UserError."""
  try:
    expanded = check_path('gin file', name)
  except ValueError as e:
    raise UserError(str(e)) from None
  remote = storage.is_remote(expanded)
  folders = [''] if remote else folders
  paths = [os.path.join(folder, expanded) for folder in folders]
  for path in paths:
    if storage.is_file(path):
      return path
  for path in filter(storage.exists, paths):
    check_gin_file(path)
  if remote:
    raise UserError(f'no gin file {quote(name)} there')
  raise UserError(
    f'no gin file {quote(name)} in {", ".join(folders)}.'
    + did_you_mean(name, shipped_files())
  )


def check_gin_file(path: str) -> None:
  """Raises UserError unless a path is a file, not a folder, pipe or device."""
  try:
    fileio.check_regular(path)
  except OSError as e:
    raise UserError(f'gin file {quote(path)} {e.strerror or e}') from None
  except ValueError as e:
    raise UserError(f'gin file {e}') from None


def read_file(path: str) -> str:
  """Returns a gin file's text, without a byte order mark.

  Raises:
    UserError: it is no regular file, too large, or not UTF-8.
  """
  check_gin_file(path)
  try:
    with storage.open_binary(path) as f:
      content = f.read(4 * MOST_CHARACTERS + 1)
    # Characters are counted when the text is parsed.
    if len(content) > 4 * MOST_CHARACTERS:
      raise UserError(f'{path}: over {4 * MOST_CHARACTERS:,} bytes of gin')
    return content.decode('utf-8-sig')
  except OSError as e:
    raise UserError(f'{path}: {e.strerror}') from None
  except UnicodeDecodeError as e:
    raise UserError(f'{path}: byte {e.start} is not UTF-8') from None
