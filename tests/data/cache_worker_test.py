"""Files of rows hold the text, and count what they leave out.

Faults seen: skipped lines not counted; passes given to held-out rows.
"""

import functools
import json

import pytest

from atm.data import batches, task_registry

from row_caches import SIZES, build, write_shipped_texts


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write_shipped_texts(tmp_path_factory.mktemp('text'))


@pytest.fixture
def configure(words):
  """Configures the tasks, and as they were again afterwards."""
  import atm_tasks

  yield lambda **named: atm_tasks.configure(vocabulary=words.path, **named)
  atm_tasks.configure(vocabulary=words.path)


def test_bad_lines_may_be_skipped_and_are_counted(words, configure, tmp_path):
  text = tmp_path / 'text'
  text.mkdir()
  lines = [json.dumps({'text': f'a line {i}'}) for i in range(90)]
  lines[3], lines[50] = '{', '[1]'
  (text / 'en.jsonl').write_text('\n'.join(lines))
  skip = lambda **named: configure(held_out=0.0, skip_bad=True, **named)
  said = []
  build(
    tmp_path / 'rows', words, skip, text, splits=('train',), say=said.append
  )
  assert said[-1] == 'text (train): 2 lines or records skipped'
  parts = batches.load_parts(
    'text', 'train', words, SIZES, str(tmp_path / 'rows')
  )
  for part in parts:
    assert part.rows.counts['skipped'] == 2
    assert part.rows.counts['documents'] == 88


def test_held_out_rows_are_made_once(folder, words, configure, tmp_path):
  some = lambda **named: configure(held_out=0.3, **named)
  build(tmp_path, words, some, folder, name='text_en_denoise', passes=3)
  load = functools.partial(
    batches.load_parts, 'text_en_denoise', vocabulary=words, lengths=SIZES,
    directory=str(tmp_path),
  )  # fmt: skip
  (train,), (held,) = load(split='train', passes=3), load(split='validation')
  assert train.rows.tokens > 2.9 * train.rows.counts['tokens']
  assert held.rows.tokens < 1.1 * held.rows.counts['tokens'] + 9


def test_rows_hold_the_text_in_its_forms(folder, words, configure, tmp_path):
  import atm_tasks

  mixing = atm_tasks.Mixing(text_spoken=1.0)
  both = lambda **named: configure(mixing=mixing, held_out=0.0, **named)
  build(tmp_path, words, both, folder, splits=('train',))
  parts = batches.load_parts('text', 'train', words, SIZES, str(tmp_path))
  texts = [
    text
    for language, text in task_registry.read_texts('text')
    if language == 'te'
  ]
  for part in parts:
    if part.language != 'te':
      continue
    form = atm_tasks.spoken if part.form == 'spoken' else str
    ids = [i for text in texts for i in words.encode(form(text))]
    made = part.rows.head(1 << 30)
    if part.objective.name == 'denoise':
      assert [i for i in made if i != words.doc_id] == ids
    else:  # a document a row, cut at 64
      encoded = (words.encode(form(text)) for text in texts)
      rows = ([*e, words.eos_id][:64] for e in encoded if len(e) > 1)
      assert list(made) == [i for row in rows for i in row]
  assert len(parts) == 12 and {p.form for p in parts} == {'written', 'spoken'}


def test_dropped_sentences_are_counted_by_set(words, configure, tmp_path):
  text = tmp_path / 'text'
  text.mkdir()
  asked = ' '.join(f'word{i}' for i in range(15))
  kept = 'This stays. '
  (text / 'en.txt').write_text(
    ''.join(f'{kept}{asked if i < 3 else "So does this"} {i}.\n'
            for i in range(30))
  )  # fmt: skip
  (tmp_path / 'asked.txt').write_text(f'Is it: {asked.upper()}?\n')
  clean = lambda **named: configure(
    held_out=0.0, decontaminate={'quiz': str(tmp_path / 'asked.txt')}, **named
  )
  said = []
  build(
    tmp_path / 'rows', words, clean, text, splits=('train',), say=said.append
  )
  assert said[-1] == 'text (train): 3 sentences dropped that quiz holds'
  for part in batches.load_parts(
    'text', 'train', words, SIZES, str(tmp_path / 'rows')
  ):
    assert part.rows.counts['dropped/quiz'] == 3
    assert part.rows.counts['sentences'] == 57
    decoded = words.decode(part.rows.head(1 << 30))
    assert 'word7' not in decoded and decoded.count('This stays.') == 30
