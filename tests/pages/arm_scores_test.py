"""Scores of arms by shots and by FLOPs, of the same questions."""

import pytest

from atm.pages import arm_charts, arm_scores

import arm_runs


def figures(runs, *kinds):
  arms = arm_charts.group_arms(runs)
  return [arm_scores.score_figures(arms, kind) for kind in kinds]


def test_scores_by_shots_and_by_flops():
  (shots,), (flops,) = figures(arm_runs.make_arms(), 'shots', 'flops')
  assert [x for x, _ in shots.points['decoder']] == [1, 4]
  assert [x for x, _ in flops.points['decoder']] == [1e11, 2e11]
  assert shots.points['decoder'][-1][1] == flops.points['decoder'][-1][1]
  assert shots.levels == {'chance': 25.0} and shots.whole and shots.percent
  text = ' '.join(shots.sentences)
  assert 'decoder answers 9' in text and 'above the chance of 25.0%' in text
  assert 'From 1 to 4 shots gain ' in text and '60 questions a point' in text
  assert 'would not show' in text
  for _, each in shots.points['seq2seq']:
    assert 0 <= each.low <= each.value <= each.high <= 100


def test_a_set_has_its_mean_and_its_tasks():
  runs = arm_runs.make_arms()
  for run in runs:
    run['evaluations'] += [
      {**entry, 'task': 'edits', 'right': 'ff' * 8}
      for entry in run['evaluations']
    ]
  (found,) = figures(runs, 'shots')
  assert [each.caption for each in found] == [
    'in_context: mean of 2 tasks', 'recall', 'edits'
  ]  # fmt: skip
  mean, one, other = (f.points['decoder'][0][1].value for f in found)
  assert other == 100 and mean == pytest.approx((one + other) / 2)


def test_other_questions_are_refused():
  """Also between arms; and what one run lacks is left out."""
  runs = arm_runs.make_arms()
  runs[-1]['evaluations'][-1]['asked'] = 'other'
  with pytest.raises(ValueError, match='recall with 4 shots .* other question'):
    figures(runs, 'shots')
  runs = arm_runs.make_arms()
  for run in runs[3:]:
    run['evaluations'][-1]['asked'] = 'other'
  with pytest.raises(ValueError, match='other questions in decoder'):
    figures(runs, 'shots')
  runs = arm_runs.make_arms()
  del runs[-1]['evaluations'][:]
  (found,) = figures(runs, 'shots')
  assert list(found[0].points) == ['seq2seq']


def test_arms_have_one_place_where_their_flops_are_nearly_equal():
  runs = arm_runs.make_arms()
  for factor, same in ((1.01, True), (1.1, False)):
    for run in runs[3:]:
      for entry in run['evaluations']:
        entry['flops'] = factor * 1e9 * entry['step']
    (found,) = figures(runs, 'flops')
    places = {x for mine in found[0].points.values() for x, _ in mine}
    assert len(places) == (2 if same else 4)
    assert len(found[0].differences['decoder']) == (2 if same else 1)


def test_what_arms_do_not_share_is_left_out():
  """Fault seen: scores with 4 shots were compared with those without any."""
  runs = arm_runs.make_arms()
  for run in runs[3:]:
    run['evaluations'] = [e for e in run['evaluations'] if e['shots'] == 1]
  (shots,), (flops,) = figures(runs, 'shots', 'flops')
  assert [x for x, _ in shots.differences['decoder']] == [1]
  assert 'with 1 shots' in flops.sentences[0]
  for run in runs[3:]:
    run['evaluations'] = [{**entry, 'shots': 2} for entry in run['evaluations']]
  shots, flops = figures(runs, 'shots', 'flops')
  assert not flops and len(shots[0].points['decoder']) == 1


def test_arms_are_set_against_the_first_or_nothing():
  """Fault seen: where the first has no scores, another was called the first."""
  runs = arm_runs.make_arms()
  for run in runs[:3]:
    run['evaluations'] = []
  third = [arm_runs.make_run('third', seed) for seed in range(3)]
  (found,) = figures([*runs, *third], 'shots')
  assert list(found[0].points) == ['decoder', 'third']
  assert found[0].differences == {}
  assert not any('difference to' in line for line in found[0].sentences)


def test_an_oracle_is_drawn_by_shots():
  """What prompts allow rises with the shots."""
  runs = arm_runs.make_arms()
  for run in runs:
    for entry in run['evaluations']:
      entry['oracle'] = 60.0 if entry['shots'] == 1 else 100.0
  (shots,), (flops,) = figures(runs, 'shots', 'flops')
  assert shots.levels['oracle'] == {1: 60, 4: 100}
  assert flops.levels['oracle'] == 100
  assert 'At most 100.0% can be answered' in shots.sentences[-1]
  svg = shots.page_data()['svg']
  assert svg != figures(arm_runs.make_arms(), 'shots')[0][0].page_data()['svg']
