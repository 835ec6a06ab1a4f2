"""Tokenizers of public models give transformers' ids, and its texts."""

import functools
import hashlib
import json
import os
import random

import pytest

from atm.data import hf_tokenizer
from atm.data.vocabulary import copy_vocabulary, has_vocabulary, open_vocabulary
from atm.inference import stop_strings
from tests.public_folders import GOLDEN, MODEL_TYPES, NAMES, copy_folder


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
  """Returns a function: name in tokens.json -> its tokenizer."""

  @functools.cache
  def open_named(name: str) -> hf_tokenizer.HFTokenizer:
    folder, _, clean_up = name.partition('+')
    place = tmp_path_factory.mktemp(folder)
    settings = {'clean_up_tokenization_spaces': True} if clean_up else {}
    return open_vocabulary(copy_folder(folder, place, **settings))

  return open_named


@functools.cache
def tokens() -> dict:
  with open(os.path.join(GOLDEN, 'tokens.json'), encoding='utf-8') as f:
    return json.load(f)


def digest(value) -> str:
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


@pytest.mark.parametrize('name', tokens()['folders'])
def test_ids_and_texts_are_those_of_transformers(name, opened):
  """80 languages; special tokens, spaces, emoji, NUL; random ids."""
  vocabulary, golden = opened(name), tokens()['folders'][name]
  same = lambda value, want: value == want or digest(value) == want
  for text, ids, decoded in zip(
    tokens()['hard'], golden['hard'], golden['hard_texts']
  ):
    mine = vocabulary.encode(text)
    assert same(mine, ids), (text, mine, ids)
    assert same(vocabulary.decode(mine), decoded), (text, decoded)
  for locale, text in tokens()['locales'].items():
    mine = vocabulary.encode(text)
    assert digest(mine) == golden['locales'][locale], locale
    assert digest(vocabulary.decode(mine)) == golden['locale_texts'][locale]
  for ids, text in zip(golden['random'], golden['random_texts']):
    assert vocabulary.decode(ids) == text
  assert [x.tolist() for x in vocabulary.encode_batch(['a b', ''])] == [
    vocabulary.encode('a b'), [],
  ]  # fmt: skip


@pytest.mark.parametrize('name', NAMES)
def test_a_kept_tokenizer_is_the_same(name, opened, tmp_path):
  """Kept beside a model it needs no other file of the folder."""
  first = opened(name)
  folder = str(tmp_path / 'vocabulary')
  assert not has_vocabulary(folder)
  kept = copy_vocabulary(first, folder)
  assert has_vocabulary(folder)
  assert kept.sha256 == first.sha256 and kept.files == first.files
  assert {*os.listdir(folder)} == {*kept.files}
  assert kept.input_format == first.input_format
  assert kept.special_ids() == first.special_ids()
  for text in tokens()['hard']:
    assert kept.encode(text) == first.encode(text)
  assert copy_vocabulary(first, folder).sha256 == first.sha256
  other = opened('pegasus' if name != 'pegasus' else 'nllb')
  with pytest.raises(ValueError, match='another vocabulary'):
    copy_vocabulary(other, folder)


def draw_rows(vocabulary, count: int = 60) -> list[list[int]]:
  """Returns rows of random ids, special ones and bytes often."""
  draw = random.Random(1)
  marked = [
    *range(8),
    *vocabulary.encode('\U0001f600\u4e01 a'),
    vocabulary.eos_id,
  ]
  pick = lambda: draw.choice([draw.randrange(vocabulary.size), *marked[:2]])
  special = lambda: draw.choice(marked)
  return [
    [draw.choice([pick, special])() for _ in range(draw.randrange(1, 14))]
    for _ in range(count)
  ]


@pytest.mark.parametrize(
  'name', [*NAMES, 'mbart25+clean_up', 'm2m_100+clean_up']
)
def test_parts_of_a_text_join_to_it(name, opened):
  vocabulary = opened(name)
  for row in draw_rows(vocabulary):
    text = vocabulary.decode(row)
    surfaces = vocabulary.surfaces(row)
    assert len(surfaces) == len(row) and ''.join(surfaces) == text
    assert vocabulary.decode_any([*row, vocabulary.size + 3]) == text
    for at in range(len(row)):
      assert ''.join(vocabulary.decode_parts(row[:at], row[at:])) == text
    for i, surface in zip(row, surfaces):
      assert not (surface and vocabulary.is_special(i))


@pytest.mark.parametrize('name', [*NAMES, 'mbart25+clean_up'])
def test_streams_show_the_whole_text_in_pieces(name, opened):
  """Half a character, and what the clean-up may change, are held back."""
  vocabulary = opened(name)
  hold = vocabulary.revised
  for row in draw_rows(vocabulary):
    shown = [*stop_strings.stream_text(row, vocabulary.decode_any, (), hold)]
    assert ''.join(shown) == vocabulary.decode(row)


@pytest.mark.parametrize('name', NAMES)
def test_spelling_is_what_ids_add(name, opened):
  """Joined, openings and spelling are the text of running ids."""
  vocabulary = opened(name)
  spelling, openings = vocabulary.spelling(), vocabulary.openings()
  assert len(spelling) == len(openings) == vocabulary.size
  for row in draw_rows(vocabulary, 200):
    text, begun = '', False
    for i in row:
      text += spelling[i] if begun else openings[i] or ''
      begun |= openings[i] is not None
    joined = text.encode('utf-8', 'surrogateescape').decode(errors='replace')
    whole = vocabulary.decode(row)
    # M2M-100 drops spaces at the end, too.
    assert (joined.rstrip() if name == 'm2m_100' else joined) == whole


@pytest.mark.parametrize('name', NAMES)
def test_stop_strings_are_found_by_table_and_text(name, opened):
  vocabulary = opened(name)
  stops = ('en', 'Me', ' a', '\u4e01', 'li ', 'ch')
  table = stop_strings.build_table(
    vocabulary.spelling(), stops, vocabulary.openings()
  )
  found = 0
  for row in draw_rows(vocabulary, 200):
    state = 0
    for at, i in enumerate(row):
      state = table[state, i]
      text = vocabulary.decode(row[: at + 1])
      assert (state == len(table) - 1) == any(stop in text for stop in stops)
    found += state == len(table) - 1
  assert found > 10


@pytest.mark.parametrize('name', NAMES)
def test_ids_inside_a_text_have_no_space_in_front(name, opened):
  vocabulary = opened(name)
  for text in ('en', 'der', 'men sch', '.', ', a', '-x', 'A'):
    ids = vocabulary.inside(text)
    assert ids, text
    before = vocabulary.encode('a')
    whole = vocabulary.decode([*before, *ids])
    assert whole == vocabulary.decode(before) + text


@pytest.mark.parametrize('name', NAMES)
def test_what_tokens_can_spell(name, opened):
  vocabulary = opened(name)
  assert vocabulary.can_spell('Menschen a')
  assert vocabulary.can_spell('\u4e01') == (name == 'blenderbot')
  assert vocabulary.pieces([vocabulary.pad_id]) == ['<pad>']
  normal = vocabulary.normalize('\ufb01n  \uff21')
  plain = name in ('mbart25', 'blenderbot')  # as transformers sets them up
  assert normal == ('\ufb01n  \uff21' if plain else 'fin  A')


def test_bytes_of_characters(opened):
  vocabulary = opened('blenderbot')
  ids = vocabulary.encode('\u4e01')
  assert [vocabulary.is_byte(i) for i in ids] == [False, True, True, True]
  assert not opened('nllb').is_byte(5)
  with pytest.raises(ValueError, match='expected 0 to'):
    vocabulary.is_byte(vocabulary.size)


@pytest.mark.parametrize(
  'name, form, count, ids',
  [
    ('mbart25', 'mbart', 25, {'ar_AR': 571, 'en_XX': 574, 'zh_CN': 595}),
    ('mbart50', 'mbart50', 52, {'ar_AR': 544, 'sl_SI': 595}),
    ('m2m_100', 'm2m_100', 100, {'af': 482, 'en': 500, 'zu': 581}),
    ('nllb', 'nllb', 202, {'ace_Arab': 571, 'eng_Latn': 617, 'zul_Latn': 772}),
    ('pegasus', 'plain', 0, {}),
    ('blenderbot', 'plain', 0, {}),
  ],
)
def test_languages_and_formats(name, form, count, ids, opened):
  vocabulary = opened(name)
  assert vocabulary.input_format.name == form
  assert len(vocabulary.languages) == count
  assert ids.items() <= vocabulary.languages.items()
  assert [*vocabulary.languages.values()] == sorted(
    vocabulary.languages.values()
  )
  token = '__{}__' if form == 'm2m_100' else '{}'
  for code, i in vocabulary.languages.items():
    assert vocabulary.pieces([i]) == [token.format(code)]
    assert vocabulary.encode(token.format(code))[-1] == i
    assert vocabulary.is_special(i)
  with pytest.raises(ValueError, match='no clm_token'):
    vocabulary.clm_id  # noqa: B018
  assert (vocabulary.bos_id is None) == (name == 'pegasus')


def test_what_is_no_text_or_no_id_is_refused(opened):
  vocabulary = opened('nllb')
  for text in (None, 5, '\ud83d'):
    with pytest.raises(ValueError, match='text'):
      vocabulary.encode(text)
  for ids in ([774], [-1], ['x'], 'x'):
    with pytest.raises(ValueError, match='ids'):
      vocabulary.decode(ids)


@pytest.mark.parametrize('name', NAMES)
def test_transformers_reads_what_is_exported(name, opened, tmp_path):
  """The same ids, texts, frames, by the files of `export_files` alone."""
  transformers = pytest.importorskip('transformers')
  vocabulary = opened(name)
  for file, content in vocabulary.export_files().items():
    (tmp_path / file).write_bytes(content)
  (tmp_path / 'config.json').write_text(
    json.dumps({'model_type': MODEL_TYPES[name]})
  )
  codes = [*vocabulary.languages][:2]
  named = dict(zip(('src_lang', 'tgt_lang'), codes))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, **named)
  for text in tokens()['hard']:
    ids = theirs(text, add_special_tokens=False).input_ids
    assert vocabulary.encode(text) == ids, text
    assert vocabulary.decode(ids) == theirs.decode(
      ids, skip_special_tokens=True
    )
  if codes:
    ids = vocabulary.encode('Alle')
    form = vocabulary.input_format
    assert form.frame(ids, codes[0]) == theirs('Alle').input_ids
    assert form.labels(ids, codes[1]) == theirs(text_target='Alle').input_ids
  assert open_vocabulary(tmp_path).sha256 == vocabulary.sha256
