"""Sentences, in the languages of the paper.

Faults seen: each terminator but . ! ? 。 left out in turn, as were « as
closing, the French space before » (or any » after a space taken as closing),
giving it back, ؟! in one; capitals not spared, É not, AB. spared; one space
only, none needed; blank lines and leading spaces apart; the last sentence lost
or counted twice; an empty sentence.
"""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atm.data.languages import LANGUAGE_CODES
from atm.data.sentences import (
  count_sentences,
  drop_partial_sentence,
  split_sentences,
)

UDHR = os.path.join(os.path.dirname(__file__), '../../tasks/udhr')
# What decides, among anything else that Unicode has.
MARKED = ' \n\t\u00a0.!?…。！？｡।॥؟۔,;:"\'”»«›)]」』AÉ5aéßΣİ人がक़ाரா'
TEXT = st.text(st.sampled_from(MARKED) | st.characters(), max_size=40)
MANY = settings(max_examples=1000)


def shipped(language):
  with open(f'{UDHR}/{language}.tsv', encoding='utf-8') as f:
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
  assert split_sentences(space.join(found)) == expected
  assert split_sentences('\n'.join(found)) == [t + '\n' for t in others] + [
    last
  ]


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
  assert split_sentences(marked.replace('|', '')) == expected


@given(TEXT)
@MANY
def test_sentences_are_the_text(text):
  found = split_sentences(text)
  assert ''.join(found) == text
  assert all(s for s in found)
  assert count_sentences(text) == (len(found) if text.strip() else 0)
  for sentence in found[1:]:
    assert not sentence[0].isspace()


@pytest.mark.parametrize(
  'whole, rest',
  [
    ('Er sagte: „Ja.“', ' Das kost'),
    ('« Oui ! »', ' Il pa'),
    ('«Bien.»', ' Dijo 3.1'),
    ('《热。》', '下'),
    ('熱い!', '氷は'),  # NFKC's ！ needs no space
    ('It is. ', ''),
    ('One. Two.', ' É. Zola a'),
  ],
)
def test_a_partial_sentence_is_dropped(whole, rest):
  """Faults seen: the space behind a sentence kept; ! needs a space; „Ja.“ and
  « Oui ! » cut before what closes them."""
  assert drop_partial_sentence(whole + rest) == whole.rstrip()
  assert drop_partial_sentence('no end at 3.14') == 'no end at 3.14'
