"""Gin files of strangers: none runs code, hangs or fills the screen.

Each case lies in a folder with a program that would leave WITNESS there: the
module `witness`, the function `witness.touch`, a command of `os.system`, or a
job of atm that writes WITNESS. Each is refused in one line, within a second, or
does no harm once all values are used.
"""

import os
import sys
import time

import pytest

import gin
from atm.cli import gin_config, gin_files

DYNAMIC = 'from __gin__ import dynamic_registration\n'
EVIL = (
  f'{DYNAMIC}import os\nimport atm.model\nSEED = @os.system()\n'
  "os.system.command = 'touch WITNESS'\n"
)
WITNESS = (
  'def touch(*args, **kwargs):\n  open("WITNESS", "w").close()\n\ntouch()\n'
)
VOCAB = (
  "data.vocab.directory = 'WITNESS'\ndata.vocab.size = 300\n"
  "data.vocab.mixture = 'udhr'\n"
)
EXPORT = (
  "convert.export_weights.model_dir = 'm'\n"
  "convert.export_weights.output = 'WITNESS'\n"
)
TREE = '\n'.join(
  [f'A{i} = (' + f'%A{i + 1}, ' * 4 + ')' for i in range(12)]
  + ['A12 = 1', 'SKIP_STEPS = %A0']
)
CHAIN = '\n'.join([f'A{i} = %A{i + 1}' for i in range(500)])


def included(name: str, evil: str = EVIL, text: str | None = None) -> dict:
  """Returns files of which x.gin seems to include an evil one."""
  return {'x.gin': text or f'include {name}\n', name.strip('\'"'): evil}


# What x.gin says, or several files.
CASES = {
  # Code by imports.
  'import': 'import witness\n',
  'import os': 'import os\n',
  'from': 'from witness import touch\n',
  'from as': 'from witness import touch as atm\n',
  'import as': 'import witness as atm_tasks\n',
  'import indented': '  import witness\n',
  'import continued': 'import \\\n  witness\n',
  'import after a form feed': '\x0cimport witness\n',
  'import after a string': 'MODEL_DIR = """\n"""\nimport witness\n',
  'import in a block': 'model.Config:\n  d_model = 3\nimport witness\n',
  'import like ours': 'import atm_tasks_witness\nimport witness.atm\n',
  'import two': 'import atm, witness\n',
  'import two statements': 'import atm; import witness\n',
  'import relative': 'from .witness import touch\n',
  'import beyond': 'import atm.witness\n',
  'import gin': 'import gin\nimport __main__\nimport builtins\n',
  'dynamic': EVIL,
  'dynamic by import': 'import __gin__.dynamic_registration\n' + EVIL,
  'dynamic as': (
    f'{DYNAMIC.strip()} as x\nimport witness\nSEED = @witness.touch()'
  ),
  'dynamic of a module of ours': (
    f'{DYNAMIC}import atm\nSEED = @atm.os.system()\n'
    "atm.os.system.command = 'touch WITNESS'\n"
  ),
  'dynamic after bindings': f'SEED = 1\n{EVIL}',
  # Code by includes that a second reader would find, or read otherwise.
  'include': {'x.gin': "include 'evil.gin'\n", 'evil.gin': EVIL},
  'include quote': {
    'x.gin': "include 'models/tiny.gin'#'\n",
    "models/tiny.gin'#": EVIL,
  },
  'include concatenated': included("sub' '.gin", text="include 'sub' '.gin'\n"),
  'include escaped': included('sub\\x2egin', text="include 'sub\\x2egin'\n"),
  'include in a text': included(
    'a.gin', '"""\nimport witness\nX = """',
    'MODEL_DIR = """\ninclude \'a.gin\'\n"""'
  ),
  'include in a comment': included('a.gin', text="# \x0binclude 'a.gin'\n"),
  'include after a line separator': included(
    'a.gin', text="SEED = 1 # \u2028include 'a.gin'\n"
  ),
  'include after a carriage return': included(
    'a.gin', text="# \rinclude 'a.gin'\n"
  ),
  'include twice in a line': included(
    'evil.gin', text="include 'models/tiny.gin' include 'evil.gin'\n"
  ),
  'include of bytes': included('evil.gin', text="include b'evil.gin'\n"),
  'include formatted': included(
    'evil.gin', text="include f'{__import__(\"witness\")}evil.gin'\n"
  ),
  'include of a macro': included(
    'evil.gin', text="TEXT_DIR = 'evil.gin'\ninclude %TEXT_DIR\n"
  ),
  'include nested': {
    'x.gin': "include 'a.gin'\n",
    'a.gin': "include 'b.gin'\n",
    'b.gin': EVIL,
  },
  'include of a package': "include 'witness/evil.gin'\n",
  'include of a shipped name': {
    'x.gin': "include 'data/text.gin'\n",
    'data/text.gin': EVIL,
  },
  # Files that are elsewhere, or none.
  'include absolute': "include '/etc/hosts'\n",
  'include above': "include '../outside.gin'\n",
  'include far above': "include '" + '../' * 40 + "etc/hosts'\n",
  'include through a link': "include 'link.gin'\n",
  'include through a linked folder': "include 'linked/outside.gin'\n",
  'include of a FIFO': "include 'fifo'\n",
  'include of a device': "include '/dev/zero'\n",
  'include of standard input': "include '/dev/stdin'\n",
  'include of a folder': "include 'folder'\n",
  'include of nothing': "include ''\n",
  'include of a NUL': "include 'a\\0b'\n",
  'include of a surrogate': "include '\\ud800'\n",
  'include of a long name': "include '" + 'a' * 100_000 + "'\n",
  'include of an environment': "include '/proc/self/environ'\n",
  # Jobs of atm in place of something else.
  'vocabulary for a mesh': f'{VOCAB}files.infer_file.make_mesh = @data.vocab\n',
  'vocabulary called': f'{VOCAB}files.infer_file.rules = @data.vocab()\n',
  'vocabulary in a macro': f'{VOCAB}SEED = @data.vocab()\n',
  'vocabulary in a tuple': (
    f'{VOCAB}trainer.train.skip_steps = (@data.vocab(),)\n'
  ),
  'vocabulary as a key': (
    f'{VOCAB}trainer.train.lengths = {{@data.vocab(): 1}}\n'
  ),
  'vocabulary in a scope': (
    f'a/{VOCAB}files.infer_file.make_mesh = @a/data.vocab\n'
  ),
  'vocabulary by its full name': (
    f'{VOCAB}files.infer_file.rules = @atm.data.vocab()\n'
  ),
  'export for a mesh': (
    f'{EXPORT}chat.chat.make_mesh = @convert.export_weights\n'
  ),
  'export for tasks': (
    f'{EXPORT}trainer.train.configure_tasks = @convert.export_weights\n'
  ),
  'export for a name': (
    f'{EXPORT}model.Config.dtype = @convert.export_weights()\n'
  ),
  'a job in a job': 'files.infer_file.config = @files.score_file()\n',
  'a page': (
    "chat.chat.rules = @run_page.write()\nrun_page.write.model_dir = '.'\n"
  ),
  'singleton': (
    f'{VOCAB}files.infer_file.rules = @a/gin.singleton()\n'
    'a/gin.singleton.constructor = @data.vocab\n'
  ),
  'singleton alone': 'singleton.constructor = @data.vocab\n',
  'macro by its configurable': f'{VOCAB}SEED/macro.value = @data.vocab()\n',
  'macro called': (
    f'{VOCAB}SEED = @gin.macro()\ngin.macro.value = @data.vocab()\n'
  ),
  'constant': 'SEED = %gin.constant\nLIMIT = @gin.constant()\n',
  'start of other hosts': 'chat.chat.make_mesh = @sharding.start\n',
  # Code by what libraries do with a value.
  'tasks of the harness': "harness.evaluate.include_path = 'folder'\n",
  'tasks of the harness, by macros': (
    "INCLUDE_PATH = %OUTPUT\nOUTPUT = 'folder'\n"
    'harness.evaluate.include_path = %INCLUDE_PATH\n'
  ),
  'a task of the harness': "harness.evaluate.tasks = ('evil.yaml',)\n",
  'a file as a task': "harness.evaluate.tasks = ['witness.py']\n",
  'a program of XLA': (
    "XLA_OPTIONS = {'xla_gpu_cuda_data_dir': 'folder'}\n"
    'trainer.train.xla_options = %XLA_OPTIONS\n'
  ),
  'a file of XLA': (
    "plan.plan.xla_options = {'xla_dump_to': %OUTPUT}\nOUTPUT = 'WITNESS'"
  ),
  # No end.
  'macro of itself': 'SEED = %SEED\n',
  'macros in a circle': (
    'SEED = %LIMIT\nLIMIT = (%KEEP, [1])\nKEEP = {1: %SEED}\n'
  ),
  'macro in a scope': 'a/SEED = %SEED\nSEED = %a/SEED\n',
  'macros to 4^12': TREE,
  'macros 500 deep': f'{CHAIN}\nA500 = 1\n',
  'brackets 900 deep': 'SEED = ' + '[' * 900 + ']' * 900 + '\n',
  'brackets 100,000 deep': 'SEED = ' + '[' * 100_000 + ']' * 100_000 + '\n',
  'brackets that open': 'SEED = ' + '({[' * 50_000,
  'brackets of macros': (
    'A0 = ' + '[' * 30 + '1' + ']' * 30 + '\n'
    + '\n'.join(
      f'A{i + 1} = ' + '[' * 30 + f'%A{i}' + ']' * 30 for i in range(9)
    )
    + '\nSEED = %A9\n'
  ),
  'include of itself': "include 'x.gin'\n",
  'include in a circle': {
    'x.gin': "include 'a.gin'\n", 'a.gin': "include './x.gin'\n"
  },
  'includes to 4^12': {
    f'{"x" if i == 0 else i}.gin': f"include '{i + 1}.gin'\n" * 4
    for i in range(12)
  } | {'12.gin': 'SEED = 1\n'},
  'includes 200 deep': {
    f'{"x" if i == 0 else i}.gin': f"include '{i + 1}.gin'\n"
    for i in range(200)
  } | {'200.gin': 'SEED = 1\n'},
  'reference to itself': 'model.Config.d_model = @model.Config()\n',
  # Too much.
  'an integer': 'SEED = ' + '9' * 200_000 + '\n',
  'an integer in hexadecimal': 'SEED = 0x' + 'f' * 200_000 + '\n',
  'a negative integer': 'SEED = -' + '1_0' * 60_000 + '\n',
  'a float': 'SEED = 1e999\n',
  'a text of 8 MB': "MODEL_DIR = '" + 'a' * 8_000_000 + "'\n",
  'a text of 8 MB in lines': 'MODEL_DIR = """' + 'a\n' * 4_000_000 + '"""\n',
  'a comment of 8 MB': '#' * 8_000_000 + '\nimport witness\n',
  'lines of 8 MB': '\n' * 8_000_000,
  'texts side by side': 'MODEL_DIR = (' + "'' " * 60_000 + ')\n',
  'long texts side by side': (
    'MODEL_DIR = (' + ("'" + 'a' * 99 + "' ") * 2400 + ')\n'
  ),
  'values': 'SKIP_STEPS = (' + '1,' * 120_000 + ')\n',
  'settings': 'SEED = 1\n' * 40_000,
  'lines continued': 'SEED = ' + '\\\n' * 120_000 + '1\n',
  'a name': 'a' * 200_000 + ' = 1\n',
  'a selector': 'model.' * 20_000 + 'x = 1\n',
  'scopes': 'a/' * 20_000 + 'SEED = 1\n',
  # No text, and no values.
  'not UTF-8': b'SEED = 1 # \xff\xfe\n',
  'UTF-16': 'SEED = 1\n'.encode('utf-16'),
  'NUL': b'SEED = 1\0\nimport witness\n',
  'random bytes': bytes(range(256)) * 8,
  'an unhashable key': 'SEED = {[1]: 2}\n',
  'bytes': "SEED = b'1'\n",
  'a complex number': 'SEED = 1j\n',
  'a formatted text': "MODEL_DIR = f'{__import__(\"witness\")}'\n",
  'a call': "SEED = __import__('witness')\n",
  'a call in a list': "SEED = [__import__('witness').touch()]\n",
  'an expression': 'SEED = 10 ** 10 ** 10\n',
  'a lambda': 'SEED = (lambda: 1)()\n',
  'an argument': "SEED = @os.system('touch WITNESS')\n",
  'a function of Python': "trainer.train.say = @builtins.exec\n",
  'an attribute': 'model.Config.__class__ = 1\nmodel.Config.__init__ = 2\n',
  'an external name': 'gin.external_configurable.fn_or_cls = 1\n',
  'unknown names': 'skip_unknown = True\nno.such.thing = @no.such()\n',
  'required': 'model.Config.d_model = %gin.REQUIRED\n',
  'required inside': 'trainer.train.skip_steps = (%gin.REQUIRED,)\n',
  'a value for a function': 'files.infer_file.make_mesh = 5\n',
  'a value for a printer': 'files.infer_file.say = 5\n',
  'a scope of nothing': "a/model.Config.dtype = 'float64'\n",
}  # fmt: skip


@pytest.fixture(scope='module')
def started():
  """Has imported what any configuration does."""
  with gin.unlock_config():
    gin.clear_config()
    gin_config.apply_config([], [], {'atm_tasks'})
    gin.clear_config()


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Returns the working directory, with links, a FIFO and `witness` in it."""
  outside, here = tmp_path / 'outside', tmp_path / 'here'
  (here / 'folder').mkdir(parents=True)
  outside.mkdir()
  for path in (tmp_path / 'outside.gin', outside / 'outside.gin'):
    path.write_text('SEED = 1\n')
  (here / 'link.gin').symlink_to(tmp_path / 'outside.gin')
  (here / 'linked').symlink_to(outside)
  os.mkfifo(here / 'fifo')
  (here / 'witness.py').write_text(WITNESS)
  monkeypatch.chdir(here)
  monkeypatch.syspath_prepend(here)
  with gin.unlock_config():
    gin.clear_config()
    yield here
    gin.clear_config()
  sys.modules.pop('witness', None)


def use_all() -> None:
  """Resolves all that is bound: calls what gin would call."""
  for name in gin_config._registered:
    gin.get_bindings(name)
  gin_config.config_text()


def assert_harmless(files, arguments, refused=True) -> None:
  """Applies a configuration: a refusal is one line, and there is no WITNESS."""
  begin = time.monotonic()
  try:
    gin_config.apply_config(files, arguments, set())
    use_all()
    assert not refused, 'was accepted'
  except gin_config.UserError as e:
    message = str(e)
    assert len(message) < 480 and message.isprintable(), message
  assert time.monotonic() - begin < 5  # a second on a machine that is idle
  assert not os.path.exists('WITNESS')
  assert 'witness' not in sys.modules


# The text in them is a comment, a value, or another file's.
HARMLESS = {
  'include concatenated', 'include escaped', 'include in a text',
  'include in a comment', 'include after a line separator', 'include quote',
  'include of a shipped name', 'lines continued',
}  # fmt: skip


def test_there_are_enough():
  assert len(CASES) >= 60 and HARMLESS < set(CASES)


@pytest.mark.parametrize('name', CASES)
def test_a_file_of_a_stranger_is_data(started, folder, name):
  files = (
    CASES[name] if isinstance(CASES[name], dict) else {'x.gin': CASES[name]}
  )
  if name in ('include concatenated', 'include escaped'):
    files = {**files, 'sub.gin': 'SEED = 7\n'}
  for path, text in files.items():
    (folder / path).parent.mkdir(exist_ok=True)
    content = text if isinstance(text, bytes) else text.encode()
    (folder / path).write_bytes(content)
  assert_harmless(['x.gin'], [], refused=name not in HARMLESS)


ARGUMENTS = (
  '', ' ', '#', 'SEED', 'SEED=', '=1', 'SEED=1=2', 'SEED=1\nLIMIT=2',
  'SEED=1;LIMIT=2', 'SEED=1\nimport witness', 'SEED=1\rimport witness',
  "SEED=1\ninclude 'evil.gin'", 'import witness', "include 'evil.gin'",
  f'{DYNAMIC}import witness\nSEED=@witness.touch()', 'import witness\nSEED=1',
  '#SEED=1\nimport witness', 'SEED=@data.vocab()',
  'SEED=%SEED', 'SEED=@witness.touch()', 'SEED=\udcff', 'SEED=1\0', 'SEED=[',
  'SEED=' + '[' * 10_000, 'SEED=' + '1' * 10_000, 'SEED="""', "SEED='a'\n'b'",
  'SEED=1\\', 'SEED.value=1', 'a/b/SEED=1', 'X' * 100_000 + '=1', 'Ｓeed=1',
  'skip_unknown=True', 'gin.macro.value=1', 'SEED=%gin.REQUIRED',
)  # fmt: skip


@pytest.mark.parametrize('argument', ARGUMENTS)
def test_an_argument_is_one_binding(started, folder, argument):
  """Fault seen: one that held several statements, or none, was taken."""
  (folder / 'evil.gin').write_text(EVIL)
  assert_harmless([], [argument])


@pytest.mark.parametrize('name', ['fifo', '/dev/zero', 'folder', 'witness.py'])
def test_a_gin_file_is_a_file(started, folder, name):
  """Fault seen: a FIFO was waited for."""
  with pytest.raises(gin_config.UserError):
    gin_files.find_file(name)
    gin_config.apply_config([name], [], set())
