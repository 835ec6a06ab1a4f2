"""Changes of a run that does not fit."""

import dataclasses

import pytest

from atm.plan import suggestions, train_plan
from atm.plan.search_space import CostModel

from conftest import tiny
from plan_runs import OWN, MadeUpPlans, run, simulate_pod


@pytest.fixture
def simulated(monkeypatch):
  """Simulated devices stand for the pod's chips."""
  simulate_pod(monkeypatch)


@pytest.fixture
def planned(monkeypatch):
  """Plans are made up."""
  simulate_pod(monkeypatch)
  return MadeUpPlans(monkeypatch)


def test_changes_are_tried_until_three_fit(planned):
  """The fewest settings first. Fault seen: one told that does not fit."""
  model = CostModel(run())
  least = model.least_memory(OWN)
  needs = 2 * model.usable
  every = suggestions.possible_changes(model, needs)
  assert OWN not in every
  count = [len(suggestions.change_costs(model, c)) for c in every]
  assert count == sorted(count) and count[0] == 1 and count[-1] == 4
  for candidate in model.candidates():
    share = model.least_memory(candidate) / least
    planned.sizes[candidate] = 2 * 15.75 * share
  planned.sizes[dataclasses.replace(every[0], rounded=False)] = 20.0
  rows = suggestions.find_fitting(train_plan.plan, run(), needs)
  assert len(rows) == 3 and len(planned.tried) <= 5
  assert all(r['peak_hbm_gib'] <= 15.75 and r['change'] for r in rows)
  planned.sizes, planned.tried = dict.fromkeys(planned.sizes, 20.0), []
  assert suggestions.find_fitting(train_plan.plan, run(), needs) == []
  assert len(planned.tried) == suggestions.MOST_PLANS


def test_rounded_moments_are_bound(simulated):
  rounded = dataclasses.replace(OWN, rounded=True)
  made = rounded.settings(run(), 1)
  assert "MOMENTS_DTYPE = 'bfloat16'" in rounded.bindings()
  model = CostModel(run())
  assert model.least_memory(rounded) < model.least_memory(OWN)
  assert made['optimizer_config'].moments_dtype == 'bfloat16'
  assert made['model_config'] == tiny()
