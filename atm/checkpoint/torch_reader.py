"""Tensors of a PyTorch checkpoint, read without PyTorch and as data only.

A file of `torch.save` (since PyTorch 1.6) is an uncompressed zip archive:
`ROOT/data.pkl` is a pickled dict of tensors, `ROOT/data/0`, `ROOT/data/1`, ...
are the little-endian bytes of their storages. A tensor is a view of a storage:
offset, shape and strides, counted in elements; several may share a storage.

Before 1.6, and where it is asked for, `torch.save` writes pickles one after the
other (a number, a version, the machine, the dict, the names of the storages),
and then of each storage its length, in 8 bytes, and its bytes. Many public
models are such files.

A pickle is a program and an archive may lie, so neither is trusted. The pickle
runs on an interpreter that knows only the instructions of a state dict and can
name nothing but inert stand-ins. What a tensor claims is compared with what the
archive really holds before any of it is read.
"""

import functools
import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from atm import fileio

# A tensor takes some 200 bytes of pickle, so this is 20,000 of them. One byte
# of a hostile pickle takes 120 in memory.
MAX_PICKLE = 1 << 22
MAX_DIMENSIONS = 32
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
DTYPES = {
  'DoubleStorage': np.dtype('<f8'),
  'FloatStorage': np.dtype('<f4'),
  'HalfStorage': np.dtype('<f2'),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'LongStorage': np.dtype('<i8'),
  'IntStorage': np.dtype('<i4'),
  'ShortStorage': np.dtype('<i2'),
  'CharStorage': np.dtype('i1'),
  'ByteStorage': np.dtype('u1'),
  'BoolStorage': np.dtype('?'),
}
RESAVE = (
  'load it with a current PyTorch and save its state dict again: '
  'torch.save(model.state_dict(), path)'
)


class Tensor(NamedTuple):
  """A tensor of a file: shape, dtype (its name where unknown), how to read."""

  shape: tuple[int, ...]
  dtype: Any
  read: Callable[[], np.ndarray]


class TorchFileError(ValueError):
  """A file that cannot be read: says which, where in it, and what to do."""


class _Storage(NamedTuple):
  dtype: np.dtype
  name: str
  numel: int


class _View(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple
  stride: tuple


class _Dict:
  """A dict or OrderedDict as written: all pairs, nothing hashed or replaced."""

  # A real dict would keep the last of two equal keys without a word, and
  # hashing a key made for it (tuples a million deep) ends the process.
  __slots__ = ('pairs',)

  def __init__(self):
    self.pairs = []

  def __setitem__(self, key, value):
    self.pairs.append((key, value))


def _rebuild_tensor(storage, offset, shape, stride, grad, hooks, metadata=None):
  """Stands in for torch._utils._rebuild_tensor_v2."""
  if metadata is not None:  # a pending negation: bytes are not yet the values
    raise pickle.UnpicklingError('a tensor has metadata')
  return _View(storage, offset, shape, stride)


def _rebuild_parameter(data, grad, hooks):
  """Stands in for torch._utils._rebuild_parameter."""
  return data


GLOBALS = {
  'collections.OrderedDict': _Dict,
  'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
  'torch._utils._rebuild_parameter': _rebuild_parameter,
  **{f'torch.{name}': dtype for name, dtype in DTYPES.items()},
}


class _Unpickler(pickle._Unpickler):
  """The interpreter: no imports, no attributes, no objects but our own."""

  # Derived from pickle's implementation in Python, because the one in C has no
  # table of instructions to cut, fills real dicts, and reserves a memo as long
  # as the file asks for: five bytes of it can ask for 64 GB.

  def find_class(self, module, name):
    name = f'{module}.{name}'
    if name not in GLOBALS:
      raise pickle.UnpicklingError(
        f'it asks for {name[:99]!r}, which no state dict of tensors '
        f'of {", ".join(d.name for d in DTYPES.values())} needs'
      )
    return GLOBALS[name]

  def persistent_load(self, pid):
    match pid:
      case ('storage', np.dtype() as dtype, str(name), str(), int(numel)):
        if type(pid) is tuple:
          return _Storage(dtype, name, numel)
    raise pickle.UnpicklingError('a storage is not well described')

  def load_empty_dict(self):
    self.append(_Dict())

  def load_build(self):
    # Drops `_metadata` of Module.state_dict(). The inherited one would set
    # attributes, even of our functions.
    self.stack.pop()
    if type(self.stack[-1]) is not _Dict:
      raise pickle.UnpicklingError('it sets attributes')

  # Protocols 2 to 5 without what makes instances, bytes, sets or extensions.
  CODES = [
    getattr(pickle, name)[0]
    for name in (
      'PROTO FRAME MARK STOP NONE NEWTRUE NEWFALSE BINFLOAT BININT BININT1 '
      'BININT2 LONG1 BINUNICODE SHORT_BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 '
      'TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS SETITEM SETITEMS BINPUT '
      'LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE '
      'BINPERSID'
    ).split()
  ]
  dispatch = {code: pickle._Unpickler.dispatch[code] for code in CODES}
  dispatch[pickle.EMPTY_DICT[0]] = load_empty_dict
  dispatch[pickle.BUILD[0]] = load_build


class _LegacyUnpickler(_Unpickler):
  """Of files before PyTorch 1.6, whose storages are listed behind the dict."""

  # The table of instructions has the methods of the class above.
  def __init__(self, file):
    super().__init__(file)
    self.storages: dict[str, _Storage] = {}

  def persistent_load(self, pid):
    if type(pid) is not tuple or len(pid) != 6 or pid[5] is not None:
      raise pickle.UnpicklingError('a storage is not well described')
    storage = super().persistent_load(pid[:5])
    if self.storages.setdefault(storage.name, storage) != storage:
      raise pickle.UnpicklingError('a storage is described in two ways')
    return storage


def open_torch_file(path: str | os.PathLike) -> dict[str, Tensor]:
  """Opens a file of `torch.save` and checks every tensor's place in it.

  No values are read yet. All tensors are read by one file handle, so not by
  several threads at once; the file is closed with the last of them.

  Raises:
    TorchFileError: there is no such file, it is not a PyTorch checkpoint, is
      damaged, contradicts itself, or holds other things than tensors.
  """
  file, tensors = _TorchFile(os.fspath(path)), {}
  for key, value in file.read_pickle().pairs:
    if type(key) is not str:
      raise file.error(f'a key is a {type(key).__name__}, not a string')
    if key in tensors:
      raise file.error(f'{key!r} is there twice')
    tensors[key] = file.check_tensor(key, value)
  return tensors


class _TorchFile:
  """A file of `torch.save`: its members, its pickle, and bytes of tensors."""

  def __init__(self, path: str):
    self._path = path
    try:
      fileio.check_regular(path)
      self._file = open(path, 'rb')
    except OSError as e:
      raise self.error(f'cannot be opened: {e.strerror}') from e
    except ValueError as e:  # a FIFO or a device
      raise TorchFileError(str(e)) from e
    self._state_dict = None  # of a file before PyTorch 1.6, once it is read
    self._members = self._read_members()

  def _read(self, key, dtype, shape, strides, start, nbytes) -> np.ndarray:
    """Returns the tensor at `start`, whose strides and size are in bytes."""
    raw = self._load(start, nbytes, key)
    if dtype.kind == 'b' and raw.max() > 1:
      raise self.error(f'{key!r} is bool but has bytes other than 0 and 1')
    # Takes as much memory again where the file has another order (transposed).
    return np.asarray(np.ndarray(shape, dtype, raw, 0, strides), order='C')

  def error(self, what: str) -> TorchFileError:
    return TorchFileError(f'{self._path}: {what}')

  def _load(self, start: int, size: int, whose: str) -> np.ndarray:
    """Returns bytes of the file, uint8 [size]."""
    raw = np.empty(size, np.uint8)
    try:
      self._file.seek(start)
      count = self._file.readinto(raw)
    except OSError as e:
      raise self.error(f'{whose!r} cannot be read: {e.strerror}') from e
    if count != size:
      raise self.error(f'{whose!r} is cut short')
    return raw

  def _read_members(self) -> dict[str, tuple[int, int]]:
    """Returns members by their names -> (start in the file, bytes)."""
    magic = self._load(0, 4, 'the header').tobytes()
    if magic[0] == 0x80:
      return self._read_legacy_members()
    if magic != b'PK\3\4':
      raise self.error('is not a PyTorch checkpoint')
    size = os.fstat(self._file.fileno()).st_size
    try:
      infos = zipfile.ZipFile(self._file).infolist()
    except Exception as e:  # a damaged archive raises more than BadZipFile
      raise self.error(f'is cut short or damaged ({e})') from e
    # PyTorch, too, takes the first member's folder.
    self._root = infos[0].filename.split('/')[0] if infos else ''
    if f'{self._root}/constants.pkl' in (info.filename for info in infos):
      raise self.error(
        'is a TorchScript archive; load it with torch.jit.load and save its '
        'state dict: torch.save(module.state_dict(), path)'
      )
    members, end = {}, 0
    for info in sorted(infos, key=lambda info: info.header_offset):
      name = info.filename
      if info.compress_type != zipfile.ZIP_STORED:
        raise self.error(f'member {name!r} is compressed; {RESAVE}')
      inside = end <= info.header_offset <= size - 30
      head = self._load(info.header_offset if inside else 0, 30, name).tobytes()
      start = info.header_offset + 30 + sum(struct.unpack('<26x2H', head))
      end = start + info.file_size
      # Where members overlap or share a name, readers may disagree.
      if (
        not inside
        or head[:4] != b'PK\3\4'
        or end > size
        or info.compress_size != info.file_size
        or name in members
      ):
        raise self.error(f'member {name!r} is damaged, double or overlapping')
      members[name] = start, info.file_size
    return members

  def _read_legacy_members(self) -> dict[str, tuple[int, int]]:
    """Returns the storages of a file before PyTorch 1.6, as `_read_members`."""
    size = os.fstat(self._file.fileno()).st_size
    head = io.BytesIO(self._load(0, min(size, MAX_PICKLE), 'the pickles'))
    unpickler = _LegacyUnpickler(head)
    magic, version, machine = (self._unpickle(_Unpickler(head)) for _ in '123')
    if (magic, version) != (LEGACY_MAGIC, LEGACY_VERSION):
      raise self.error('is not a PyTorch checkpoint')
    if type(machine) is not _Dict or ('little_endian', True) not in (
      pair for pair in machine.pairs if pair[0] == 'little_endian'
    ):
      raise self.error(f'is not little-endian; on a machine that is, {RESAVE}')
    self._state_dict = self._unpickle(unpickler)
    names = self._unpickle(_Unpickler(head))
    storages, members, end = unpickler.storages, {}, head.tell()
    if type(names) is not list or not all(type(n) is str for n in names):
      raise self.error('has no list of storages')
    for name in names:
      if name not in storages or f'/data/{name}' in members:
        raise self.error(f'storage {name!r} is double, or of no tensor')
      start, bound = end + 8, storages[name].numel
      (count,) = struct.unpack('<q', self._load(end, 8, name).tobytes())
      end = start + count * storages[name].dtype.itemsize
      if count != bound or count < 0 or end > size:
        raise self.error(f'storage {name!r} is cut short or damaged')
      members[f'/data/{name}'] = start, end - start
    if end != size:
      raise self.error('has bytes behind the last storage')
    self._root = ''
    return members

  def _unpickle(self, unpickler: _Unpickler):
    try:
      return unpickler.load()
    except Exception as e:  # nonsense may raise anything
      is_ours = isinstance(e, pickle.UnpicklingError)
      why = str(e) if is_ours else type(e).__name__
      raise self.error(
        f'its pickle is damaged or not just a state dict: {why}; {RESAVE}'
      ) from e

  def read_pickle(self) -> _Dict:
    if self._state_dict is None:
      self._state_dict = self._read_zipped_pickle()
    if type(self._state_dict) is not _Dict:
      kind = type(self._state_dict).__name__
      raise self.error(f'holds a {kind}, not a dict; {RESAVE}')
    return self._state_dict

  def _read_zipped_pickle(self):
    # Before PyTorch 2.1 there is no such member.
    order = self._members.get(f'{self._root}/byteorder', (0, 0))
    if order[1] and self._load(order[0], 6, 'byteorder').tobytes() != b'little':
      raise self.error(f'is not little-endian; on a machine that is, {RESAVE}')
    member = self._members.get(f'{self._root}/data.pkl')
    if not member:
      raise self.error('is a zip archive but not a PyTorch checkpoint')
    if member[1] > MAX_PICKLE:
      raise self.error(f'its pickle has {member[1]} bytes, over {MAX_PICKLE}')
    return self._unpickle(
      _Unpickler(io.BytesIO(self._load(*member, 'data.pkl')))
    )

  def check_tensor(self, key: str, tensor) -> Tensor:
    """Compares a tensor's claims with each other and with the archive."""
    if type(tensor) is not _View or type(tensor.storage) is not _Storage:
      raise self.error(f'{key!r} is not a tensor; {RESAVE}')
    (dtype, name, numel), offset, shape, stride = tensor
    if (
      type(shape) is not tuple
      or type(stride) is not tuple
      or not len(shape) == len(stride) <= MAX_DIMENSIONS
      or not all(type(n) is int and n >= 0 for n in (offset, *shape, *stride))
      # An empty tensor, too, must have sizes numpy can take.
      or math.prod(n for n in shape if n) * dtype.itemsize >= 1 << 63
    ):
      raise self.error(f'{key!r} has no valid offset, shape and strides')
    member = f'{self._root}/data/{name}'
    start, size = self._members.get(member, (0, -1))
    if numel * dtype.itemsize != size:
      raise self.error(
        f'{key!r} is in a storage of {numel} {dtype.name}, but member '
        f'{member!r} ' + (f'has {size} bytes' if size >= 0 else 'is not there')
      )
    if 0 in shape:
      return Tensor(shape, dtype, functools.partial(np.empty, shape, dtype))
    # The stride of a dimension of one is never used and may be anything.
    stride = tuple(s if n > 1 else 0 for n, s in zip(shape, stride))
    span = 1 + sum((n - 1) * s for n, s in zip(shape, stride))
    # A view that repeats elements could ask for any amount of memory.
    if offset + span > numel or math.prod(shape) > numel:
      raise self.error(
        f'{key!r} of shape {shape}, strides {stride} and offset {offset} does '
        f'not fit its storage of {numel}; if it was expanded, save it after '
        '.contiguous()'
      )
    k = dtype.itemsize
    bytes_at = tuple(s * k for s in stride), start + offset * k, span * k
    read = functools.partial(self._read, key, dtype, shape, *bytes_at)
    return Tensor(shape, dtype, read)
