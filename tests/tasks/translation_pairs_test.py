"""benchmarks/translation_pairs.py: what is held out, and its baselines."""

import json
import os
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


@pytest.fixture(scope='module')
def script():
  sys.path.insert(0, f'{ROOT}/benchmarks')
  try:
    import recipes
    import translation_pairs
  finally:
    sys.path.remove(f'{ROOT}/benchmarks')
  return translation_pairs, recipes


def make_text(language: str) -> dict:
  """Returns 250 descriptions; the last repeats the first but for its end."""
  say = lambda i, j: f'{language}{i * 17 + j}'
  text = {}
  for i in range(250):
    words = [say(i, j) for j in range(16)]
    text[f'package{i}', ''] = (say(i, 99), ' '.join(words), '')
  first = text['package0', ''][1].split()
  text['package250', ''] = (
    say(0, 98), ' '.join([*first[:14], 'more']), ''
  )  # fmt: skip
  return text


def test_no_training_pair_shares_13_words_with_a_held_out_text(
  script, tmp_path, monkeypatch
):
  pairs, recipes = script
  monkeypatch.setattr(
    recipes, 'read_descriptions', lambda _, kinds: {
      k: make_text(k) for k in kinds
    }
  )  # fmt: skip
  pairs.prepare(str(tmp_path))
  read = lambda name: list(
    map(json.loads, (tmp_path / name).read_text().splitlines())
  )
  train, asked = read('train.jsonl'), read('pairs/validation.jsonl')
  held = (tmp_path / 'held_out.txt').read_text().splitlines()
  assert len(asked) == 6 * pairs.TEST
  banned = set().union(*map(pairs.find_grams, held))
  for row in train:
    for text in (row['input'].partition(': ')[2], row['target']):
      assert not banned & pairs.find_grams(text)
  for row in asked:
    direction, text = pairs.split_direction(row['input'])
    assert text in held and row['target'] in held
    source, target = direction.split(' to ')
    assert 'English' in (source, target) and source != target
  # Synopses and the paragraphs that are not held out, both ways.
  assert 6 * 250 < len(train) < 6 * 310


def test_model_1_finds_words_by_where_they_occur(script):
  pairs, _ = script
  words = pairs.train_words([
    ('das haus', 'the house'), ('das buch', 'the book'), ('ein buch', 'a book')
  ])  # fmt: skip
  assert words == {'das': 'the', 'haus': 'house', 'buch': 'book', 'ein': 'a'}


def test_scores_are_by_direction_beside_the_baselines(script, tmp_path, capsys):
  pairs, _ = script
  rows = [
    pairs.frame_pair('de', 'en', 'das buch', 'the book'),
    pairs.frame_pair('en', 'de', 'a house', 'ein haus'),
  ]
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  os.makedirs(tmp_path / 'pairs')
  os.makedirs(tmp_path / 'run' / 'predictions')
  (tmp_path / 'train.jsonl').write_text(lines)
  (tmp_path / 'pairs' / 'validation.jsonl').write_text(lines)
  (tmp_path / 'run' / 'predictions' / 'pairs.jsonl').write_text(
    json.dumps({'answer': 'the book'}) + '\n' + json.dumps({'answer': 'x'})
  )
  pairs.score(str(tmp_path), [str(tmp_path / 'run')])
  found = capsys.readouterr().out.splitlines()
  assert found[4].startswith('| German to English | ') and '100.0' in found[4]
  assert (
    found[7].startswith('| English to German | ') and '100.0' not in found[7]
  )
