"""Spoken form, in the languages of the paper.

Faults seen: symbols or marks removed, only Po removed, no lower case, casefold
for it, spaces left or lost, surrogates lost.
"""

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atm_tasks.pretraining.text_forms import spoken

# What decides, among anything else that Unicode has.
MARKED = ' \n\t\u00a0.!?…。！？｡।॥؟۔,;:"\'”»«›)]」』AÉ5aéßΣİ人がक़ाரா'
TEXT = st.text(st.sampled_from(MARKED) | st.characters(), max_size=40)
MANY = settings(max_examples=1000)


def kind(character):
  return unicodedata.category(character)


@pytest.mark.parametrize(
  'written, expected',
  [
    ('Hello, World!', 'hello world'),
    ("It's 3.5 -- or so?", 'it s 3 5 or so'),
    ('¿Qué? «Sí»', 'qué sí'),
    ('«L’été», dit-il.', 'l été dit il'),
    ('सभी मनुष्यों को, गौरव।', 'सभी मनुष्यों को गौरव'),
    ('क़ानून (विधि) १९४८॥', 'क़ानून विधि १९४८'),
    ('சுதந்திரம், நீதி.', 'சுதந்திரம் நீதி'),
    ('స్వాతంత్ర్య, న్యాయ.', 'స్వాతంత్ర్య న్యాయ'),
    ('لمّا كان، الحرّية؛ أليس؟', 'لمّا كان الحرّية أليس'),
    ('すべての人間は、自由。', 'すべての人間は 自由'),
    ('「コーヒー・ガール」', 'コーヒー ガール'),
    ('ÜBER Straße', 'über straße'),
    ('$5 + 5% <b>', '$5 + 5 <b>'),
    ('𝐀 ℝ', '𝐀 ℝ'),
    ('...', ''),
    ('', ''),
  ],
)
def test_spoken_form(written, expected):
  assert spoken(written) == expected
  assert spoken(spoken(written)) == spoken(written)


@given(TEXT)
@MANY
def test_spoken_form_loses_nothing_else(text):
  """Letters, vowel signs, digits, symbols: all but P* and spaces are there."""
  kept = [c for c in text.lower() if kind(c)[0] != 'P' and not c.isspace()]
  made = spoken(text)
  assert list(made.replace(' ', '')) == kept
  assert spoken(made) == made
  words = ''.join(' ' if kind(c)[0] == 'P' else c for c in text.lower()).split()
  assert made.split(' ') == (words or [''])


def test_every_character_has_a_spoken_form():
  for character in map(chr, range(sys.maxunicode + 1)):
    if kind(character) not in ('Cn', 'Co'):
      made = spoken(character)
      assert made == made.lower() == spoken(made)
      assert not any(kind(c)[0] == 'P' or c.isspace() for c in made)
      assert bool(made) != (kind(character)[0] == 'P' or character.isspace())
