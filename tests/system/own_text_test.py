"""A small folder of own text: held out, tokenized and trained on by default.

Faults seen: nothing held out of 60 lines a language; a vocabulary larger than
the text supports refused; lengths of a cache that fit no small model.
"""

import functools
import os
import re

import numpy as np
import pytest

from atm.data import batches, cache, mixture_stats, vocabulary_training
from atm.train import inputs

from row_caches import SIZES
from tiny_runs import small_config, small_model


def write_text(folder, languages: int, lines: int):
  """Writes so many different lines of some shipped languages."""
  import atm_tasks

  folder.mkdir()
  udhr = os.path.join(os.path.dirname(atm_tasks.__file__), 'udhr')
  for language in ('en', 'de', 'hi')[:languages]:
    with open(f'{udhr}/{language}.tsv', encoding='utf-8') as f:
      words = [word for line in f for word in line.split()[1:]]
    made = (' '.join(words[i : i + 9]) for i in range(lines))
    (folder / f'{language}.txt').write_text('\n'.join(made), encoding='utf-8')
  return str(folder)


@pytest.fixture
def configure(words, tmp_path):
  """Configures a folder of text, and as it was again afterwards."""
  import atm_tasks

  def call(**named):
    atm_tasks.configure(text_dir=str(tmp_path / 'text'), **named)

  yield call
  atm_tasks.configure(vocabulary=words.path)


@pytest.mark.parametrize('languages, lines', [(3, 60), (1, 5), (2, 300)])
def test_rows_of_a_small_folder(configure, tmp_path, languages, lines):
  write_text(tmp_path / 'text', languages, lines)
  configure()
  said = []
  made = vocabulary_training.train_vocabulary(
    'text', str(tmp_path / 'words'), make_model=small_model, say=said.append
  )
  assert any('the text supports' in line for line in said) == (made.size < 2048)
  with pytest.raises(ValueError, match=f'at most {made.size}; use VOCAB'):
    vocabulary_training.train_vocabulary(
      'text', str(tmp_path / 'more'), 5000, say=said.append
    )
  cache.build(
    'text', made.path, SIZES.as_setting(), str(tmp_path / 'rows'),
    configure_tasks=configure, say=said.append,
  )  # fmt: skip
  load = lambda split: batches.load_parts(
    'text', split, made, SIZES, str(tmp_path / 'rows')
  )
  held, train = load('validation'), load('train')
  least = 1 if lines < 10 else 4
  for parts in held, train:
    assert len(parts) == 2 * languages  # denoising and CLM
  for part, other in zip(held, train):
    counts = [p.rows.counts['documents'] for p in (part, other)]
    assert counts[0] >= least and sum(counts) == lines


def test_a_run_on_a_small_folder(train, configure, tmp_path):
  write_text(tmp_path / 'text', 3, 60)
  run = train(
    tmp_path / 'run', 1, mixture='text', vocabulary=None, lengths=None,
    configure_tasks=configure, model_config=small_model(positions=32),
  )  # fmt: skip
  languages = {part.language for part in run.held_out.parts}
  assert languages == {'en', 'de', 'hi'}
  assert run.vocabulary.size < 2048
  assert run.held_out.batches[0][1]['encoder_input_tokens'].shape == (16, 32)


@pytest.mark.parametrize('packing', [True, False])
def test_how_often_a_run_reads_its_text(configure, words, tmp_path, packing):
  """Against the tokens of the rows that it reads, one by one.

  Fault seen: 0.2 times, where rows of 64 passes were read 13 times.
  """
  write_text(tmp_path / 'text', 2, 60)
  packs = functools.partial(configure, paper_packing=packing)
  cache.build(
    'text', words.path, SIZES.as_setting(), str(tmp_path / 'rows'),
    passes=4, configure_tasks=packs, say=lambda text: None,
  )  # fmt: skip
  parts = batches.load_parts(
    'text', 'train', words, SIZES, str(tmp_path / 'rows'), passes=4
  )
  made = batches.Batches(parts, words, SIZES, 16, seed=3)
  skips = ((5, 20), (9, 30), (90, 200))
  config = small_config(tmp_path, steps=100, skip_steps=skips)
  trained = [n for n in range(100) if not config.skips(n + 1)]
  read = rows = 0
  special = {words.bos_id, words.eos_id, words.doc_id, words.clm_id}
  for step in trained:
    part, _, row = made.locate(step * 16 + np.arange(16))
    rows += len(row)
    for k, number in zip(part, row):
      ids = parts[k].rows.row(int(number))
      read += sum(i not in special for i in ids.tolist())
  texts = {p.language: p.rows.counts['tokens'] for p in parts}
  line = inputs.describe_reading(config, made)
  assert f'; {rows:,} rows are read' in line and rows == 16 * len(trained)
  assert f' {sum(texts.values()):,} tokens of text in ' in line
  times = float(re.search(r'the text ([\d.]+) times in all', line)[1])
  assert times == pytest.approx(read / sum(texts.values()), rel=0.05)
  reading = mixture_stats.plan_reading(parts, None, 16, len(trained))
  _, planned = mixture_stats.count_epochs(
    mixture_stats.compute_lines(parts, reading.rows)
  )
  assert planned == pytest.approx(times, rel=0.05)


def test_one_document_is_told_before_anything_is_made(
  train, configure, tmp_path
):
  write_text(tmp_path / 'text', 1, 1)
  with pytest.raises(ValueError, match='no document to hold out.*at least 2 d'):
    train(
      tmp_path / 'run', 1, mixture='text', vocabulary=None,
      configure_tasks=configure,
    )  # fmt: skip
  assert not (tmp_path / 'run' / 'vocabulary').exists()


def test_a_cache_of_other_lengths_is_told_with_both_settings(
  train, words, tmp_path
):
  import atm_tasks

  rows = str(tmp_path / 'rows')
  cache.build(
    'udhr', words.path, {'inputs': 32, 'targets': 24}, rows,
    configure_tasks=atm_tasks.configure, say=lambda text: None,
  )  # fmt: skip
  for positions, remedy in (
    (64, 'set TASK_FEATURE_LENGTHS = {'),
    (16, 'build'),
  ):
    with pytest.raises(ValueError) as raised:
      train(
        tmp_path / 'run', 1, cache_dir=rows, lengths=None,
        model_config=small_model(positions=positions),
      )  # fmt: skip
    assert str(raised.value).startswith(
      f'CACHE_DIR = {rows!r} was built with TASK_FEATURE_LENGTHS = '
      f"{{'inputs': 32, 'targets': 24}}, but this run has "
      f"TASK_FEATURE_LENGTHS = {{'inputs': {positions}, "
      f"'targets': {positions}}} and model.Config.positions = {positions}: "
      f'{remedy}'
    )
    assert len(str(raised.value)) < 500
