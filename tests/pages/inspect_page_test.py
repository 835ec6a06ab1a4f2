"""The page of the data: marks, directions, and examples in their columns."""

import types

import pytest

from atm.data import inspection
from atm.pages import inspect_page

from synthetic import EVIL, draw_macro


@pytest.mark.parametrize(
  'text, mark',
  [
    ('Debian نظام تشغيل حر', '\u200f'),
    ('نظام is a word of Arabic', '\u200e'),
    ('1234', '\u200e'),
  ],
)
def test_most_letters_decide_the_direction(text, mark):
  runs = [
    inspection.TextRun('<extra_id>' * 9, inspection.READ, True),
    inspection.TextRun(text, inspection.READ),
  ]
  drawn = draw_macro('cards', 'marked_text(runs)', runs=runs)
  assert drawn.text == mark + '<extra_id>' * 9 + text


def test_dropped_and_written_runs_are_marked_and_escaped():
  runs = [
    inspection.TextRun(f'a {EVIL}', inspection.READ),
    inspection.TextRun(EVIL, inspection.DROPPED),
    inspection.TextRun('[DOC]', inspection.DROPPED, True),
    inspection.TextRun(' b', inspection.WRITTEN),
  ]
  drawn = draw_macro('cards', 'marked_text(runs)', runs=runs)
  assert [tag for tag, _ in drawn.elements] == ['del', 'del', 'bdi', 'ins']
  assert drawn.text == f'\u200ea {EVIL}{EVIL}[DOC] b'


def example(source, form, objective):
  part = types.SimpleNamespace(
    source=source, form=form, language='all', name='task', rows=range(9),
    objective=types.SimpleNamespace(name=objective),
  )  # fmt: skip
  runs = [inspection.TextRun('x', inspection.READ)]
  blocks = [('input', runs), ('input', runs), ('target', runs)]
  return inspection.InspectedExample(part, 7, 0, 3, blocks)


def test_examples_stand_by_form_in_a_column_for_each_objective():
  some = [
    example('web', form, objective)
    for form, objective in (
      ('spoken', 'clm'), ('', 'denoise'), ('spoken', 'denoise'), ('', 'denoise')
    )
  ]  # fmt: skip
  assert inspect_page._columns(some) == {
    'web spoken': {'clm': [some[0]], 'denoise': [some[2]]},
    'web': {'denoise': [some[1], some[3]]},
  }


def test_a_block_is_titled_where_the_one_before_is_not():
  """Pairs are of no language: their texts have an empty one."""
  drawn = draw_macro(
    'cards', 'example_card(each)', each=example('a', '', 'clm')
  )
  assert [tag for tag, _ in drawn.elements].count('h5') == 2
  texts = [a for tag, a in drawn.elements if tag == 'p']
  assert len(texts) == 3 and all(a['lang'] == '' for a in texts)
