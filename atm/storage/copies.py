"""Copies of objects on this machine's disk, and of local files in a store."""

import base64
import concurrent.futures
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator

from atm.storage import files
from atm.storage.client import call, is_remote

CACHE = '~/.cache/atm/storage'
OBJECT_PIECE = 1 << 24  # bytes of an object that one request reads
AT_ONCE = 16  # requests
# A larger object is sent in parts, each tried again by itself.
SENT_WHOLE = 1 << 25


# --- From a store


def fetch(path: str, chosen: Callable[[str], bool] = lambda name: True) -> str:
  """Returns a local path with the content of a file or a folder.

  An object store's is copied into CACHE once, and again when it has changed;
  several processes may fetch it at a time. A local path is returned as it is.

  Args:
    path: the file or the folder.
    chosen: tells of a path in the folder whether it is copied.

  Raises:
    FileNotFoundError: there is neither.
  """
  if not is_remote(path):
    return path
  path = path.rstrip('/')
  info = files.get_info(path)
  found = {'': info} if info['type'] == 'file' else files.find_objects(path)
  found = {name: facts for name, facts in found.items() if chosen(name)}
  facts = [(name, int(x['size']), _get_mark(x)) for name, x in found.items()]
  servers = [os.environ.get(x) for x in ('STORAGE_EMULATOR_HOST',
                                         'AWS_ENDPOINT_URL')]  # fmt: skip
  text = json.dumps([path, servers, facts])
  key = hashlib.sha256(text.encode()).hexdigest()[:32]
  folder = os.path.join(os.path.expanduser(CACHE), key)
  target = os.path.join(folder, os.path.basename(path))
  if os.path.isdir(folder):
    return target
  os.makedirs(os.path.dirname(folder), exist_ok=True)
  partial = tempfile.mkdtemp(prefix=f'{key}.', dir=os.path.dirname(folder))
  try:
    download(path, os.path.join(partial, os.path.basename(path)), found)
    with contextlib.suppress(OSError):  # another process was faster
      os.rename(partial, folder)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return target


@contextlib.contextmanager
def borrowing(path: str) -> Iterator[str]:
  """Yields a local path with the content of a file.

  For libraries that read no other. An object's copy is removed when the block
  ends: many large ones, read one after the other, take the room of one.
  """
  if not is_remote(path):
    yield path
    return
  with tempfile.TemporaryDirectory(prefix='atm-') as folder:
    local = os.path.join(folder, path.rpartition('/')[2])
    download(path, local, {'': files.get_info(path)})
    yield local


def _get_mark(facts: dict) -> str:
  """Returns what changes whenever an object is written."""
  known = ('generation', 'ETag', 'etag', 'md5Hash')
  return str(next((facts[k] for k in known if facts.get(k)), ''))


def download(path: str, target: str, found: dict[str, dict]) -> None:
  """Copies objects to local files, many at a time.

  Args:
    path: the object or the folder.
    target: the file or the folder to make.
    found: path in the folder -> facts, as `files.find_objects` has them; {'':
      facts} for an object.
  """
  pieces = []
  for name, facts in found.items():
    place = os.path.join(target, name) if name else target
    os.makedirs(os.path.dirname(place), exist_ok=True)
    size = int(facts['size'])
    with open(place, 'wb') as f:
      f.truncate(size)
    source = f'{path}/{name}' if name else path
    pieces += [(source, place, at, min(at + OBJECT_PIECE, size))
               for at in range(0, size, OBJECT_PIECE)]  # fmt: skip

  def copy(source, place, start, end):
    with open(place, 'r+b') as f:
      f.seek(start)
      f.write(files.read_range(source, start, end))

  _run_all(copy, pieces)


# --- To a store


@contextlib.contextmanager
def uploading(path: str, mode: str = 'w') -> Iterator:
  """Yields a local temporary file that becomes an object when the block ends.

  A block that raises changes nothing. See `upload_file` for what is verified.
  """
  encoding = None if 'b' in mode else 'utf-8'
  with tempfile.TemporaryDirectory(prefix='atm-') as folder:
    local = os.path.join(folder, 'whole')
    with open(local, mode, encoding=encoding) as f:
      yield f
    upload_file(local, path)


def upload_file(local: str, path: str) -> None:
  """Writes a local file into a store, whole or not at all, and verifies it.

  The store's size and MD5 must be those of the file; where it tells no MD5, as
  of objects that it encrypts, the object is read back and compared.

  Raises:
    StorageError: see `client.call`; or what lies there is not what was sent.
  """
  size = os.path.getsize(local)

  def send(fs, p):
    if size <= SENT_WHOLE:
      with open(local, 'rb') as f:
        fs.pipe_file(p, f.read())
    else:
      fs.put_file(local, p)
    if not _is_sent(local, size, path):
      raise ConnectionError('what lies there is not what was sent')

  call('writing', path, send)


def _is_sent(local: str, size: int, path: str) -> bool:
  facts = files.get_info(path)
  if int(facts['size']) != size:
    return False
  with open(local, 'rb') as f:
    md5 = hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False))
  told = facts.get('md5Hash') or facts.get('ETag') or ''
  known = md5.hexdigest(), base64.b64encode(md5.digest()).decode()
  if told.strip('"') in known:
    return True
  with open(local, 'rb') as f, files.open_binary(path) as there:
    return all(
      f.read(OBJECT_PIECE) == there.read(OBJECT_PIECE)
      for _ in range(0, size, OBJECT_PIECE)
    )


def upload_folder(local: str, path: str, without: str = '') -> list[str]:
  """Writes the files of a local folder into a store; returns their names.

  Args:
    local: the folder.
    path: of the folder to make.
    without: the path in the folder of a file that is left out.
  """
  every = (
    os.path.relpath(os.path.join(folder, name), local)
    for folder, _, inner in os.walk(local)
    for name in inner
  )
  names = sorted(name for name in every if name != without)
  _run_all(
    upload_file,
    [(os.path.join(local, name), f'{path.rstrip("/")}/{name}')
     for name in names],
  )  # fmt: skip
  return names


def _run_all(work, arguments: list[tuple]) -> None:
  """Calls work(*arguments) for all, some at a time; raises the first error."""
  with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
    jobs = [pool.submit(work, *given) for given in arguments]
    try:
      for job in jobs:
        job.result()
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise
