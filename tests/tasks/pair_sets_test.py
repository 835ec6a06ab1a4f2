"""Sets of pairs by name: weights, shares of what is read, refusals."""

import collections
import itertools
import json

import numpy as np
import pytest
import seqio

import atm_tasks
from atm import storage
from atm.data import batches, cache, mixture_stats, task_table, token_store
from atm.data.task_registry import Lengths

LENGTHS = Lengths(24, 16)
WEIGHTS = {'flores': 1.0, 'opus': 2.5, 'moses': 0.5}


@pytest.fixture
def paths(tmp_path) -> dict:
  """Three sets: of two directions in one file, of TSV, and of two files."""
  rows = [
    {'input': f'everyone {i}', 'target': f'life {i}',
     'source_language': 'en', 'target_language': 'de' if i % 4 else 'ta'}
    for i in range(60)
  ]  # fmt: skip
  flores = tmp_path / 'flores.jsonl'
  flores.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  # Longer ones, of which fewer fit a row.
  opus = tmp_path / 'opus.tsv'
  opus.write_text(
    ''.join(f'born {i}\tfree and equal in life {i}\n' for i in range(90))
  )
  for end in 'de', 'en':
    (tmp_path / f'train.{end}').write_text(
      ''.join(f'{end} {i}\n' for i in range(40))
    )
  return {
    'flores': str(flores), 'opus': str(opus),
    'moses': (str(tmp_path / 'train.de'), str(tmp_path / 'train.en')),
  }  # fmt: skip


def build(words, folder, **settings) -> list:
  """Builds rows of pairs; returns the parts of both splits."""
  cache.build(
    'pairs', words.path, LENGTHS.as_setting(), str(folder), processes=1,
    configure_tasks=lambda **named: atm_tasks.configure(**named, **settings),
    say=lambda line: None,
  )  # fmt: skip
  return [load(words, folder, split) for split in ('train', 'validation')]


def load(words, folder, split='train') -> list:
  return batches.load_parts('pairs', split, words, LENGTHS, str(folder))


def count_read(parts, words, steps: int) -> tuple[dict, dict]:
  """Returns the pairs that a run reads of each set, and of each task."""
  run = batches.Batches(parts, words, LENGTHS, 64, seed=3)
  sets, names = collections.Counter(), collections.Counter()
  sizes = [[rows.row(i)[0] for i in range(len(rows))]
           for rows in (part.rows for part in parts)]  # fmt: skip
  for step in range(steps):
    part, _, row = run.locate(step * 64 + np.arange(64))
    for p, r in zip(part, row):
      sets[parts[p].data_set] += sizes[p][r]
      names[parts[p].name] += sizes[p][r]
  return sets, names


def share(counts, name) -> float:
  return counts[name] / sum(counts.values())


def test_a_run_reads_pairs_by_the_weights_of_their_sets(words, paths, tmp_path):
  """In a set directions have shares by the temperature, as without weights."""
  settings = dict(
    pairs=paths, pairs_weights=WEIGHTS, pairs_temperature=2.0, cache_dir=None
  )
  train, held = build(words, tmp_path / 'rows', **settings)
  assert [part.name for part in train] == [
    'pairs_flores_en_de', 'pairs_flores_en_ta', 'pairs_moses', 'pairs_opus'
  ]  # fmt: skip
  assert {part.data_set for part in held} == {*WEIGHTS}
  sets, tasks = count_read(train, words, 1500)
  for name, weight in WEIGHTS.items():
    assert share(sets, name) == pytest.approx(weight / 4, rel=0.01)
  n = {part.name: part.rows.counts['examples'] for part in train}
  a, b = ('pairs_flores_en_de', 'pairs_flores_en_ta')
  assert tasks[a] / tasks[b] == pytest.approx((n[a] / n[b]) ** 0.5, rel=0.03)
  # To the row: `quota` are those of a million of rows.
  run = batches.Batches(train, words, LENGTHS, 64, seed=3)
  read = run.quota * [p.rows.counts['examples'] / len(p.rows) for p in train]
  assert read[3] / read.sum() == pytest.approx(2.5 / 4, rel=1e-5)
  lines = mixture_stats.describe_directions(train)
  assert lines[3] == (
    f'opus: {n["pairs_opus"]} to train on, 62.50% of the pairs that are read'
  )
  assert lines[0].startswith('flores en-de: ')
  table = mixture_stats.compute_lines(train, [1] * len(train))
  assert [(line.source, line.language) for line in table] == [
    ('flores', 'en-de'), ('flores', 'en-ta'), ('moses', 'all'), ('opus', 'all')
  ]  # fmt: skip


def test_without_weights_the_temperature_mixes_sets(words, paths, tmp_path):
  paths.pop('flores')
  settings = dict(pairs=paths, pairs_temperature=3.0)
  train, _ = build(words, tmp_path / 'rows', **settings)
  sets, _ = count_read(train, words, 1000)
  n = {part.data_set: part.rows.counts['examples'] for part in train}
  wanted = (n['opus'] / n['moses']) ** (1 / 3)
  assert sets['opus'] / sets['moses'] == pytest.approx(wanted, rel=0.01)
  # Before rows are counted, pairs are.
  atm_tasks.configure(words.path, **settings)
  mixture = seqio.get_mixture_or_task('pairs')
  rates = {t.name: mixture.get_rate(t) for t in seqio.get_subtasks(mixture)}
  assert rates == pytest.approx(
    {f'pairs_{name}': count ** (1 / 3) for name, count in n.items()}
  )


def test_rows_of_a_cache_alone_are_weighed(words, paths, tmp_path):
  """A training host names weights, no paths; some of the sets will do."""
  rows = str(tmp_path / 'rows')
  train, _ = build(words, rows, pairs=paths, pairs_weights=WEIGHTS)
  facts = token_store.read_manifest(f'{rows}/pairs_opus-train')['made_from']
  assert facts['data_set'] == 'opus' and 'languages' not in facts
  atm_tasks.configure(words.path, cache_dir=rows, pairs_weights=WEIGHTS)
  rates = [(part.name, part.rate) for part in load(words, rows)]
  assert rates == [(part.name, part.rate) for part in train]
  some = {'opus': 3, 'moses': 1}
  atm_tasks.configure(words.path, cache_dir=rows, pairs_weights=some)
  sets, _ = count_read(load(words, rows), words, 500)
  assert share(sets, 'opus') == pytest.approx(0.75, rel=0.02)
  with pytest.raises(ValueError, match="= 'opsu'.*Did you mean 'opus'"):
    atm_tasks.configure(words.path, cache_dir=rows, pairs_weights={'opsu': 1})
  # A set whose file has changed is refused.
  with open(paths['opus'], 'a') as f:
    f.write('x\ty\n')
  with pytest.raises(ValueError, match='pairs_opus-train.*PAIRS'):
    build(words, rows, pairs=paths, pairs_weights=WEIGHTS)


def test_sets_lie_in_a_bucket(words, paths, bucket):
  for end in 'de', 'en':
    storage.write_bytes(f'{bucket}/x.{end}', b'a\nb\nc\n')
  remote = {'opus': paths['opus'], 'x': (f'{bucket}/x.de', f'{bucket}/x.en')}
  atm_tasks.configure(
    words.path, pairs=remote, pairs_weights={'opus': 1, 'x': 3}
  )
  task = task_table.TASKS['pairs_x']
  assert len([*task.source.texts('train', 0)]) == 2
  mixture = task_table.MIXTURES['pairs']
  assert mixture.get_rate(task) == 0.75
  same = {'a': f'{bucket}/x.de', 'b': f'{bucket}/x.de/'}
  with pytest.raises(ValueError, match="'a' and 'b' are both"):
    atm_tasks.configure(words.path, pairs=same)


def test_equal_weights_in_other_words_are_equal_shares(words, paths, tmp_path):
  """A run goes on where weights are written otherwise, in another order."""
  found = []
  for factor, order in itertools.product((1, 2), (1, -1)):
    weights = {k: WEIGHTS[k] * factor for k in [*WEIGHTS][::order]}
    atm_tasks.configure(
      words.path, pairs={k: paths[k] for k in [*paths][::order]},
      pairs_weights=weights, pairs_temperature=1.0,
    )  # fmt: skip
    mixture = seqio.get_mixture_or_task('pairs')
    tasks = seqio.get_subtasks(mixture)
    found.append([(task.name, mixture.get_rate(task)) for task in tasks])
  assert found == [found[0]] * 4


@pytest.mark.parametrize('settings, message', [
  (dict(pairs={}), 'PAIRS = {}: expected {.NAME.: PATH'),
  (dict(pairs={'a.jsonl': 2.0}), "PAIRS: key 'a.jsonl': expected {'NAME': PAT"),
  (dict(pairs={'a': 2.0}), "PAIRS.'a'. = 2.0: .*PAIRS_WEIGHTS = {'a': 2.0"),
  (dict(pairs={'all': 'x'}), "key 'all': expected"),
  (dict(pairs={'a': 'x', 'A': 'y'}), "'a' and 'A' differ in capitals"),
  (dict(pairs={'a': 'x/y', 'b': 'x/./y'}), "'a' and 'b' are both 'x/./y'"),
  (dict(pairs={'a': ('x',)}), "PAIRS.'a'. = .*or two files"),
  (dict(pairs={'a': ''}), "PAIRS.'a'. = ''"),
  (dict(pairs_weights={'a': 0}), "PAIRS_WEIGHTS.'a'. = 0: .* above 0"),
  (dict(pairs_weights={'a': -1}), "PAIRS_WEIGHTS.'a'. = -1: .* above 0"),
  (dict(pairs_weights={'a': None}), "PAIRS_WEIGHTS.'a'. = None: "),
  (dict(pairs_weights={}), 'PAIRS_WEIGHTS = {}: expected'),
  (dict(pairs_weights=2.0), "PAIRS_WEIGHTS = 2.0: expected {'NAME'"),
  (dict(pairs='x.jsonl', pairs_weights={'a': 1}), 'expected sets by name'),
  (dict(pairs={'a': 'x', 'b': 'y'}, pairs_weights={'a': 1}),
   "no weight of 'b': expected one of each set"),
  (dict(pairs={'open': 'x'}, pairs_weights={'opne': 1}),
   "a set of PAIRS_WEIGHTS = 'opne'.*Did you mean 'open'"),
])  # fmt: skip
def test_what_no_sets_are(settings, message):
  with pytest.raises(ValueError, match=message) as e:
    atm_tasks.configure(**settings)
  assert len(str(e.value)) < 500 and '\n' not in str(e.value)
