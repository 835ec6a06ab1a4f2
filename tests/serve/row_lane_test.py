"""Slots are taken first come, first served."""

import threading

from atm.inference import sampling
from atm.serve.engine import Ticket
from atm.serve.engine_sizes import EngineSizes
from atm.serve.generation_request import GenerationRequest
from atm.serve.job import Job
from atm.serve.observer import Observer
from atm.serve.row_lane import RowLane


class Recorder:
  """Programs that compute nothing."""

  sizes = EngineSizes(slots=4, max_input=64, max_output=64)
  rows = 4
  windows = ((2, 64, 64), (4, 64, 64))


def make_job(results: int) -> Job:
  sampled = sampling.Config(temperature=1.0, results=results)
  request = GenerationRequest((5,), (1,), sampled)
  return Job(request, Ticket(lambda: None), 0, lambda *news: None)


def test_a_request_of_many_rows_is_not_overtaken(monkeypatch):
  lane = RowLane(Recorder(), None, Observer(), threading.Condition())
  admitted = []
  monkeypatch.setattr(
    Recorder, 'find_batch', lambda self, lengths: (1, 32), raising=False
  )
  monkeypatch.setattr(
    lane, '_admit_batch', lambda jobs, B, S: admitted.extend(jobs)
  )
  three, many, one = jobs = [make_job(n) for n in (3, 4, 1)]
  lane.waiting.extend(jobs)
  lane._admit()
  assert admitted == [three] and list(lane.waiting) == [many, one]
  lane.take_out(lambda job: job is three)
  lane._admit()
  assert admitted == [three, many] and sorted(lane.taken) == [0, 1, 2, 3]
  lane.take_out(lambda job: job is many)
  lane._admit()
  assert one.slots == [0]


def test_inputs_are_in_the_fewest_rows_short_ones_first():
  lane = RowLane(Recorder(), None, Observer(), threading.Condition())
  assert lane._choose_slots(1, 16) == [0]
  assert lane._choose_slots(1, 17) == [1]  # more than a quarter of 64
  assert lane._choose_slots(3, 16) == [0, 1, 2]
  lane._free = [1, 2, 3]
  assert lane._choose_slots(2, 64) == [2, 3]


def test_an_idle_lane_takes_what_waits():
  siblings = []
  for _ in range(2):
    lock = threading.Condition()
    siblings.append(RowLane(Recorder(), None, Observer(), lock, siblings))
  busy, idle = siblings
  assert busy._place(make_job(1))
  busy.waiting.append(make_job(1))
  assert idle.waiting is busy.waiting and busy.list_jobs() != idle.list_jobs()
  assert busy._leaves_to_sibling() and not idle._leaves_to_sibling()
  assert idle._place(make_job(1)) and not busy._leaves_to_sibling()
