"""Checkpoints by PyTorch (testdata/torch), and hostile ones made here."""

import collections
import gc
import math
import os
import pickle
import re
import shutil
import struct
import subprocess
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from atm.checkpoint import torch_reader
from atm.checkpoint.torch_reader import TorchFileError, open_torch_file

from torch_archives import (
  BYTES,
  Call,
  Global,
  Raw,
  Stored,
  archive,
  code,
  program,
  storage,
  tensor,
)

DATA = os.path.join(os.path.dirname(__file__), '../testdata', 'torch')
FILES = ('dtypes', 'views', 'module', 'protocol2', 'protocol4')


def real(name: str) -> str:
  return os.path.join(DATA, f'{name}.bin')


def holding(tmp_path, value) -> str:
  return archive(tmp_path / 'it.bin', program(value))


def read_all(path) -> dict[str, np.ndarray]:
  return {key: x.read() for key, x in open_torch_file(path).items()}


def refused(path, *names: str) -> None:
  """Refused by a message that names the file and more."""
  with pytest.raises(TorchFileError) as caught:
    read_all(path)
  for name in (str(path), *names):
    assert name in str(caught.value)


@pytest.fixture(scope='module')
def expected():
  with np.load(os.path.join(DATA, 'expected.npz')) as f:
    found = collections.defaultdict(dict)
    for name in f.files:
      file, key = name.split('/')
      found[file][key] = f[name]
  return found


# What PyTorch writes.


@pytest.mark.parametrize('name', FILES)
def test_values_are_those_of_torch(name, expected):
  tensors = open_torch_file(real(name))
  assert list(tensors) == list(expected[name])
  for key, want in expected[name].items():
    shape, dtype, read = tensors[key]
    got = read()
    assert got.flags.c_contiguous and got.flags.writeable
    assert shape == got.shape == want.shape
    assert dtype == got.dtype
    if 'bfloat16' in key:
      assert got.dtype == ml_dtypes.bfloat16
      got = got.view(np.uint16)
    assert got.dtype == want.dtype
    assert got.tobytes() == want.tobytes(), key  # also the NaNs


def test_every_dtype_is_there(expected):
  names = {dtype.name for dtype in torch_reader.DTYPES.values()}
  assert names == set(expected['dtypes'])


def test_views_of_one_storage_are_read_apart():
  tensors = open_torch_file(real('views'))
  base, same = tensors['base'].read(), tensors['same'].read()
  want = np.arange(24, dtype=np.float32).reshape(4, 6)
  base[:] = 0
  np.testing.assert_array_equal(same, want)
  np.testing.assert_array_equal(tensors['base'].read(), want)
  np.testing.assert_array_equal(tensors['transposed'].read(), want.T)
  np.testing.assert_array_equal(tensors['block'].read(), want[1:3, 2:5])


def test_a_module_has_its_metadata_dropped():
  with open(real('module'), 'rb') as f:
    assert b'_metadata' in f.read()
  tensors = open_torch_file(real('module'))
  assert tensors['dense.weight'].shape == (2, 3)
  assert tensors['norm.num_batches_tracked'].read() == 0


def test_older_formats_say_what_to_do(tmp_path):
  refused(real('script'), 'TorchScript', 'torch.jit.load', 'torch.save(')


def test_files_before_pytorch_1_6_are_read(tmp_path, expected):
  """Pickles one after the other, then the storages."""
  made, wanted = read_all(real('legacy')), expected['module']
  assert [*made] == ['dense.weight', 'dense.bias']
  for key, value in made.items():
    np.testing.assert_array_equal(value, wanted[key])
  with open(real('legacy'), 'rb') as f:
    content = f.read()
  path = tmp_path / 'it.bin'
  for what, fault in {
    b'\x80\x02K\x01.' * 3: 'is not a PyTorch checkpoint',
    content + b'\0': 'bytes behind the last storage',
    content[:-1]: 'is cut short',
    content.replace(b'little_endian', b'middle_endian'): 'little-endian',
    content.replace(b'M\xe9\x03', b'M\xe8\x03'): 'is not a PyTorch',
    content.replace(b'FloatStorage', b'DoubleStorage'): 'damaged',
    content.replace(b'torch\nFloatStorage', b'os\nsystem'): 'os.system',
  }.items():
    path.write_bytes(what)
    refused(path, fault)


def test_big_endian_is_refused(tmp_path):
  path = tmp_path / 'big.bin'
  with (
    zipfile.ZipFile(real('module')) as old,
    zipfile.ZipFile(path, 'w') as new,
  ):
    for name in old.namelist():
      is_order = name.endswith('/byteorder')
      new.writestr(name, b'big' if is_order else old.read(name))
  refused(path, 'little-endian')


def test_what_is_made_here_is_read(tmp_path):
  """So that what is refused below is refused for its fault alone."""
  path = holding(tmp_path, {'w': tensor(), 'b': tensor(stride=(1, 2))})
  made = read_all(path)
  np.testing.assert_array_equal(made['w'], [[1, 2, 3], [4, 5, 6]])
  np.testing.assert_array_equal(made['b'], [[1, 3, 5], [2, 4, 6]])


def test_mistakes_of_the_caller(tmp_path):
  refused(tmp_path / 'none.bin', 'No such file')
  refused(tmp_path, 'directory')


# Code in a pickle.


class Evil:
  """Pickled as a call."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


PAYLOADS = {
  'os.system': lambda w: Evil(os.system, f'touch {w}'),
  'subprocess': lambda w: Evil(subprocess.call, ['touch', w]),
  'eval': lambda w: Evil(eval, f'open({w!r}, "w").close()'),
  'exec': lambda w: Evil(exec, f'open({w!r}, "w").close()'),
  'open': lambda w: Evil(open, w, 'w'),
  'copy': lambda w: Evil(shutil.copy, __file__, w),
  'nested': lambda w: Evil(os.system, Evil(str.format, 'touch {}', w)),
  'getattr': lambda w: Evil(
    eval, Evil(str, f'getattr(__import__("os"), "mknod")({w!r})')
  ),
}


@pytest.mark.usefixtures('few_objects')
@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('name', PAYLOADS)
def test_code_is_not_run(tmp_path, name, protocol):
  witness = str(tmp_path / 'witness')
  hostile = pickle.dumps({'w': PAYLOADS[name](witness)}, protocol)
  pickle.loads(hostile)  # it does work where it is allowed to
  gc.collect()
  os.remove(witness)
  refused(archive(tmp_path / 'it.bin', hostile))
  assert not os.path.exists(witness)


def calls(witness: str) -> dict:
  """Calls of os.system at every place a pickle has for one."""
  os_system, touch = Global('os system'), (f'touch {witness}',)
  evil = Call(os_system, touch)
  get = lambda thing, name: Call(Global('builtins getattr'), (thing, name))
  chain = get(Call(Global('builtins __import__'), ('os',)), 'system')
  ordered = Call(Global('collections OrderedDict'), ())
  text = touch[0].encode()
  rebuild = Global('torch._utils _rebuild_tensor_v2')
  return {
    'a value': evil,
    'a value after a good one': Raw(code(tensor()) + b'0' + code(evil)),
    'getattr of import': Call(chain, touch),
    'getattr of a stand-in': Call(get(rebuild, '__globals__'), ()),
    'a dotted global': Call(Global('torch._utils os.system'), touch),
    'a dotted global of a stand-in': Call(
      Global('collections OrderedDict.__init__'), touch
    ),
    'a storage': tensor(evil),
    'the type of a storage': tensor(Stored(('storage', evil, '0', 'cpu', 6))),
    'a function as the type': tensor(storage('os system')),
    'the name of a storage': tensor(storage(name=evil)),
    'a shape': tensor(shape=(evil, 3)),
    'hooks': Call(rebuild, (storage(), 0, (6,), (1,), False, evil)),
    'metadata of a tensor': tensor(storage(), 0, (6,), (1,), evil),
    'a parameter': Call(
      Global('torch._utils _rebuild_parameter'), (evil, True, ordered)
    ),
    'a parameter in a parameter': Call(
      Global('torch._utils _rebuild_parameter'),
      (Call(Global('torch._utils _rebuild_parameter'), (evil,)), True, ordered),
    ),
    'items of a dict': Call(
      Global('collections OrderedDict'), ([('a', evil)],)
    ),
    'attributes': Raw(code(ordered) + code({'_metadata': evil}) + b'b'),
    'persistent': Stored(evil),
    'INST': Raw(b"(S'" + text + b"'\nios\nsystem\n"),
    'OBJ': Raw(b'(' + code(os_system) + code(touch[0]) + b'o'),
    'NEWOBJ': Raw(code(os_system) + code(touch) + b'\x81'),
    'NEWOBJ_EX': Raw(code(os_system) + code(touch) + code({}) + b'\x92'),
    'STACK_GLOBAL': Raw(
      code('os') + code('system') + b'\x93' + code(touch) + b'R'
    ),
  }


@pytest.mark.parametrize('place', calls(''))
def test_code_is_not_run_at_any_place(tmp_path, place):
  witness = str(tmp_path / 'witness')
  refused(holding(tmp_path, {'w': calls(witness)[place]}))
  refused(holding(tmp_path, calls(witness)[place]))
  assert not os.path.exists(witness)


def test_what_a_pickle_asks_for_is_named(tmp_path):
  for place in ('a value', 'a shape', 'STACK_GLOBAL'):
    path = holding(tmp_path, {'w': calls('')[place]})
    refused(path, "asks for 'os.system'", 'torch.save(')


@pytest.mark.parametrize(
  'instructions',
  [b'20', b'p0\n', b'I1\n0', b'Va\n0', b'C\1a0', b'\x8f0', b'F1\n0'],
)
def test_instructions_torch_does_not_write_are_refused(tmp_path, instructions):
  """Harmless ones: DUP, PUT, INT, UNICODE, bytes, a set, FLOAT; and POP."""
  assert pickle.loads(b'K\7' + instructions + b'.') == 7
  hostile = Raw(code(tensor()) + instructions)
  refused(holding(tmp_path, {'w': hostile}), 'pickle is damaged')


def attributes(of: str, state) -> Raw:
  return Raw(code(Global(of)) + code(state) + pickle.BUILD)


@pytest.mark.parametrize(
  'of',
  [
    'torch._utils _rebuild_tensor_v2',
    'torch._utils _rebuild_parameter',
    'collections OrderedDict',
    'torch FloatStorage',
  ],
)
def test_a_pickle_leaves_nothing_behind(tmp_path, of):
  """BUILD would set attributes of our own functions and classes."""
  thing = torch_reader.GLOBALS[of.replace(' ', '.')]
  before = dir(thing), getattr(thing, '__defaults__', None)
  for state in ({'x': 1}, (None, {'__defaults__': (1, 2, 3), 'x': 1})):
    refused(holding(tmp_path, {'w': attributes(of, state)}), 'attributes')
    refused(holding(tmp_path, {'w': tensor(attributes(of, state))}))
    assert before == (dir(thing), getattr(thing, '__defaults__', None))
  made = Raw(code(Global(of)) + code('x') + code(1) + pickle.SETITEM)
  refused(holding(tmp_path, {'w': made}))


def test_calls_of_stand_ins_are_harmless(tmp_path):
  many = Raw(code(1) * 100_000)
  for function in torch_reader.GLOBALS:
    module, name = function.rsplit('.', 1)
    for args in (
      (),
      (many,),
      ([many],),
      ({'a': 1},),
      {'a': 1},
      'text',
      5,
      None,
    ):
      refused(holding(tmp_path, {'w': Call(Global(f'{module} {name}'), args)}))


def test_a_memo_is_not_reserved(tmp_path):
  """In C, this asks for 64 GB."""
  put = pickle.LONG_BINPUT + b'\xff\xff\xff\xff'
  path = holding(tmp_path, {'w': Raw(code(tensor()) + put)})
  assert list(read_all(path)) == ['w']


def test_deep_values_are_harmless(tmp_path):
  """Hashing, comparing or printing these ends the process or never ends."""
  deep = Raw(pickle.EMPTY_TUPLE + pickle.TUPLE1 * 300_000)
  wide = Raw(pickle.EMPTY_TUPLE + (b'q\0h\0' + pickle.TUPLE2) * 10_000)
  dicts = pickle.EMPTY_DICT * 100_000
  nested = Raw(dicts + (code('a') + b'N' + pickle.SETITEM))
  for value in (deep, wide):
    pairs = code(value) + code(tensor())
    one = Raw(pickle.EMPTY_DICT + pairs + pickle.SETITEM)
    refused(holding(tmp_path, one), 'tuple, not a string')
    refused(holding(tmp_path, {'w': value}), "'w' is not a tensor")
    refused(holding(tmp_path, {'w': tensor(shape=value)}), "'w'")
    refused(holding(tmp_path, {'w': tensor(storage(name=value))}))
  refused(holding(tmp_path, {'w': nested}))


def test_a_pickle_has_a_limit(tmp_path, monkeypatch):
  path = holding(tmp_path, {'w': tensor()})
  read_all(path)
  monkeypatch.setattr(torch_reader, 'MAX_PICKLE', 100)
  refused(path, '100')


# Claims that are not true.

FAULTS = {
  'no storage': tensor(None),
  'a storage that is not there': tensor(storage(name='1')),
  'a path': tensor(storage(name='../byteorder')),
  'a path outside': tensor(storage(name='/etc/passwd')),
  'too few': tensor(storage(numel=5)),
  'too many': tensor(storage(numel=7)),
  'negative count': tensor(storage(numel=-6)),
  'huge count': tensor(storage(numel=1 << 2000)),
  'another type': tensor(storage('torch DoubleStorage')),
  'a smaller type': tensor(storage('torch HalfStorage')),
  'offset beyond': tensor(offset=1),
  'offset at the end': tensor(offset=6, shape=(1,), stride=(1,)),
  'negative offset': tensor(offset=-1, shape=(2,), stride=(1,)),
  'huge offset': tensor(offset=(1 << 64) + 1, shape=(2,), stride=(1,)),
  'huger offset': tensor(offset=1 << 2000),
  'float offset': tensor(offset=0.0),
  'shape beyond': tensor(shape=(3, 3)),
  'negative shape': tensor(shape=(-2, -3)),
  'negative dimension': tensor(shape=(-1, 3)),
  'huge shape': tensor(shape=(1 << 62, 1 << 62), stride=(0, 0)),
  'shape that wraps to 6': tensor(shape=((1 << 63) + 3, 2), stride=(2, 1)),
  'huger shape': tensor(shape=(1 << 2000,), stride=(1,)),
  'huge empty shape': tensor(shape=(0, 1 << 62), stride=(1, 1)),
  'huge empty shapes': tensor(shape=(0, 1 << 40, 1 << 40), stride=(1, 1, 1)),
  'shape of bools': tensor(shape=(True, True)),
  'shape of text': tensor(shape='23'),
  'shape not a tuple': tensor(shape=[2, 3]),
  'stride beyond': tensor(stride=(4, 1)),
  'negative stride': tensor(stride=(-3, 1)),
  'reversed': tensor(offset=5, shape=(6,), stride=(-1,)),
  'huge stride': tensor(stride=((1 << 62) + 3, 1)),
  'stride that wraps': tensor(stride=((1 << 64) + 3, 1)),
  'expanded': tensor(shape=(1 << 40,), stride=(0,)),
  'expanded a little': tensor(shape=(7,), stride=(0,)),
  'more dimensions than numpy has': tensor(shape=(1,) * 99, stride=(1,) * 99),
  'fewer strides': tensor(stride=(1,)),
  'metadata': tensor(storage(), 0, (6,), (1,), {'neg': True}),
  'a number': 1,
  'nothing': None,
  'text': 'text',
  'a dict': {'w': tensor()},
  'a list': [tensor()],
  'a tuple': (tensor(),),
  'a storage alone': storage(),
  'a type': Global('torch FloatStorage'),
  'a function': Global('torch._utils _rebuild_tensor_v2'),
  'no reference': tensor(Stored('storage')),
  'a short reference': tensor(Stored(('storage', Global('torch IntStorage')))),
  'a reference to a module': tensor(
    Stored(('module', Global('torch FloatStorage'), '0', 'cpu', 6))
  ),
  'a list as reference': tensor(
    Stored(['storage', Global('torch FloatStorage'), '0', 'cpu', 6])
  ),
  'a location that is a number': tensor(storage(location=0)),
  'a parameter of nothing': Call(
    Global('torch._utils _rebuild_parameter'), (None, True, None)
  ),
}  # fmt: skip
# These are found while the pickle runs, when no key is known yet.
NAMELESS = re.compile('metadata|reference|location')


@pytest.mark.parametrize('fault', FAULTS)
def test_a_false_claim_is_refused_by_key(tmp_path, fault):
  path = holding(tmp_path, {'good': tensor(), 'bad': FAULTS[fault]})
  refused(path, *([] if NAMELESS.search(fault) else ["'bad'"]))


def test_a_claim_may_be_odd_but_true(tmp_path):
  values = {
    'one': tensor(offset=5, shape=(1, 1), stride=((1 << 63) - 1, 1 << 62)),
    'window': tensor(shape=(3, 2), stride=(1, 1)),
    'repeated': tensor(offset=2, shape=(2, 3), stride=(0, 1)),
    'empty': tensor(offset=6, shape=(0, 3), stride=(3, 1)),
    '': tensor(shape=(), stride=()),
  }
  made = read_all(holding(tmp_path, values))
  np.testing.assert_array_equal(made['one'], [[6]])
  np.testing.assert_array_equal(made['window'], [[1, 2], [2, 3], [3, 4]])
  np.testing.assert_array_equal(made['repeated'], [[3, 4, 5]] * 2)
  assert made['empty'].shape == (0, 3) and made[''] == 1


def test_a_bool_is_0_or_1(tmp_path):
  value = tensor(storage('torch BoolStorage', numel=2), 0, (2,), (1,))
  for content, fine in ((b'\1\0', True), (b'\1\2', False)):
    path = archive(tmp_path / 'it.bin', program({'w': value}), {'0': content})
    if fine:
      assert read_all(path)['w'].tolist() == [True, False]
    else:
      refused(path, "'w'", 'bool')


@pytest.mark.parametrize('ordered', [False, True])
@pytest.mark.parametrize('one_by_one', [False, True])
def test_a_key_twice_is_refused(tmp_path, ordered, one_by_one):
  make = code(Call(Global('collections OrderedDict'), ())) if ordered else b'}'
  pairs = [code(key) + code(tensor()) for key in ('a', 'twin', 'b', 'twin')]
  if one_by_one:
    items = b''.join(pair + pickle.SETITEM for pair in pairs)
  else:
    items = pickle.MARK + b''.join(pairs) + pickle.SETITEMS
  refused(holding(tmp_path, Raw(make + items)), "'twin'", 'twice')


def test_a_key_is_a_string(tmp_path):
  for key in (1, 1.5, None, True, ('a',)):
    refused(holding(tmp_path, {key: tensor()}), type(key).__name__)


def test_only_a_dict_is_a_state_dict(tmp_path):
  for value in ([tensor()], tensor(), None, 5):
    refused(holding(tmp_path, value), 'not a dict')


# Archives.


def test_archives_that_are_not_checkpoints(tmp_path):
  path = tmp_path / 'it.bin'
  for content in (b'', b'PK', b'PK\3\4', b'text' * 99, b'\0' * 999):
    path.write_bytes(content)
    refused(path)
  with zipfile.ZipFile(path, 'w') as z:
    z.writestr('elsewhere/data', '')
  refused(path, 'not a PyTorch checkpoint')


def test_a_header_is_looked_at(tmp_path):
  path = tmp_path / 'it.bin'
  archive(path, program({'w': tensor()}))
  before, after = path.read_bytes().rsplit(b'PK\3\4', 1)
  path.write_bytes(before + b'PK\3\5' + after)
  refused(path, 'archive/data/0')


def test_a_compressed_archive_is_refused(tmp_path):
  path = tmp_path / 'it.bin'
  for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
    refused(
      archive(path, program({'w': tensor()}), compress=method), 'is compressed'
    )


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_a_member_twice_is_refused(tmp_path):
  path = holding(tmp_path, {'w': tensor()})
  with zipfile.ZipFile(path, 'a') as z:
    z.writestr('archive/data/0', BYTES)
  refused(path, 'archive/data/0', 'double')


def misdirected(path, changed) -> str:
  """A checkpoint whose directory of members is not as it should be."""
  with zipfile.ZipFile(path, 'w') as z:
    z.writestr('archive/data.pkl', program({'w': tensor()}))
    z.writestr('archive/data/0', BYTES)
    z.writestr('archive/data/1', BYTES)
    changed(*z.infolist()[1:])
  return str(path)


def change(**values):
  def apply(first, second):
    for name, value in values.items():
      setattr(second, name, value(first, second))

  return apply


CHANGES = {
  'the same place': change(header_offset=lambda a, b: a.header_offset),
  'inside another': change(header_offset=lambda a, b: a.header_offset + 3),
  'not a header': change(header_offset=lambda a, b: b.header_offset + 1),
  'beyond the file': change(header_offset=lambda a, b: 1 << 20),
  'far beyond': change(header_offset=lambda a, b: (1 << 64) - 99),
  'larger than the file': change(
    file_size=lambda a, b: 1 << 20, compress_size=lambda a, b: 1 << 20
  ),
  'far larger': change(
    file_size=lambda a, b: (1 << 64) - 1, compress_size=lambda a, b: 1 << 63
  ),
  'two sizes': change(file_size=lambda a, b: 25),
}


@pytest.mark.parametrize('name', CHANGES)
def test_a_false_directory_is_refused(tmp_path, name):
  path = tmp_path / 'it.bin'
  read_all(misdirected(path, change()))
  refused(misdirected(path, CHANGES[name]), 'archive/data/')


# Damage.


def test_every_cut_is_noticed(tmp_path):
  path = tmp_path / 'cut.bin'
  for name in ('module', 'views', 'legacy'):
    with open(real(name), 'rb') as f:
      content = f.read()
    for n in [*range(0, len(content), 37), len(content) - 1]:
      path.write_bytes(content[:n])
      refused(path)


def test_a_file_cut_while_open_is_noticed(tmp_path):
  n = 100_000
  value = tensor(storage(numel=n), 0, (n,), (1,))
  path = archive(
    tmp_path / 'it.bin', program({'w': value}), {'0': bytes(4 * n)}
  )
  opened = open_torch_file(path)
  os.truncate(path, 2 * n)
  with pytest.raises(TorchFileError, match="'w' is cut short"):
    opened['w'].read()


def pickle_of(content: bytes) -> range:
  """Where the pickle is: the first member, up to its checksum."""
  start = 30 + sum(struct.unpack('<2H', content[26:30]))
  assert content[start] == pickle.PROTO[0]
  return range(start, content.index(b'PK\7\10'))


@pytest.mark.parametrize(
  'name, part',
  [
    *((name, part) for name in FILES for part in ('pickle', 'archive')),
    ('legacy', 'archive'),
  ],
)
def test_any_changed_byte_is_refused_or_harmless(tmp_path, name, part):
  """No other exception, no array that is not what it says."""
  with open(real(name), 'rb') as f:
    content = f.read()
  where = pickle_of(content) if part == 'pickle' else range(len(content))
  rng = np.random.default_rng(0)
  path, outcomes = tmp_path / 'it.bin', collections.Counter()
  for _ in range(1000):
    changed = bytearray(content)
    changed[rng.choice(where)] ^= rng.integers(1, 256)
    path.write_bytes(changed)
    try:
      for shape, dtype, read in open_torch_file(path).values():
        array = read()
        assert type(array) is np.ndarray and array.flags.c_contiguous
        assert array.shape == shape and array.dtype == dtype
        assert array.dtype in torch_reader.DTYPES.values()
        assert array.nbytes <= len(content)
        assert math.prod(array.shape) == array.size
      outcomes['read'] += 1
    except TorchFileError as e:
      assert str(path) in str(e)
      outcomes['refused'] += 1
  assert min(outcomes['read'], outcomes['refused']) > 50, outcomes


# Memory.


def peak(function) -> int:
  tracemalloc.start()
  try:
    function()
    return tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


def test_one_tensor_takes_the_memory_of_one(tmp_path):
  n = 1 << 18
  size = 4 * n
  names = [str(i) for i in range(8)]
  values = {
    f'w{i}': tensor(storage(name=i, numel=n), 0, (n,), (1,)) for i in names
  }
  values['few'] = tensor(storage(name='3', numel=n), 99, (10,), (1,))
  values['turned'] = tensor(storage(name='4', numel=n), 0, (512, 512), (1, 512))
  storages = {i: np.full(n, int(i), '<f4').tobytes() for i in names}
  path = archive(tmp_path / 'it.bin', program(values), storages)
  assert peak(lambda: open_torch_file(path)) < size / 4
  read = {key: tensor.read for key, tensor in open_torch_file(path).items()}
  assert read['w5']().min() == read['w5']().max() == 5
  assert size <= peak(read['w5']) < 1.1 * size
  assert peak(read['few']) < size / 50
  assert peak(read['turned']) < 2.1 * size
