import numpy as np
import pytest

from atm import messages


@pytest.mark.parametrize('value', [1, 7, np.int64(3)])
def test_numbers_in_range_pass(value):
  messages.check_number('KEEP', value, least=1, most=7)


@pytest.mark.parametrize(
  'value', [0, 8, True, 1.0, '3', None, [], float('nan'), np.float32(2)]
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
  assert messages.did_you_mean('xyz', ('b', 'a')) == ' Known: a, b.'


def test_long_errors_keep_head_and_tail():
  text = messages.one_line('begin ' + 'x' * 999 + '\n end')
  assert text.startswith('begin') and text.endswith('end') and len(text) < 310
  assert messages.one_line(ValueError()) == 'ValueError'


@pytest.mark.parametrize('seconds, text', [(5, '0:05'), (3661, '1:01:01')])
def test_clock(seconds, text):
  assert messages.clock_text(seconds) == text
