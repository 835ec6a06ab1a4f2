"""Pairs as lines of JSON: their texts, and the languages they are in."""

import json
import re

import pytest

from atm.data.text_lines import BadRecord
from atm_tasks.pretraining import pair_text
from atm_tasks.pretraining.pair_text import PairReader

NLLB = ('eng_Latn', 'tam_Taml', 'deu_Latn', 'zho_Hans')
PAIR = {'input': 'Good.', 'target': 'Gut.'}
EN_DE = {'source_language': 'en', 'target_language': 'German'}
BOTH = {'translation': {'en': 'Good.', 'de': 'Gut.'}}


def line(*rows) -> str:
  return json.dumps({k: v for row in rows for k, v in row.items()})


@pytest.mark.parametrize(
  'reader, rows, direction',
  [
    (PairReader(), [PAIR], None),
    (PairReader(), [PAIR, EN_DE], ('en', 'German')),
    (PairReader(known=NLLB), [PAIR, EN_DE], ('eng_Latn', 'deu_Latn')),
    (PairReader('en', 'ta', NLLB), [PAIR], ('eng_Latn', 'tam_Taml')),
    # A line's own language comes before that of the setting.
    (PairReader('ta', 'de', NLLB), [PAIR, {'source_language': 'eng'}],
     ('eng_Latn', 'deu_Latn')),
    (PairReader('en', 'de'), [BOTH], ('en', 'de')),
    (PairReader('eng_Latn', known=NLLB), [BOTH], ('eng_Latn', 'deu_Latn')),
    (PairReader(target_language='deu'), [BOTH], ('en', 'deu')),
    (PairReader(known=NLLB), [BOTH, EN_DE], ('eng_Latn', 'deu_Latn')),
  ],
)  # fmt: skip
def test_languages_are_of_the_line_or_of_the_settings(reader, rows, direction):
  """All forms of a language become the model's own code of it."""
  assert reader.read(line(*rows)) == ('Good.', 'Gut.', direction)
  text = pair_text.pair_to_text('Good.', 'Gut.', direction or ())
  assert pair_text.text_to_direction(text) == direction
  names = pair_text.PAIR_FIELDS + pair_text.LANGUAGE_FIELDS
  wanted = dict(zip(names, ('Good.', 'Gut.', *(direction or ()))))
  assert pair_text.text_to_pair(text) == wanted


def test_settings_choose_the_direction_of_a_translation():
  many = {'translation': {'en': 'Good.', 'de': 'Gut.', 'ta': 'நல்லது.'}}
  read = PairReader('de', 'ta').read(line(many))
  assert read == ('Gut.', 'நல்லது.', ('de', 'ta'))
  # A pair may have a field of that name that holds something else.
  read = PairReader().read(line(PAIR, {'translation': 'machine'}))
  assert read == ('Good.', 'Gut.', None)


@pytest.mark.parametrize(
  'reader, rows, message',
  [
    (PairReader(), [{'input': 'x'}], 'a string `input` and `target`'),
    (PairReader(required=True), [PAIR],
     'an object with `source_language` and `target_language`, or '
     'SOURCE_LANGUAGE and TARGET_LANGUAGE for all'),
    (PairReader('en'), [PAIR],
     'an object with `target_language`, or TARGET_LANGUAGE for all'),
    (PairReader(), [PAIR, {'source_language': 7}], 'a text in `source_langu'),
    (PairReader(), [PAIR, {'source_language': ' '}], 'a text in `source_langu'),
    (PairReader('en', 'Tamli', NLLB), [PAIR], "target_language = 'Tamli': .*"
     "Did you mean 'tam_Taml' .Tamil.?"),
    (PairReader('en', 'fr', NLLB), [PAIR], 'French is no language of this'),
    (PairReader(), [BOTH], '`source_language` and `target_language`'),
    (PairReader('en', 'ta'), [BOTH], "a translation with 'ta'; got .'en"),
    (PairReader('en', 'de'), [{'translation': {'en': 'x', 'de': None}}],
     "a text in 'de'; got None"),
  ],
)  # fmt: skip
def test_what_a_line_lacks_is_told(reader, rows, message):
  with pytest.raises(BadRecord) as error:
    reader.read(line(*rows))
  assert re.search(message, str(error.value)) and len(str(error.value)) < 450


def test_pairs_of_ids_are_ids_as_given():
  """Faults: ids that are encoded as a text of digits; True as the id 1."""
  line = '{"input_ids": [17, 5], "target_ids": [9], "source_language": null}'
  assert PairReader().read(line) == ([17, 5], [9], None)
  for wrong in '[1, true]', '[-1]', '"17 5"', '[[1]]', '[1.5]':
    with pytest.raises(BadRecord, match='token ids in `target_ids`'):
      PairReader().read(f'{{"input_ids": [1], "target_ids": {wrong}}}')
