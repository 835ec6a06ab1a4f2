"""Tasks of pairs: frames, a task for each direction, their shares."""

import collections
import functools
import json
import os
import re

import jax
import numpy as np
import pytest
import seqio

import atm_tasks
from atm.checkpoint import pretrained
from atm.data import (
  batches,
  cache,
  mixture_stats,
  objectives,
  packing,
  token_store,
)
from atm.data.input_format import MODES
from atm.data.task_registry import Lengths
from atm.inference import api
from atm.model.config import ModelConfig
from atm.model.transformer import AlexaTM
from atm.parallel.sharding import Rules
from atm.train import step
from atm_tasks.pretraining import pair_tasks, pair_text, tasks
from atm_tasks.pretraining.pair_text import PairReader
from atm_tasks.pretraining.pairs import PairsSource

import tiny_runs

PUBLIC = os.path.join(os.path.dirname(__file__), '../golden/public')
LENGTHS = {'inputs': 24, 'targets': 16}
# Pairs of each direction, one of which has too few to hold one out.
COUNTS = {('en', 'de'): 150, ('en', 'ta'): 20, ('de', 'en'): 2}


def write_pairs(path, counts=COUNTS) -> str:
  """Writes pairs of several directions, one after the other."""
  with open(path, 'w', encoding='utf-8') as f:
    for (source, target), count in counts.items():
      for i in range(count):
        row = {
          'input': f'everyone {source} {i}', 'target': f'{target} life {i}',
          'source_language': source, 'target_language': target,
        }  # fmt: skip
        f.write(json.dumps(row) + '\n')
  return str(path)


def build(words, directory, said=None, **settings):
  """Builds rows of pairs; returns training and held-out parts."""
  configure = lambda **named: atm_tasks.configure(**named, **settings)
  cache.build(
    'pairs', words.path, LENGTHS, str(directory), configure_tasks=configure,
    say=(said if said is not None else []).append, processes=1,
  )  # fmt: skip
  return [
    batches.load_parts(
      'pairs', split, words, Lengths.of(LENGTHS), str(directory)
    )
    for split in ('train', 'validation')
  ]


def count_pairs(parts) -> dict[str, int]:
  return {part.language: part.rows.counts['examples'] for part in parts}


# --- Frames


@pytest.mark.parametrize('mode', [*MODES, None])
def test_inputs_are_framed_as_prompts_are(words, mode):
  """Fault seen: no `</s>` behind an input that was cut."""
  config = ModelConfig(vocab_size=words.size)
  model = api.Model(config, {}, words, None, None, 0)
  atm_tasks.configure(words.path)
  frame = pair_tasks.FramePairs(mode)
  mode = mode or 'clm'  # the vocabulary has [CLM]
  assert frame.made_from == {'mode': mode}
  pair = 'everyone a b', 'to life b a'
  for source, target in (pair, ('é ' * 40, 'ü ' * 40), ('', '')):
    raw = pair_text.pair_to_text(source, target, ('en', 'de'))
    ids, answer = frame.pair(raw, 1 << 30, 1 << 30)
    assert ids.tolist() == model.encode(source, mode)
    assert answer.tolist() == [*words.encode(target), words.eos_id]
    cut, part = frame.pair(raw, 12, 10)
    head = 1 + (mode == 'clm')
    assert len(cut) == min(12, len(ids)) and cut[-1] == words.eos_id
    assert (cut[:-1] == ids[: len(cut) - 1]).all() and head <= len(cut)
    assert part.tolist() == answer[:10].tolist()


def test_mode_is_checked():
  with pytest.raises(ValueError, match="PAIRS_MODE = 'cml'.*'clm'"):
    pair_tasks.FramePairs('cml')


# --- Directions


def test_each_direction_has_rows_of_its_own(words, tmp_path):
  """The text is read once for all; rows hold what a single task's would."""
  path, said = write_pairs(tmp_path / 'a.jsonl'), []
  settings = dict(pairs=path, pairs_temperature=1.0)
  train, held = build(words, tmp_path / 'rows', said, **settings)
  assert [part.name for part in train] == [
    'pairs_de_en',
    'pairs_en_de',
    'pairs_en_ta',
  ]
  assert {part.source for part in train} == {'pairs'}
  total = collections.Counter(count_pairs(train)) + count_pairs_of(held)
  assert total == {f'{a}-{b}': n for (a, b), n in COUNTS.items()}
  units = [x for x in said if 'units' in x and x.startswith('building')]
  assert 'pairs, 2 units' in units[0]
  (alone,), (rest,) = build(words, tmp_path / 'alone', pairs=path)
  for parts, one in ((train, alone), (held, rest)):
    assert sum(count_pairs(parts).values()) == one.rows.counts['examples']
    targets = [one.objective.targets(r) for p in parts for r in all_rows(p)]
    wanted = [one.objective.targets(row) for row in all_rows(one)]
    assert sorted(np.concatenate(targets)) == sorted(np.concatenate(wanted))


def count_pairs_of(parts) -> collections.Counter:
  return collections.Counter(count_pairs(parts))


def all_rows(part):
  return map(part.rows.row, range(len(part.rows)))


@pytest.mark.parametrize('temperature', [1.0, 5.0])
def test_pairs_are_sampled_with_a_temperature(words, tmp_path, temperature):
  """Of the pairs that a run reads a direction has its count ** (1 / T)."""
  path = write_pairs(tmp_path / 'a.jsonl')
  settings = dict(pairs=path, pairs_temperature=temperature)
  train, _ = build(words, tmp_path / 'rows', **settings)
  run = batches.Batches(train, words, Lengths.of(LENGTHS), 64, seed=7)
  counts = np.array([part.rows.counts['examples'] for part in train], float)
  # Rows of a part hold so many pairs in the mean.
  seen = run.quota * counts / [len(part.rows) for part in train]
  wanted = counts ** (1 / temperature)
  np.testing.assert_allclose(
    seen / seen.sum(), wanted / wanted.sum(), rtol=1e-3
  )
  lines = mixture_stats.describe_directions(train)
  assert len(lines) == 3 and lines[1] == (
    f'pairs en-de: {counts[1]:,.0f} to train on, '
    f'{wanted[1] / wanted.sum():.2%} of the pairs that are read'
  )


def test_rows_are_read_from_a_cache_alone(words, tmp_path):
  """A training host weighs directions that it has no text of."""
  path = write_pairs(tmp_path / 'a.jsonl')
  rows, settings = tmp_path / 'rows', dict(pairs_temperature=2.0)
  train, _ = build(words, rows, pairs=path, **settings)
  for part in train:
    seqio.TaskRegistry.remove(part.name)
  seqio.MixtureRegistry.remove('pairs')
  atm_tasks.configure(words.path, cache_dir=str(rows), **settings)
  again = batches.load_parts(
    'pairs', 'train', words, Lengths.of(LENGTHS), str(rows)
  )
  assert [(p.name, p.rate) for p in again] == [(p.name, p.rate) for p in train]
  facts = token_store.read_manifest(f'{rows}/pairs_en_ta-train')['made_from']
  assert facts['languages'] == ['en', 'ta'] and facts['mode'] == 'clm'


def test_a_stream_has_the_shares_of_its_texts(words, tmp_path):
  """Nothing was counted but lines; each direction reads its own pairs."""
  path = write_pairs(tmp_path / 'a.jsonl')
  atm_tasks.configure(words.path, pairs=path, pairs_temperature=2.0)
  mixture = seqio.get_mixture_or_task('pairs')
  rates = {t.name: mixture.get_rate(t) for t in seqio.get_subtasks(mixture)}
  wanted = {pair_tasks.name_task(k): n**0.5 for k, n in COUNTS.items()}
  assert rates == pytest.approx(wanted)
  task = seqio.get_mixture_or_task('pairs_en_ta')
  dataset = task.get_dataset(LENGTHS, 'train', shuffle=False)
  texts = [
    words.decode(e['targets'].tolist()) for e in dataset.as_numpy_iterator()
  ]
  assert 15 <= len(texts) < 20 and all(x.startswith('ta life') for x in texts)


def test_pairs_without_languages_are_one_task(words, tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"input": "a", "target": "b"}\n' * 3)
  assert PairsSource(str(path), 0.0).count_directions() == {}
  atm_tasks.configure(words.path, pairs=str(path), pairs_temperature=1.0)
  assert isinstance(seqio.get_mixture_or_task('pairs'), seqio.Task)
  # The settings tell them apart; a direction is then the only one.
  atm_tasks.configure(
    words.path, pairs=str(path), pairs_temperature=1.0, source_language='en',
    target_language='de',
  )  # fmt: skip
  mixture = seqio.get_mixture_or_task('pairs')
  assert [t.name for t in seqio.get_subtasks(mixture)] == ['pairs_en_de']


@pytest.mark.parametrize(
  'last, message',
  [
    ({'input': 'a', 'target': 'b'}, 'line 173: expected an object with `sourc'),
    ({'input': 'a'}, 'line 173: expected an object with a string `input`'),
  ],
)  # fmt: skip
def test_a_line_that_is_other_than_the_first_is_named(
  words, tmp_path, last, message
):
  path = write_pairs(tmp_path / 'a.jsonl')
  with open(path, 'a') as f:
    f.write(json.dumps(last) + '\n')
  configure = lambda **more: atm_tasks.configure(
    words.path, pairs=path, pairs_temperature=1.0, **more
  )
  with pytest.raises(ValueError, match=message):
    configure()
  configure(skip_bad=True)
  counts = PairsSource(path, 0.0, True).count_directions()
  assert counts == COUNTS


def test_two_ways_to_write_a_language_are_two_directions(words, tmp_path):
  """Fault seen: one task for both, which had the pairs of one."""
  path = write_pairs(tmp_path / 'a', {('zh-TW', 'x'): 2, ('zh_TW', 'x'): 3})
  os.rename(path, f'{path}.jsonl')
  atm_tasks.configure(pairs=f'{path}.jsonl', pairs_temperature=1.0)
  found = seqio.get_subtasks(seqio.get_mixture_or_task('pairs'))
  directions = {t.name: t.preprocessors[0].direction for t in found}
  assert directions == {
    'pairs_zh_TW_x': ('zh-TW', 'x'),
    'pairs_zh_TW_x_': ('zh_TW', 'x'),
  }


def test_settings_of_languages_and_shares_are_checked():
  for name, value in (
    ('pairs_temperature', 0.5), ('pairs_temperature', 'hot'),
    ('source_language', ''), ('target_language', 7),
  ):  # fmt: skip
    with pytest.raises(ValueError, match=re.escape(name.upper())):
      atm_tasks.configure(**{name: value})


# --- Public models

with open(f'{PUBLIC}/pairs.json', encoding='utf-8') as f:
  PEERS = json.load(f)  # see golden/make_pairs.py


@pytest.mark.parametrize('name', PEERS)
def test_pairs_are_framed_as_transformers_does(name):
  """Whole ones and truncated ones; languages as users write them."""
  atm_tasks.configure(f'{PUBLIC}/{name}')
  words = tasks.VOCABULARY.words
  frame = pair_tasks.FramePairs(None)
  assert frame.made_from == {'mode': words.input_format.name}
  for peer in PEERS[name]:
    reader = pair_tasks.know_languages(PairReader(), words.input_format, None)
    codes = dict(zip(pair_text.LANGUAGE_FIELDS, peer['languages']))
    row = {k: peer[k] for k in pair_text.PAIR_FIELDS}
    given = {k: v and v.split('_')[0] for k, v in codes.items()}  # of ISO
    *texts, direction = reader.read(json.dumps(row | given))
    assert direction == (tuple(peer['languages']) if words.languages else None)
    raw = pair_text.pair_to_text(*texts, direction or ())
    for length, before in ((1 << 30, ''), (12, 'cut_')):
      ids, labels = frame.pair(raw, length, length)
      assert ids.tolist() == peer[f'{before}input_ids']
      assert labels.tolist() == peer[f'{before}labels']


def pack_peers(source, peers) -> tuple[dict, int]:
  """Returns arrays of rows that hold transformers' pairs; how many rows."""
  ids = packing.SpecialIds.of(source.vocabulary, source.config.start_id)
  kind, S = objectives.Pairs(), source.config.positions
  pairs = [[peer['input_ids'], peer['labels']] for peer in peers]
  rows = list(kind.pack(kind.rows(pairs, ids, 0), ids, S, S))
  length = np.array([len(row) for row in rows])
  tokens = np.zeros((len(rows), length.max()), np.int32)
  tokens[np.arange(length.max()) < length[:, None]] = np.concatenate(rows)
  return kind.examples(tokens, length, None, ids, S, S), len(rows)


@pytest.mark.parametrize('name', PEERS)
def test_each_pair_of_a_row_starts_as_transformers_does(name):
  source, peers = pretrained.open_pretrained(f'{PUBLIC}/{name}'), PEERS[name]
  batch, rows = pack_peers(source, peers)
  read = batch['decoder_input_tokens'][batch['decoder_segment_ids'] > 0]
  assert rows < len(peers)
  assert read.tolist() == sum((p['decoder_input_ids'] for p in peers), [])


@pytest.mark.parametrize('name', ['mbart25', 'nllb'])
def test_packed_pairs_have_the_loss_of_transformers(name):
  source, peers = pretrained.open_pretrained(f'{PUBLIC}/{name}'), PEERS[name]
  params = source.read_params(tiny_runs.ONE(), Rules())
  compute = jax.jit(functools.partial(step.eval_step, AlexaTM(source.config)))
  loss = compute(params, pack_peers(source, peers)[0])['loss'].sum()
  wanted = sum(peer['loss'] * len(peer['labels']) for peer in peers)
  np.testing.assert_allclose(loss, wanted, rtol=2e-6)


def test_a_pair_without_its_languages_is_named(tmp_path):
  """An unknown one, too, with the nearest code."""
  atm_tasks.configure(f'{PUBLIC}/nllb')
  path = write_pairs(tmp_path / 'a.jsonl', {('en', 'de'): 2})
  for row, message in (
    ({}, 'a.jsonl, line 3: .*`source_language` and `target_language`'),
    (dict(source_language='en', target_language='Klingon'),
     "a.jsonl, line 3: .*target_language = 'Klingon'"),
  ):  # fmt: skip
    write_pairs(tmp_path / 'a.jsonl', {('en', 'de'): 2})
    with open(path, 'a') as f:
      f.write(json.dumps({'input': 'a', 'target': 'b'} | row) + '\n')
    for temperature in (1.0, None):
      with pytest.raises(ValueError, match=message):
        atm_tasks.configure(
          f'{PUBLIC}/nllb', pairs=path, pairs_temperature=temperature
        )
        list(seqio.get_mixture_or_task('pairs').source.texts('train', 0))
