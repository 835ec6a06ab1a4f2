"""Files: regular ones only, JSON, atomic writes, checksums.

Paths may be those of an object store, see `atm.storage`.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence

from atm import storage
from atm.messages import one_line, quote

# Python's parser stops at about 1,000; nothing here is nested so deep.
MOST_DEPTH = 64
MOST_LINE = 2**24  # bytes of a file that are read to tell what it is
SEAL = 'sha256'  # of a sealed object: the hash of its other entries


@contextlib.contextmanager
def replacing(path: str, mode: str = 'w'):
  """Yields a file that takes the place of `path` when the block ends.

  Whoever reads `path` finds the old content or the new, never a part: the new
  one is on disk before it is renamed. A block that raises changes nothing. An
  object is written to a local file first, sent whole, and verified.

  Args:
    path: the file to replace or to make.
    mode: 'w' for UTF-8 text, 'wb' for bytes.

  Raises:
    OSError: it cannot be written.
    ValueError: what is there is a pipe, socket or device.
  """
  if storage.is_remote(path):
    with storage.uploading(path, mode) as f:
      yield f
    return
  path = os.path.realpath(path)  # a link stays, and what it names is replaced
  if os.path.exists(path):
    check_regular(path)  # root could put a file in the place of /dev/null
  partial = f'{path}.partial-{os.getpid()}'  # another process may write, too
  encoding = None if 'b' in mode else 'utf-8'
  try:
    with open(partial, mode, encoding=encoding) as f:
      yield f
      f.flush()
      os.fsync(f.fileno())
    os.replace(partial, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(partial)
    raise


def write_atomically(path: str, content: str | bytes) -> None:
  """Writes a file whole or not at all, see `replacing`."""
  with replacing(path, 'wb' if isinstance(content, bytes) else 'w') as f:
    f.write(content)


def write_json(path: str, value) -> None:
  """Writes JSON with sorted keys, whole or not at all."""
  with replacing(path) as f:
    json.dump(value, f, indent=1, sort_keys=True)


def check_regular(path: str) -> None:
  """Raises OSError or ValueError unless `path` is a file that can be read.

  Raises:
    OSError: there is none, or a folder.
    ValueError: a FIFO, socket or device, whose reading would wait for ever.
  """
  if storage.is_remote(path):
    mode = stat.S_IFDIR if storage.is_folder(path) else stat.S_IFREG
  else:
    mode = os.stat(path).st_mode
  if stat.S_ISDIR(mode):
    raise IsADirectoryError(
      errno.EISDIR, 'is a folder: expected a file, no directory', path
    )
  if not stat.S_ISREG(mode):
    raise ValueError(f'{path}: expected a file, not a pipe, socket or device')


def check_output(
  name: str,
  path: str,
  inputs: Sequence[str] = (),
  is_ours: Callable[[bytes], bool] = lambda line: True,
  overwrite: bool = False,
) -> str:
  """Returns the path of a file to write; to be called before work begins.

  Args:
    name: of the setting, as a user writes it.
    path: where the file is to be.
    inputs: files that it must not be.
    is_ours: tells by its first line whether a file that is there is an output
      of the command; no other is replaced.
    overwrite: replace an output that is there.

  Raises:
    ValueError: no file can be written there, or it is an input or a user's.
  """
  given, remote = f'{name} = {quote(path)}', storage.is_remote(path)
  if path.endswith(os.sep) or storage.is_folder(path):
    raise ValueError(f'{given} is a folder: expected a file')
  # `replacing` follows a link, also one to a file that is still to be made.
  target = os.path.realpath(path) if os.path.islink(path) else path
  folder = os.path.dirname(target) or os.curdir
  if not remote and not os.path.isdir(folder):
    raise ValueError(f'{given}: there is no folder {quote(folder)}')
  if storage.exists(path):
    if not remote and not _is_plain_file(path):
      raise ValueError(f'{given}: expected a file, not a pipe or device')
    if any(_is_same_file(path, other) for other in inputs):
      raise ValueError(f'{given} is the file that is read: give another')
    with storage.open_binary(path) as f:
      line = f.readline(MOST_LINE)
    if line and not is_ours(line):
      raise ValueError(
        f'{given} is there already, and is no output of this command: give '
        'another, or move it away'
      )
    if line and not overwrite:
      raise ValueError(
        f'{given} is there already: OVERWRITE=True replaces it, when the new '
        'one is whole; or give another'
      )
  _try_to_write(given, target)
  return path


def _try_to_write(given: str, path: str) -> None:
  """Raises ValueError where a file beside `path` cannot be written."""
  # Permissions alone do not tell: a disk may be read-only, a name long.
  try:
    trial = f'{path}.partial-{os.getpid()}'
    storage.write_bytes(trial, b'')
    storage.remove(trial)
  except OSError as e:
    why = e.strerror or one_line(e, 300)
    raise ValueError(f'{given} cannot be written: {why}') from e


def _is_plain_file(path: str) -> bool:
  """Tells whether a local path is a file, and no device."""
  return os.path.isfile(path) and not os.path.realpath(path).startswith('/dev/')


def _is_same_file(path: str, other: str) -> bool:
  """Tells whether two paths mean one file."""
  if storage.is_remote(path) or storage.is_remote(other):
    return path == other
  return os.path.exists(other) and os.path.samefile(path, other)


def check_output_folder(name: str, path: str | None) -> str | None:
  """Returns the path of a folder to write into; see `check_output`.

  Args:
    name: of the setting, as a user writes it.
    path: a folder that is there, or can be made; None is not checked.

  Raises:
    ValueError: it is a file, or neither there nor to be made.
  """
  if path is None:
    return path
  given = f'{name} = {quote(path)}'
  if storage.is_remote(path):
    storage.get_scheme(path)
    _try_to_write(given, f'{path.rstrip("/")}/trial')
    return path
  there = os.path.abspath(path)
  while not os.path.lexists(there):
    there = os.path.dirname(there)
  if not os.path.isdir(there):
    raise ValueError(f'{given}: expected a folder, and {there} is none')
  try:
    with tempfile.TemporaryFile(dir=there):
      return path
  except OSError as e:
    raise ValueError(f'{given} cannot be written: {e.strerror}') from e


def parse_json(text: str | bytes, where: str, loads: Callable = json.loads):
  """Returns the value of a JSON text.

  Args:
    text: str or UTF-8 bytes; a byte order mark in front is left out.
    where: what an error begins with, 'FILE' or 'FILE, line 3'.
    loads: parses a str, as `json.loads` does.

  Raises:
    ValueError: it is no JSON, no UTF-8, or nested over `MOST_DEPTH` deep.
  """
  try:
    if isinstance(text, bytes):
      text = text.decode('utf-8-sig')
    text = text.removeprefix('\ufeff')
    value = loads(text)
  except RecursionError:
    raise ValueError(f'{where}: JSON nested over {MOST_DEPTH} deep') from None
  except ValueError as e:
    raise ValueError(f'{where}: no JSON: {one_line(e, 200)}') from None
  level, depth = [value], 0
  if text.count('[') + text.count('{') <= MOST_DEPTH:
    return value  # most lines of JSON Lines are so
  while level:
    if (depth := depth + 1) > MOST_DEPTH:
      raise ValueError(f'{where}: JSON nested over {MOST_DEPTH} deep')
    inner = (
      x.values() if isinstance(x, dict) else x
      for x in level
      if isinstance(x, dict | list)
    )
    level = [x for xs in inner for x in xs if isinstance(x, dict | list)]
  return value


def read_json(path: str, kind: type = dict):
  """Returns what a JSON file holds; see `check_regular` and `parse_json`.

  Raises:
    OSError: it cannot be read.
    ValueError: it is no file, no JSON, or its value is no `kind`.
  """
  check_regular(path)
  with storage.open_binary(path) as f:
    value = parse_json(f.read(), path)
  if not isinstance(value, kind):
    what = {dict: 'an object', list: 'an array'}.get(kind, kind.__name__)
    raise ValueError(f'{path}: expected {what}, not {quote(value)}')
  return value


def get_key(value: dict, key: str, form, where: str):
  """Returns an entry of a JSON object, of a form; see `check_json`."""
  check_json(value, {key: form}, where)
  return value[key]


def check_json(value, form, where: str, name: str = '') -> None:
  """Raises ValueError unless a JSON value has a form; names what has not.

  Args:
    value: as `read_json` returns it.
    form: a type, where float takes whole numbers, too, and `Finite` neither NaN
      nor infinity; None for null; `object` for anything; [form] for an array of
      such; {key: form} for an object, whose `key?` may be missing, and where
      {str: form} are all others; a tuple of forms, one of which it has.
    where: what an error begins with, the file's path.
    name: of the value in the file.
  """
  forms = form if isinstance(form, tuple) else (form,)
  form = next((f for f in forms if _is_of(value, f)), _is_of)
  if form is _is_of:
    kinds = ' or '.join(map(_name_form, forms))
    raise ValueError(
      f'{where}: {one_line(name or "it", 120)} is {quote(value)}: expected '
      f'{kinds}'
    )
  if isinstance(form, list):
    for i, inner in enumerate(value):
      check_json(inner, form[0], where, f'{name}[{i}]')
  elif isinstance(form, dict):
    rest = form.get(str, object)
    for key in form:
      if key is not str and key[-1] != '?' and key not in value:
        missing = f'{one_line(name, 120)} has' if name else 'it has'
        raise ValueError(f'{where}: {missing} no {key!r}')
    for key, inner in value.items():
      wanted = form.get(key, form.get(f'{key}?', rest))
      if wanted is not object:
        check_json(inner, wanted, where, f'{name}.{key}' if name else key)


class Finite(float):
  """The form of a number that is neither NaN nor infinite."""


def _is_of(value, form) -> bool:
  """Tells whether a value is of the outermost type of a form."""
  if form is None or form is object:
    return form is object or value is None
  kind = type(form) if isinstance(form, list | dict) else form
  if kind in (int, float, Finite) and isinstance(value, int):
    # No count is larger, and no float holds all that are.
    return type(value) is int and abs(value) < 2**63
  if kind is Finite:
    return isinstance(value, float) and math.isfinite(value)
  return isinstance(value, kind)


def _name_form(form) -> str:
  if form is None:
    return 'null'
  names = {list: 'an array', dict: 'an object', str: 'a text', bool: 'a bool'}
  kind = type(form) if isinstance(form, list | dict) else form
  return names.get(kind, 'a whole number' if kind is int else 'a number')


def read_own_lines(path: str, form: dict, torn: bool = False) -> Iterator[dict]:
  """Yields the objects of a file with one a line, see `check_json`.

  Args:
    path: a file of ours, or a log in a store; text of users is read by
      `data.text_reader`.
    form: of each object.
    torn: leave out lines that are the beginning of an object: the writing of
      one was interrupted.

  Raises:
    OSError: it cannot be read.
    ValueError: it is no file, or a line has no such object; names it.
  """
  for part in storage.list_parts(path):
    check_regular(part)
    with storage.open_binary(part) as f:
      for number, line in enumerate(f, 1):
        where = f'{part}, line {number}'
        line = line.strip(b'\0 \r\n')  # a disk that was cut off leaves NULs
        if not line:
          continue
        try:
          value = parse_json(line, where)
        except ValueError:
          if not torn or not line.startswith(b'{"'):
            raise
          continue
        check_json(value, form, where)
        yield value


def hash_json(value, ensure_ascii: bool = True) -> str:
  """Returns the SHA-256, in hex, of a value as JSON; by `str` what is none."""
  text = json.dumps(
    value, sort_keys=True, default=str, ensure_ascii=ensure_ascii
  )
  return hashlib.sha256(text.encode()).hexdigest()


def seal_json(value: dict) -> dict:
  """Returns an object, as JSON holds it, with a hash of itself."""
  whole = json.loads(json.dumps(value))
  return {**whole, SEAL: hash_json(whole)}


def unseal_json(sealed: dict, where: str, unsealed=()) -> dict:
  """Returns an object without its seal.

  Args:
    sealed: what `seal_json` made, as read from a file.
    where: what an error begins with, the file's path.
    unsealed: the names that an object of before there were seals has. Others
      are refused, so that a damaged name of the seal is no way around it.

  Raises:
    ValueError: it is not what was sealed.
  """
  value = {k: v for k, v in sealed.items() if k != SEAL}
  if SEAL in sealed:
    sound = sealed[SEAL] == hash_json(value)
  else:
    sound = value.keys() == {*unsealed}
  if not sound:
    raise ValueError(f'{where}: it differs from its own hash')
  return value


def checksum(path: str) -> int:
  """Returns the CRC-32 of a file, read in pieces of 16 MB."""
  crc = 0
  check_regular(path)
  with storage.open_binary(path) as f:
    while piece := f.read(1 << 24):
      crc = zlib.crc32(piece, crc)
  return crc


@contextlib.contextmanager
def silence_stderr():
  """Drops what libraries and child processes print to standard error."""
  # Importing TensorFlow greets with eight lines, a worker of Beam with twenty;
  # no setting of theirs silences them.
  sys.stderr.flush()
  kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 2)
  try:
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nowhere)
