import dataclasses
import functools
import inspect
import os
import pathlib
from typing import ClassVar

import numpy as np
import pytest

from atm import messages


@pytest.mark.parametrize('value', [1, 7, np.int64(3)])
def test_numbers_in_range_pass(value):
  messages.check_number('KEEP', value, least=1, most=7)


@pytest.mark.parametrize(
  'value', [0, 8, True, 1.5, '3', None, [], float('nan'), np.float32(2.5)]
)
def test_other_values_are_refused_by_name(value):
  with pytest.raises(ValueError, match='KEEP = .*a whole number from 1 to 7'):
    messages.check_number('KEEP', value, least=1, most=7)


def test_none_and_fractions_where_they_are_meant():
  messages.check_number('RATE', None, optional=True)
  messages.check_number('RATE', 0.5, least=0, whole=False)
  for value in (-0.5, float('inf'), float('nan')):
    with pytest.raises(ValueError, match='a number of at least 0, or None'):
      messages.check_number('RATE', value, 0, whole=False, optional=True)


def test_the_nearest_name_or_all():
  assert messages.did_you_mean('tnsor', ('tensor', 'data')).endswith(
    "'tensor'?"
  )
  assert messages.find_nearest(
    'train_steps', ('STEPS', 'TRAIN_STEPS', 'a')
  ) == ('TRAIN_STEPS')
  assert messages.find_nearest('x', ('abc',)) is None
  assert messages.did_you_mean('xyz', ('b', 'a')) == ' Known: a, b.'
  many = messages.did_you_mean('xyz', [f'layers.{i}' for i in range(999)])
  assert many.endswith(' ... (999 names).') and len(many) < 350


def test_a_missing_extra_names_our_distribution():
  assert messages.missing_extra('BLEU needs sacrebleu', 'eval') == (
    "BLEU needs sacrebleu: pip install 'atm-jax[eval]'"
  )


def test_long_errors_keep_head_and_tail():
  text = messages.one_line('begin ' + 'x' * 999 + '\n end')
  assert text.startswith('begin') and text.endswith('end') and len(text) < 310
  assert messages.one_line(ValueError()) == 'ValueError'


@pytest.mark.parametrize('seconds, text', [(5, '0:05'), (3661, '1:01:01')])
def test_clock(seconds, text):
  assert messages.clock_text(seconds) == text


def test_checks_return_what_is_to_be_used():
  """Faults seen: 8.0 stays a float, numpy's numbers stay numpy's."""
  for value in (8, 8.0, np.int64(8), np.float32(8)):
    used = messages.check_number('KEEP', value, 1)
    assert used == 8 and type(used) is int
  assert type(messages.check_number('RATE', np.float32(0.5), whole=False)) is (
    float
  )
  assert messages.check_number('SEED', 2**70) == 2**70
  assert messages.check_flag('X', np.bool_(True)) is True
  assert messages.check_texts('STOP', ['a', np.str_('b')]) == ('a', 'b')
  home = os.path.expanduser('~')
  assert messages.check_path('DIR', '~/runs') == f'{home}/runs'
  assert messages.check_path('DIR', pathlib.Path('a/b')) == 'a/b'


@pytest.mark.parametrize(
  'check, wrong',
  [
    (messages.check_flag, (0, 1, 'True', None)),
    (messages.check_text, (None, 5, b'x', '\ud83d', ['x'])),
    (messages.check_path, (None, '', 5, b'x', 'a\0b', '\udcff')),
    (messages.check_texts, (None, 'abc', b'x', [b'x'], [1], {'x'}, iter(''))),
    (messages.check_number, ('1', b'1', [1], None, True, float('inf'), 1.5)),
  ],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(check, wrong):
  for value in wrong:
    with pytest.raises(ValueError, match=r'^NAME'):
      check('NAME', value)


def test_messages_stay_short_and_printable():
  for value in ('x' * 10**6, 10**5000, '\ud83d' * 9, [b'\xff'] * 999):
    assert len(messages.quote(value)) <= 83
    messages.quote(value).encode()
  assert messages.quote(np.eye(2)) == 'array([[1., 0.],        [0., 1.]])'
  with pytest.raises(ValueError) as e:
    messages.check_number('SEED', 10**5000, 0, 9)
  assert len(str(e.value)) < 300


def test_bounds_that_are_not_included():
  check = functools.partial(
    messages.check_number, 'P', above=0, below=1, whole=False
  )
  assert check(0.5) == 0.5
  for value in (0, 1, 10**400):
    with pytest.raises(ValueError, match='a number above 0 and below 1$'):
      check(value)


def test_what_is_checked_is_what_is_used():
  """Of a frozen dataclass and of a function, which keeps its signature."""
  check = functools.partial(messages.check_number, 'SIZE', least=1)

  @dataclasses.dataclass(frozen=True)
  class Settings:
    size: int
    flag: bool = False
    checks: ClassVar[dict] = {'size': check}

    def __post_init__(self):
      messages.check_fields(self)

  @messages.check_arguments(size=check)
  def double(size: int = 3):
    return repr(2 * size)

  assert repr(Settings(8.0).size) == '8' and double(8.0) == '16'
  assert double() == '6' and inspect.getfullargspec(double).args == ['size']
  for call in (Settings, double):
    with pytest.raises(ValueError, match='SIZE = 0: expected a whole number'):
      call(size=0)
  with pytest.raises(ValueError, match='FLAG = 1: expected True or False'):
    Settings(1, flag=1)
