"""Log-probabilities of given targets, several of them in a row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.inference import loglikelihood

from conftest import tiny


def test_what_is_given_is_not_scored(model, rng):
  """p(a b) = p(a) p(b | a), and all of it is greedy where both are."""
  source, target = rng.integers(7, 2048, (2, 6, 9)).tolist()
  whole, _ = model.score(source, target)
  halves = [row[:4] for row in target], target
  (first, n, _), (rest, m, _) = (
    model.likelihoods(source, rows, given, batch_size=4)
    for rows, given in zip(halves, ([0] * 6, [4] * 6), strict=True)
  )
  np.testing.assert_allclose(first + rest, whole, rtol=1e-5)
  assert n.tolist() == [4] * 6 and m.tolist() == [5] * 6
  made = model.generate(source, max_tokens=6)
  *_, greedy = model.likelihoods(source, made)
  assert greedy.all() and len(made[2]) == 6
  made[2][4] = 7 if made[2][4] != 7 else 8
  given = [0, 0, 3, 0, 0, 0]
  *_, greedy = model.likelihoods(source, made, given)
  assert greedy.tolist() == [i != 2 for i in range(6)]


def test_choices_of_one_question_share_their_encoder_input(model):
  """Fault seen: rows opened for each pair."""
  sources = [[5, 6], [7], [5, 6], [5, 6], [7]]
  targets = [[1], [2, 2], [3], [4] * 9, [5]]
  made = loglikelihood.pack_targets(sources, targets, 8)
  assert [row.source for row in made] == [[7], [5, 6], [5, 6]]
  assert [row.numbers for row in made] == [[1, 4], [0, 2], [3]]
  together = model.likelihoods(sources, targets, [0, 1, 0, 3, 0])
  for i, found in enumerate(zip(*together)):
    alone = model.likelihoods([sources[i]], [targets[i]], [[0, 1, 0, 3, 0][i]])
    np.testing.assert_allclose(found[0], alone[0][0], rtol=1e-5)
    assert found[1:] == (alone[1][0], alone[2][0])


def test_targets_of_a_row_are_segments_of_their_own():
  """Faults seen: positions that go on; the start token before the first only;
  tokens that are given counted."""
  config = tiny()
  rows = [loglikelihood.TargetsRow([5], [1, 0], 5)]
  targets = [[7, 8], [9, 4, 6]]
  batch = loglikelihood.decoder_batch(rows, targets, 2, config)
  start, pad = config.start_id, config.pad_id
  want = {
    'target_tokens': [9, 4, 6, 7, 8, pad],
    'input_tokens': [start, 9, 4, start, 7, pad],
    'segment_ids': [1, 1, 1, 2, 2, 0],
    'positions': [0, 1, 2, 0, 1, 0],
  }
  for name, row in want.items():
    array = batch[f'decoder_{name}']
    assert array.shape == (2, 16) and array[0, :6].tolist() == row
  assert not batch['decoder_segment_ids'][1].any()
  logs = -np.arange(1.0, 17, dtype=np.float32)
  likeliest = np.array([False, True, True, True, False] + [False] * 11)
  sums = loglikelihood.sum_targets(rows[0], targets, [0, 1], logs, likeliest)
  assert sums == [(1, -5.0, True), (0, -9.0, False)]


def test_lengths_are_padded_by_an_eighth_at_most():
  for n in range(1, 600):
    T = loglikelihood.padded_length(n)
    assert n <= T <= max(n + 15, n * 9 / 8)
  assert len({loglikelihood.padded_length(n) for n in range(513, 1025)}) <= 8


def test_as_much_as_a_target_cannot_be_given(model):
  for given in (-1, 2, 3):
    with pytest.raises(
      ValueError, match=rf'given\[1\] = {given}: expected 0 t'
    ):
      model.likelihoods([[9], [9]], [[7, 8], [7, 8]], [1, given])
  assert model.likelihoods([[9]], [[7, 8]], [1])[1].tolist() == [1]


def test_logits_are_those_that_score(model):
  """Float32, of the token after each decoder token; nothing is dropped."""
  source, target, start = [[9, 10, 11]], [12, 13, 14], model.config.start_id
  dropping = dataclasses.replace(model.config, dropout=0.5)
  logits = dataclasses.replace(model, config=dropping).logits(
    source, [[start, *target[:-1]]]
  )
  assert logits.dtype == np.float32
  each = jax.nn.log_softmax(logits[0])[jnp.arange(3), jnp.array(target)]
  (total,), *_ = model.likelihoods(source, [target])
  np.testing.assert_allclose(each.sum(), total, rtol=1e-5)
