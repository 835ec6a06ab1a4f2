"""Inputs and pairs as ids; Model.complete and Model.score are tested beside."""

import pytest

from atm.inference import framed_inputs, sampling

from small_models import untrained


def test_inputs_bring_all_that_decoding_reads(words):
  framed = framed_inputs.frame_inputs(
    untrained(words), ['All human beings'], config=sampling.Config(seed=3),
    prefixes=['are'], stop=['.'], banned=['born'],
  )  # fmt: skip
  assert framed.config.seed == 3 and framed.numbers == range(1)
  assert framed.prefixes[0][1:] == words.encode('are') and framed.forced == [0]
  assert framed.stop == ('.',) and framed.stop_table is not None
  assert words.encode('born') in framed.banned


def test_pairs_are_as_many_as_targets(words):
  model = untrained(words)
  pairs = framed_inputs.frame_pairs(
    model, ['All'], ['human'], None, None, 'refuse', None, None
  )
  assert pairs.targets[0][-1] == model.config.end_id
  assert pairs.starts == [model.config.start_id]
  with pytest.raises(ValueError, match='1 inputs, but 0 targets'):
    framed_inputs.frame_pairs(model, ['a'], [], None, None, 'end', None, None)
