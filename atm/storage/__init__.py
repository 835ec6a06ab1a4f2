"""The one room for files by path, of this machine, of gs:// and of s3://.

Use it as `storage.exists(path)`. A local path goes to `os` as it is. A remote
one goes over fsspec, which is imported then only; `client.call` tries again
what a busy server, a dropped connection or an expired token made fail, and
raises one line when it has tried for too long. Nothing is ever appended to an
object: objects are written whole.

Imports only `atm.messages`; `atm.fileio` builds on it.
"""

from atm.storage.client import SCHEMES, StorageError, get_scheme, is_remote
from atm.storage.copies import (
  borrowing,
  download,
  fetch,
  upload_file,
  upload_folder,
  uploading,
)
from atm.storage.files import (
  absolute,
  exists,
  find_objects,
  find_paths,
  get_size,
  get_time,
  is_file,
  is_folder,
  list_names,
  make_folder,
  map_files,
  open_binary,
  read_bytes,
  read_range,
  relative,
  remove,
  remove_folder,
  rename,
  walk,
  write_bytes,
)
from atm.storage.lease import Lease, is_leased
from atm.storage.orbax_client import explain_orbax, prepare_orbax
from atm.storage.part_log import PartLog, list_parts

__all__ = [
  'Lease', 'PartLog', 'SCHEMES', 'StorageError', 'absolute', 'borrowing',
  'download', 'exists', 'explain_orbax', 'fetch', 'find_objects',
  'find_paths', 'get_scheme', 'get_size', 'get_time', 'is_file', 'is_folder',
  'is_leased', 'is_remote', 'list_names', 'list_parts', 'make_folder',
  'map_files', 'open_binary', 'prepare_orbax', 'read_bytes', 'read_range',
  'relative', 'remove', 'remove_folder', 'rename', 'upload_file',
  'upload_folder', 'uploading', 'walk', 'write_bytes',
]  # fmt: skip
