"""Rows are decoded for display as they stand."""

import os

import numpy as np
import pytest

from atm.data import batches as batches_lib
from atm.data import (
  cache,
  counter_rng,
  inspection,
  span_corruption,
  vocabulary,
  vocabulary_training,
)

from goldens import HERE
from row_caches import LENGTHS, write_shipped_texts

MARKS = (inspection.READ, inspection.DROPPED, inspection.WRITTEN)


def text_of(runs, *marks):
  return ''.join(
    run.text for run in runs if not run.special and run.mark in (marks or MARKS)
  )


def specials(runs):
  return [run.text for run in runs if run.special]


def test_characters_of_several_byte_pieces_stay_whole(tmp_path):
  """One of whose bytes any is dropped is dropped."""
  made = vocabulary_training.train_sentencepiece(
    ['a plain text', 'and another text'] * 20, str(tmp_path), 278,
    byte_fallback=True,
  )  # fmt: skip
  ids = made.encode('a 𝄞 text 漢')
  clef = made.pieces(ids).index('<0xF0>')
  marks = [inspection.READ] * len(ids)
  marks[clef + 1] = inspection.DROPPED
  runs = inspection.split_runs(made, ids, marks)
  assert [(r.text, r.mark) for r in runs] == [
    ('a ', inspection.READ), ('𝄞', inspection.DROPPED),
    (' text 漢', inspection.READ),
  ]  # fmt: skip
  assert ''.join(made.surfaces(ids)) == made.decode(ids)


def test_what_only_looks_special_is_text(words):
  """And so is an unknown character."""
  ids = [words.doc_id, *words.encode('[DOC] ☃'), words.clm_id]
  assert words.unk_id in ids
  runs = inspection.split_runs(words, ids, [inspection.READ] * len(ids))
  assert [run.special for run in runs] == [True, False, True]
  assert text_of(runs) == words.decode(ids)


@pytest.mark.parametrize('budget', [1, 9, 77])
def test_expected_spans_are_those_that_are_drawn(budget):
  keys = counter_rng.make_key(3, np.arange(20_000))
  budgets = np.full(len(keys), budget)
  drawn = span_corruption.draw_span_lengths(keys, budgets, 3.0)
  found = np.bincount(drawn[drawn > 0], minlength=25)[:25]
  expected = inspection.expect_span_counts(budgets, 3.0, 24)
  # Counts of a length vary by about the root of what is expected.
  assert (abs(found - expected) < 5 * np.sqrt(expected) + 5).all()


@pytest.mark.parametrize('name', ['mbart50', 'pegasus'])
def test_rows_of_public_tokenizers(name, tmp_path):
  """They are built with markers; Pegasus has no `<s>`, and reads none."""
  import atm_tasks

  text = tmp_path / 'text'
  text.mkdir()
  write_shipped_texts(text)
  public = os.path.join(HERE, 'public', name)
  configure = lambda **named: atm_tasks.configure(text_dir=str(text), **named)
  cache.build(
    'text', public, LENGTHS, str(tmp_path / 'rows'), ('train',),
    configure_tasks=configure, say=lambda text: None,
  )  # fmt: skip
  words, lengths = cache.open_cache(str(tmp_path / 'rows'))
  assert words.size == vocabulary.open_vocabulary(public).size + 2
  parts = batches_lib.load_parts(
    'text', 'train', words, lengths, str(tmp_path / 'rows')
  )
  batches = batches_lib.Batches(parts, words, lengths, 4, 0, start_id=5)
  opening = [0] if name == 'mbart50' else []
  for each in inspection.pick_examples(batches, words, 1):
    kind = each.part.objective.name
    marker = [words.clm_id] if kind == 'clm' else []
    arrays = batches.make_rows(*batches.locate(np.array([each.n])))
    (source,) = arrays['encoder_input_tokens']
    assert source.tolist()[: len(opening + marker)] == opening + marker
    assert arrays['decoder_input_tokens'][0, 0] == 5
  counts = inspection.measure_objectives(batches, 50)
  assert {kind.name for kind in counts} == {'denoise', 'clm'}
