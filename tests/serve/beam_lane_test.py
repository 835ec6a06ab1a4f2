"""Requests with beams take a group each, and are told at the end alone."""

import threading
import types

import numpy as np
import pytest

from atm.inference import sampling
from atm.serve.beam_lane import BeamLane
from atm.serve.engine import Ticket
from atm.serve.engine_sizes import EngineSizes
from atm.serve.generation_request import GenerationRequest
from atm.serve.job import Job
from atm.serve.observer import Observer

K, G, T = 3, 2, 8


class Recorder:
  """Programs that compute nothing: each group has found `score`s."""

  sizes = EngineSizes(beam_groups=G, beams=K, max_input=16, max_output=T)
  rows, banks, bank_rows, in_blocks = G, 1, G, False
  windows = ((G, T, 16),)

  def read_beams(self, state, with_top):
    beams = lambda scores: {
      'ids': np.tile(np.arange(5, 5 + T, dtype=np.int32), (G, K, 1)),
      'log_probabilities': np.full((G, K, T), -0.5, np.float32),
      'length': np.full((G, K), 2),
      'count': np.full((G, K), 2),
      'score': np.full((G, K), scores, np.float32),
    }
    full = np.zeros((G, K), bool)
    full[:, 0] = True
    return {
      'finished': beams([-3.0, -1e9, -1e9]),
      'running': beams([-1.0, -4.0, -1e9]),
      'full': full,
    }


@pytest.fixture
def lane() -> BeamLane:
  lane = BeamLane(Recorder(), None, Observer(), threading.Condition())
  lane._states = [None]
  return lane


def submit(lane, **settings) -> tuple[Job, list]:
  """Returns a request that has a group, and where its news come."""
  config = sampling.Config(**{**dict(beams=K, results=K), **settings})
  request = GenerationRequest((5, 6), (1,), config)
  news = []
  deliver = lambda i, update: news.append(update)
  job = Job(request, Ticket(lambda: None), 0, deliver)
  assert lane._place(job)
  return job, news


def test_a_request_takes_one_group_whatever_its_beams(lane):
  jobs = [submit(lane, beams=n, results=1)[0] for n in (2, 3)]
  assert [job.slots for job in jobs] == [[0], [1]]
  assert lane.rows == G * K == lane.count_taken()
  third = Job(jobs[0].request, Ticket(lambda: None), 0, None)
  assert not lane._place(third)
  lane.take_out(lambda job: job is jobs[0], collects=False)
  assert lane._place(third) and third.slots == [0]


def test_what_ends_early_has_its_running_beams(lane):
  """By their score for each token, behind what has finished by itself."""
  job, news = submit(lane)
  lane.collect_early({job: 'timeout'})
  job.deliver(Observer())
  (update,) = news
  assert [x.reason for x in update.outputs] == ['timeout', 'timeout', 'length']
  assert [x.score for x in update.outputs] == [-0.5, -2.0, -3.0]
  assert all(x.ids == [5, 6] for x in update.outputs)


def test_nothing_is_told_before_the_end(lane):
  job, news = submit(lane, results=1)
  steps = lambda is_open: types.SimpleNamespace(
    count=2, is_open=np.array([is_open, False])
  )
  lane._tell(steps(True), [], 0.0)
  assert not news and job.outputs[0].position == 2
  lane._tell(steps(False), [], 0.0)
  (update,) = news
  assert update.ended == ((0, 'length'),)
  assert update.outputs[0].score == -3.0
  assert update.outputs[0].log_probabilities == [-0.5, -0.5]
  assert not lane.taken


def test_what_there_is_no_room_for_is_refused(lane):
  request = lambda **x: GenerationRequest((5,), (1,) * 8, sampling.Config(**x))
  with pytest.raises(ValueError, match='beams = 4: expected at most 3'):
    lane.check(request(beams=4))
  with pytest.raises(ValueError, match='a prefix of 7 tokens'):
    lane.check(request(beams=2))
