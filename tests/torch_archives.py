"""Files of `torch.save`, sound or hostile, written without PyTorch."""

import pickle
import struct
import zipfile
from typing import Any, NamedTuple

import numpy as np

BYTES = np.arange(1, 7, dtype='<f4').tobytes()  # of storage '0'


class Global(NamedTuple):
  name: str  # 'module attribute'


class Call(NamedTuple):
  function: Any
  args: tuple


class Stored(NamedTuple):
  """A persistent reference."""

  pid: Any


class Raw(NamedTuple):
  code: bytes


def code(value) -> bytes:
  """Instructions of pickle that make a value."""
  match value:
    case Raw(instructions):
      return instructions
    case bool():
      return pickle.NEWTRUE if value else pickle.NEWFALSE
    case None:
      return pickle.NONE
    case int():
      n = value.bit_length() // 8 + 1
      return (
        pickle.LONG1 + bytes([n]) + value.to_bytes(n, 'little', signed=True)
      )
    case float():
      return pickle.BINFLOAT + struct.pack('>d', value)
    case str():
      text = value.encode()
      return pickle.BINUNICODE + struct.pack('<I', len(text)) + text
    case Global(name):
      return pickle.GLOBAL + name.replace(' ', '\n').encode() + b'\n'
    case Call(function, args):
      return code(function) + code(args) + pickle.REDUCE
    case Stored(pid):
      return code(pid) + pickle.BINPERSID
    case dict():
      pairs = b''.join(code(k) + code(v) for k, v in value.items())
      return pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS
    case list():
      values = b''.join(map(code, value))
      return pickle.EMPTY_LIST + pickle.MARK + values + pickle.APPENDS
    case tuple():
      return pickle.MARK + b''.join(map(code, value)) + pickle.TUPLE


def storage(kind='torch FloatStorage', name='0', numel=6, location='cpu'):
  return Stored(('storage', Global(kind), name, location, numel))


def tensor(data=storage(), offset=0, shape=(2, 3), stride=(3, 1), *more):
  hooks = Call(Global('collections OrderedDict'), ())
  return Call(
    Global('torch._utils _rebuild_tensor_v2'),
    (data, offset, shape, stride, False, hooks, *more),
  )


def program(value) -> bytes:
  return pickle.PROTO + b'\2' + code(value) + pickle.STOP


def archive(path, instructions: bytes, storages=None, compress=0) -> str:
  """A checkpoint of any pickle and storages."""
  with zipfile.ZipFile(path, 'w', compress) as z:
    z.writestr('archive/data.pkl', instructions)
    z.writestr('archive/byteorder', 'little')
    for name, content in (storages or {'0': BYTES}).items():
      z.writestr(f'archive/data/{name}', content)
  return str(path)
