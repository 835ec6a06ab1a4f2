"""A search of a run's settings: what it tries, what it says, how it ends."""

import json
import os

import pytest

from atm.plan import search, search_report, train_plan, workers
from atm.plan.search import Search
from atm.plan.search_space import CostModel

from plan_runs import OWN, SMALL, MadeUpPlans, run, simulate_pod


def search_of(**changed) -> Search:
  return Search(train_plan.plan, run(**changed))


@pytest.fixture
def planned(monkeypatch):
  """Plans are made up."""
  simulate_pod(monkeypatch)
  return MadeUpPlans(monkeypatch)


def test_a_search_tries_many_and_plans_the_best(planned, tmp_path):
  """Faults seen: the run's own left out; the slowest three planned."""
  lines = []
  found = search_of(model_dir=str(tmp_path), say=lines.append).run()
  assert planned.tried[0] == OWN and len(planned.tried) == search.MOST_TRIED
  assert len(set(planned.tried)) == search.MOST_TRIED
  assert planned.whole[0] == OWN and 3 <= len(planned.whole) <= 4
  estimates = [sum(r['estimate_s']) for r in found['rows']]
  assert estimates == sorted(estimates)
  best = found['rows'][:3]
  assert all(r['plan'] for r in best if not r['own'])
  # By the made-up plans, the smaller fsdp the faster.
  whole = sorted(planned.whole, key=lambda c: c.fsdp)
  assert found['best'] == whole[0].bindings()
  total = len(CostModel(run()).candidates())
  assert sum(found['left_out'].values()) + search.MOST_TRIED == total
  with open(tmp_path / search.SEARCH_FILE) as f:
    assert json.load(f) == json.loads(json.dumps(found))
  assert os.path.getsize(tmp_path / search_report.PICTURE) > 10_000
  for line in (*found['best'], 'slower by the formula'):
    assert line in lines[-1]
  assert f'[{search.MOST_TRIED}/{search.MOST_TRIED}]' in ''.join(lines)


def test_one_whose_remat_is_being_planned_waits(planned, monkeypatch):
  """Fault seen: two of a remat at once, before the first had its cycles."""
  begun = []

  def two_at_a_time(plan, jobs, processes=None):
    running = []
    for name, settings, fast in jobs:
      if not fast:
        begun.append((name.remat, {job[0].remat for job in running}))
      running.append((name, planned.make(settings, fast)))
      if len(running) == 2:
        yield running.pop(0)
    yield from running

  monkeypatch.setattr(workers, 'run_plans', two_at_a_time)
  search_of().run()
  assert len(begun) >= 3
  assert all(remat not in others for remat, others in begun)


def test_headroom_is_wanted_where_there_is_any(planned):
  """Fault seen: the fastest taken, with a hundredth left."""
  for candidate in CostModel(run()).candidates():
    planned.sizes[candidate] = 15.6 if candidate.remat != 'full' else 10.0
  found = search_of().run()
  assert {c.remat for c in planned.whole[1:]} == {'full'}
  assert "model.Config.remat = 'full'" in found['best']
  planned.sizes = dict.fromkeys(planned.sizes, 15.6)
  assert search_of().run()['best']


def test_where_the_fastest_do_not_fit_small_ones_are_tried(planned):
  """And none that keeps no less than one that did not fit.

  Faults seen: all tries spent on the fastest; a hopeless one tried.
  """
  model = CostModel(run())
  least = min(model.candidates(), key=model.least_memory)
  for candidate in model.candidates():
    planned.sizes[candidate] = 10.0 if candidate == least else 20.0
  found = search_of().run()
  assert found['best'] == least.bindings()
  tried = planned.tried
  for number, candidate in enumerate(tried):
    before = [c for c in tried[:number] if c != least]
    assert not any(model.keeps_no_less(candidate, c) for c in before)
  planned.sizes = dict.fromkeys(planned.sizes, 20.0)
  lines = []
  found = search_of(say=lines.append).run()
  assert found['left_out'][search.LARGER]
  assert found['best'] is None and 'none fits' in lines[-1]


def test_one_that_fails_is_a_row(planned):
  """Of the partial plans and of the whole ones."""
  fast = CostModel(run()).candidates()
  planned.failing = dict.fromkeys(fast[1:], 'INTERNAL: a bug')
  lines = []
  found = search_of(say=lines.append).run()
  assert found['best'] == OWN.bindings()
  failed = [r for r in found['rows'] if r['error']]
  assert len(failed) == search.MOST_TRIED - 1
  assert lines[-1].count('INTERNAL: a bug') == len(failed)


def test_what_was_found_is_kept_when_interrupted(planned, tmp_path):
  third = search_of()._queue()[2]
  planned.failing = {third: KeyboardInterrupt()}
  lines = []
  with pytest.raises(KeyboardInterrupt):
    search_of(model_dir=str(tmp_path), say=lines.append).run()
  with open(tmp_path / search.SEARCH_FILE) as f:
    found = json.load(f)
  assert len(found['rows']) == 2 and not found['finished']
  assert 'stopped before its end' in lines[-1]
  assert found['left_out'][search.STOPPED]


@pytest.mark.libtpu
def test_a_search_of_a_small_model(monkeypatch):
  monkeypatch.setattr(search, 'MOST_TRIED', 1)
  monkeypatch.setattr(search, 'BEST', 1)
  lines = []
  found = search_of(**SMALL, say=lines.append).run()
  assert found['finished'] and len(found['rows']) == 1
  assert all(r['fits'] and r['wire_bytes'] for r in found['rows'])
  assert found['best'] and 'estimated' in lines[-1]
