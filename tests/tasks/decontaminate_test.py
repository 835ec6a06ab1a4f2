"""What a slow reference drops is dropped, and nothing else.

Faults seen: k or the step too large by one, the last gram or the first k-grams
forgotten, k-grams of the index a k apart, the words around a suspect short by
one at either end, none before it, wrong at a text's start; exactly n words
taken as too few; bits set by |= or read backwards; the first hit, the first
set, the last sentence only; set numbers of a byte, unsorted, of other names; no
casefold, lower for it, punctuation left; Kana or Han not apart; repeated
n-grams kept; owners, names, n or n-grams missing in the hash; twice the bits;
what stays stripped; a sentence of one set kept; each check of a file left out;
a cache of words.
"""

import collections
import json
import random
import tracemalloc
import unicodedata

import pytest
import seqio
from hypothesis import given, settings
from hypothesis import strategies as st

import atm_tasks
from atm.data.sentences import split_sentences
from atm_tasks.pretraining import decontaminate
from atm_tasks.pretraining.decontaminate import Index
from atm_tasks.pretraining.text_forms import spoken


def slow_words(text):
  """Words, a character at a time."""
  made = ''
  for c in text.casefold():
    name = unicodedata.name(c, '')
    alone = name.startswith(('CJK UNIFIED', 'HIRAGANA', 'KATAKANA', 'THAI'))
    punctuation = unicodedata.category(c)[0] == 'P'
    made += ' ' if punctuation else f' {c} ' if alone else c
  return made.split()


def slow_grams(text, n):
  found = slow_words(text)
  return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def slow_sets(sets, n):
  return {
    name: {gram for text in texts for gram in slow_grams(text, n)}
    for name, texts in sets.items()
  }


def slow_clean(sets, text, n):
  """`sets` as made by slow_sets."""
  kept, dropped = '', collections.Counter()
  for sentence in split_sentences(text):
    grams = slow_grams(sentence, n)
    met = [name for name, found in sets.items() if grams & found]
    dropped.update(met)
    kept += '' if met else sentence
  return kept, dict(dropped)


def check(index, sets, text):
  """Returns what was dropped."""
  kept, dropped = index.clean(text)
  assert (kept, dropped) == slow_clean(sets, text, index.n)
  if not dropped:
    assert kept is text
  return dropped


# --- Against the reference

# Few words, so that n-grams are often the same.
FEW = st.text('aab  ..,。\nßA人', max_size=30)


@given(
  sets=st.dictionaries(st.sampled_from('xyz'), st.lists(FEW, max_size=4)),
  texts=st.lists(FEW, max_size=4),
  n=st.integers(1, 6),
)
@settings(max_examples=600)
def test_the_reference_drops_the_same(sets, texts, n):
  index = Index.build(sets, n)
  found = slow_sets(sets, n)
  assert len(index) == len(set().union(*found.values()))
  for text in texts:
    check(index, found, text)
  for text in sum(sets.values(), []):
    check(index, found, f'b. {text}a b')


# Two words, the one also as a capital, with punctuation, or ß as ss.
LATIN = ['ß', 'b'] * 40 + ['SS', 'B,', '-b', 'c', 'b.', 'ß!']
KANA = ['人', 'あ'] * 40 + ['人 ', '「あ', 'ア', '人。', 'あ！', '\n']


def drawn(draw, language, count):
  if language == 'ja':
    return ''.join(draw.choices(KANA, k=count))
  return ' '.join(draw.choices(LATIN, k=count))


@pytest.mark.parametrize('language', ['en', 'ja'])
@pytest.mark.parametrize('n', [3, 8, 12, 13])
def test_long_texts_of_two_words(n, language):
  """Some n-grams are met by chance, some because they are put there."""
  draw = random.Random(n)
  sets = {
    'one': [drawn(draw, language, 2 * n) for _ in range(9)],
    'two': [drawn(draw, language, n + 1) for _ in range(9)],
    'many': [drawn(draw, language, 30 * n)],
  }
  index, found = Index.build(sets, n), slow_sets(sets, n)
  assert len(index) == len(set().union(*found.values()))
  total = collections.Counter()
  for _ in range(800):
    text = drawn(draw, language, draw.randrange(5 * n))
    total.update(check(index, found, text))
    known = draw.choice(sets['one'])
    text += known[draw.randrange(n) :] + drawn(draw, language, n)
    total.update(check(index, found, text))
  assert all(total[name] > 15 for name in sets)


NEW = [f'new{i}' for i in range(60)]
KNOWN = [f'known{i}' for i in range(60)]


@pytest.mark.parametrize('n', [1, 2, 3, 4, 7, 12, 13, 14])
def test_an_n_gram_is_found_wherever_it_stands(n):
  """In a sentence of other words, at each distance from its two ends."""
  index = Index.build({'x': [' '.join(KNOWN)]}, n)
  assert len(index) == len(KNOWN) - n + 1
  for before in range(2 * n + 1):
    for after in (0, 1, n - 1, n, 2 * n):
      known = KNOWN[before : before + n]
      words = NEW[:before] + known + NEW[:after]
      text = ' '.join(words)
      assert index.clean(text) == ('', {'x': 1})
      words[before + n // 2] = 'other'
      text = ' '.join(words)
      assert index.clean(text)[0] is text


@pytest.mark.parametrize('n', [2, 13])
def test_a_sentence_of_too_few_words_has_none(n):
  few, enough = ' '.join(KNOWN[: n - 1]), ' '.join(KNOWN[:n])
  assert len(Index.build({'x': [few, few]}, n)) == 0
  index = Index.build({'x': [enough, few]}, n)
  assert len(index) == 1
  # Two sentences together hold the n-gram, neither does alone.
  for text in (few, few + '. ' + KNOWN[n - 1], '', ' ', '.'):
    assert index.clean(text) == (text, {})
  assert index.clean(enough) == ('', {'x': 1})


def test_nothing_hides_a_match():
  """Case, punctuation, spaces; of Japanese also where words would end."""
  text = 'Die Straße, so groß wie ein Haus, und das Café am See ist zu'
  index = Index.build({'x': [text]})
  for other in (text.upper(), text.lower(), spoken(text), f'»{text}«!',
                text.replace(' ', ' — '), text.replace(' ', '\u00a0\t'),
                text.replace('ß', 'SS')):  # fmt: skip
    assert index.clean(f'Oh. {other}') == ('Oh. ', {'x': 1})
  text = '日本語のコーヒーを飲む人々は'
  index = Index.build({'x': [text]})
  for other in (' '.join(text), text.replace('の', '「の」'), f'その{text}私'):
    assert index.clean(f'はい。{other}。ええ。') == ('はい。ええ。', {'x': 1})


def test_a_sentence_counts_for_each_set_it_meets():
  """More sets than a byte can number, each by itself and all by one gram."""
  names = [f'set{i:03}' for i in range(300)]
  sets = {name: [f'the same {name}', 'the same'] for name in names}
  sets['zero'] = ['another text']
  index = Index.build(sets, 2)
  assert index.names == (*names, 'zero')
  every = dict.fromkeys(names, 1)
  assert index.clean('It is the same. Good.') == ('Good.', every)
  for name in names:
    text = f'It is a same {name}. It is another text.'
    assert index.clean(text) == ('', {name: 1, 'zero': 1})
    text = f'Same {name}? Same {name}? No. same {name} the same'
    assert index.clean(text) == ('No. ', {**every, name: 3})


def test_what_is_kept_stands_as_it_stood():
  index = Index.build({'x': ['a b c']}, 3)
  text = '  One,\ttwo. \n A b c!  «Three»\u00a0… a b  c. d\n\nA, b; c\nend '
  kept = '  One,\ttwo. \n «Three»\u00a0… d\n\nend '
  assert index.clean(text) == (kept, {'x': 3})
  assert index.clean(kept)[0] is kept


# --- The index


def test_neither_order_nor_repetition_changes_the_index():
  draw = random.Random(0)
  sets = {k: [drawn(draw, 'en', 30) for _ in range(20)] for k in 'xyz'}
  index = Index.build(sets, 5)
  other = {k: reversed(v + v[:9]) for k, v in reversed(sets.items())}
  other = Index.build(other, 5)
  assert other.sha256 == index.sha256 and other._seen == index._seen
  swapped = {**sets, 'x': sets['y'], 'y': sets['x']}
  assert Index.build(swapped, 5).sha256 != index.sha256


def test_names_n_and_n_grams_change_the_index():
  hashes = {
    Index.build({name: [text]}, n).sha256
    for name in 'xy'
    for n in (2, 3)
    for text in ('a', 'b c d e f g h', 'b c d e f g i', 'b c d e f g', 'h')
  }
  assert len(hashes) == 2 * 2 * 4  # neither `a` nor `h` has an n-gram


@pytest.mark.parametrize('count', [0, 1, 2, 3, 1000, 1024, 1025, 30_000])
@pytest.mark.parametrize('sets', [1, 3])
def test_memory_is_as_stated(count, sets):
  texts = [' '.join(map(str, range(count)))]
  index = Index.build({str(i): texts for i in range(sets)}, 1)
  assert len(index) == count
  field = index.nbytes - 10 * count * sets
  assert max(8, 8 * count) <= field <= max(8, 16 * count)


def test_texts_leave_nothing_in_memory():
  """Of 1.3 MB."""
  index = Index.build({'x': ['7 8 9']}, 3)
  tracemalloc.start()
  for i in range(100):
    index.clean(f'{i} {i + 1}. {i + 2} ' * 1000)
  now, _ = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert now < 50_000


@pytest.mark.parametrize('n', [0, -1, 2.5, '13', None])
def test_n_is_a_number_of_words(n):
  with pytest.raises(ValueError, match=rf'n = {n!r}: expected a whole'):
    Index.build({}, n)


def test_a_set_is_texts():
  with pytest.raises(ValueError, match=r"sets\['x'\] is a string"):
    Index.build({'x': 'a text'})


# --- Files


def same(index, sets, n=2):
  assert index.sha256 == Index.build(sets, n).sha256
  return len(index) > 0


LINES = ['one two three', 'zwei größer', '日本語', 'क़ानून है']
JSON = {
  'id': 7, 'score': None, 'question': LINES[0],
  'choices': [{'text': LINES[1], 'right': True}, [LINES[2], ' ']],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
  """Three files of a set, and what is none of it."""
  folder = tmp_path / 'sets [1]'
  (folder / 'in.txt').mkdir(parents=True)
  text = '\ufeff' + '\r\n'.join([LINES[0], ' ', LINES[1]])
  (folder / 'a.txt').write_bytes(text.encode())
  rows = [JSON, LINES[3]]
  rows = '\n\n'.join(json.dumps(r, ensure_ascii=i > 0) for i, r in
                     enumerate(rows))  # fmt: skip
  (folder / 'b.jsonl').write_text(rows, encoding='utf-8')
  cells = f'{LINES[3]}\t\t{LINES[2]}\nid\ta b\n'
  (folder / 'c.tsv').write_text(cells, encoding='utf-8')
  (folder / 'd.csv').write_bytes(b'not this\xff')
  (folder / 'in.txt' / 'e.txt').write_text('inner text\n')
  return folder


def test_files_of_each_kind(folder):
  lone = {
    'a.txt': LINES[:2],
    'b.jsonl': LINES,
    'c.tsv': [LINES[3], LINES[2], 'id', 'a b'],
  }
  for name, texts in lone.items():
    found = decontaminate.read_file_texts(str(folder / name))
    assert [text.strip() for text in found] == texts
    assert same(Index.read({'x': str(folder / name)}, 2), {'x': texts})
  index = Index.read({name: str(folder / name) for name in lone}, 2)
  assert same(index, lone) and index.clean('one two. ')[1] == {
    'a.txt': 1, 'b.jsonl': 1,
  }  # fmt: skip


def test_folders_and_globs(folder, tmp_path):
  own = {'x': [*LINES, 'a b']}
  every = {'x': [*LINES, 'a b', 'inner text']}
  inside = str(tmp_path / 'sets*')
  assert same(Index.read({'x': str(folder)}, 2), own)
  assert same(Index.read({'x': f'{folder}/'}, 2), own)
  assert same(Index.read({'x': f'{inside}/*'}, 2), own)
  assert same(Index.read({'x': f'{inside}/[bc].*'}, 2), own)
  assert same(Index.read({'x': f'{inside}/**'}, 2), every)
  assert same(Index.read({'x': f'{inside}/**/*.txt'}, 2),
              {'x': [*LINES[:2], 'inner text']})  # fmt: skip


@pytest.mark.parametrize(
  'name, data, message',
  [
    ('none.txt', None, r"'x': no \.txt, \.jsonl, \.tsv file in '{path}'"),
    ('other.csv', b'a', r"'x': no \.txt, \.jsonl, \.tsv file in '{path}'"),
    ('*.tsv', None, r"'x': no \.txt, \.jsonl, \.tsv file in '{path}'"),
    ('empty.txt', b'', "'x': no text in '{path}'"),
    ('blank.tsv', b' \t\n\n\t', "'x': no text in '{path}'"),
    ('keys.jsonl', b'{"key": 1}\n[]\n\n', "'x': no text in '{path}'"),
    ('a.txt', b'fine\n\nf\xfcr\n', r"{path}, line 3: expected UTF-8; got b'f"),
    ('a.txt', 'wide'.encode('utf-16'), '{path}, line 1: expected UTF-8'),
    ('a.jsonl', b'"a"\n{"b": \n', '{path}, line 2: expected JSON; got \'{"b'),
    ('a.jsonl', b'"\xff"\n', '{path}, line 1: expected UTF-8'),
    ('a.jsonl', b'9' * 5000, '{path}, line 1: expected JSON; got'),
  ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, data, message):
  path = tmp_path / name
  if data is not None:
    path.write_bytes(data)
  message = message.replace('{path}', str(path).replace('*', r'\*'))
  with pytest.raises(ValueError, match=message):
    Index.read({'x': str(path)})


def test_a_folder_without_files_is_named(tmp_path):
  with pytest.raises(ValueError, match=f"file in '{tmp_path}'"):
    Index.read({'x': str(tmp_path)})


# --- In the tasks


def shipped(language):
  """(texts, preprocessor that drops sentences) of a registered task."""
  task = seqio.TaskRegistry.get(f'udhr_{language}_denoise')
  return list(task.source.texts('train', 0)), task.preprocessors[0]


@pytest.fixture
def configure():
  yield atm_tasks.configure
  atm_tasks.configure()


@pytest.mark.parametrize('form', ['written', 'spoken'])
def test_the_shipped_text_loses_just_those(tmp_path, configure, form):
  """Sentences that share no 13-gram with others; one of them in both sets."""
  texts = {k: shipped(k)[0] for k in ('en', 'hi', 'ja', 'fr')}
  grams = {s: slow_grams(s, 13) for v in texts.values() for t in v
           for s in split_sentences(t)}  # fmt: skip
  owners = collections.Counter(g for found in grams.values() for g in found)
  en, hi, ja = (
    [s for t in texts[k] for s in split_sentences(t)
     if grams[s] and all(owners[g] == 1 for g in grams[s])][::5]
    for k in ('en', 'hi', 'ja')
  )  # fmt: skip
  assert min(len(en), len(hi), len(ja)) >= 5
  sets = {
    'x': [spoken(s).upper() for s in en] + hi,
    'y': ja + hi[:1] + ['too short a text'],
  }
  paths = {name: str(tmp_path / f'{name}.txt') for name in sets}
  for name, lines in sets.items():
    with open(paths[name], 'w', encoding='utf-8') as f:
      f.writelines(f'{line}\n' for line in lines)
  configure(decontaminate=paths)
  for language, x, y in (
    ('en', len(en), 0), ('hi', len(hi), 1), ('ja', 0, len(ja)), ('fr', 0, 0),
  ):  # fmt: skip
    registered = shipped(language)[1]
    assert registered.form == 'written'
    made_from = registered.made_from['decontaminated']
    assert made_from == Index.build(sets).sha256
    prepare = type(registered)(form, registered.index)
    counts = collections.Counter()
    made = prepare.direct(texts[language], counts)
    kept = [[s for s in split_sentences(t) if s not in {*en, *hi, *ja}]
            for t in texts[language]]  # fmt: skip
    expected = [''.join(s) for s in kept]
    assert made == (
      expected if form == 'written' else list(map(spoken, expected))
    )
    number = sum(map(len, kept))
    expected = {'dropped/x': x, 'dropped/y': y, 'sentences': number}
    assert counts == collections.Counter(expected)
  configure()
  assert shipped('en')[1].index is None
