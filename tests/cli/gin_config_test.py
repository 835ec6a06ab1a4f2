"""Gin files are data: what is refused, and how the error names it."""

import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gin
from atm.cli import gin_config, gin_files

from command_line import DIR, TINY, atm, parse


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['pretrian'], "no run called 'pretrian'. Did you mean 'pretrain'"),
    (['pretrain', '--gin_file=models/tinny.gin'], "Did you mean 'models/tiny"),
    (['pretrain', TINY], 'MODEL_DIR is required: add --gin.MODEL_DIR='),
    (
      ['pretrain', TINY, DIR, '--gin.BATCHSIZE=4'],
      "no setting is called 'BATCHSIZE'. Did you mean 'BATCH_SIZE'",
    ),
    (
      ['pretrain', TINY, DIR, '--gin.trainer.train.seeed=4'],
      "trainer.train has no parameter 'seeed'. Did you mean 'seed'",
    ),
    (
      ['pretrain', TINY, DIR, '--gin.trainer.trian.seed=4'],
      "Did you mean 'trainer.train'",
    ),
    (['pretrain', DIR], 'BATCH_SIZE is required'),
    (['pretrain', TINY, '--gin.MODEL_DIR=/tmp/x'], 'A string needs quotes'),
    (
      ['pretrain', TINY, DIR, '--gin.Config.dropout=1'],
      "'Config' is ambiguous",
    ),
    (['pretrain', '--ginfile=x'], "unknown argument '--ginfile=x'. Did you"),
    (['pretrain', 'models/tiny.gin'], "unknown argument 'models/tiny.gin'"),
    (['infer', '--gin.INPUT="x"'], 'MODEL_DIR is required'),
  ],
)
def test_mistakes_are_named(arguments, message):
  with pytest.raises(gin_config.UserError) as error:
    parse(*arguments)
  assert message in str(error.value)


@pytest.mark.parametrize(
  'text, message',
  [
    ('from __gin__ import dynamic_registration\n', 'dynamic registration is'),
    ('import os\n', "import of 'os' is refused"),
    ('import atmosphere\n', "import of 'atmosphere' is refused"),
    ('from subprocess import run\n', "import of 'subprocess.run' is refused"),
    ('include "sub.gin"\n', "import of 'os' is refused"),
    ('trainer.train.seed = [\n', 'not gin'),
  ],
)
def test_a_gin_file_cannot_run_code(tmp_path, monkeypatch, text, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'sub.gin').write_text('import os\n')
  (tmp_path / 'bad.gin').write_text(text)
  with pytest.raises(gin_config.UserError) as error:
    parse('pretrain', TINY, DIR, files=[tmp_path / 'bad.gin'])
  assert message in str(error.value)


@pytest.fixture
def bound(tmp_path, monkeypatch):
  """Gives what x.gin binds: as `configure` has it, and as gin alone reads it.

  sub.gin lies beside it, and a module `witness`, which only evil files import.
  """
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'witness.py').touch()
  (tmp_path / 'sub.gin').write_text('SEED = 7\n')

  def call(text):
    (tmp_path / 'x.gin').write_text(text)
    found = []
    for read in (
      lambda: gin_config.apply_config(['x.gin'], [], set()),
      lambda: gin.parse_config_file('x.gin'),  # knows no files but those here
    ):
      gin.clear_config()
      read()
      found.append(gin.config_str())
      with gin.unlock_config():
        gin.clear_config()
    return found

  with gin.unlock_config():
    yield call
    gin.clear_config()
  sys.modules.pop('witness', None)


INCLUDES = (
  "include 'sub.gin'\n",
  'include "sub.gin"',
  "include 'sub.gin'  # sizes\n",
  "include 'sub.gin'#'\n",
  "include 'sub' '.gin'\n",
  "include 'sub'\\\n'.gin'\n",
  "include 'sub\\x2egin'\n",
  "include r'sub.gin'\n",
  "include '''sub.gin''' \"\"\n",
  "include\t'sub.gin'\n",
  "include \\\n'sub.gin'\n",
  "  include 'sub.gin'\n  BATCH_SIZE = 1\nLOG_EVERY = 2\n",
  "SEED = 1\ninclude 'sub.gin'\n",
  "include 'sub.gin'\nSEED = 1\n",
  "include 'sub.gin'\ninclude 'sub.gin'\n",
  "trainer.train:\n  seed = 1\ninclude 'sub.gin'\n# end\n",
  "trainer.train:\n  seed = 1\n\n  # include 'no.gin'\n  z_loss = 2.0\n",
  "# include 'no.gin'\n#\ninclude 'sub.gin'\n",
  'MODEL_DIR = """\ninclude \'no.gin\'\n"""\ninclude \'sub.gin\'\n',
  "MODEL_DIR = '\\\ninclude \"no.gin\"\\\n'\ninclude 'sub.gin'\n",
  'SEED = 1\\\n\ninclude "sub.gin"\n',
  "SEED = [\n# include 'no.gin'\n'include',\n'no.gin'\n]\n",
  "MODEL_DIR = 'a\\u2028b\u2028\x0cc'\ninclude 'sub.gin'\nSEED = 8\n",
)


@pytest.mark.parametrize('text', INCLUDES)
def test_includes_are_what_gin_takes_for_includes(bound, text):
  """Faults seen: one in a string was replaced; strings side by side, escapes
  and a comment that ends in a quote became names of other files."""
  ours, gins = bound(text)
  assert ours == gins and ours.strip()


VALUES = st.recursive(
  st.sampled_from(
    [
      '1', '-1', '- 1', '1_0', '0x1F', '1e3', '.5', '1.', 'True', 'None', "''",
      "'a'", '"a"', r"r'\n'", r"'\x41\n'", "'a' 'b'", '"a"  # c\n "b"',
      '\'a\' """b\nc"""', "'a' '''b'''", "'' 'a'", "'a\\\nb'", "'\x0c\x85'",
      "'#'", r"'# \\'", '"""\nSEED = 3\n"""', '%SEED', '%LIMIT', '% SEED', '%',
      '@model.Config()', '@model.Config', '(', ']', '01', '1 1', "b'a'", '1j',
      "u'a'", "f'a'", '-', "-'a'", '\\\n1', '1 \\', '...', 'True False',
    ]
  ),
  lambda inner: st.one_of(
    st.lists(inner, max_size=3).map(lambda xs: f'({", ".join(xs)})'),
    st.lists(inner, max_size=3).map(',\n# c\n '.join).map('[{},]'.format),
    st.tuples(inner, inner).map(lambda kv: f'{{{kv[0]}: {kv[1]}}}'),
  ),
  max_leaves=4,
)  # fmt: skip
LEFT = st.sampled_from(
  'SEED LIMIT KEEP model.Config.d_model optimizer.Config.b2 a/SEED '
  'model.Config trainer.train.model_config atm.model.Config.ties a/'.split()
  + ['model . Config.ties', 'SEED ', '\tSEED', ' SEED']
)
EQUALS = st.sampled_from(['=', ' = ', ' =\\\n ', '==', ':=', ' =\x0c'])
LINES = st.one_of(
  st.tuples(LEFT, EQUALS, VALUES).map(''.join),
  st.tuples(LEFT, VALUES).map(
    lambda pair: '{}:\n  dropout = {}\n  norm = 1'.format(*pair)
  ),
  st.sampled_from(
    [
      *INCLUDES, '# c', '', ' ', '\x0c', '#\\', 'import atm', 'import',
      'include', 'from atm import data', 'import atm as x', ';',
      "include 'sub.gin' 'x'",
      '"""', "include f'sub.gin'", "include 'no.gin'", '\\', '\x0b', '\x1c',
      '\x85', '\u2028', "'", '  SEED = 1', '    LIMIT = 2', '\ufeff',
      'SEED = 1 # \x0b2', 'SEED = 1 # \u2028LIMIT = 1',
    ]
  ),
)  # fmt: skip
ENDS = st.sampled_from(['\n'] * 8 + ['\r\n', '\r', ' \n', '#\n', '\x0c\n', ''])
TEXTS = st.lists(st.tuples(LINES, ENDS).map(''.join), max_size=5).map(''.join)


def test_gin_reads_what_we_read(bound, tmp_path):
  """A text that is taken binds what gin alone binds by it, to the letter."""
  gin_config.apply_config([], [], {'atm_tasks'})  # registers what gin may bind
  took = []

  @settings(max_examples=100, deadline=None, derandomize=True)
  @given(TEXTS)
  @example("MODEL_DIR = '' 'a' ''\n")
  @example("MODEL_DIR = 'a' '''b'''\n")
  def compare(text):
    (tmp_path / 'x.gin').write_bytes(text.encode())
    gin.clear_config()
    try:
      gin_config.apply_config(['x.gin'], [], set())
    except gin_config.UserError as e:
      assert str(e).isprintable() and len(str(e)) < 480
      return
    ours = gin.config_str()
    gin.clear_config()
    # A byte order mark is text to gin.
    (tmp_path / 'x.gin').write_bytes(text.removeprefix('\ufeff').encode())
    gin.parse_config_file('x.gin')
    assert gin.config_str() == ours
    took.append(ours)

  compare()
  assert len(set(took)) > 8


def test_a_comment_may_follow_an_include(bound, tmp_path):
  """Fault seen: gin then looked for the file itself, and found none."""
  (tmp_path / 'x.gin').write_text("include 'models/tiny.gin'  # sizes\n")
  gin_config.apply_config([gin_files.find_file('runs/pretrain.gin'), 'x.gin'],
                 ['MODEL_DIR = "x"'], set())  # fmt: skip
  assert gin.query_parameter('model.Config.d_model')


@pytest.mark.parametrize(
  'text, name, evil',
  [
    ("include 'sub.gin'#'\n", "sub.gin'#", 'import witness\n'),
    ("include 'sub' '.gin'\n", "sub' '.gin", 'import witness\n'),
    ("include 'sub\\x2egin'\n", 'sub\\x2egin', 'import witness\n'),
    (
      'MODEL_DIR = """\ninclude \'a.gin\'\n"""\n',
      'a.gin',
      '"""\nimport witness\nMODEL_DIR = """',
    ),
    ('include """a.gin"""\n', '""a.gin""', 'import witness\n'),
  ],
)
def test_a_file_that_nothing_includes_is_not_read(
  bound, tmp_path, text, name, evil
):
  """Fault seen: gin was given text that had not been checked, and ran it."""
  (tmp_path / 'a.gin').write_text('SEED = 7\n')
  (tmp_path / name).write_text(evil)
  ours, gins = bound(text)
  assert ours == gins and 'witness' not in ours
  assert 'witness' not in sys.modules


@pytest.mark.parametrize('name', ['evil.gin', "sub.gin'#"])
def test_a_program_in_a_file_included_does_not_run(tmp_path, name):
  """Fault seen: with the second name it ran."""
  (tmp_path / 'sub.gin').write_text('SEED = 7\n')
  (tmp_path / name).write_text(
    'from __gin__ import dynamic_registration\nimport os\n'
    'import atm.choosing\nSEED = @os.system()\n'
    "os.system.command = 'touch WITNESS'\n"
  )
  (tmp_path / 'x.gin').write_text(f"include '{name}'\n")
  done = atm(
    'infer', DIR, '--gin.INPUT="none.txt"', '--gin_file=x.gin', cwd=tmp_path
  )
  assert done.returncode == 2
  assert len(done.stderr.splitlines()) == 1
  assert not (tmp_path / 'WITNESS').exists()


@pytest.mark.parametrize(
  'files, message',
  [
    ({'x': "include 'sub.gin'\n\nSEED = 1 2\n"}, './x.gin, line 3: not gin'),
    ({'x': "include 'a.gin'\n", 'a': '\nSEED = 1 2'}, './a.gin, line 2: not'),
    (
      {'x': "include 'a.gin'\n", 'a': 'SEEED = 1'},
      './a.gin, line 1: no setting is c',
    ),
    ({'x': "include 'a.gin' 5\n", 'a': 'SEED = 1'}, './x.gin, line 1: not gin'),
    ({'x': "include b'sub.gin'\n"}, './x.gin, line 1: not gin'),
    ({'x': "include 'x.gin'\n"}, './x.gin includes itself'),
    (
      {'x': "include 'a.gin'\n", 'a': "include './x' '.gin'"},
      '././x.gin includes itself',
    ),
    ({'x': '"""'}, './x.gin: not gin'),
  ],
)
def test_what_is_wrong_in_an_included_file_is_named(bound, files, message):
  for name, text in files.items():
    with open(f'{name}.gin', 'w') as f:
      f.write(text)
  with pytest.raises(gin_config.UserError) as error:
    gin_config.apply_config([gin_files.find_file('x.gin')], [], set())
  assert str(error.value).startswith(message)
  assert '\n' not in str(error.value)


def test_a_module_named_on_the_command_line_may_be_imported(
  tmp_path, monkeypatch
):
  """Also one in the working directory, where `atm` did not look."""
  (tmp_path / 'my_own_tasks.py').write_text('SEEN = True\n')
  (tmp_path / 'my.gin').write_text('import my_own_tasks\n')
  monkeypatch.setattr(sys, 'path', [path for path in sys.path if path])
  monkeypatch.chdir(tmp_path)
  files = [tmp_path / 'my.gin']
  with pytest.raises(gin_config.UserError, match='add --import=my_own_tasks'):
    parse('pretrain', TINY, DIR, files=files)
  parse('pretrain', TINY, DIR, '--import=my_own_tasks', files=files)
  assert sys.modules['my_own_tasks'].SEEN
  with pytest.raises(gin_config.UserError, match="no module 'not_there'"):
    parse('pretrain', TINY, DIR, '--import=not_there')


@pytest.mark.parametrize(
  'binding, message',
  [
    ('files.infer_file.make_mesh=@data.vocab', 'expected @sharding.mesh'),
    ('files.infer_file.make_mesh=@sharding.mesh()', 'expected @sharding.mesh'),
    ('files.infer_file.rules=@data.vocab()', r'expected @sharding.Rules\(\)'),
    ('files.infer_file.rules=None', r'= None: expected @sharding.Rules\(\)'),
    ('model.Config.dtype=@model.Config()', 'may not have this value'),
    ('chat.chat.make_mesh=@no.mesh', "'no.mesh' is nothing gin may bind"),
    ('trainer.train.say=5', 'may not have this value'),
    ('gin.macro.value=5', "'gin.macro' is nothing gin may bind"),
    ('model.Config.d_model=%gin.REQUIRED', 'model.Config.d_model is required'),
  ],
)
def test_references_are_those_of_shipped_files(bound, binding, message):
  """Fault seen: `@data.vocab` for a mesh wrote a vocabulary."""
  with pytest.raises(gin_config.UserError, match=message):
    gin_config.apply_config([], [binding], set())


def test_references_that_may_be_made(bound):
  bindings = (
    'a/choosing.Config.beams=3',
    'infer_file.config=@a/atm.choosing.Config()',
    'trainer.train.make_asker=None',
  )
  gin_config.apply_config([], bindings, set())
  assert gin.get_bindings('files.infer_file')['config'].beams == 3
  assert gin.get_configurable('choosing.Config')().beams == 1


def test_modules_that_are_named_are_trusted(bound, tmp_path):
  """Their functions go anywhere, ours to them only where they do nothing."""
  (tmp_path / 'poems.py').write_text(
    'def poem_mesh(config=None): return config\n'
    'def rules(inner=None, other=None): return inner\n'
    'GIN = poem_mesh, rules\n'
  )
  mine = (
    'poems.poem_mesh.config=@model.Config()',
    'chat.chat.make_mesh=@poems.poem_mesh',
  )
  gin_config.apply_config([], mine, {'poems'})
  assert gin.get_bindings('chat.chat')['make_mesh']().d_model == 4096
  for more, message in (
    (['poems.poem_mesh.config=@data.vocab()'], 'may not have this value'),
    (['poems.rules.inner=@poems.rules()'], 'refers to itself'),
    (
      [
        'poems.rules.inner=@poems.poem_mesh()',
        'poems.poem_mesh.config=@poems.rules()',
      ],
      'refers to itself through',
    ),
  ):
    gin.clear_config()
    with pytest.raises(gin_config.UserError, match=message):
      gin_config.apply_config([], more, {'poems'})
  sys.modules.pop('poems')
  for module in ('.poems', 'a b', '../x'):
    with pytest.raises(gin_config.UserError, match='the name of a module'):
      gin_config.apply_config([], [], {module})


@pytest.mark.parametrize(
  'name, value, safe',
  [
    ('harness.evaluate.include_path', "'folder'", 'None'),
    ('harness.evaluate.tasks', "('a.yaml',)", "('xnli_de',)"),
    ('harness.evaluate.tasks', "'./sub'", "'xnli_de'"),
    ('trainer.train.xla_options', "{'xla_dump_to': 'x'}", "{'xla_a': 'B'}"),
    ('plan.plan.xla_options', "{'xla_gpu_cuda_data_dir': 'x'}", 'None'),
  ],
)
def test_what_only_the_command_line_may_bind(
  bound, tmp_path, name, value, safe
):
  """Fault seen: a gin file named YAML files that name functions to call."""

  def apply(text, *arguments):
    (tmp_path / 'x.gin').write_text(text)
    gin.clear_config()
    gin_config.apply_config(['x.gin'], arguments, set())

  apply(f'{name} = {safe}')
  apply('', f'{name}={value}')
  apply(f'{name} = {value}', f'{name}={safe}')
  apply(f'{name} = %OUTPUT', f'OUTPUT={safe}')
  for text in (f'{name} = {value}', f'OUTPUT = {value}\n{name} = %OUTPUT'):
    with pytest.raises(gin_config.UserError, match='give it as --gin'):
      apply(text)
  with pytest.raises(gin_config.UserError, match='give it as --gin.OUTPUT'):
    apply(f'OUTPUT = {value}', f'{name}=%OUTPUT')


def test_later_bindings_win():
  made = parse('pretrain', TINY, DIR, '--gin.BATCH_SIZE=5')
  assert made.macros['BATCH_SIZE'].value == 5
