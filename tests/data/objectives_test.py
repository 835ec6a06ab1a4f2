"""The objectives are those of the paper, whatever the row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atm.data import counter_rng
from atm.data.objectives import CLM, Denoise, Pairs
from atm.data.packing import SpecialIds

IDS = SpecialIds(pad=0, bos=1, eos=2, clm=5, doc=6)
seeds = st.integers(0, 2**63)


def row_of(n, width=None):
  """[1, width] of distinct ids from 100, and its length."""
  tokens = np.zeros((1, width or n), np.int32)
  tokens[0, :n] = np.arange(100, 100 + n)
  return tokens, np.array([n])


def unframe(batch, i=0):
  source = batch['encoder_input_tokens'][i][batch['encoder_segment_ids'][i] > 0]
  target = batch['decoder_target_tokens'][i][
    batch['decoder_loss_weights'][i] > 0
  ]
  return source, target


@given(n=st.integers(2, 200), density=st.floats(0.01, 0.5), seed=seeds)
def test_denoising_drops_an_exact_budget_and_inserts_nothing(n, density, seed):
  tokens, length = row_of(n)
  objective = Denoise(density=density)
  key = counter_rng.make_key(seed)[None]
  batch = objective.examples(tokens, length, key, IDS, n + 2, n + 1)
  source, target = unframe(batch)
  assert list(target) == [*tokens[0], IDS.eos]
  assert source[0] == IDS.bos and source[-1] == IDS.eos
  kept = source[1:-1]
  assert len(kept) == n - int(np.floor(n * density + 0.5))
  assert (np.diff(kept) > 0).all()  # a subsequence, in order
  assert set(kept) <= set(tokens[0])


def test_rows_of_other_lengths_change_nothing():
  """Fault seen: padding behind a shorter row taken for a target."""
  tokens, key = (
    np.array([[7, 8, 9, 0, 0], [10, 11, 12, 13, 14]], np.int32),
    [counter_rng.make_key(n)[None] for n in range(2)],
  )
  length, sizes = np.array([3, 5]), (9, 8)
  for objective in (Denoise(density=0.3), CLM()):
    both = objective.examples(tokens, length, np.concatenate(key), IDS, *sizes)
    for r, n in enumerate(length):
      alone = objective.examples(
        tokens[r : r + 1, :n], length[r : r + 1], key[r], IDS, *sizes
      )
      for name, array in alone.items():
        np.testing.assert_array_equal(array[0], both[name][r], name)


def test_a_row_is_one_document_unless_asked_otherwise():
  assert not CLM().packs and not Denoise().packs and Pairs().packs


@given(n=st.integers(2, 300), seed=seeds, ends=st.booleans())
def test_clm_splits_one_document_at_20_to_80_percent(n, seed, ends):
  tokens, length = row_of(n)
  if ends:
    tokens = np.concatenate([tokens, [[IDS.eos]]], axis=1)
    length = length + 1
  key = counter_rng.make_key(seed)[None]
  batch = CLM().examples(tokens, length, key, IDS, n + 3, n + 1)
  source, target = unframe(batch)
  assert list(source[:2]) == [IDS.bos, IDS.clm] and source[-1] == IDS.eos
  prefix = source[2:-1]
  assert list(prefix) + list(target) == list(tokens[0])
  assert 1 <= len(prefix) <= n - 1
  assert 0.2 * n - 0.5 <= len(prefix) <= max(1, 0.8 * n + 0.5)


def test_clm_splits_are_uniform():
  tokens, _ = row_of(1000)
  B = 5000
  draw = counter_rng.uniform(counter_rng.make_key(1, np.arange(B)), 1)[:, 0]
  cut = CLM().split(np.full(B, 1000), draw)
  counts, _ = np.histogram(cut, bins=6, range=(200, 800))
  assert abs(counts / B - 1 / 6).max() < 0.02


@given(
  sizes=st.lists(st.integers(0, 30), min_size=1, max_size=12),
  length=st.integers(4, 25),
)
def test_denoising_rows_hold_all_tokens_with_doc_between(sizes, length):
  start = np.cumsum([100, *sizes])
  documents = [np.arange(s, s + n) for s, n in zip(start, sizes)]
  rows = list(Denoise().rows(documents, IDS, length))
  assert all(len(row) == length for row in rows[:-1])
  flat = np.concatenate(rows) if rows else np.array([])
  text = flat[flat != IDS.doc]
  everything = np.concatenate(documents)
  # Nothing is lost but a rest of one token at the very end.
  assert len(everything) - len(text) <= 1
  np.testing.assert_array_equal(text, everything[: len(text)])
  for row in rows:  # [DOC] stands exactly where a document ends
    for i in np.flatnonzero(row == IDS.doc):
      assert i > 0
      if i + 1 < len(row):
        assert row[i + 1] in start


def test_clm_rows_are_one_document_each_and_end_only_where_it_does():
  documents = [np.arange(100, 110), np.arange(200, 203), np.array([7])]
  rows = [list(row) for row in CLM().rows(documents, IDS, 8)]
  assert rows == [list(range(100, 108)), [200, 201, 202, IDS.eos]]


@given(S=st.integers(8, 300), T=st.integers(8, 300), seed=seeds)
def test_every_row_of_the_greatest_length_fits(S, T, seed):
  for objective in (Denoise(), CLM(), Denoise(density=0.4), CLM(0.5, 0.9)):
    n = objective.row_length(S, T)
    tokens, length = row_of(n)
    batch = objective.examples(
      tokens, length, counter_rng.make_key(seed)[None], IDS, S, T
    )
    assert batch['encoder_input_tokens'].shape == (1, S)
    assert batch['decoder_target_tokens'].shape == (1, T)


def test_the_papers_lengths():
  assert Denoise().row_length(1024, 1024) == 1023
  assert CLM().row_length(1024, 1024) == 1024


def test_weights_do_not_depend_on_the_id_of_padding():
  """Fault seen: weights read off `target != 0`."""
  ids = SpecialIds(pad=3, bos=1, eos=2, clm=5, doc=6)
  tokens = np.array([[0, 0, 3, 8]], np.int32)
  batch = Denoise(density=0.01).examples(
    tokens, np.array([4]), counter_rng.make_key(0)[None], ids, 8, 8
  )
  assert batch['decoder_loss_weights'].sum() == 5
  assert batch['encoder_segment_ids'].sum() == 6
  assert list(batch['decoder_target_tokens'][0]) == [0, 0, 3, 8, 2, 3, 3, 3]
  assert list(batch['decoder_input_tokens'][0]) == [1, 0, 0, 3, 8, 3, 3, 3]


def test_bad_settings_are_refused():
  for density in (0.7, 0, -0.1, float('nan'), '0.1', None, True):
    with pytest.raises(ValueError, match='density = .*above 0 and of at most'):
      Denoise(density=density)
  for span in (0.0, -1, float('nan'), float('inf'), 2**40, [3]):
    with pytest.raises(ValueError, match='mean_span = .*expected a number'):
      Denoise(mean_span=span)
  with pytest.raises(ValueError, match='low=0.9.*: expected 0 < low <= high'):
    CLM(low=0.9)
  for low, high in [(0, 0.5), (0.5, 1), (-0.1, 0.5), (0.2, 1.5), (None, 0.5)]:
    with pytest.raises(ValueError, match='(low|high) = .*expected a number'):
      CLM(low=low, high=high)
  for kind in (CLM, Pairs):
    with pytest.raises(ValueError, match="packs = 'False': expected True or"):
      kind(packs='False')
  with pytest.raises(ValueError, match='leave no room'):
    Denoise().row_length(4, 4)


def test_the_ends_of_the_settings_are_allowed():
  assert Denoise(density=0.5).row_length(8, 8) == 7
  assert CLM(low=0.3, high=0.3).split(np.array([10]), np.array([0.9])) == [3]
  assert Pairs().row_length(4, 9) == 13
  with pytest.raises(ValueError, match='leave no room'):
    Pairs().row_length(9, 3)


# --- Several examples a row


def documents_of(rng, count, most):
  """Documents of distinct ids, so that each token names its document."""
  sizes = rng.integers(2, most, count)
  ends = np.cumsum(sizes) + 100
  return [np.arange(e - n, e) for n, e in zip(sizes, ends)]


def test_packed_clm_fits_for_every_split_and_loses_nothing(rng):
  S, T = 96, 80
  objective = CLM(packs=True)
  documents = documents_of(rng, 400, 60)
  single = objective.rows(documents, IDS, objective.row_length(S, T))
  rows = list(objective.pack(single, IDS, S, T))
  assert len(rows) < 300
  text = [list(d) for d in documents]
  packed = [
    [i for i in piece if i != IDS.eos]
    for row in rows
    for piece in np.split(row, np.flatnonzero(row == IDS.doc))
  ]
  packed = [[i for i in piece if i != IDS.doc] for piece in packed]
  assert sorted(packed) == sorted(text)
  width = max(map(len, rows))
  tokens = np.zeros((len(rows), width), np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
  length = np.array([len(row) for row in rows])
  seen = set()
  for seed in range(20):  # `frame` refuses what does not fit
    key = counter_rng.make_key(seed, np.arange(len(rows)))
    batch = objective.examples(tokens, length, key, IDS, S, T)
    for r in range(0, len(rows), 7):
      seen |= check_segments(batch, r, documents)
  assert len(seen) > 50


def check_segments(batch, r, documents) -> set:
  """Each segment is one document, split; returns the documents' numbers."""
  start = {int(d[0]): d for d in documents}
  found = set()
  for k in range(1, batch['decoder_segment_ids'][r].max() + 1):
    source = batch['encoder_segment_ids'][r] == k
    target = batch['decoder_segment_ids'][r] == k
    ids = batch['encoder_input_tokens'][r][source]
    rest = batch['decoder_target_tokens'][r][target]
    assert list(ids[:2]) == [IDS.bos, IDS.clm] and ids[-1] == IDS.eos
    document = start[int(ids[2])]
    assert [*ids[2:-1], *rest] == [*document, IDS.eos]
    for side, inside in (('encoder', source), ('decoder', target)):
      positions = batch[f'{side}_positions'][r][inside]
      np.testing.assert_array_equal(positions, np.arange(len(positions)))
    shifted = batch['decoder_input_tokens'][r][target]
    assert list(shifted) == [IDS.bos, *rest[:-1]]
    found.add(int(ids[2]))
  assert batch['encoder_segment_ids'][r].max() == k
  return found


def test_one_document_a_row_is_the_same_packed_or_not(rng):
  (row,) = documents_of(rng, 1, 50)
  tokens, length = row[None].astype(np.int32), np.array([len(row)])
  key = counter_rng.make_key(5)[None]
  a, b = (
    CLM(packs=packs).examples(tokens, length, key, IDS, 64, 64)
    for packs in (False, True)
  )
  assert all((a[k] == b[k]).all() for k in a)


def test_clm_rows_are_packed_by_what_any_split_takes():
  """A document that ends, and one that was cut: its `</s>` is not counted."""
  objective = CLM(packs=True)
  ends = np.array([*range(100, 110), IDS.eos])
  cut = np.arange(200, 211)
  # Encoder: 8 of 10 tokens and 3 that frame; decoder: all 11 but 2 of 10.
  for S, T, row, together in [
    (22, 18, ends, 2), (21, 18, ends, 1), (22, 17, ends, 1),
    (24, 18, cut, 2), (23, 18, cut, 1), (24, 17, cut, 1),
  ]:  # fmt: skip
    packed = list(objective.pack([row, row], IDS, S, T))
    assert len(packed) == 3 - together, (S, T)
  both = [*ends, IDS.doc, *cut]
  assert [list(r) for r in objective.pack([ends, cut], IDS, 99, 99)] == [both]


def test_denoising_rows_go_on_where_the_last_one_ended():
  """A row that ends with its document is not followed by a separator."""
  documents = [np.arange(100, 104), np.arange(200, 206), np.arange(300, 303)]
  rows = [list(row) for row in Denoise().rows(documents, IDS, 4)]
  assert rows == [
    [100, 101, 102, 103], [200, 201, 202, 203], [204, 205, IDS.doc, 300],
    [301, 302],
  ]  # fmt: skip
  rows = [list(row) for row in Denoise().rows(documents, IDS, 5)]
  assert rows == [
    [100, 101, 102, 103, IDS.doc], [200, 201, 202, 203, 204],
    [205, IDS.doc, 300, 301, 302],
  ]  # fmt: skip


@pytest.mark.parametrize('packs', [False, True])
def test_pairs_are_what_was_given(packs):
  pairs = [
    ([100, 101, 102], [200, 201]), ([], [203]), ([104], []),
    ([105], [206, 207, 208, 209]), ([110, 111], [212]),
  ]  # fmt: skip
  objective, (S, T) = Pairs(packs=packs), (6, 7)
  assert objective.row_length(S, T) == 13
  rows = list(objective.rows(pairs, IDS, 13))
  pairs.pop(2)  # nothing to learn from
  assert [list(row) for row in rows] == [
    [1, len(n), len(m), *n, *m] for n, m in pairs
  ]
  if packs:
    rows = list(objective.pack(rows, IDS, S, T))
    assert [row[0] for row in rows] == [3, 1]
    assert list(rows[0]) == [
      3, 3, 2, 0, 1, 1, 4, 100, 101, 102, 200, 201, 203, 105, 206, 207, 208,
      209,
    ]  # fmt: skip
  tokens = np.zeros((len(rows), 20), np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
  batch = objective.examples(tokens, None, None, IDS, S, T)
  seen, given = [], 0
  for r, row in enumerate(rows):
    targets = []
    for k in range(1, row[0] + 1):
      source = batch['encoder_segment_ids'][r] == k
      target = batch['decoder_segment_ids'][r] == k
      n, m = (
        list(batch[name][r][inside])
        for name, inside in (
          ('encoder_input_tokens', source), ('decoder_target_tokens', target)
        )
      )  # fmt: skip
      shifted = list(batch['decoder_input_tokens'][r][target])
      assert shifted == [IDS.bos, *m[:-1]]
      seen.append((n, m))
      targets += m
    assert list(objective.targets(row)) == targets
    given += len(targets)
  assert seen == pairs
  assert batch['decoder_loss_weights'].sum() == given
