"""Requests of every kind end at any step, and leave nothing behind.

The test takes the engine's turns itself, by a clock of its own, so that it can
look between any two of them.
"""

import types

import numpy as np
import pytest

from atm.inference import sampling
from atm.serve import engine as engine_module
from atm.serve import job as job_module
from atm.serve.engine import Engine
from atm.serve.generation_request import GenerationRequest

TURNS = 120
STOPS = (('e',), ('a', 'no'), ('xx', 'ore', 't t'), ('r',) * 2 + ('plain',))


class HandDriven(Engine):
  """An engine without a thread, with the programs of another."""

  def __init__(self, other: Engine, monkeypatch):
    super().__init__(other.model, other.sizes, say=lambda text: None)
    for lane, compiled in zip(self._lanes, other._lanes, strict=True):
      lane.programs = compiled.programs
      lane._states = lane.programs.allocate()
    self._is_taking = True
    self.now = 0
    clock = types.SimpleNamespace(perf_counter=lambda: self.now)
    for module in engine_module, job_module:
      monkeypatch.setattr(module, 'time', clock)

  def take_turn(self) -> None:
    """Takes a turn of the loop, of one second."""
    self.now += 1
    self._take_turn(self._lanes)

  def check_rows(self) -> None:
    """Checks that each row is free or taken by who runs, and stop strings."""
    users = {}
    for lane in self._lanes:
      assert sorted([*lane._free, *lane.taken]) == [*range(lane.programs.rows)]
      for slot, (job, _) in lane.taken.items():
        assert slot in job.slots and job not in lane.waiting
        if job.stops:
          users.setdefault(id(job.stops), set()).add(id(job))
      assert all(not job.slots and not job.stops for job in lane.waiting)
    parts = self._stops._parts.values()
    assert {id(x): x.users for x in parts if x.users} == {
      part: len(jobs) for part, jobs in users.items()
    }


class Sent:
  """A ticket's requests and what came of them."""

  def __init__(self, engine: HandDriven, requests):
    self.requests, self.updates = requests, [[] for _ in requests]
    self.submitted, self.cancelled = engine.now, None
    self.ticket = engine.submit(
      requests, lambda i, update: self.updates[i].append(update)
    )

  @property
  def is_over(self) -> bool:
    return all(x and x[-1].outputs is not None for x in self.updates)

  def outputs(self) -> list:
    """Returns the outputs of each request, which has ended once."""
    for updates in self.updates:
      assert sum(x.outputs is not None for x in updates) == 1
      assert updates[-1].error is None
      ended = [x for update in updates for x in update.ended]
      reasons = {i: x.reason for i, x in enumerate(updates[-1].outputs)}
      assert len(ended) == len(reasons) and dict(ended) == reasons
    return [x[-1].outputs for x in self.updates]


def draw_request(rng, model) -> GenerationRequest:
  """Returns a request: greedy, sampled, by beams, or of targets to score."""
  ids = lambda most: tuple(
    rng.integers(5, model.config.vocab_size, rng.integers(1, most)).tolist()
  )
  kind = rng.integers(4)
  if kind == 3:
    return GenerationRequest(
      ids(48), (model.config.start_id, *ids(4)), targets=ids(20),
      seconds=draw_seconds(rng),
    )  # fmt: skip
  config = [
    dict(),
    dict(temperature=1.2, results=int(rng.integers(1, 4)), top_p=0.9),
    dict(beams=int(rng.integers(2, 5)), results=2),
  ][kind]
  table = None
  if rng.random() < 0.4:
    framing = model._framing
    table = framing.stop_table(framing.stops(STOPS[rng.integers(len(STOPS))]))
  return GenerationRequest(
    ids(48),
    (model.config.start_id, *ids(6)),
    sampling.Config(max_tokens=int(rng.integers(1, 40)), **config),
    stop_table=table,
    banned=((7,),) * int(rng.integers(2)),
    top=int(rng.integers(3)),
    seconds=draw_seconds(rng),
  )


def draw_seconds(rng) -> float | None:
  return float(rng.integers(1, 6)) if rng.random() < 0.2 else None


def check_ended(sent: Sent, now: int) -> None:
  """Checks that requests end in time, for the reason that they have."""
  if sent.cancelled is not None and sent.cancelled < now:
    assert sent.is_over
  for request, updates in zip(sent.requests, sent.updates):
    late = request.seconds is not None
    if late and now - sent.submitted >= request.seconds:
      assert updates[-1].outputs is not None
    for output in updates[-1].outputs or () if updates else ():
      assert output.reason != 'cancelled' or sent.cancelled is not None
      assert output.reason != 'timeout' or late
      count = len(output.log_probabilities)
      assert count <= request.config.max_tokens or request.targets
      assert len(output.top) == (count if request.top else 0)


@pytest.mark.parametrize('seed', [0, 1])
def test_nothing_is_left_behind(engine, monkeypatch, seed):
  rng, mine = np.random.default_rng(seed), HandDriven(engine, monkeypatch)
  for lane in mine._lanes:
    choose = lambda window: int(rng.integers(1, 4))
    monkeypatch.setattr(lane.programs.times, 'choose_steps', choose)
  all_sent = []
  for turn in range(TURNS * 4):
    if turn < TURNS and rng.random() < 0.5:
      requests = [draw_request(rng, mine.model) for _ in range(rng.integers(4))]
      all_sent.append(Sent(mine, requests))
    open_ones = [x for x in all_sent if not x.is_over and x.cancelled is None]
    if open_ones and rng.random() < 0.15:
      chosen = open_ones[rng.integers(len(open_ones))]
      chosen.ticket.cancel()
      chosen.cancelled = mine.now
    mine.take_turn()
    mine.check_rows()
    for sent in all_sent:
      check_ended(sent, mine.now)
    if turn > TURNS and not mine._list_jobs():
      break
  assert mine.stats().used_slots == mine.stats().waiting == 0
  ended = [x.outputs() for x in all_sent]
  reasons = {y.reason for x in ended for z in x for y in z}
  assert reasons == {'stop', 'length', 'cancelled', 'timeout'}
  for request, outputs in whole_ones(all_sent)[:12]:
    alone = Sent(mine, [request])
    while not alone.is_over:
      mine.take_turn()
    (repeated,) = alone.outputs()
    assert [x.ids for x in repeated] == [x.ids for x in outputs]


def whole_ones(all_sent) -> list:
  """Returns requests that ended by themselves, with their outputs."""
  pairs = [y for x in all_sent for y in zip(x.requests, x.outputs())]
  by_itself = {'stop', 'length'}
  return [
    (request, outputs)
    for request, outputs in pairs
    if request.seconds is None and {x.reason for x in outputs} <= by_itself
  ]
