"""A batch is a pure function of (seed, step), whoever asks."""

import dataclasses
import hashlib
import json
import os
import re
import time
import types

import numpy as np
import pytest

from atm import storage
from atm.data import batches as batches_lib
from atm.data import (
  mixture_stats,
  objectives,
  packing,
  task_registry,
)
from atm.data.streaming import Stream

from built_rows import (
  LENGTHS,
  build_parts,
  same_batches,
  share_of_host,
  write_texts,
)


@pytest.fixture(scope='module')
def parts(words, tmp_path_factory):
  return build_parts('udhr', 'train', words, tmp_path_factory.mktemp('rows'))


@pytest.fixture(scope='module')
def packed(words, tmp_path_factory):
  """The same text, several CLM documents a row."""
  import atm_tasks

  atm_tasks.configure(vocabulary=words.path, paper_packing=False)
  made = build_parts('udhr', 'train', words, tmp_path_factory.mktemp('packed'))
  atm_tasks.configure(vocabulary=words.path)
  assert any(part.objective.packs for part in made)
  return made


def batches(parts, words, seed=0, batch_size=16):
  return batches_lib.Batches(parts, words, LENGTHS, batch_size, seed)


def test_a_batch_is_a_function_of_seed_and_step(parts, words):
  a, b = batches(parts, words), batches(parts, words)
  for step in (0, 3, 1_000_000):
    assert same_batches(a(step), b(step))
  b(7)
  assert same_batches(a(3), b(3))
  assert not same_batches(a(3), a(4))
  assert not same_batches(a(3), batches(parts, words, seed=1)(3))


@pytest.mark.parametrize('hosts', [1, 2, 4, 8])
def test_hosts_together_read_the_global_batch(parts, words, hosts):
  """In shares side by side, and, as a mesh may have it, interleaved."""
  whole = batches(parts, words)
  for step in range(3):
    shares = [whole(step, share_of_host(16, h, hosts)) for h in range(hosts)]
    glued = {k: np.concatenate([s[k] for s in shares]) for k in shares[0]}
    assert same_batches(whole(step), glued)
    for h in range(hosts):
      mine = np.arange(16)[h::hosts]
      batch = whole(step, mine)
      assert same_batches(batch, {k: v[mine] for k, v in whole(step).items()})


def test_the_mixture_is_80_to_20_and_even_over_languages(parts, words):
  made = batches(parts, words)
  part, _, _ = made.locate(np.arange(batches_lib.CYCLE))
  share = np.bincount(part, minlength=len(parts)) / batches_lib.CYCLE
  denoise = np.array([p.objective.name == 'denoise' for p in parts])
  assert abs(share[denoise].sum() - 0.8) < 24 / batches_lib.CYCLE
  assert abs(share[denoise] - 0.8 / 12).max() < 1.1 / batches_lib.CYCLE
  assert abs(share[~denoise] - 0.2 / 12).max() < 1.1 / batches_lib.CYCLE
  # Any stretch of it is mixed like the whole.
  some = np.bincount(part[:50_000], minlength=len(parts)) / 50_000
  assert abs(some - share).max() < 5 * np.sqrt(0.067 / 50_000)


def test_an_epoch_reads_every_row_once(parts, words):
  made = batches(parts, words)
  part, epoch, row = made.locate(np.arange(20_000))
  for i in (0, 1, 23):
    for number in range(2):
      mine = row[(part == i) & (epoch == number)]
      np.testing.assert_array_equal(
        np.sort(mine), np.arange(len(parts[i].rows))
      )
    first, second = (row[(part == i) & (epoch == n)] for n in (0, 1))
    assert (first != second).any()


def test_noise_changes_with_the_epoch(parts, words):
  ids = packing.SpecialIds.of(words)
  zero = np.zeros(1, np.int64)
  a, b = (
    batches_lib.make_examples(parts, zero + 1, ids, LENGTHS, 0, zero + e, zero)
    for e in (0, 1)
  )
  assert parts[1].objective.name == 'denoise'
  assert (a['decoder_target_tokens'] == b['decoder_target_tokens']).all()
  assert (a['encoder_input_tokens'] != b['encoder_input_tokens']).any()


def test_rows_are_the_shipped_text(parts, words):
  english = next(p for p in parts if p.name == 'udhr_en_denoise')
  assert words.decode(english.rows.head(20)).startswith(
    'Whereas recognition of'
  )


def test_passes_join_documents_in_other_orders(words, tmp_path):
  once = build_parts('udhr_en_denoise', 'train', words, tmp_path / 'a')
  thrice = build_parts(
    'udhr_en_denoise', 'train', words, tmp_path / 'b', passes=3
  )
  a, b = once[0].rows, thrice[0].rows
  assert abs(b.tokens / a.tokens - 3) < 0.05
  text = lambda ids: np.sort(ids[ids != words.doc_id])
  third = text(b.head(b.tokens))
  np.testing.assert_array_equal(
    np.bincount(third, minlength=words.size),
    3 * np.bincount(text(a.head(a.tokens)), minlength=words.size),
  )


# --- Recorded batches


class ListedRows:
  """Stands for the rows of a finished folder."""

  remote = False

  def __init__(self, rows):
    self.rows = list(rows)

  def __len__(self):
    return len(self.rows)

  def row(self, index):
    return self.rows[index]


def recorded_part(number, objective):
  """A part of 60 documents by linear congruences: of no library's generator."""
  ids = packing.SpecialIds(0, 1, 2, 5, 6)
  documents = [
    (100 + (np.arange(3 + (i * 7919 + 13) % 90) * 31 + i * 17) % 800)
    for i in range(60)
  ]
  if objective.name == 'pair':
    documents = [
      (d[:40], d[40:70] if len(d) > 40 else d[:9]) for d in documents
    ]
  rows = objective.rows(documents, ids, objective.row_length(64, 48))
  rows = objective.pack(rows, ids, 64, 48) if objective.packs else rows
  return batches_lib.MixturePart(
    f'task_{number}', 'en', objective, ListedRows(rows), 1.0 + number
  )


RECORDED = '3cf211d8de9662855fd9402b625f140b6e5bdcc1edc2585a1aced3c5576ffb9d'
RECORDED_UNPACKED = (
  '1d299b957d41bf3529d6aa07b0a0a7efa92d6b0a9d4d2b5bf41c6fe4fc90aec2'
)


def test_batches_are_those_of_every_version():
  """A run that resumes with newer code reads on as before, bit for bit.

  Faults seen: a task's id by another hash; rows of an objective in another
  order; `</s>` counted as a token of a CLM document.
  """
  kinds = [
    objectives.Denoise(), objectives.Denoise(0.3, 5.0), objectives.CLM(),
    objectives.CLM(packs=True), objectives.Pairs(),
  ]  # fmt: skip
  # Manifests hold these: rows of another repr() are refused.
  assert repr(kinds) == (
    '[Denoise(density=0.15, mean_span=3.0), Denoise(density=0.3, '
    'mean_span=5.0), CLM(low=0.2, high=0.8, packs=False), CLM(low=0.2, '
    'high=0.8, packs=True), Pairs(packs=True)]'
  )
  special = {'[PAD]': 0, '<s>': 1, '</s>': 2, '[CLM]': 5, '[DOC]': 6}
  vocabulary = types.SimpleNamespace(
    special_ids=lambda: special,
    languages={},
    input_format=types.SimpleNamespace(name='alexatm'),
  )
  for count, recorded in ((5, RECORDED), (3, RECORDED_UNPACKED)):
    parts = [recorded_part(*numbered) for numbered in enumerate(kinds[:count])]
    lengths = task_registry.Lengths(64, 48)
    made = batches_lib.Batches(parts, vocabulary, lengths, 16, 3)
    digest = hashlib.sha256()
    for step in (0, 1, 1000, 70_000):  # the last: beyond the pattern's cycle
      for name, value in sorted(made(step).items()):
        digest.update(f'{name} {value.dtype} {value.shape}'.encode())
        digest.update(value.tobytes())
    assert digest.hexdigest() == recorded


# --- A folder of the user's own text


def test_a_folder_of_text_and_jsonl(words, tmp_path):
  import atm_tasks

  lines = '\n'.join(f'English line number {i}' for i in range(300))
  objects = '\n'.join(
    json.dumps({'text': f'ligne {i}', 'other': 1}) for i in range(100)
  )
  folder = write_texts(tmp_path, en_txt=lines, fr_jsonl=objects)
  atm_tasks.configure(text_dir=folder, held_out=0.1)
  train, held = (
    list(task_registry.read_texts('text')),
    list(task_registry.read_texts('text', 'validation')),
  )
  assert len(train) + len(held) == 400 and 10 < len(held) < 80
  assert ('fr', 'ligne 7') in train + held
  made = build_parts('text', 'train', words, tmp_path / 'rows')
  rates = {p.name: p.rate for p in made}
  assert rates['text_en_denoise'] / rates['text_en_clm'] == pytest.approx(4)
  # Languages by sentence counts ** 0.5 (paper, section 2.1).
  english, french = ([k for k, _ in train].count(k) for k in ('en', 'fr'))
  wanted = (english / french) ** 0.5
  assert rates['text_en_clm'] / rates['text_fr_clm'] == pytest.approx(wanted)


# --- The global stream of tokens


def stream_hash(parts, words, hosts_at, steps):
  """SHA-256 of the global batches, each glued from its hosts' shares."""
  made = [batches(parts, words) for _ in range(8)]  # a host each
  digest = hashlib.sha256()
  for step in range(steps):
    hosts = hosts_at(step)
    shares = [made[h](step, share_of_host(16, h, hosts)) for h in range(hosts)]
    for name in sorted(shares[0]):
      digest.update(np.concatenate([s[name] for s in shares]).tobytes())
  return digest.hexdigest()


@pytest.mark.parametrize(
  'steps', [300, pytest.param(1000, marks=pytest.mark.slow)]
)
def test_the_stream_is_the_same_for_any_hosts(packed, words, steps):
  """1, 2, 4 and 8 hosts, and hosts that change in the middle.

  Packed and mixed; 300 steps come to a second epoch of every task.

  Faults seen: noise keyed by the place in the host's share; the permutation
  keyed by the host.
  """
  of = lambda hosts_at: stream_hash(packed, words, hosts_at, steps)
  alone = of(lambda step: 1)
  for hosts in (2, 4, 8):
    assert of(lambda step, n=hosts: n) == alone
  assert of(lambda step: (1, 8, 2, 4)[step * 4 // steps]) == alone


def test_a_million_steps_in_is_as_near_as_the_first(parts, words):
  made = batches(parts, words)
  start = time.perf_counter()
  made(1_000_000)
  assert time.perf_counter() - start < 5


def test_rare_tasks_are_not_lost(parts, words):
  """A task of less than one row in a cycle still gets one."""
  few = [dataclasses.replace(p, rate=1e-9) for p in parts[:3]]
  made = batches([*few, *parts[3:]], words)
  counts = np.bincount(made.pattern, minlength=len(parts))
  assert (counts[:3] == 1).all() and counts.sum() == batches_lib.CYCLE


def test_batches_made_ahead_are_the_same_in_the_same_order():
  made, seen = [], []

  def make(step):
    made.append(step)
    if step == 7:
      raise ValueError('seven')
    return {'step': step}

  with pytest.raises(ValueError, match='seven'):
    for batch in batches_lib.prefetch(make, 3, 10):
      seen.append(batch['step'])
      assert len(made) <= len(seen) + 3  # not farther ahead than asked
  assert seen == [3, 4, 5, 6]
  numbered = batches_lib.prefetch(lambda n: {'step': n}, 0, 5)
  assert [b['step'] for b in numbered] == [
    0, 1, 2, 3, 4,
  ]  # fmt: skip


def test_the_digest_tells_rows_apart(words, tmp_path):
  name = 'udhr_en_denoise'
  once = build_parts(name, 'train', words, tmp_path / 'a')
  again = build_parts(name, 'train', words, tmp_path / 'b')
  twice = build_parts(name, 'train', words, tmp_path / 'c', passes=2)
  assert (
    batches_lib.hash_parts(once)
    == batches_lib.hash_parts(again)
    != batches_lib.hash_parts(twice)
  )


# --- The same tasks as seqio streams


def pairs_task(name, pairs):
  """A seqio task of inputs and targets, as for fine-tuning."""
  import seqio
  import tensorflow as tf

  import atm_tasks

  def dataset_fn(split, shuffle_files=False, seed=None):
    del split, shuffle_files, seed
    return tf.data.Dataset.from_generator(
      lambda: ({'inputs': a, 'targets': b} for a, b in pairs),
      output_signature={
        k: tf.TensorSpec([None], tf.int32) for k in ('inputs', 'targets')
      },
    )

  feature = seqio.Feature(atm_tasks.pretraining.tasks.VOCABULARY, add_eos=False)
  if name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(name)
  seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(dataset_fn, splits=['train']),
    preprocessors=[],
    output_features={'inputs': feature, 'targets': feature},
  )


def test_pairs_are_packed_and_none_is_lost(words, tmp_path, rng):
  pairs = [
    tuple(rng.integers(7, 2000, n).astype(np.int32) for n in size)
    for size in rng.integers(1, 40, (200, 2))
  ]
  pairs_task('two_sided', pairs)
  (part,) = build_parts('two_sided', 'train', words, tmp_path)
  assert len(part.rows) < 90  # of 64 places, not 200 rows
  n = np.arange(len(part.rows))
  batch = batches_lib.make_examples(
    [part], 0 * n, packing.SpecialIds.of(words), LENGTHS, 0, 0 * n, n
  )
  found = []
  for row in range(len(n)):
    segments = batch['decoder_segment_ids'][row]
    for k in range(1, segments.max() + 1):
      source = batch['encoder_segment_ids'][row] == k
      found.append(
        (
          tuple(batch['encoder_input_tokens'][row][source]),
          tuple(batch['decoder_target_tokens'][row][segments == k]),
        )
      )
  assert sorted(found) == sorted((tuple(a), tuple(b)) for a, b in pairs)
  stream = Stream('two_sided', words, LENGTHS, 8, 0)
  assert (
    stream(0)['objective'] == objectives.OBJECTIVE_NAMES.index('pair')
  ).all()


def test_batches_from_an_object_store(parts, words, bucket):
  folder = os.path.dirname(parts[0].rows.directory)
  storage.upload_folder(folder, bucket)
  remote = batches_lib.load_parts('udhr', 'train', words, LENGTHS, bucket)
  assert all(part.rows.remote for part in remote)
  assert batches_lib.hash_parts(remote) == batches_lib.hash_parts(parts)
  for step in (0, 1_000_000):
    ours = batches(remote, words)(step)
    assert same_batches(ours, batches(parts, words)(step))


def test_rows_of_batches_are_counted(words, monkeypatch):
  """Against the rows located one by one, over the end of a cycle."""
  monkeypatch.setattr(batches_lib, 'CYCLE', 1 << 8)
  Part = lambda name, rate, rows: batches_lib.MixturePart(
    name, 'en', objectives.Denoise(), range(rows), rate
  )
  parts = [Part('a', 0.7, 9), Part('b', 0.2, 5), Part('c', 0.1, 3)]
  made = batches_lib.Batches(parts, words, LENGTHS, 16, 0)
  for first, last in ((0, 0), (0, 3), (5, 70), (16, 17), (40, 200)):
    part, *_ = made.locate(np.arange(first * 16, last * 16))
    found = np.bincount(part, minlength=3)
    assert made.count_rows(first, last).tolist() == found.tolist()


def test_the_task_of_the_documents(words, tmp_path, monkeypatch):
  """docs/data.md registers a task; it is cached, mixed and streamed."""
  import seqio

  import atm_tasks

  root = os.path.abspath(f'{os.path.dirname(__file__)}/../..')
  with open(f'{root}/docs/data.md', encoding='utf-8') as f:
    (code,) = re.findall(r'```python[^\n]*\n(.*?)```', f.read(), re.S)
  monkeypatch.chdir(tmp_path)
  for name, count in (('poems', 300), ('held_out', 20)):
    lines = (f'Line {i} of a poem about the sea.' for i in range(count))
    (tmp_path / f'{name}.txt').write_text('\n'.join(lines))
  if 'poems' in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove('poems')
  exec(code, {})
  (part,) = build_parts('poems', 'train', words, tmp_path / 'rows')
  assert part.rows.counts['documents'] == 300
  first = words.encode('Line 0 of a poem about the sea.')
  assert list(part.rows.row(0)[: len(first)]) == first
  (line,) = mixture_stats.compute_lines([part], [100])
  assert (line.source, line.sentences, line.weight) == ('poems', 300, 1.0)
  assert batches([part], words)(3)['decoder_loss_weights'].sum() > 500
  atm_tasks.configure(vocabulary=words.path)
  stream = Stream('poems', words, LENGTHS, 4, 0)
  assert stream(1)['decoder_loss_weights'].sum() > 100
