"""Modes and languages of models: what stands around a text's ids."""

import types

import pytest

from atm.data.input_format import InputFormat
from atm.inference.framing import Framing
from atm.model.config import ModelConfig
from tests.model_languages import FAMILIES, MBART50, NLLB

CONFIG = ModelConfig(vocab_size=1000, positions=16, start_id=2, end_id=2)
X = [50, 51, 52]


def make_framing(name: str, config=CONFIG, **changes) -> Framing:
  """Returns the framing of a model with languages from id 700 on."""
  family = FAMILIES.get(name.removesuffix('_legacy'), ())
  languages = {code: 700 + i for i, code in enumerate(family)}
  format = InputFormat(name, eos_id=2, bos_id=0, languages=languages, **changes)
  encode = lambda text: [50 + len(word) for word in text.split()]
  vocabulary = types.SimpleNamespace(input_format=format, encode=encode)
  return Framing(config, vocabulary)


@pytest.mark.parametrize(
  'name, read, start, written',
  [
    ('mbart', [*X, 2, 702], [703], [*X, 2, 703]),
    ('mbart50', [702, *X, 2], [2, 703], [703, *X, 2]),
    ('nllb_legacy', [*X, 2, 702], [2, 703], [703, *X, 2]),
  ],
)
def test_languages_stand_where_a_model_was_trained_to_see_them(
  name, read, start, written
):
  framing = make_framing(name)
  source, target = framing.known_languages[2:4]
  assert framing.frame(X, source=source) == read
  assert framing.start(target=target) == start
  assert framing.label(X, target=target) == written
  assert framing.count_forced(target=target) == len(start) - 1
  assert framing.count_room() == 14
  text = 'a bb ccc'
  both = [framing.encode(text, source=x) for x in (source, target)]
  assert framing.frame_all([text, text], None, [source, target]) == both
  (given,) = framing.prefixes([text], 1, None, [target])
  assert given == [*start, 51, 52, 53]


@pytest.mark.parametrize('name', ['mbart', 'mbart50', 'nllb', 'nllb_legacy'])
@pytest.mark.parametrize('side', ['start', 'end'])
def test_languages_stay_where_texts_are_cut(name, side):
  """Faults seen: the language behind `</s>` cut; that of a target."""
  framing = make_framing(name)
  code = framing.known_languages[1]
  body = [*range(100, 130)]
  whole = framing.frame(body, source=code)
  (row,), (cut,) = framing.fit([whole], side)
  kept = body[-14:] if side == 'start' else body[:14]
  assert row == framing.frame(kept, source=code) and cut == 16
  (row,), _ = framing.fit([framing.label(body, target=code)], side, 'target')
  ends = [701, 2] if name != 'mbart' else [2, 701]
  if name == 'mbart':
    assert row == (body + ends)[-16:] if side == 'start' else body[:16]
  else:
    left = [*body, 2][-15:] if side == 'start' else body[:15]
    assert row == [701, *left]


def test_a_default_stands_where_no_language_is_named():
  config = ModelConfig(vocab_size=1000, positions=16, start_id=2, end_id=2)
  framing = make_framing('nllb', config, source='eng_Latn', target='deu_Latn')
  codes = framing.format.languages
  assert framing.frame(X)[0] == codes['eng_Latn']
  assert framing.start() == [2, codes['deu_Latn']]
  assert framing.label(X)[0] == codes['deu_Latn']
  framing.check_named([None], [None])
  same = framing.describe_languages(['deu_Latn'], [None])
  assert same == 'deu_Latn (German) to deu_Latn (German)'
  text = framing.describe_languages([None], ['zho_Hant'])
  assert text == 'eng_Latn (English) to zho_Hant (Chinese (Traditional))'
  pairs = [None, 'fra_Latn'], [None, None]
  assert framing.describe_languages(*pairs) == '2 pairs of languages'


def test_texts_of_a_model_with_languages_name_them():
  framing = make_framing('mbart50')
  for call, name in (
    (lambda: framing.frame(X), 'source'),
    (lambda: framing.label(X), 'target'),
    (lambda: framing.frame_all(['a']), 'source'),
    (lambda: framing.frame_targets(['a']), 'target'),
    (lambda: framing.check_named([None], [None]), 'source and target'),
    (lambda: framing.check_named(['de_DE', None], ['de_DE'], 'AB'), 'A'),
  ):
    with pytest.raises(
      ValueError, match=f'^{name} = None: this model reads'
    ) as e:
      call()
    assert 'ar_AR, ' in str(e.value) and 'model.languages' in str(e.value)
    assert len(str(e.value)) < 500
  # Ids are framed by whoever gives them.
  assert framing.frame_all([[1, 5]]) == [[1, 5]]
  assert framing.prefixes(None, 1) == [[2]]


def test_languages_are_found_for_all_or_for_each():
  find = make_framing('nllb').find_languages
  assert find('x', 'de', 2) == ['deu_Latn'] * 2
  assert find('x', ['zh', None], 2) == ['zho_Hans', None]
  assert find('x', None, 3) == [None] * 3
  for given, message in (
    (['de'], 'x has 1 languages: expected 2'),
    (['de', 3], r'x\[1\] = 3: expected a text'),
    (3, 'x = 3: expected a text'),
    ('', "x = '': expected a text that is not empty"),
    ('Germn', r"Did you mean 'deu_Latn' \(German\)"),
    ({'de'}, 'expected a text'),
  ):
    with pytest.raises(ValueError, match=message):
      find('x', given, 2)


def test_modes_are_named():
  """Fault seen: 'denoise' of a model that was never trained so."""
  assert make_framing('nllb').name_mode(None) == 'nllb'
  assert make_framing('plain').name_mode('plain') == 'plain'
  assert make_framing('alexatm').name_mode(None) == 'denoise'
  assert make_framing('alexatm').name_mode('denoise') == 'denoise'
  assert make_framing('alexatm', clm_id=3).name_mode(None) == 'clm'
  assert Framing(CONFIG, None).name_mode(None) == 'clm'
  marked = make_framing('mbart50', clm_id=3)
  assert marked.name_mode(None) == 'clm'
  assert marked.name_mode(None, named=True) == 'mbart50'
  assert marked.frame(X) == [0, 3, *X, 2]
  assert marked.frame(X, source=MBART50[0]) == [700, *X, 2]
  assert marked.start() == [2] and marked.start(target=MBART50[1]) == [2, 701]
  assert marked.label(X) == [*X, 2]
  for name, mode, named, message in (
    ('nllb', 'clm', False, r'no \[CLM\].*leave it out'),
    ('nllb', 'denoise', False, r'no \[CLM\]'),
    ('plain', 'denoise', False, r'no \[CLM\]'),
    ('alexatm', 'clm', False, r'no \[CLM\]'),
    ('plain', 'cml', False, "Did you mean 'clm'"),
    ('plain', 'nllb', False, "mode = 'nllb'"),
    ('plain', 3, False, 'mode = 3'),
  ):
    with pytest.raises(ValueError, match=message):
      make_framing(name).name_mode(mode, named)
  with pytest.raises(ValueError, match='reads no languages'):
    marked.name_mode('denoise', named=True)


@pytest.mark.parametrize('name', ['plain', 'alexatm'])
def test_a_model_without_languages_refuses_them(name):
  framing = make_framing(name)
  assert (
    framing.known_languages == () and framing.describe_languages([], []) == ''
  )
  assert framing.start() == [2] and framing.count_forced() == 0
  assert framing.frame(X)[-1] == 2
  with pytest.raises(
    ValueError, match="L = 'de': this model has no language c"
  ):
    framing.find_languages('L', 'de', 1)
  framing.check_named([None], [None])


def test_every_language_of_nllb_has_its_id():
  framing = make_framing('nllb')
  for i, code in enumerate(NLLB):
    assert framing.frame(X, source=code) == [700 + i, *X, 2]


def test_a_language_counts_as_written_where_it_begins_an_output():
  """As in transformers, which writes it; not in front of a user's prefix."""
  framing = make_framing('mbart50')
  target = framing.known_languages[3]
  targets = [target, target, None]
  prefixes = framing.prefixes([[], [9], [9]], 3, None, targets)
  assert prefixes == [[2, 703], [2, 703, 9], [2, 9]]
  assert framing.list_forced(prefixes, None, targets) == [1, 0, 0]
  framing = make_framing('mbart')
  prefixes = framing.prefixes(None, 1, None, [target])
  assert framing.list_forced(prefixes, None, [target]) == [0]
