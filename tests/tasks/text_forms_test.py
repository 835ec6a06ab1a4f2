"""Spoken form and sentences, in the languages of the paper.

Faults seen: symbols or marks removed, only Po removed, no lower case, casefold
for it, spaces left or lost, surrogates lost; each terminator but . ! ? 。 left
out in turn, as were « as closing, the French space before » (or any » after a
space taken as closing), giving it back, ؟! in one; capitals not spared, É not,
AB. spared; one space only, none needed; blank lines and leading spaces apart;
the last sentence lost or counted twice; an empty sentence.
"""

import os
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atm.data.languages import LANGUAGE_CODES
from atm_tasks.pretraining import tasks
from atm_tasks.pretraining.text_forms import count_sentences, sentences, spoken

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


def shipped(language):
  folder = os.path.join(os.path.dirname(tasks.__file__), '..')
  path = os.path.join(folder, 'udhr', f'{language}.tsv')
  with open(path, encoding='utf-8') as f:
    return [line.rstrip('\n').split('\t')[1] for line in f]


ENDS = {'hi': '।', 'ja': '。', 'mr': '.'}


@pytest.mark.parametrize('language', LANGUAGE_CODES)
def test_sentences_of_the_shipped_text(language):
  """Paragraphs of one sentence, one after the other."""
  end = ENDS.get(language, '.')
  found = [t for t in shipped(language) if t.endswith(end)]
  found = [t for t in found if not any(c in t[:-1] for c in '.!?…。！？।॥؟۔')]
  assert len(found) >= 8 and all(count_sentences(t) == 1 for t in found)
  space = '' if language == 'ja' else ' '
  *others, last = found
  expected = [t + space for t in others] + [last]
  assert sentences(space.join(found)) == expected
  assert sentences('\n'.join(found)) == [t + '\n' for t in others] + [last]


# One sentence ends at each bar.
SPLIT = {
  'ar': 'هل ذهب؟! |نعم. |قال: «لا!» |حقا؟؟ |وذهب۔|نعم|',
  'de': 'Er sagte: „Ja.“ |»Nein!« |»Ach so …« |Das kostet 3.50 Euro. |',
  'en': 'She said "No." |(He left!) |What?! |In 1948. |See a.b or x!y. |',
  'es': '¿Qué? |¡Sí! |«Bien.» |Dijo… |y se fue. |',
  'fr': '« Oui ! » |Il part. |« Non. », dit-elle. |Quoi\u00a0? |(« Si. ») |',
  'hi': 'वह गया। |कब? |क्यों ?! |"यहाँ।" |श्लोक॥|अंत|',
  'it': "Disse: «Sì.» |L'altro? |Perché... |È così. |",
  'ja': '「はい。」|と言った。|本当？！|ええ！！|(です。)|Ver. |3.5です｡|終|',
  'mr': 'तो गेला. |कधी? |"इथे." |हो!|',
  'pt': 'Ele disse: “Não.” |Por quê? |Está lá!’ |Fim|',
  'ta': 'அவன் போனான். |எப்போது? |“இங்கே.” |சரி!|',
  'te': 'అతను వెళ్ళాడు. |ఎప్పుడు? |“ఇక్కడ.” |సరే!|',
}


@pytest.mark.parametrize(
  'marked',
  [
    *SPLIT.values(),
    # No list of abbreviations; single capitals only.
    'J. R. Smith of U.S. law and É. Zola. |',
    'Dr. |Smith, etc. |on 3. |Oktober. |',
    'Plan AB. |Plan 9. |Vitamin C. It helps. |',
    'Why?? |No... |Yes!!! |',
    '  A first. |Then.\t\n |More\n|',
    'one\n\n |two\r\n|three|',
    'Tk. |»[incr]« is it. |»C« too. |',
    '. |. |x|',
  ],
)
def test_sentences_end(marked):
  expected = marked.split('|')[:-1]
  assert sentences(marked.replace('|', '')) == expected


@given(TEXT)
@MANY
def test_sentences_are_the_text(text):
  found = sentences(text)
  assert ''.join(found) == text
  assert all(s for s in found)
  assert count_sentences(text) == (len(found) if text.strip() else 0)
  for sentence in found[1:]:
    assert not sentence[0].isspace()
