"""A configuration is read once; macros are known, bound and finite."""

import pytest

from atm.cli import gin_reader
from atm.cli.gin_text import UserError


@pytest.fixture
def read(tmp_path, monkeypatch):
  """Returns read(text, *arguments): the configuration of a file, checked."""
  monkeypatch.chdir(tmp_path)

  def call(text, *arguments, **others):
    for name, content in {'x': text, **others}.items():
      (tmp_path / f'{name}.gin').write_text(content)
    made = gin_reader.read_configuration(['x.gin'], arguments)
    gin_reader.check_imports(made, {'mine'})
    gin_reader.check_macros(made)
    return made

  return call


def test_later_bindings_win_wherever_they_are(read):
  made = read(
    "SEED = 1\ninclude 'a.gin'\nKEEP = 1\n", 'LIMIT = 4',
    a='SEED = 2\nKEEP = 2\nLIMIT = 2\n',
  )  # fmt: skip
  assert {k: b.value for k, b in made.macros.items()} == {
    'SEED': 2, 'KEEP': 1, 'LIMIT': 4,
  }  # fmt: skip
  assert [b.where for b in made.bindings][1::3] == [
    './a.gin, line 1',
    'x.gin, line 3',
  ]
  assert [b.is_trusted for b in made.bindings] == [False] * 5 + [True]


def test_a_file_may_be_included_twice(read):
  assert len(read("include 'a.gin'\n" * 3, a='SEED = 1\n').bindings) == 3


def test_what_a_circle_goes_through_is_named(read):
  with pytest.raises(UserError, match='line 1: SEED refers to itself$'):
    read('SEED = [%SEED]')
  with pytest.raises(UserError, match='refers to itself through KEEP'):
    read('SEED = %KEEP\nKEEP = %SEED\n')
  read('SEED = %SEED\n', 'SEED = 1')  # what wins is finite


def test_macros_are_counted_as_gin_writes_them_out(read):
  tens = '\n'.join(f'A{i} = ({f"%A{i + 1}," * 10})' for i in range(3))
  read(f'{tens}\nA3 = 1\nSEED = %A0')  # some 4,500 values
  with pytest.raises(UserError, match='values'):
    read(f'{tens}\nA3 = ({"1," * 100})\nSEED = %A0')
  chain = '\n'.join(f'A{i} = %A{i + 1}' for i in range(40))
  with pytest.raises(UserError, match='nested'):
    read(f'SEED = %A0\nA40 = 1\n{chain}')


def test_a_sum_of_settings_is_bounded_too(read):
  """Fault seen: each within its bound, a thousand of them."""
  wide = f'SKIP_STEPS = ({"1," * 3000})\n'
  settings = '\n'.join(f'model.Config.a{i} = %SKIP_STEPS' for i in range(30))
  with pytest.raises(UserError, match='expected at most 50,000'):
    read(wide + settings)


def test_what_is_required(read):
  for text in ('SEED = %gin.REQUIRED', 'SEED = %REQUIRED', 'LIMIT = %SEED'):
    with pytest.raises(UserError, match='SEED is required: add --gin.SEED='):
      read(text)
    read(text, 'SEED = 1')


@pytest.mark.parametrize('text, message', [
  ('import os', "x.gin, line 1: import of 'os' is refused"),
  ('from __gin__ import dynamic_registration', 'dynamic registration'),
  ('SEEED = 1', "no setting is called 'SEEED'. Did you mean 'SEED'"),
  ('SEED = @model.Config()', 'only be the whole value of a parameter'),
  ('a.b = [@model.Config]', 'only be the whole value of a parameter'),
  ('a.b = (%gin.REQUIRED,)', 'REQUIRED is no part of a value'),
  ('s/a.b = 1', "no reference opens the scope 's'"),
  ('s/a.b = 1\na.c = @st/d', "no reference opens the scope 's'"),
])  # fmt: skip
def test_what_is_refused(read, text, message):
  with pytest.raises(UserError, match=message):
    read(text)


def test_scopes_that_references_open(read):
  read('s/a.b = 1\ns/t/a.b = 1\na.c = @s/t/d()\n')
  read('s/SEED = 1\nLIMIT = %s/SEED\n')


def test_imports_that_are_named_or_ours(read):
  made = read('import atm_tasks\nfrom atm import data as x\nimport mine\n')
  assert [s.module for s, _ in made.imports] == [
    'atm_tasks',
    'atm.data',
    'mine',
  ]


def test_shipped_files_are_read_once(monkeypatch):
  names = {b.name for b in gin_reader.shipped_bindings()}
  assert {'SEED', 'model.Config.d_model', 'trainer.train.seed'} - names == {
    'model.Config.d_model'
  }
  assert gin_reader.shipped_bindings() is gin_reader.shipped_bindings()
