"""The objectives are those of the paper, whatever the row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atm import objectives
from atm.objectives import CLM, Denoise, Ids

IDS = Ids(pad=0, bos=1, eos=2, clm=5, doc=6)
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
  key = objectives.keys(seed)[None]
  batch = objective.examples(tokens, length, key, IDS, n + 2, n + 1)
  source, target = unframe(batch)
  assert list(target) == [*tokens[0], IDS.eos]
  assert source[0] == IDS.bos and source[-1] == IDS.eos
  kept = source[1:-1]
  assert len(kept) == n - int(np.floor(n * density + 0.5))
  assert (np.diff(kept) > 0).all()  # a subsequence, in order
  assert set(kept) <= set(tokens[0])


@given(seed=seeds, others=st.integers(0, 3), width=st.integers(40, 60))
def test_noise_of_a_row_depends_on_its_key_alone(seed, others, width):
  tokens, length = row_of(40, width)
  key = objectives.keys(seed)[None]
  alone = objectives.keep_mask(key, length, width, 0.15, 3.0)[0]
  lengths = np.concatenate([np.full(others, 7), length])
  keys = objectives.keys(np.arange(others + 1) + 9)
  keys[-1] = key[0]
  among = objectives.keep_mask(keys, lengths, width, 0.15, 3.0)[-1]
  np.testing.assert_array_equal(alone, among)


def spans_of(mask):
  """Lengths of the runs of False within each row of a mask."""
  edges = np.diff(np.pad((~mask).astype(int), ((0, 0), (1, 1))), axis=1)
  starts, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
  return starts, ends[:, 1] - starts[:, 1]


def test_spans_are_poisson_and_uniform_over_the_row():
  B, n = 20_000, 100
  keys = objectives.keys(7, np.arange(B))
  mask = objectives.keep_mask(keys, np.full(B, n), n, 0.15, 3.0)
  assert ((~mask).sum(1) == 15).all()
  # Every place is dropped equally often, but for the first and last few, which
  # fewer whole spans can cover, alike at both ends.
  share = (~mask).mean(0)
  assert abs(share[8:-8] - share[8:-8].mean()).max() < 0.01
  assert abs(share - share[::-1]).max() < 0.01
  starts, lengths = spans_of(mask)
  assert 2.2 < lengths.mean() < 3.2  # Poisson(3) without 0, and one cut a row
  # The cut span (here: the last drawn) is anywhere: the last span of a row is
  # not shorter than the first.
  first = lengths[np.r_[True, np.diff(starts[:, 0]) > 0]]
  last = lengths[np.r_[np.diff(starts[:, 0]) > 0, True]]
  assert abs(first.mean() - last.mean()) < 0.05


def test_span_lengths_follow_the_zero_truncated_poisson():
  budget = np.full(2000, 1000)
  drawn = objectives.span_lengths(
    objectives.keys(3, np.arange(2000)), budget, 3.0
  )
  assert (drawn.sum(1) == budget).all()
  seen = np.bincount(drawn[:, :100].ravel(), minlength=12)[1:12]
  k = np.arange(1, 12)
  factorial = np.cumprod(k.astype(float))
  expected = np.exp(-3.0) * 3.0**k / factorial / (1 - np.exp(-3.0))
  np.testing.assert_allclose(seen / seen.sum(), expected, atol=0.005)


@given(n=st.integers(2, 300), seed=seeds, ends=st.booleans())
def test_clm_splits_one_document_at_20_to_80_percent(n, seed, ends):
  tokens, length = row_of(n)
  if ends:
    tokens = np.concatenate([tokens, [[IDS.eos]]], axis=1)
    length = length + 1
  key = objectives.keys(seed)[None]
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
  cut = CLM().split(np.full(B, 1000), objectives.keys(1, np.arange(B)))
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
      tokens, length, objectives.keys(seed)[None], IDS, S, T
    )
    assert batch['encoder_input_tokens'].shape == (1, S)
    assert batch['decoder_target_tokens'].shape == (1, T)


def test_the_papers_lengths():
  assert Denoise().row_length(1024, 1024) == 1023
  assert CLM().row_length(1024, 1024) == 1024


def test_weights_do_not_depend_on_the_id_of_padding():
  """Fault seen: weights read off `target != 0`."""
  ids = Ids(pad=3, bos=1, eos=2, clm=5, doc=6)
  tokens = np.array([[0, 0, 3, 8]], np.int32)
  batch = Denoise(density=0.01).examples(
    tokens, np.array([4]), objectives.keys(0)[None], ids, 8, 8
  )
  assert batch['decoder_loss_weights'].sum() == 5
  assert batch['encoder_segment_ids'].sum() == 6
  assert list(batch['decoder_target_tokens'][0]) == [0, 0, 3, 8, 2, 3, 3, 3]
  assert list(batch['decoder_input_tokens'][0]) == [1, 0, 0, 3, 8, 3, 3, 3]


def test_bad_settings_are_refused():
  with pytest.raises(ValueError, match=r'density = 0.7: expected \(0, 0.5\]'):
    Denoise(density=0.7)
  with pytest.raises(ValueError, match='low = 0.9'):
    CLM(low=0.9)
  with pytest.raises(ValueError, match='leave no room'):
    Denoise().row_length(4, 4)
