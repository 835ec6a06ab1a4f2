"""Comparisons of a model with what transformers computed."""

import dataclasses

import numpy as np
import pytest

from atm.evals import check_prompts, model_comparison, peer_outputs
from atm.evals.check_report import Report
from atm.inference import api

from goldens import HERE


@pytest.fixture(scope='module')
def model():
  return api.load(f'{HERE}/blenderbot_generate')


def make_report():
  lines = []
  return Report(lines.append), lines


def test_the_first_difference_of_ids_is_told():
  prompts = [check_prompts.Prompt('a b', [5, 6, 2]), *[
    check_prompts.Prompt('c', [7, 2])] * 2]  # fmt: skip
  report, lines = make_report()
  model_comparison.compare_ids(report, prompts, [[5, 6, 2], [7, 2], [7, 2]])
  assert report.facts == ['token ids 3 of 3 equal']
  model_comparison.compare_ids(report, prompts, [[5, 8, 2], [7, 2], [7]])
  assert report.problems == [
    "token ids 1 of 3 equal ('a b', place 1: [6, 2], not [8, 2])"
  ]
  model_comparison.compare_ids(report, prompts[1:], [[7, 2], [7]])
  assert report.problems[1].endswith("('c', place 1: [2], not [])")
  count = len(lines)
  ids = [check_prompts.Prompt(None, [5])]
  model_comparison.compare_ids(report, ids, [[6]])
  assert len(lines) == count  # of prompts without text there is nothing to tell


def test_padding_changes_no_state(model):
  """A prompt of 3 ids is padded to 8, and the decoder's, too."""
  states, logits = model_comparison.compute_arrays(model, [5, 6, 2], [1, 7])
  assert states.shape == (3, 32) and logits.shape == (2, 96)
  np.testing.assert_allclose(
    logits, model.logits([[5, 6, 2]], [[1, 7]])[0], atol=1e-5
  )


def test_numbers_that_are_not_finite_are_a_problem(model):
  prompts = check_prompts.list_prompts(model.config, None, limit=1)
  report, _ = make_report()
  model_comparison.check_alone(report, model, prompts)
  assert not report.problems
  params = dict(model.params)
  params['logits_bias'] = params['logits_bias'].at[5].set(np.nan)
  broken = dataclasses.replace(model, params=params)
  model_comparison.check_alone(report, broken, prompts)
  assert report.problems[0] == 'states, logits some are not finite'


def test_the_folders_own_settings_are_for_defaults_alone(model):
  own = {'beams': 6, 'length_penalty': 0.6, 'max_tokens': 200}
  mine = dataclasses.replace(model, generation_defaults=own)
  decodings = model_comparison.list_decodings(mine)
  assert [*decodings] == [*peer_outputs.DECODINGS]
  used = {
    name: config.with_defaults(model.generation_defaults)
    for name, (model, config) in decodings.items()
  }
  assert [c.beams for c in used.values()] == [1, 4, 6]
  assert [c.length_penalty for c in used.values()] == [1.0, 1.0, 0.6]
  assert {c.max_tokens for c in used.values()} == {16}


def test_a_forced_token_is_of_the_folder_s_settings(model):
  """Fault seen: plain decoding began with it, and told a false difference."""
  forced = dataclasses.replace(model, forced_bos_id=12)
  prompts = check_prompts.list_prompts(model.config, None, limit=1)
  decodings = model_comparison.list_decodings(forced)
  starts = {
    name: model_comparison.find_start(decoding[0], prompts[0])
    for name, decoding in decodings.items()
  }
  first = model.config.start_id
  assert starts['greedy'] == starts['beams'] == [first]
  assert starts['defaults'] == [first, 12]
  report, _ = make_report()
  model_comparison.check_alone(report, forced, prompts)
  assert not report.problems
